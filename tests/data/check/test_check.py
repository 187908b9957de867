"""Every fault of a data set is told, each by its code and its file; nothing of the data is touched."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvpeft.cli import main
from cvpeft.data.check import copies
from cvpeft.data.check.finding import Anchors, Case
from cvpeft.data.check.run import Outcome, check, quick_check
from cvpeft.data.coco import load_coco
from tests.data.sets import coco, picture, write

SIZE = (60, 100)


def sound(folder: Path) -> dict[str, list[Path]]:
    """A train and a val set with ten boxes of each class in both, every photo another."""
    splits = {}
    for first, name in ((0, "train"), (100, "val")):
        content = coco(18)
        for image in content["images"]:
            image["file_name"] = f"{name}/{image['id']}.png"
        splits[name] = [write(folder, content, f"{name}.json", pictures=[])]
        for image in content["images"]:
            put(folder / image["file_name"], first + image["id"])
    return splits


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(picture(*SIZE, seed)).save(path)


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "train") -> None:
    content = json.loads((folder / f"{name}.json").read_text())
    change(content)
    (folder / f"{name}.json").write_text(json.dumps(content))


def codes(outcome: Outcome) -> list[str]:
    return [finding.code for finding in outcome.findings]


def run(splits: dict[str, list[Path]], **options: Any) -> Outcome:
    return check(splits, progress=False, **options)


def test_a_sound_set_has_no_finding(tmp_path: Path) -> None:
    outcome = run(sound(tmp_path))
    assert outcome.findings == ()
    assert outcome.lines()[-1] == "36 images, 72 boxes: 0 errors, 0 warnings"


def test_real_photographs_hold_neighbours_of_one_road_and_no_leak(potholes: Path) -> None:
    data = load_coco([potholes / "val.json"])
    assert len(data.images) == 119
    outcome = run({"val": [potholes / "val.json"]}, workers=2)
    assert codes(outcome) == ["W-NEAR"]
    assert "19 images in 4 groups look almost the same" in outcome.findings[0].text


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn(path: Path, value: int) -> None:
    """The file becomes a JPEG with EXIF; its stored pixels stay as they are."""
    exif = Image.Exif()
    exif[0x0112] = value
    Image.open(path).convert("RGB").save(path, "JPEG", exif=exif)


def add_box(folder: Path, box: list[float], category: int = 1) -> None:
    edit(folder, lambda c: c["annotations"].append({"id": 999, "image_id": 1, "category_id": category, "bbox": box}))


def without_the_last_class(content: dict[str, Any]) -> None:
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (lambda f: halve(f / "train/1.png"), "E-IMAGE", "train/1.png"),
    "text": (lambda f: (f / "train/1.png").write_text("hello"), "E-FORMAT", "train/1.png"),
    "missing": (lambda f: (f / "train/1.png").unlink(), "E-MISSING", "1 of 18 image files are missing"),
    "other size": (lambda f: edit(f, lambda c: c["images"][0].update(width=101)), "E-IMGSIZE", "says 101x60"),
    "turned": (lambda f: turn(f / "train/1.png", 6), "E-EXIF", "the upright image has 60x100"),
    "upside down": (lambda f: turn(f / "train/1.png", 3), "W-EXIF", "1 labelled photos are stored upside down"),
    "outside": (lambda f: edit(f, lambda c: c["images"][0].update(file_name="../1.png")), "E-PATH", "leads out of"),
    "box outside": (lambda f: add_box(f, [90, 50, 50, 50]), "E-BOX", "leaves the image of 100x60"),
    "whole image": (lambda f: add_box(f, [0, 0, 100, 60]), "W-WHOLE", "train/1.png"),
    "sliver": (lambda f: add_box(f, [1, 50, 80, 1]), "W-SLIVER", "train/1.png"),
    "stacked": (lambda f: add_box(f, [5.2, 10, 20, 10], 1), "W-STACKED", "train/1.png"),
    "twice": (lambda f: add_box(f, [5.2, 10, 20, 10], 2), "W-TWICE", "train/1.png"),
    "no boxes": (lambda f: edit(f, lambda c: c.update(annotations=[])), "E-EMPTY", "none of the 18 images"),
    "class gone": (
        lambda f: edit(f, without_the_last_class, "val"),
        "W-CLASS", "val - class 'lose' has no boxes",
    ),
    "copy across": (lambda f: put(f / "val/3.png", 1), "E-LEAK", "2 images in train and val are the same file"),
    "copy within": (lambda f: put(f / "train/3.png", 1), "W-COPY", "2 images in 1 groups are the same file"),
    "resaved across": (
        lambda f: Image.open(f / "train/1.png").save(f / "val/3.png", "JPEG", quality=60), "W-LEAK", "look almost"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_told_alone(tmp_path: Path, kind: str) -> None:
    spoil, code, words = FAULTS[kind]
    splits = sound(tmp_path)
    spoil(tmp_path)
    outcome = run(splits)
    assert codes(outcome) == [code]
    assert words in outcome.findings[0].text
    assert outcome.errors == code.startswith("E-")


def test_roboflows_flipped_copies_across_splits_are_told_by_name(tmp_path: Path) -> None:
    splits = sound(tmp_path)
    for name, mark in (("train", "aaaa"), ("val", "bbbb")):
        edit(tmp_path, lambda c, m=mark: c["images"][0].update(file_name=f"street_jpg.rf.{m}.png"), name)
    put(tmp_path / "street_jpg.rf.aaaa.png", 1)
    Image.fromarray(picture(*SIZE, 1)[:, ::-1]).save(tmp_path / "street_jpg.rf.bbbb.png")
    (finding,) = run(splits).findings
    assert finding.code == "W-LEAK"
    assert "copies that Roboflow made of one photo" in finding.text


def test_an_image_of_two_groups_is_told_of_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bytes have told of is told again by neither name nor looks; a group that is larger is."""
    a, b, c, d = (("train", Path(f"{name}.png")) for name in "abcd")
    for kind, groups in (("_equal", [[a, b]]), ("_named", [[b, c]]), ("_similar", [[a, b], [b, c], [c, d], [a, c]])):
        monkeypatch.setattr(copies, kind, lambda _, groups=groups: groups)
    told = [(finding.code, len(finding.images)) for finding in copies.check_copies(Case((), ()))]
    assert told == [("W-COPY", 2), ("W-RFCOPY", 2), ("W-NEAR", 4)]


