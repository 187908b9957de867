"""The renderer: same arguments give the same bytes, boxes are tight, nothing is overwritten."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
import pytest

from cvpeft.data.render import (
    CITIES,
    CLASSES,
    PARTS,
    ground,
    parts_file,
    render_dataset,
    render_scene,
    renderers,
    tiles,
)
from cvpeft.data.render import dataset as dataset_module
from cvpeft.data.render.camera import Camera, clip_polygon
from cvpeft.data.render.covers import CIRCLE, LOSE, Cover, box, visible
from cvpeft.data.render.noise import fractal, sparse_blur
from cvpeft.data.render.patterns import LIDS, PATTERNS, Material, lid
from cvpeft.data.render.scene import Plan, paint_street, plan
from cvpeft.data.render.sprite import draw
from cvpeft.errors import DataError, ResourceError

SMALL = (96, 128)
FULL = (480, 640)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def plans() -> dict[str, list[Plan]]:
    """150 plans of each city; a plan costs a millisecond."""
    return {name: [plan(city, seed, FULL) for seed in range(150)] for name, city in CITIES.items()}


# --- one scene ------------------------------------------------------------------------------------------------------


def test_a_scene_is_a_function_of_its_arguments() -> None:
    first, again, other = (render_scene(CITIES["a"], seed, SMALL) for seed in (7, 7, 8))
    assert first.image.shape == (*SMALL, 3)
    assert first.image.dtype == np.uint8
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [(64, 64), (300, 97), (90, 1100)])
def test_any_size_is_filled(size: tuple[int, int]) -> None:
    for seed in range(4):
        scene = render_scene(CITIES["c"], seed, size)
        assert scene.image.shape == (*size, 3)
        assert scene.image.std() > 3


def test_red_comes_first() -> None:
    """The warm city's images are redder than blue, the cold one's are not."""
    warm, cold = (np.mean([render_scene(CITIES[c], s, SMALL).image.mean((0, 1)) for s in range(6)], 0) for c in "bc")
    assert warm[0] - warm[2] > cold[0] - cold[2] + 5


def test_a_new_city_is_one_entry() -> None:
    city = dataclasses.replace(CITIES["a"], name="new", grounds={"setts": 1.0}, sunny=0.0)
    assert render_scene(city, 1, SMALL).image.shape == (*SMALL, 3)


def test_cities_differ_by_far_more_than_chance() -> None:
    def look(city: str, seeds: range) -> np.ndarray:
        images = np.stack([render_scene(CITIES[city], seed, SMALL).image for seed in seeds]).astype(float)
        edges = np.abs(np.diff(images, axis=2)).mean()
        return np.array([*(images.mean((0, 1, 2)) / images.mean() * 100), images.mean() / 2, edges])

    a, b, c, d = (look(name, range(12)) for name in "abcd")
    chance = np.linalg.norm(a - look("a", range(50, 62)))
    assert min(np.linalg.norm(x - y) for x, y in ((a, b), (a, c), (a, d), (b, c), (b, d), (c, d))) > chance


# --- covers and their boxes -----------------------------------------------------------------------------------------


def test_mix_of_images_and_classes(plans: dict[str, list[Plan]]) -> None:
    for name, made in plans.items():
        if name == "yard":  # made for training a base, not for looking like a town
            continue
        labels = np.array([cover.label for p in made for cover in p.covers])
        share = np.bincount(labels, minlength=len(CLASSES) + 1)[1:] / len(labels)
        assert 0.3 < share[0] < 0.5, name
        assert share.min() > 0.06, name
        assert 0.08 < np.mean([not p.covers for p in made]) < 0.25, name
        assert {len(p.covers) for p in made} >= {0, 1, 2, 3}, name
        assert max(len(p.covers) for p in made) <= 4, name


def test_the_yard_shows_many_covers_of_all_classes(plans: dict[str, list[Plan]]) -> None:
    labels = np.array([cover.label for p in plans["yard"] for cover in p.covers])
    assert len(labels) / len(plans["yard"]) > 3
    assert (np.bincount(labels, minlength=len(CLASSES) + 1)[1:] / len(labels)).min() > 0.06


def test_boxes_lie_inside_and_are_large_enough(plans: dict[str, list[Plan]]) -> None:
    for made in plans.values():
        for p in made:
            for cover in p.covers:
                x, y, w, h = box(cover, p.camera)
                assert x >= -1e-6
                assert y >= -1e-6
                assert x + w <= FULL[1] + 1e-6
                assert y + h <= FULL[0] + 1e-6
                assert min(w, h) >= 16
                assert visible(cover, p.camera) >= 0.35


def test_covers_keep_apart(plans: dict[str, list[Plan]]) -> None:
    for made in plans.values():
        for p in made:
            boxes = np.array([box(cover, p.camera) for cover in p.covers]).reshape(-1, 4)
            low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
            for i in range(len(boxes)):
                for j in range(i):
                    side = np.clip(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0, None)
                    assert side.prod() < 0.35 * min(boxes[i, 2:].prod(), boxes[j, 2:].prod())


def _drawn(cover: Cover, camera: Camera) -> np.ndarray:
    """The box of what `draw` lays on black ground; shadows leave black as it is."""
    image = np.zeros((*camera.size, 3), np.float32)
    draw(image, cover, camera, np.array([0.7, -0.4]), 0.5)
    rows, columns = np.flatnonzero(image.max((1, 2)) > 0.5), np.flatnonzero(image.max((0, 2)) > 0.5)
    return np.array([columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]])


def _corners(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([xywh[:2], xywh[:2] + xywh[2:]])


def test_boxes_are_tight_for_every_class(plans: dict[str, list[Plan]]) -> None:
    """Within 2 px of what is painted; a lid that lies on the street is drawn by parallax, so it may be 3 px off."""
    seen = set()
    for made in plans.values():
        for p in made[:25]:
            for cover in p.covers:
                off = np.abs(_corners(_drawn(cover, p.camera)) - _corners(box(cover, p.camera))).max()
                assert off <= (3 if cover.label == LOSE else 2), (cover, off)
                seen.add(cover.label)
    assert seen == {1, 2, 3, 4, 5}


def test_the_box_is_where_the_scene_changes() -> None:
    """Leaving out the covers changes their boxes and, but for the shadows of loose lids, nothing else."""
    found = 0
    for seed in range(40):
        made = plan(CITIES["a"], seed, (240, 320))
        if len(made.covers) != 1 or made.covers[0].label == LOSE:
            continue
        change = np.abs(paint_street(made) - paint_street(made, with_covers=False)).max(2)
        x0, y0, x1, y1 = _corners(box(made.covers[0], made.camera)).round().astype(int)
        assert change[y0:y1, x0:x1].mean() > 1
        change[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = 0
        assert change.max() < 1e-3
        found += 1
        if found == 5:
            break
    assert found == 5


OWN_PARTS = {  # what the pixels of a cover of each class show, and what they do not
    "good": ({"lid"}, {"shaft", "break", "loose lid", "plain lid"}),
    "broke": ({"lid", "break"}, {"loose lid", "plain lid"}),
    "lose": ({"loose lid", "shaft"}, {"lid", "break", "plain lid"}),
    "uncovered": ({"shaft"}, {"lid", "break", "loose lid", "plain lid"}),
    "circle": ({"plain lid"}, {"shaft", "break", "loose lid", "lid"}),
}


def test_parts_lie_in_the_boxes_and_are_those_of_the_class() -> None:
    seen = set()
    for seed in range(60):
        scene = render_scene(CITIES["yard"], seed, FULL)
        assert scene.parts.shape == FULL
        outside = scene.parts.copy()
        for i, (x, y, w, h) in enumerate(scene.boxes):
            label = scene.labels[i]
            inside = np.s_[max(int(y) - 2, 0) : int(y + h) + 3, max(int(x) - 2, 0) : int(x + w) + 3]
            shown = {PARTS[part] for part in np.unique(scene.parts[inside])}
            rows, columns = np.nonzero(scene.parts[inside])
            assert np.ptp(rows) >= 0.95 * h - 4, (seed, label)
            assert np.ptp(columns) >= 0.95 * w - 4, (seed, label)
            outside[inside] = 0
            whole = min(x, y) > 1 and x + w < FULL[1] - 1 and y + h < FULL[0] - 1
            if whole and all(apart(b, scene.boxes[i]) for j, b in enumerate(scene.boxes) if j != i):
                needed, absent = OWN_PARTS[CLASSES[label - 1]]
                assert needed <= shown, (seed, label)
                assert not absent & shown, (seed, label)
                seen.add(CLASSES[label - 1])
        assert not outside.any()
    assert seen == set(CLASSES)


def apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two xywh boxes are more than 6 px from each other."""
    return bool((np.abs(one[:2] + one[2:] / 2 - other[:2] - other[2:] / 2) > (one[2:] + other[2:]) / 2 + 6).any())


