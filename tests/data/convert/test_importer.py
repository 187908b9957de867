"""What holds for every format: where the images end up, classes by name, nothing of a source changed or lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cvpeft.cli import main
from cvpeft.data.check.report import PAGE, write_report
from cvpeft.data.check.run import check
from cvpeft.data.convert.importer import formats, import_labels
from cvpeft.data.split import split_json
from cvpeft.errors import DataError, ResourceError
from tests.data.sources import content, labels, photo, put, state, xml, yolo

ROW = "0 0.5 0.5 0.5 0.5"
BOX = [25.0, 15.0, 50.0, 30.0]
LABELME = json.dumps({"shapes": [{"label": "good", "shape_type": "rectangle", "points": [[25, 15], [75, 45]]}]})


def test_the_formats_are_the_files_of_their_folder() -> None:
    folder = Path(__file__).parents[3] / "cvpeft/data/formats"
    assert formats().keys() == {file.stem for file in folder.glob("*.py")} - {"__init__"}


def test_images_are_hard_links_or_copies_under_their_own_names(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})
    before = state(root)
    for copy in (False, True):
        import_labels(root, tmp_path / f"out{copy}", copy=copy)
        image = tmp_path / f"out{copy}/train/images/a.jpg"
        assert image.samefile(root / "train/images/a.jpg") != copy
        assert labels(tmp_path / f"out{copy}/train.json") == {"train/images/a.jpg": [("good", BOX)]}
    assert state(root) == before


def test_into_the_sources_own_folder_only_the_json_files_are_written(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})
    before = state(root)
    import_labels(root, root)
    assert state(root).keys() - before.keys() == {str(root / "train.json"), str(root / "import.log.json")}
    assert {name: found for name, found in state(root).items() if name in before} == before
    import_labels(root, tmp_path, form="yolo")  # above it
    assert labels(tmp_path / "train.json") == {"set/train/images/a.jpg": [("good", BOX)]}
    with pytest.raises(DataError, match=r"train\.json - the file is there already"):
        import_labels(root, root, form="yolo")


def test_a_folder_in_the_source_or_in_use_is_refused(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})
    with pytest.raises(DataError, match="the folder lies in the source"):
        import_labels(root, root / "clean")
    put(tmp_path / "out/mine.txt", "mine")
    before = state(tmp_path)
    with pytest.raises(DataError, match="the folder is in use"):
        import_labels(root, tmp_path / "out")
    assert state(tmp_path) == before


def test_a_disk_that_cannot_link_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(ResourceError, match="give --copy"):
        import_labels(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_links_out_of_the_source_are_faults(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})
    photo(tmp_path / "elsewhere/secret.jpg")
    (root / "train/images/b.jpg").symlink_to(tmp_path / "elsewhere/secret.jpg")
    with pytest.raises(DataError, match="leads out"):
        import_labels(root, tmp_path / "out")


def test_a_folder_that_is_a_link_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})
    photo(tmp_path / "elsewhere/b.jpg")
    (root / "valid").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"valid - the folder is a link to .*elsewhere"):
        import_labels(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [(xml([("good", 25, 15, 75, 45)]), "<annotation><object>"), (LABELME, '{"shapes": [')],
    ids=["voc", "labelme"],
)
def test_a_photo_whose_labels_are_damaged_is_no_negative(tmp_path: Path, sound: str, damaged: str) -> None:
    root, ending = tmp_path / "set", "xml" if sound.startswith("<") else "json"
    for name, text in (("a", sound), ("b", damaged), ("c", None), ("d", damaged)):
        photo(root / f"{name}.jpg")
        if text:
            put(root / f"{name}.{ending}", text)
    photo(root / "d.png")
    with pytest.raises(DataError, match=r"^E-DATA 2 faults"):
        import_labels(root, tmp_path / "out", negatives=True)
    made = import_labels(root, tmp_path / "out", negatives=True, skip=True)
    assert labels(made.parts[0].file) == {"a.jpg": [("good", BOX)], "c.jpg": []}
    assert "3 images have faults and are left out" in made.notes


@pytest.mark.parametrize("lost", ["train/labels/a.txt", "train/images/a.jpg"])
def test_a_link_that_leads_nowhere_is_a_fault_and_no_absent_file(tmp_path: Path, lost: str) -> None:
    """As git-annex and DVC leave files that were not fetched; without its labels a photo would show nothing."""
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW, "train/images/b.jpg": ROW})
    (root / lost).unlink()
    (root / lost).symlink_to(".store/a")
    with pytest.raises(DataError, match=r"E-\w+ .*/\.store/a - "):
        import_labels(root, tmp_path / "out")
    made = import_labels(root, tmp_path / "out", skip=True)
    assert labels(made.parts[0].file) == {"train/images/b.jpg": [("good", BOX)]}
    assert "1 images have faults and are left out" in made.notes


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})
    scandir = os.scandir

    def forbidden(path: str) -> object:
        if path.endswith("labels"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match=r"E-READ .*train/labels - the folder cannot be read whole \(Permission denied"):
        import_labels(root, tmp_path / "out")


def test_one_photo_under_two_names_is_a_fault(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW})
    (root / "train/images/b.jpg").symlink_to(root / "train/images/a.jpg")
    with pytest.raises(DataError, match="has labels in two places"):
        import_labels(root, tmp_path / "out")


def test_images_that_cannot_be_read_are_told_and_skipped_with_a_count(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW, "train/images/b.jpg": ROW, "train/images/c.jpg": ""})
    put(root / "train/images/b.jpg", "no picture")
    put(root / "train/images/d.heic", "    ftypheic")
    with pytest.raises(DataError, match=r"2 faults(.|\n)*b\.jpg(.|\n)*d\.heic - the file is a HEIC photo"):
        import_labels(root, tmp_path / "out")
    made = import_labels(root, tmp_path / "out", skip=True)
    assert sorted(labels(tmp_path / "out/train.json")) == ["train/images/a.jpg", "train/images/c.jpg"]
    assert "2 images have faults and are left out" in made.notes
    assert len(content(made.log)["left_out"]) == 2


def test_classes_are_renamed_and_joined_by_name(tmp_path: Path) -> None:
    rows = "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.1 0.1\n"
    root = yolo(tmp_path / "set", {"train/images/a.jpg": rows}, "names: [fine, broken, cracked]\n")
    rename = {"broken": "broke", "cracked": "broke", "fine": "good"}
    (part,) = import_labels(root, tmp_path / "out", rename=rename).parts
    assert part.boxes == {"good": 1, "broke": 2}
    assert [name for name, _ in labels(part.file)["train/images/a.jpg"]] == ["good", "broke", "broke"]
    with pytest.raises(DataError, match=r"no class 'brokn' to rename \(did you mean 'broken'\?\)"):
        import_labels(root, tmp_path / "other", rename={"brokn": "broke"})
    with pytest.raises(DataError, match=r"^E-MAP no class 'brokn' to rename"):  # no image can be left out for it
        import_labels(root, tmp_path / "other", rename={"brokn": "broke"}, skip=True)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: None, "no such file or folder"),
        (lambda root: put(root / "notes.txt", "hello"), "no labels of a known format"),
        (lambda root: put(root / "data.yaml", "names: [good]\n"), "no image is left to import"),
    ],
)
def test_a_source_without_a_set_is_told(tmp_path: Path, make: object, told: str) -> None:
    make(tmp_path / "set")  # type: ignore[operator]
    with pytest.raises(DataError, match=told):
        import_labels(tmp_path / "set", tmp_path / "out")


def test_copies_of_a_photo_stay_in_one_part_when_the_import_is_split(tmp_path: Path) -> None:
    photos = {f"train/images/p{i // 3}_jpg.rf.{i:08x}.jpg": ROW for i in range(30)}
    import_labels(yolo(tmp_path / "set", photos), tmp_path / "out")
    parts = split_json(tmp_path / "out/train.json", {"train": 0.8, "val": 0.2})
    held = [{name.split("_jpg")[0] for name in labels(part.file)} for part in parts]
    assert [part.images for part in parts] == [24, 6]
    assert not held[0] & held[1]


def test_the_command_tells_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROW, "valid/images/b.jpg": "9 0.5 0.5 0.5 0.5"})
    command = ["data", "import", str(root), "--out", str(tmp_path / "out"), "--map", "good=fine"]
    assert main(command) == 2
    assert "the class is 9" in capsys.readouterr().err
    assert main([*command, "--on-fault", "skip"]) == 0
    told = capsys.readouterr().out
    assert "format: yolo\n" in told
    assert "1 images have faults and are left out" in told
    assert "train.json: 1 images, 0 without boxes, fine 1, broke 0" in told
    for wrong in (["good"], ["a=b", "a=c"], ["good="]):
        assert main([*command[:-1], *wrong]) == 2
        assert "E-MAP" in capsys.readouterr().err


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"m\xfcll")
    yolo(root, {"train/images/a.jpg": "0 0.5 0.5 0.5 0.01", "train/images/b.jpg": ROW})
    for place in ("images/a.jpg", "labels/a.txt"):
        path = root / "train" / place
        path.rename(path.with_stem(os.fsdecode(b"caf\xe9")))
    put(root / "train/images" / os.fsdecode(b"th\xe9.jpg"), "no picture")
    made = import_labels(root, tmp_path / "out", skip=True)
    assert "th\udce9.jpg" in content(made.log)["left_out"][0]
    images = content(made.parts[0].file)["images"]
    assert [image["file_name"] for image in images] == ["train/images/b.jpg", "train/images/caf\udce9.jpg"]
    write_report(tmp_path / "report", check({"train": [made.parts[0].file]}, progress=False))
    assert r"slivers, the first in train/images/caf\udce9.jpg" in (tmp_path / "report" / PAGE).read_text("utf-8")