def test_thousands_of_groups_are_told_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [[("train", Path(f"{group}_{copy}.png")) for copy in range(3)] for group in range(5_000)]
    for kind, found in (("_equal", []), ("_named", groups), ("_similar", groups)):
        monkeypatch.setattr(copies, kind, lambda _, found=found: found)
    start = time.perf_counter()
    assert [finding.code for finding in copies.check_copies(Case((), ()))] == ["W-RFCOPY"]
    assert time.perf_counter() - start < 5


def test_all_faults_are_told_together(tmp_path: Path) -> None:
    splits = sound(tmp_path)
    for name in ("truncated", "stacked", "box outside"):
        FAULTS[name][0](tmp_path)
    (tmp_path / "train/5.png").unlink()
    assert sorted(set(codes(run(splits)))) == ["E-BOX", "E-IMAGE", "E-MISSING", "W-STACKED"]


def test_policies(tmp_path: Path) -> None:
    splits = sound(tmp_path)
    (tmp_path / "train/5.png").unlink()
    assert codes(run(splits, allow_missing=True)) == ["W-MISSING"]
    put(tmp_path / "train/5.png", 5)
    halve(tmp_path / "train/1.png")
    assert codes(run(splits, skip_unreadable=True)) == ["E-IMAGE", "E-IMAGES"]  # one of 18 is more than 5 %
    content = coco(30)
    several = [write(tmp_path / "more", content, "train.json")]
    for seed, image in enumerate(content["images"]):
        put(tmp_path / "more" / image["file_name"], 500 + seed)
    halve(tmp_path / "more/images/1.png")
    assert codes(run({"train": several}, skip_unreadable=True)) == ["W-IMAGE"]


