"""The script that makes the potholes data set: on a small published folder, and against the json files as measured."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from cvpeft.data.coco import load_coco
from cvpeft.errors import DataError, ResourceError

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "road_potholes.py"
HOLES = "101_DF_070_070BDF0010_00100"
CLEAN = "102_DF_070_070BDF0010_00105"
OTHER = "103_DF_070_070BDF0010_00110"  # clean too, and not among the negatives
LONE = "104_RS_290_290RS150131_1_00200"  # a section with a number of its own
ODD = "106_DF_070_070BDF0010_00120"
FOREIGN = "105_ES_482_482ES014500_00300"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with splits that suit the small folder."""
    spec = importlib.util.spec_from_file_location("road_potholes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "road_potholes", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    splits = {
        "train": script.Split(frozenset({"RS_290_290RS150131_1"}), frozenset(), 1, 1),
        "val": script.Split(frozenset({"DF_070_070BDF0010"}), frozenset({102}), 2, 3),
    }
    monkeypatch.setattr(script, "SPLITS", splits)
    return script


@pytest.fixture
def published(tmp_path: Path) -> Path:
    root = tmp_path / "published"
    (root / "Dataset").mkdir(parents=True)
    (root / "LICENSE").write_text("MIT")
    holes = np.zeros((50, 64), np.uint8)
    holes[4:12, 10:18] = 255  # 64 pixels, the least
    holes[30:37, 0:9] = 255  # 63 pixels, too few
    holes[20:28, 30:34] = 255  # two halves that touch by a corner: one component
    holes[28:36, 34:38] = 255
    holes[45:50, 40:64] = 255  # at the rim
    lone = np.zeros((50, 64), np.uint8)
    lone[10:20, 10:30] = 255
    masks = {HOLES: holes, CLEAN: holes * 0, OTHER: holes * 0, LONE: lone, FOREIGN: lone}
    for name, mask in masks.items():
        _frame(root / "Dataset", name, mask)
    return root


def _frame(folder: Path, name: str, mask: np.ndarray) -> None:
    (folder / name).mkdir()
    photo = np.random.default_rng(len(name)).integers(0, 255, (*mask.shape, 3), np.uint8)
    cv2.imwrite(str(folder / name / f"{name}_RAW.jpg"), photo)
    for kind in ("POTHOLE", "CRACK", "LANE"):
        image = mask if kind == "POTHOLE" else np.full_like(mask, 255)
        cv2.imwrite(str(folder / name / f"{name}_{kind}.png"), np.repeat(image[..., None], 3, 2))


def test_boxes_are_the_large_components_of_the_mask(small: ModuleType, published: Path, tmp_path: Path) -> None:
    small.convert(published, tmp_path / "out")
    val = json.loads((tmp_path / "out" / "val.json").read_text())
    assert [box["bbox"] for box in val["annotations"]] == [[10, 4, 8, 8], [30, 20, 8, 16], [40, 45, 24, 5]]
    assert [box["area"] for box in val["annotations"]] == [64, 128, 120]
    assert [box["id"] for box in val["annotations"]] == [1, 2, 3]
    assert val["images"] == [
        {
            "id": number, "file_name": f"images/{name}_RAW.jpg", "width": 64, "height": 50,
            "section": "DF_070_070BDF0010", "region": "DF",
        }
        for number, name in enumerate((HOLES, CLEAN), 1)
    ]  # fmt: skip


def test_split_is_by_section_and_the_data_loads(small: ModuleType, published: Path, tmp_path: Path) -> None:
    small.convert(published / "Dataset", tmp_path / "out")  # the folder inside will do as well
    data = load_coco([tmp_path / "out" / "train.json", tmp_path / "out" / "val.json"])
    assert [image.path.name for image in data.images] == [f"{name}_RAW.jpg" for name in (LONE, HOLES, CLEAN)]
    assert [len(image.boxes) for image in data.images] == [1, 3, 0]
    assert data.classes == ("pothole",)
    assert (tmp_path / "out" / "LICENSE").read_text() == "MIT"
    assert sorted(f.name for f in (tmp_path / "out" / "images").iterdir()) == sorted(
        f"{name}_RAW.jpg" for name in (LONE, HOLES, CLEAN)
    )


@pytest.mark.parametrize("copy", [False, True])
def test_photographs_are_links_or_copies(small: ModuleType, published: Path, tmp_path: Path, copy: bool) -> None:
    small.convert(published, tmp_path / "out", copy=copy)
    made, original = (
        tmp_path / "out" / "images" / f"{HOLES}_RAW.jpg",
        published / "Dataset" / HOLES / f"{HOLES}_RAW.jpg",
    )
    assert made.read_bytes() == original.read_bytes()
    assert made.samefile(original) is not copy


def test_nothing_is_overwritten(small: ModuleType, published: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match="in use"):
        small.convert(published, mine.parent)
    assert [f.name for f in mine.parent.iterdir()] == ["notes.txt"]
    mine.unlink()
    small.convert(published, mine.parent)  # an empty folder is taken
    with pytest.raises(DataError, match="in use"):
        small.convert(published, mine.parent)


def test_the_folder_that_one_stands_in_is_no_new_one(
    small: ModuleType, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(DataError, match="this is the folder that you are in"):
        small.convert(published, Path())


def test_every_damaged_frame_is_told(small: ModuleType, published: Path, tmp_path: Path) -> None:
    (published / "Dataset" / HOLES / f"{HOLES}_POTHOLE.png").write_bytes(b"version https://git-lfs")
    (published / "Dataset" / CLEAN / f"{CLEAN}_RAW.jpg").unlink()
    _frame(published / "Dataset", ODD, np.zeros((50, 64), np.uint8))
    small_photo = published / "Dataset" / ODD / f"{ODD}_RAW.jpg"
    cv2.imwrite(str(small_photo), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError) as told:
        small.convert(published, tmp_path / "out")
    assert "3 frames cannot be read" in str(told.value)
    assert all(name in str(told.value) for name in (f"{HOLES}_POTHOLE.png", f"{CLEAN}_RAW.jpg", "64x50"))
    assert not (tmp_path / "out").exists()


def test_half_a_download_is_refused(small: ModuleType, published: Path, tmp_path: Path) -> None:
    (published / "Dataset" / CLEAN).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="val has 1 images with 3 boxes, not 2 with 3"):
        small.convert(published, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failure_while_writing_leaves_nothing(
    small: ModuleType, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ResourceError, match="--copy"):
        small.convert(published, tmp_path / "out")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["published"]


def test_the_command(small: ModuleType, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.main([str(published), str(tmp_path / "out")]) == 0
    assert "val.json: 2 images, 1 of them without a box, 3 boxes" in capsys.readouterr().out
    assert small.main([str(published), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("E-OUT ")


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'timm', 'albumentations', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert "SOURCE OUT" in done.stdout, done.stderr
    assert done.stdout.endswith("[]\n")


def test_splits_are_those_of_the_measuring_data(script: ModuleType, potholes: Path) -> None:
    for name, split in script.SPLITS.items():
        content = json.loads((potholes / f"{name}.json").read_text())
        marked = {box["image_id"] for box in content["annotations"]}
        empty = [image for image in content["images"] if image["id"] not in marked]
        assert split.sections == {image["section"] for image in content["images"]}
        assert split.negatives == {int(Path(image["file_name"]).name.split("_")[0]) for image in empty}
        assert (split.images, split.boxes) == (len(content["images"]), len(content["annotations"]))
    assert not script.SPLITS["train"].sections & script.SPLITS["val"].sections