def test_a_circle_seen_from_above_has_a_square_box() -> None:
    camera = Camera((400, 400), 300.0, 2.0, np.pi / 2 - 1e-9, 0.0, 0.0)
    material = Material(80, 0, 0.5, 0, (1, 1, 1))
    cover = Cover(CIRCLE, (0.1, 0.2), 0.4, 0.1, False, 0.0, next(iter(LIDS)), material, (0, 0), 0, (0, 0), False, 1)
    # 300 px focal length from 2 m: 150 px per metre; row 0 is ahead.
    assert box(cover, camera) == pytest.approx([200 + 15 - 60, 200 - 30 - 60, 120, 120], abs=0.05)


# --- camera and textures --------------------------------------------------------------------------------------------


def test_camera_projects_as_a_pinhole() -> None:
    camera = Camera(FULL, 500.0, 1.5, 0.4, 0.3, 0.05, 0.7)
    points = np.array([[0.5, 3.0], [-1.0, 6.0], [2.0, 20.0]])
    pixels = camera.project(points)
    assert camera.to_ground(pixels) == pytest.approx(points, abs=1e-6)
    ray = np.column_stack([points - [0.7, 0], np.full(3, -1.5)]) @ camera.axes.T
    assert pixels == pytest.approx(ray[:, :2] / ray[:, 2:] * 500 + [320, 240], abs=1e-6)
    far = Camera(FULL, 500.0, 1.5, 0.4, 0.0, 0.0)
    assert far.project(np.array([[0.0, 1e6]]))[0, 1] == pytest.approx(far.horizon(), abs=0.01)