def test_anchors_that_miss_the_boxes(tmp_path: Path) -> None:
    splits = {"train": sound(tmp_path)["train"]}
    assert codes(run(splits, anchors=Anchors((16.0, 32.0), (0.5, 1.0), SIZE))) == []
    (finding,) = run(splits, anchors=Anchors((64.0, 128.0), (1.0,), SIZE)).findings
    assert "36 of 36 boxes overlap no anchor by 0.5 IoU, 36 are too small" in finding.text


def test_the_quick_part_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = load_coco([write(tmp_path, coco(18))])
    val = load_coco([write(tmp_path, coco(2), "val.json")])
    monkeypatch.setattr("PIL.Image.open", None)
    found = quick_check({"train": train, "val": val, "test": None})
    assert {finding.code for finding in found} == {"E-LEAK", "W-CLASS"}
    assert "2 images are in train and in val" in found[0].text


def test_stacked_boxes_are_those_of_every_pair(tmp_path: Path) -> None:
    """The sweep finds what comparing one by one finds."""
    from cvpeft.data.check.boxes import _iou, _stacked

    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.uniform(0, 3, (300, 2)), rng.uniform(20, 22, (300, 2))])
    owner = np.sort(rng.integers(0, 6, 300))
    one, other = np.triu_indices(300, 1)
    hit = (owner[one] == owner[other]) & (_iou(boxes[one], boxes[other]) > 0.9)
    assert hit.sum() > 100
    found = {frozenset(pair) for pair in zip(*map(np.ndarray.tolist, _stacked(boxes, owner)), strict=True)}
    assert found == {frozenset(pair) for pair in zip(one[hit].tolist(), other[hit].tolist(), strict=True)}


def digest(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_command_writes_its_reports_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    sound(data)
    FAULTS["truncated"][0](data)
    before = digest(data)
    monkeypatch.chdir(tmp_path)
    command = ["data", "check", str(data / "train.json"), str(data / "val.json")]
    assert main(command) == 2
    assert "36 images, 72 boxes: 1 errors, 0 warnings (1 E-IMAGE)" in capsys.readouterr().out
    assert digest(data) == before
    found = json.loads((tmp_path / "data_check/check_report.json").read_text())
    assert (found["errors"], found["counts"], found["splits"]["val"]["images"]) == (1, {"E-IMAGE": 1}, 18)
    assert found["findings"][0]["images"] == [str((data / "train/1.png").resolve())]
    assert main(command) == 2  # its own reports are replaced
    (tmp_path / "data_check/check_report.html").write_text("mine")
    assert main(command) == 2
    assert "another file has this name" in capsys.readouterr().err
    assert (tmp_path / "data_check/check_report.html").read_text() == "mine"


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_held_against_the_upright_size(tmp_path: Path, kind: str, value: int) -> None:
    """A json that states the stored size is refused where the photo is turned, whatever the format."""
    splits = {"train": sound(tmp_path)["train"]}
    exif = Image.Exif()
    exif[0x0112] = value
    Image.open(tmp_path / "train/1.png").convert("RGB").save(tmp_path / "train/1.png", kind, exif=exif)
    expected = ["E-EXIF"] if value >= 5 else ["W-EXIF"] if value > 1 else []
    assert codes(run(splits)) == expected


@pytest.mark.parametrize(
    ("head", "sides"),
    [("faster_rcnn", "160, 320, 640, 1280"), ("retinanet", "160, 201.6, 254, 320, 403.2, 508, 640, 806.3, 1016")],
)
def test_the_anchors_are_those_of_the_configs_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], head: str, sides: str
) -> None:
    sound(tmp_path)
    sizes = "[160, 320, 640, 1280]" if head == "faster_rcnn" else "[160, 320, 640]"
    (tmp_path / "run.yaml").write_text(f"""
data: {{train: [train.json], val: [val.json], size: [64, 96]}}
backbone: {{name: vit_tiny_patch16_224, weights: random}}
peft: {{methods: [lora: {{}}]}}
detector: {{head: {head}, anchor_sizes: {sizes}}}
""")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "--config", "run.yaml"]) == 0
    assert f"The anchors are {sides} px at an input of (64, 96)" in capsys.readouterr().out


def test_no_file_and_a_config_that_names_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check"]) == 2
    assert "no json file is named" in capsys.readouterr().err
