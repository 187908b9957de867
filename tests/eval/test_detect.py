"""Photographs in, pictures and a COCO json out: the right boxes, every failure told, nothing of the user's touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_iou

from cvpeft.config.load import dump, load
from cvpeft.config.schema import Settings
from cvpeft.data.coco import load_coco
from cvpeft.data.loader import eval_loader
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.detector.saved import describe, load_run, save_adapter
from cvpeft.errors import CheckpointError, ConfigError, DataError
from cvpeft.eval.detect import detect_images
from cvpeft.eval.predict import predict
from cvpeft.peft.inject import signatures
from cvpeft.runtime.photos import find_photos
from tests.data.sets import picture
from tests.runtime.test_onnx_detector import METADATA, SIZE, model_file

CONFIG = """
data: {size: [64, 96]}
backbone: {name: convnext_atto, weights: none, neck_width: 32}
peft: {methods: [{lora: {rank: 2}}]}
detector: {head: fcos, score_threshold: 0.001}
train: {device: cpu}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose detector was never trained, but finds something everywhere."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG)
    settings: Settings = load(folder / "config.yaml", methods=signatures())
    classes = ("good", "broke")
    model = build_detector(settings, classes)
    sites = adapt(model, settings.peft)
    with torch.no_grad():
        model.head.classification_head.cls_logits.trained.weight.normal_(0, 0.3)
        model.head.classification_head.cls_logits.trained.bias.fill_(-1)
    meta = describe(model, settings, classes, [site.path for site in sites])
    save_adapter(folder / "adapter", model, meta, "")
    (folder / "config.resolved.yaml").write_text(dump(settings))
    return folder


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that finds two boxes in a white photograph."""
    boxes = [[10, 20, 40, 60], [50, 50, 70, 90], [0, 0, 0, 0]]
    return model_file(
        tmp_path_factory.mktemp("onnx") / "model.onnx", METADATA, boxes=boxes, scores=[0.6, 0.3, 0], labels=[1, 2, 0]
    )


def photo(file: Path, size: tuple[int, int] = (60, 100), white: bool = False) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), 255, np.uint8) if white else picture(*size, seed=len(file.name))
    Image.fromarray(pixels).save(file)
    return file


def read(out: Path) -> dict:
    return json.loads((out / "predictions.json").read_text(encoding="utf-8"))


# Boxes


def test_a_run_gives_the_boxes_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    for i in range(2):
        photo(tmp_path / "photos" / f"{i}.jpg", (300 + 40 * i, 400))
    done = detect_images(run, [tmp_path / "photos"], tmp_path / "out", score=0)
    content = read(tmp_path / "out")
    truth = {
        "images": [{k: image[k] for k in ("id", "file_name", "height", "width")} for image in content["images"]],
        "annotations": [], "categories": content["categories"],
    }  # fmt: skip
    (tmp_path / "photos" / "all.json").write_text(json.dumps(truth))
    data = load_coco([tmp_path / "photos" / "all.json"])
    loaded = load_run(run)
    loader = eval_loader(data, loaded.settings.data.size, batch=1, workers=0)
    wanted = predict(loaded.model, loader, progress=False)
    found = content["annotations"]
    assert done.boxes == len(found) == len(wanted) > 10
    assert [row["image_id"] for row in found] == [row["image_id"] for row in wanted]
    np.testing.assert_allclose([row["bbox"] for row in found], [row["bbox"] for row in wanted], atol=1e-4)
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in wanted], atol=1e-7)


def test_thresholds_of_the_run_hold_unless_a_score_is_given(run: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.jpg")

    def found(source: Path, score: float | None) -> list[tuple[int, float]]:
        detect_images(source, [file], tmp_path / "out", score=score)
        return [(row["category_id"], row["score"]) for row in read(tmp_path / "out")["annotations"]]

    everything = found(run, 0)
    middle = {label: float(np.median([s for found, s in everything if found == label])) for label in (1, 2)}
    assert len(set(middle.values())) == 2
    other = shutil.copytree(run, tmp_path / "run")
    meta = json.loads((other / "adapter" / "adapter_config.json").read_text())
    meta["thresholds"] = {"good": middle[1], "broke": middle[2]}
    (other / "adapter" / "adapter_config.json").write_text(json.dumps(meta))
    chosen = [(label, s) for label, s in everything if s >= middle[label]]
    assert 0 < len(chosen) < len(everything)
    assert found(other, None) == chosen
    assert read(tmp_path / "out")["info"]["thresholds"] == meta["thresholds"]
    assert found(other, middle[1]) == [(label, s) for label, s in everything if s >= middle[1]]
    assert [s for _, s in found(run, None)] == [s for _, s in everything if s >= 0.5]  # a run without val


def test_one_name_for_one_object(run: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.jpg")
    most = detect_images(run, [file], tmp_path / "out", score=0).boxes
    assert read(tmp_path / "out")["info"]["one_name"] is None
    assert 0 < detect_images(run, [file], tmp_path / "out", score=0, one_name=0.3).boxes < most
    assert read(tmp_path / "out")["info"]["one_name"] == 0.3
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in read(tmp_path / "out")["annotations"])]
    overlaps = box_iou(*[torch.tensor(boxes)] * 2).triu(1)
    assert overlaps.nan_to_num().max() <= 0.3 + 1e-5  # not a number: two boxes without an area
    with pytest.raises(ConfigError, match="overlap one_name is 7"):
        detect_images(run, [file], tmp_path / "out", one_name=7)


def test_an_onnx_file_gives_boxes_in_pixels_of_the_photo(onnx_file: Path, tmp_path: Path) -> None:
    height, width = SIZE
    file = photo(tmp_path / "a.png", (2 * height, 2 * width), white=True)  # letterboxed by exactly 1/2
    assert detect_images(onnx_file, [file], tmp_path / "out").boxes == 2
    content = read(tmp_path / "out")
    assert [row["bbox"] for row in content["annotations"]] == [[20, 40, 60, 80], [100, 100, 40, 80]]
    assert [row["category_id"] for row in content["annotations"]] == [1, 2]
    assert detect_images(onnx_file, [file], tmp_path / "out", score=0.5).boxes == 1


def test_the_json_is_coco(onnx_file: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.jpg", white=True)
    photo(tmp_path / "photos" / "b.jpg", white=True)
    detect_images(onnx_file, [tmp_path / "photos"], tmp_path / "out")
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert [coco.imgs[i]["file_name"] for i in coco.getImgIds()] == ["a.jpg", "b.jpg"]
    assert len(coco.getAnnIds(imgIds=[2])) == 2
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == METADATA["classes"]
    assert len(coco.loadRes(read(tmp_path / "out")["annotations"]).getAnnIds()) == 4


def test_pictures_have_the_size_of_the_upright_photo(onnx_file: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (100, 60), "white").save(tmp_path / "a.jpg", exif=turned)
    detect_images(onnx_file, [tmp_path / "a.jpg"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.jpg") as drawn:
        assert drawn.size == (60, 100)
        assert 0x0112 not in drawn.getexif()
        assert len(set(drawn.get_flattened_data())) > 2  # the boxes
    assert (read(tmp_path / "out")["images"][0]["height"], read(tmp_path / "out")["images"][0]["width"]) == (100, 60)


# Which photographs


def names(*images: str | Path) -> list[tuple[str, str]]:
    return [(found.name, found.picture) for found in find_photos(images)]


def test_folders_are_searched_through_and_sorted(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", ".hidden.jpg", ".trash/d.jpg", "sub/photo.heic"):
        photo(tmp_path / "photos" / Path(name).with_suffix(".png")).rename(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    wanted = ["a.jpg", "b.jpg", "sub/c.jpg", "sub/photo.jpg"]
    assert [picture for _, picture in names(tmp_path / "photos")] == wanted
    assert names(tmp_path / "photos" / "*.jpg") == [("b.jpg", "b.jpg")]
    assert [name for name, _ in names(f"{tmp_path}/**/c.*")] == ["c.webp"]


def test_equal_names_are_kept_apart_and_a_photo_is_read_once(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "b/1.png", "b/1-2.jpg", "b/1.JPG"):
        photo(tmp_path / name)
    found = names(tmp_path / "a", tmp_path / "b", tmp_path / "a" / "1.jpg", str(tmp_path / "b" / "*"))
    pictures = [picture for _, picture in found]
    assert len(found) == 5
    assert len({picture.casefold() for picture in pictures}) == 5
    assert pictures[0] == "1.jpg"


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    assert names(photo(tmp_path / "a[1].jpg")) == [("a[1].jpg", "a[1].jpg")]


def test_arguments_without_a_photo_are_all_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as told:
        find_photos([tmp_path / "nope.jpg", photo(tmp_path / "a.jpg"), tmp_path / "empty", f"{tmp_path}/*.bmp"])
    for part in ("nope.jpg (no such file", "empty (no photograph", "*.bmp (the pattern"):
        assert part in str(told.value)
    with pytest.raises(DataError, match="no image is named"):
        find_photos([])


def test_what_cannot_be_read_is_told_and_the_others_are_done(onnx_file: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photo(photos / "a.jpg", white=True)
    whole = photo(photos / "b.jpg", (300, 300)).read_bytes()
    (photos / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    photo(photos / "d.jpg", white=True)
    done = detect_images(onnx_file, [photos], tmp_path / "out")
    assert (done.images, done.boxes, done.exit_code) == (2, 4, 2)
    assert len(done.failed) == 2
    assert "b.jpg" in done.failed[0]
    assert "HEIC" in done.failed[1]
    content = read(tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "d.jpg"]
    assert [entry["file_name"] for entry in content["failed"]] == ["b.jpg", "c.heic"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "a.jpg",
        "coco_results.json",
        "d.jpg",
        "detections.csv",
        "predictions.json",
    ]


# What may be written


def test_output_inside_the_photos_is_not_read_again(onnx_file: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", white=True)
    photo(tmp_path / "sub" / "b.png", white=True)
    for _ in range(2):
        assert detect_images(onnx_file, [tmp_path], tmp_path / "out").images == 2
    assert detect_images(onnx_file, [tmp_path / "*"], tmp_path / "sub" / "found").images == 2
    drawn = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.jpg"))
    assert drawn == ["a.jpg", "sub/b.jpg"]


def test_no_photograph_is_overwritten(onnx_file: Path, tmp_path: Path) -> None:
    before = photo(tmp_path / "a.jpg").read_bytes()
    with pytest.raises(ConfigError, match=r"a\.jpg would be overwritten"):
        detect_images(onnx_file, [tmp_path], tmp_path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ConfigError, match="would be overwritten"):
        detect_images(onnx_file, [tmp_path / "a.jpg"], tmp_path / "link")
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert not (tmp_path / "predictions.json").exists()


def test_foreign_files_in_the_output_folder_are_kept(onnx_file: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.jpg", white=True)
    mine = photo(tmp_path / "out" / "a.jpg")
    with pytest.raises(ConfigError, match="would be overwritten"):
        detect_images(onnx_file, [tmp_path / "photos"], tmp_path / "out")
    mine.unlink()
    (tmp_path / "out" / "predictions.json").write_text("[]")  # an evaluation's, say
    with pytest.raises(ConfigError, match=r"predictions\.json would be overwritten"):
        detect_images(onnx_file, [tmp_path / "photos"], tmp_path / "out")
    assert (tmp_path / "out" / "predictions.json").read_text() == "[]"


def test_wrong_calls(run: Path, onnx_file: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match=r"the score is 1\.5"):
        detect_images(onnx_file, [file], tmp_path / "out", score=1.5)
    with pytest.raises(ConfigError, match="has no config"):
        detect_images(onnx_file, [file], tmp_path / "out", overrides=["train.device=cpu"])
    with pytest.raises(DataError, match="no such file"):
        detect_images(tmp_path / "none.onnx", [file], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no config\.resolved\.yaml"):
        detect_images(tmp_path, [file], tmp_path / "out")
    assert not (tmp_path / "out").exists()