def test_clipping_keeps_the_part_inside() -> None:
    square = np.array([[-10.0, -10], [30, -10], [30, 30], [-10, 30]])
    assert np.ptp(clip_polygon(square, (20, 20)), axis=0) == pytest.approx([20, 20])
    assert len(clip_polygon(square - 100, (20, 20))) == 0


def test_noise_repeats_without_a_seam() -> None:
    noise = fractal(np.random.default_rng(0), 128, 4, 4)
    seam = np.abs(noise[:, 0] - noise[:, -1]).mean()
    assert seam < 1.5 * np.abs(np.diff(noise, axis=1)).mean()


# --- data sets on disk ----------------------------------------------------------------------------------------------


def _render(out: Path, **changes: object) -> Path:
    arguments: dict[str, object] = {"city": "a", "images": 8, "seed": 3, "size": SMALL, "workers": 1, "progress": False}
    return render_dataset(out, **(arguments | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set; tests copy it before they touch it."""
    out = tmp_path_factory.mktemp("rendered")
    _render(out)
    return out


@pytest.fixture
def copy(rendered: Path, tmp_path: Path) -> Path:
    for path in rendered.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(rendered)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def test_worker_count_changes_no_byte(rendered: Path, tmp_path: Path) -> None:
    _render(tmp_path, workers=2)
    assert _hashes(tmp_path) == _hashes(rendered)
    assert len(_hashes(tmp_path)) == 9


def test_processes_serve_several_sets_and_change_no_byte(rendered: Path, tmp_path: Path) -> None:
    with renderers(2) as pool:
        _render(tmp_path / "b", city="b", pool=pool, workers=2)
        _render(tmp_path / "a", pool=pool, workers=2)
    assert _hashes(tmp_path / "a") == _hashes(rendered)


def test_a_tile_that_is_handed_on_is_the_tile_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_shared", [])
    tiles.tile.cache_clear()
    made = tiles.tile("asphalt_new")
    tiles.share(tmp_path)
    tiles.hand_on("asphalt_new")
    assert [path.name for path in tmp_path.iterdir()] == ["asphalt_new.npz"]
    tiles.tile.cache_clear()
    monkeypatch.setattr(tiles, "paint_tile", lambda _: pytest.fail("it was made anew"))
    found = tiles.tile("asphalt_new")
    assert found.metres == made.metres
    for one, other in ((found.face, made.face), (found.relief, made.relief)):
        assert [level.shape for level in one] == [level.shape for level in other]
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_where_a_tile_cannot_be_handed_on_each_process_makes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setattr(tiles, "_shared", [in_the_way / "gone"])
    tiles.hand_on("asphalt_new")
    tiles.tile.cache_clear()
    assert tiles.tile("asphalt_new").metres == ground.RECIPES["asphalt_new"][0]
    assert list(tmp_path.iterdir()) == [in_the_way]
    assert not in_the_way.read_bytes()


def test_a_dead_process_is_told_in_one_sentence(tmp_path: Path) -> None:
    with renderers(2) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(os._exit, 1).result()
        with pytest.raises(ResourceError, match=r"E-WORKER .*train\.json - a rendering process died"):
            _render(tmp_path, pool=pool, workers=2)


def test_the_json_is_coco(rendered: Path) -> None:
    data = json.loads((rendered / "train.json").read_text())
    assert data["categories"] == [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    assert [image["id"] for image in data["images"]] == list(range(1, 9))
    assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    assert data["info"]["spec"]["city"] == "a"
    for image in data["images"]:
        assert image["city"] == "a"
        assert cv2.imread(str(rendered / image["file_name"])).shape[:2] == (image["height"], image["width"]) == SMALL
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        assert min(x, y) >= 0
        assert max(x + w - SMALL[1], y + h - SMALL[0]) <= 0.01
        assert annotation["area"] == pytest.approx(w * h, abs=0.01)


def test_parts_are_written_beside_the_same_images(rendered: Path, tmp_path: Path) -> None:
    spec = json.loads((rendered / "train.json").read_text())["info"]["spec"]
    assert "parts" not in spec  # sets that were made before parts could be asked for are still those of their arguments
    size = (spec["height"], spec["width"])

    def render() -> Path:
        return render_dataset(tmp_path, spec["city"], spec["images"], spec["seed"], size, parts=True, progress=False)

    render()
    images = {name: sha for name, sha in _hashes(rendered).items() if name.startswith("images/")}
    assert {name: sha for name, sha in _hashes(tmp_path).items() if name.startswith("images/")} == images
    files = [parts_file(tmp_path / name) for name in sorted(images)]
    maps = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
    assert all(m.shape == size and m.dtype == np.uint8 and m.max() < len(PARTS) for m in maps)
    assert any(m.any() for m in maps)
    before = _hashes(tmp_path)
    files[0].unlink()
    render()
    assert _hashes(tmp_path) == before


def test_names_and_seeds_give_other_images(rendered: Path, tmp_path: Path) -> None:
    """Train and validation of one seed must not be the same pictures."""
    _render(tmp_path, images=2, name="val")
    _render(tmp_path, images=2, name="other", seed=4)
    images = [hash_ for name, hash_ in (_hashes(tmp_path) | _hashes(rendered)).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 12


def test_a_finished_set_is_left_alone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_one", lambda *_: pytest.fail("nothing is to be rendered"))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert _render(copy) == copy / "train.json"
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("with_json", [True, False])
def test_a_broken_off_set_is_completed(copy: Path, rendered: Path, with_json: bool) -> None:
    images = sorted((copy / "images").iterdir())
    images[2].unlink()
    if not with_json:
        (copy / "train.json").unlink()
        images[5].write_bytes(images[5].read_bytes()[:500])  # as a power cut leaves it
        (copy / "images" / f".{images[6].name}.part").write_bytes(b"half")
        images[6].unlink()
    _render(copy)
    assert _hashes(copy) == _hashes(rendered)


@pytest.mark.parametrize("change", [{"seed": 4}, {"images": 9}, {"city": "b"}, {"size": (100, 128)}])
def test_another_set_is_not_overwritten(copy: Path, change: dict[str, object]) -> None:
    before = _hashes(copy)
    with pytest.raises(DataError, match=rf"train\.json .*{'height' if 'size' in change else next(iter(change))}"):
        _render(copy, **change)
    assert _hashes(copy) == before


def test_foreign_files_are_not_overwritten(copy: Path) -> None:
    (copy / "train.json").write_text("[]")
    with pytest.raises(DataError, match="not rendered by this program"):
        _render(copy)
    (copy / "train.json").unlink()
    mine = copy / "images" / "a_train_3_00004.jpg"
    mine.write_bytes(b"a photograph of mine")
    with pytest.raises(DataError, match=mine.name):
        _render(copy)
    assert mine.read_bytes() == b"a photograph of mine"
    assert not (copy / "train.json").exists()


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_module.os, "replace", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        _render(tmp_path, images=1)


def test_all_faults_of_a_call_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        _render(tmp_path, city="z", images=0, seed=-1, size=(10, 10), name="../up")
    for part in ("no city 'z'", "a, b, c, d", "0 images", "seed is -1", "10 x 10", "'../up'"):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*PATTERNS, *LIDS])
def test_a_cover_depends_on_nothing_that_the_memory_held_before(name: str) -> None:
    def drawn(n: int) -> np.ndarray:
        if name in PATTERNS:
            return PATTERNS[name](np.random.default_rng(5), n)
        return lid(name, np.random.default_rng(5), n, Material(80.0, 0.5, 0.5, 0.5, (1.0, 0.97, 0.93)))[0]

    for n in (48, 64, 96):
        first = drawn(n).copy()
        for value in range(1, 12):
            dirty = [np.full((n, n), value * 20, kind) for kind in (np.uint8, np.float32) for _ in range(value)]
            del dirty  # freed with its values in it: what is drawn next may get this memory
            np.testing.assert_array_equal(drawn(n), first)


@pytest.mark.parametrize("sigma", [6.5, 9.0])
def test_a_sparse_blur_is_a_gaussian_blur_to_the_bit(sigma: float) -> None:
    mask = np.zeros((331, 643), np.float32)
    assert not sparse_blur(mask, sigma).any()
    cv2.fillPoly(mask, [np.array([(300, 0), (331, 0), (600, 330), (430, 330)], np.int32)], 1.0)
    mask[200:203, :5] = 0.3  # at the edge, where the border is a mirror
    np.testing.assert_array_equal(sparse_blur(mask, sigma), cv2.GaussianBlur(mask, (0, 0), sigma))
