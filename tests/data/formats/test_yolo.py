"""YOLO folders: Roboflow's, CVAT's, Label Studio's and plain ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cvpeft.data.convert.importer import Imported, import_labels
from cvpeft.errors import DataError
from tests.data.sources import FIVE, labels, photo, put, state, yolo

ROWS = "0 0.5 0.5 0.2 0.5\n4 0.1 0.25 0.1 0.1\n"
BOXES = [("good", [40.0, 15.0, 20.0, 30.0]), ("circle", [5.0, 12.0, 10.0, 6.0])]


def run(root: Path, **options: object) -> Imported:
    return import_labels(root, root.parent / "out", **options)  # type: ignore[arg-type]


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        run(root, **options)
    assert not (root.parent / "out").exists()
    return str(caught.value)


def test_roboflows_export(tmp_path: Path) -> None:
    photos = {
        "train/images/a_jpg.rf.0a1b.jpg": ROWS, "train/images/a_jpg.rf.2c3d.jpg": "1 0.5 0.5 0.5 0.5",
        "train/images/n.jpg": "", "valid/images/b.jpg": "2 0.5 0.5 1 1\n\n", "test/images/c.jpg": None,
    }  # fmt: skip
    root = yolo(tmp_path / "covers.v3", photos)
    before = state(root)
    made = run(root)
    assert [part.file.name for part in made.parts] == ["train.json", "val.json", "test.json"]
    assert labels(tmp_path / "out/train.json") == {
        "train/images/a_jpg.rf.0a1b.jpg": BOXES,
        "train/images/a_jpg.rf.2c3d.jpg": [("broke", [25.0, 15.0, 50.0, 30.0])],
        "train/images/n.jpg": [],
    }
    assert labels(tmp_path / "out/val.json") == {"valid/images/b.jpg": [("lose", [0.0, 0.0, 100.0, 60.0])]}
    assert labels(tmp_path / "out/test.json") == {"test/images/c.jpg": []}
    assert made.notes == ["1 images have no text file, so they show nothing"]
    assert [list(part.boxes) for part in made.parts] == [list(FIVE)] * 3
    assert state(root) == before


def test_polygons_become_boxes(tmp_path: Path) -> None:
    rows = "0 0.1 0.1 0.5 0.2 0.3 0.9\n1 0.2 0.2 0.6 0.2 0.6 0.8 0.2 0.8\n"
    made = run(yolo(tmp_path / "set", {"train/images/a.jpg": rows}))
    assert labels(tmp_path / "out/train.json")["train/images/a.jpg"] == [
        ("good", [10.0, 6.0, 40.0, 48.0]),
        ("broke", [20.0, 12.0, 40.0, 36.0]),
    ]
    assert "2 polygons are replaced by the upright boxes around them" in made.notes


def pose(root: Path, shape: str, *rows: str) -> Path:
    yaml = f"names: [{', '.join(FIVE)}]\nkpt_shape: {shape}\n"
    return yolo(root, {f"train/images/{i}.jpg": row for i, row in enumerate(rows)}, yaml)


def test_poses_are_boxes_with_keypoints_which_are_left_out(tmp_path: Path) -> None:
    rows = ["0 0.5 0.5 0.2 0.5 0.1 0.1 2 0.9 0.9 2", "4 0.1 0.25 0.1 0.1 0 0 0 0.9 0.9 1"]
    made = run(pose(tmp_path / "set", "[2, 3]", *rows))
    assert [*labels(tmp_path / "out/train.json").values()] == [[box] for box in BOXES]
    assert made.notes == ["2 rows have keypoints, which are left out; their boxes are kept"]


@pytest.mark.parametrize(
    ("shape", "row", "told"),
    [
        ("[2, 3]", "0 0.5 0.5 0.2 0.5", "5 numbers, not a class, x y w h and 6 of keypoints"),
        ("[2, 2]", "0 0.5 0.5 0.2 0.5 0.1 0.1", "7 numbers, not a class, x y w h and 4 of keypoints"),
        ("[1, 1]", "0 0.5 0.5 0.2 0.5 0.1", "kpt_shape is [1, 1]"),
        ("17", "0 0.5 0.5 0.2 0.5 0.1", "kpt_shape is 17"),
    ],
)
def test_poses_of_another_shape_are_refused(tmp_path: Path, shape: str, row: str, told: str) -> None:
    assert told in refusal(pose(tmp_path / "set", shape, row))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("5 0.5 0.5 0.2 0.2", r"class is 5, but the names are 0..4"),
        ("-1 0.5 0.5 0.2 0.2", r"class is -1"),
        ("0.5 0.5 0.5 0.2 0.2", r"class is 0.5"),
        ("0 0.5 0.5 0.2", "the row has 4 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "a sixth number is a detector's score".capitalize()),
        ("0 0.5 0.5 nan 0.2", "holds what is no number"),
        ("0 0.5 0.5 x 0.2", "does not consist of numbers"),
        ("0 1.5 0.5 0.2 0.2", r"leaves the image of 100x60"),
        ("0 50 30 20 20", "numbers up to 50, and they are parts of the image's sides, 0..1. Fix: divide pixels by"),
        ("0 5 5 9 5 9 25", "numbers up to 25, and they are parts"),
        ("0 0.5 0.5 -0.2 0.2", "width and height are -0.2 and 0.2, a negative size. Fix: draw the box anew"),
    ],
)
def test_a_row_that_means_something_else_is_told_with_its_line(tmp_path: Path, row: str, told: str) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": f"0 0.5 0.5 0.2 0.2\n{row}\n", "train/images/b.jpg": ROWS})
    text = refusal(root)
    assert told in text
    assert "train/labels/a.txt:2" in text
    made = run(root, skip=True)
    assert list(labels(tmp_path / "out/train.json")) == ["train/images/b.jpg"]  # a half-labelled photo teaches falsely
    assert "1 images have faults and are left out" in made.notes


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {f"train/images/{i}.jpg": "7 0.5 0.5 0.2 0.2" for i in range(30)})
    put(root / "train/labels/gone.txt", ROWS)
    text = refusal(root)
    assert text.startswith("E-DATA 31 faults in the data set\n  E-MISSING ")
    assert "and 11 more; in all 1 MISSING, 30 CLASS" in text
    assert "--on-fault skip" in text


def test_names_may_be_a_mapping_and_folders_plain(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"images/train/a.jpg": ROWS}, f"names: {dict(enumerate(FIVE))}\n".replace("'", ""))
    run(root)
    assert labels(tmp_path / "out/train.json") == {"images/train/a.jpg": BOXES}


@pytest.mark.parametrize(
    ("yaml", "told"),
    [
        ("names: []\n", "names of the classes are not there"),
        ("names: {0: good, 2: lose}\n", "the indices 0, 2"),
        ("nc: 3\nnames: [good]\n", "nc is 3, but there are 1 names"),
        ("names: [good\n", "not YAML"),
        (
            "names: [good, broke, lose, a, b]\ntrain: train/images\nval: train/images\n",
            "images are in train and in val",
        ),
    ],
)
def test_a_data_yaml_that_misleads_is_refused(tmp_path: Path, yaml: str, told: str) -> None:
    assert told in refusal(yolo(tmp_path / "set", {"train/images/a.jpg": ROWS}, yaml))


def test_paths_of_another_machine_are_found_by_their_end(tmp_path: Path) -> None:
    yaml = (
        "path: /content/drive/covers\ntrain: images/one\nval: C:\\data\\images\\two\nnames: [good, b, c, d, circle]\n"
    )
    root = yolo(
        tmp_path / "set", {"images/one/a.jpg": ROWS, "images/two/b.jpg": ROWS, "images/three/c.jpg": ROWS}, yaml
    )
    made = run(root)
    assert labels(tmp_path / "out/train.json") == {"images/one/a.jpg": BOXES}
    assert labels(tmp_path / "out/val.json") == {"images/two/b.jpg": BOXES}
    assert "1 images are in no split of data.yaml; left out" in made.notes


def test_cvats_export_with_lists(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a", "b"):
        photo(root / f"obj_train_data/{name}.jpg")
        put(root / f"obj_train_data/{name}.txt", ROWS)
    put(root / "obj.names", "\n".join(FIVE) + "\n")
    put(root / "obj.data", "classes = 5\nnames = data/obj.names\n")
    put(root / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    run(root)
    assert labels(tmp_path / "out/data.json") == {f"obj_train_data/{n}.jpg": BOXES for n in "ab"}


def test_two_photos_of_one_label_file_are_a_fault(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": ROWS})
    photo(root / "train/images/a.png")
    assert "the labels belong to train/images/a.jpg and to train/images/a.png" in refusal(root)


def test_boxes_are_parts_of_the_upright_photo(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", {"train/images/a.jpg": "0 0.5 0.5 0.5 0.5"})
    photo(root / "train/images/a.jpg", (60, 100), orientation=6)
    run(root)
    assert labels(tmp_path / "out/train.json")["train/images/a.jpg"] == [("good", [15.0, 25.0, 30.0, 50.0])]


LISTS = ("test", "train", "val", "valid", "trainval", "notes", "classes", "README", "readme_2", "predefined_classes")


@pytest.mark.parametrize("folders", [("images", "labels"), ("train/images", "train/labels"), ("both", "both")])
def test_a_photo_that_is_called_like_a_list_keeps_its_labels(tmp_path: Path, folders: tuple[str, str]) -> None:
    root, (images, texts) = tmp_path / "set", folders
    for name in LISTS:
        photo(root / images / f"{name}.jpg")
        put(root / texts / f"{name}.txt", ROWS)
    put(root / "data.yaml", f"names: [{', '.join(FIVE)}]\n")
    (part,) = run(root).parts
    assert labels(part.file) == {f"{images}/{name}.jpg": BOXES for name in LISTS}


@pytest.mark.parametrize("place", ["", "images/", "labels/"])
def test_lists_without_a_photo_of_their_name_hold_no_labels(tmp_path: Path, place: str) -> None:
    root = tmp_path / "set"
    photo(root / "images/a.jpg")
    put(root / "labels/a.txt", ROWS)
    put(root / f"{place}classes.txt", "\n".join(FIVE))
    put(root / f"{place}train.txt", "images/a.jpg\n")
    run(root)
    assert labels(tmp_path / "out/data.json") == {"images/a.jpg": BOXES}


def test_a_list_above_a_photo_of_its_name_holds_no_labels(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a.jpg", "images/train.jpg"):
        photo(root / name)
    put(root / "a.txt", ROWS)
    put(root / "labels/train.txt", ROWS)
    put(root / "train.txt", "a.jpg\nimages/train.jpg\n")
    put(root / "obj.names", "\n".join(FIVE))
    run(root)
    assert labels(tmp_path / "out/data.json") == {"a.jpg": BOXES, "images/train.jpg": BOXES}


def test_the_names_are_not_read_from_the_labels_of_a_photo(tmp_path: Path) -> None:
    root = tmp_path / "set"
    photo(root / "Images/classes.jpg")
    put(root / "Labels/classes.txt", ROWS)
    put(root / "data.yaml", "nothing: of use\n")
    with pytest.raises(DataError):
        import_labels(root, tmp_path / "out")
    put(root / "classes.txt", "\n".join(FIVE))
    run(root)
    assert labels(tmp_path / "out/data.json") == {"Images/classes.jpg": BOXES}


def test_an_empty_line_among_the_names_moves_no_class(tmp_path: Path) -> None:
    root = tmp_path / "set"
    photo(root / "images/a.jpg")
    put(root / "labels/a.txt", "2 0.5 0.5 0.2 0.5\n")
    put(root / "classes.txt", "broke\n\ngood\nlose\n\n")
    run(root)
    assert labels(tmp_path / "out/data.json") == {"images/a.jpg": BOXES[:1]}
    put(root / "labels/a.txt", "1 0.5 0.5 0.2 0.5\n")
    with pytest.raises(DataError, match=r"a\.txt:1 - the object has no class"):
        import_labels(root, tmp_path / "other")


@pytest.mark.parametrize("place", ["txt", "Annotations", "berlin", "images/yolo", "labels/train"])
def test_labels_in_a_folder_that_is_not_theirs_are_not_lost(tmp_path: Path, place: str) -> None:
    root = tmp_path / "set"
    for name in ("a", "b"):
        photo(root / f"images/{name}.jpg")
    put(root / f"{place}/a.txt", ROWS)
    put(root / "labels/b.txt", ROWS)
    put(root / "more/b.txt", "no labels, and b has its own")
    put(root / "classes.txt", "\n".join(FIVE))
    told = rf"E-PLACE .*images/a\.jpg - {place}/a\.txt is called like it, but lies neither beside it nor in"
    assert re.search(told, refusal(root))
    run(root, skip=True)
    assert labels(tmp_path / "out/data.json") == {"images/b.jpg": BOXES}


@pytest.mark.parametrize(("file", "names"), [("classes.txt", "{}\n{}\n"), ("data.yaml", "names: [{}, {}]\n")])
def test_exports_side_by_side_keep_their_own_names(tmp_path: Path, file: str, names: str) -> None:
    """As Label Studio writes them, each with the classes in an order of its own."""
    root = tmp_path / "set"
    for city, classes in (("berlin", ("good", "broke")), ("lyon", ("broke", "good"))):
        photo(root / city / "images/1.jpg")
        put(root / city / "labels/1.txt", "0 0.5 0.5 0.2 0.5\n")
        put(root / city / file, names.format(*classes))
    told = rf"the labels in lyon/labels have other class names than berlin/{file}: broke, good\."
    assert re.match(rf"E-NAMES .*lyon/{file} - {told}", refusal(root))
    put(root / "lyon" / file, names.format("good", "broke"))
    if file == "data.yaml":
        put(root / "lyon/yolov5/data/coco.yaml", "names: [person]\n")  # of no labels
    run(root)
    assert labels(tmp_path / "out/data.json") == {f"{city}/images/1.jpg": BOXES[:1] for city in ("berlin", "lyon")}


def test_exports_side_by_side_keep_their_own_splits(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for city, split in (("berlin", "train"), ("lyon", "valid"), ("nice", "rest")):
        yolo(root / city, {f"{split}/images/{city}.jpg": ROWS})
    made = run(root)
    assert labels(tmp_path / "out/train.json") == {"berlin/train/images/berlin.jpg": BOXES}
    assert labels(tmp_path / "out/val.json") == {"lyon/valid/images/lyon.jpg": BOXES}
    files = "berlin/data.yaml and lyon/data.yaml and nice/data.yaml"
    assert f"1 images are in no split of {files}; left out" in made.notes
