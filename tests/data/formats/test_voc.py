"""Pascal VOC folders, with what LabelImg, Roboflow and the sets on the web leave in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvpeft.data.convert.importer import Imported, import_labels
from cvpeft.errors import DataError
from tests.data.sources import content, labels, photo, put, state, xml

GOOD = ("good", 10, 10, 30, 40)
BOX = ("good", [10.0, 10.0, 20.0, 30.0])


def run(root: Path, **options: object) -> Imported:
    return import_labels(root, root.parent / "out", **options)  # type: ignore[arg-type]


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        run(root, **options)
    return str(caught.value)


def voc(root: Path, **xmls: str) -> Path:
    """Photo name -> xml, in Annotations and JPEGImages."""
    for name, text in xmls.items():
        photo(root / f"JPEGImages/{name}.jpg")
        put(root / f"Annotations/{name}.xml", text)
    return root


def test_the_classic_folders_with_their_lists(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([GOOD], "a.jpg"), b=xml([("broke", 0, 0, 100, 60)]), c=xml(), d=xml([GOOD]))
    put(root / "ImageSets/Main/train.txt", "a\n")
    put(root / "ImageSets/Main/val.txt", "b 1\n")
    put(root / "ImageSets/Main/trainval.txt", "a\nb\n")
    put(root / "ImageSets/Main/test.txt", "c\n")
    before = state(root)
    run(root)
    assert labels(tmp_path / "out/train.json") == {"JPEGImages/a.jpg": [BOX]}
    assert labels(tmp_path / "out/val.json") == {"JPEGImages/b.jpg": [("broke", [0.0, 0.0, 100.0, 60.0])]}
    assert labels(tmp_path / "out/test.json") == {"JPEGImages/c.jpg": []}
    assert labels(tmp_path / "out/data.json") == {"JPEGImages/d.jpg": [BOX]}
    assert content(tmp_path / "out/test.json")["categories"] == [{"id": 1, "name": "broke"}, {"id": 2, "name": "good"}]
    assert state(root) == before


@pytest.mark.parametrize("line", ["street 7", "street 7  1", "street 7 -1", "street 7.jpg", " street 7 "])
def test_a_list_may_name_photos_with_spaces_or_with_their_ending(tmp_path: Path, line: str) -> None:
    root = voc(tmp_path / "VOC", **{"street 7": xml([GOOD]), "street": xml(), "a.b": xml()})
    put(root / "ImageSets/Main/train.txt", f"{line}\na.b\n")
    put(root / "ImageSets/Main/val.txt", "street\n")
    run(root)
    assert labels(tmp_path / "out/train.json") == {"JPEGImages/a.b.jpg": [], "JPEGImages/street 7.jpg": [BOX]}
    assert labels(tmp_path / "out/val.json") == {"JPEGImages/street.jpg": []}


def test_an_image_in_two_lists_is_refused(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([GOOD]))
    put(root / "ImageSets/Main/train.txt", "a\n")
    put(root / "ImageSets/Main/val.txt", "a\n")
    assert "a is in train and in val" in refusal(root)


def test_roboflows_folders(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        photo(tmp_path / f"set/{split}/{split}_jpg.rf.01ab.jpg")
        put(tmp_path / f"set/{split}/{split}_jpg.rf.01ab.xml", xml([GOOD], f"{split}_jpg.rf.01ab.jpg"))
    run(tmp_path / "set")
    assert labels(tmp_path / "out/train.json") == {"train/train_jpg.rf.01ab.jpg": [BOX]}
    assert labels(tmp_path / "out/val.json") == {"valid/valid_jpg.rf.01ab.jpg": [BOX]}


@pytest.mark.parametrize("filename", ["other", "other.jpg", "other.JPG.png", "D:\\photos\\other.jpg"])
def test_the_filename_leads_where_the_names_differ(tmp_path: Path, filename: str) -> None:
    root = tmp_path / "VOC"
    name = "other.JPG.png" if filename.endswith("png") else "other.jpg"
    photo(root / "JPEGImages" / name)
    put(root / "Annotations/0001.xml", xml([GOOD], filename))
    made = run(root)
    assert labels(tmp_path / "out/data.json") == {f"JPEGImages/{name}": [BOX]}
    assert "1 xml files have another name than their image, which was found by <filename>" in made.notes


def test_the_filename_leads_to_no_other_place(tmp_path: Path) -> None:
    """Berlin's first photo was not copied; Lyon's of that name has no labels."""
    root = tmp_path / "set"
    for name in ("berlin/2.jpg", "lyon/1.jpg"):
        photo(root / name)
    for name in ("1", "2"):
        put(root / f"berlin/{name}.xml", xml([GOOD], f"{name}.jpg"))
    assert "neither 1 nor the <filename> '1.jpg' is there" in refusal(root)
    run(root, skip=True)
    assert labels(tmp_path / "out/data.json") == {"berlin/2.jpg": [BOX]}


def test_a_suffix_may_be_missing_without_a_word_and_a_stale_name_is_counted(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([GOOD], "a"), b=xml([("lose", 0, 0, 9, 9)], "a.jpg"))
    made = run(root)
    found = labels(tmp_path / "out/data.json")
    assert found == {"JPEGImages/a.jpg": [BOX], "JPEGImages/b.jpg": [("lose", [0.0, 0.0, 9.0, 9.0])]}
    assert [note for note in made.notes if note.startswith("1 xml files state another <filename>")]


def test_labels_without_photo_and_photos_without_labels(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([GOOD]), gone=xml([GOOD]))
    (root / "JPEGImages/gone.jpg").unlink()
    photo(root / "JPEGImages/unlabelled.jpg")
    assert "neither gone nor the <filename> '' is there" in refusal(root)
    made = run(root, skip=True)
    assert list(labels(tmp_path / "out/data.json")) == ["JPEGImages/a.jpg"]
    assert "faults of no image, passed over: 1 MISSING" in made.notes
    assert any(note.startswith("1 images have no labels and are left out") for note in made.notes)
    assert "gone" in content(tmp_path / "out/import.log.json")["left_out"][0]


def test_photos_without_labels_may_be_said_to_show_nothing(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([GOOD]))
    photo(root / "JPEGImages/empty.jpg")
    run(root, negatives=True)
    assert labels(tmp_path / "out/data.json") == {"JPEGImages/a.jpg": [BOX], "JPEGImages/empty.jpg": []}
    put(root / "ImageSets/Main/val.txt", "empty\n")
    import_labels(root, tmp_path / "split", negatives=True)
    assert labels(tmp_path / "split/val.json") == {"JPEGImages/empty.jpg": []}


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((0, 0), "1 images have no size in their labels; that of their file was taken"),
        (("", "x"), "1 images have no size in their labels; that of their file was taken"),
        ((50, 90), "1 images have another size in their labels than their file has; that of the file was taken"),
    ],
)
def test_a_size_of_nothing_or_of_another_image_gives_way(tmp_path: Path, size: tuple[int, int], told: str) -> None:
    made = run(voc(tmp_path / "VOC", a=xml([GOOD], size=size)))
    assert content(tmp_path / "out/data.json")["images"][0] == {
        "id": 1, "file_name": "JPEGImages/a.jpg", "width": 100, "height": 60,
    }  # fmt: skip
    assert told in made.notes


def test_a_photo_that_was_scaled_after_it_was_labelled_is_refused(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([("good", 10, 5, 30, 20)], size=(30, 50)))
    assert "labels say 50x30, the upright image has 100x60" in refusal(root)


def test_a_turned_photo_is_taken_only_where_its_boxes_tell_how_it_was_labelled(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([("good", 10, 70, 50, 95)], size=(60, 100)))  # only upright, 60 wide, 100 high
    photo(root / "JPEGImages/a.jpg", (60, 100), orientation=6)
    run(root)
    assert labels(tmp_path / "out/data.json") == {"JPEGImages/a.jpg": [("good", [10.0, 70.0, 40.0, 25.0])]}
    put(root / "Annotations/a.xml", xml([GOOD], size=(60, 100)))  # fits both ways
    assert "without its EXIF orientation" in refusal(root)


def test_difficult_objects_are_crowds(tmp_path: Path) -> None:
    made = run(voc(tmp_path / "VOC", a=xml([(*GOOD, 1), ("lose", 50, 10, 60, 20, 0)])))
    boxes = content(tmp_path / "out/data.json")["annotations"]
    assert [(box["iscrowd"], box.get("difficult")) for box in boxes] == [(1, 1), (0, None)]
    assert any(note.startswith("1 objects marked difficult") for note in made.notes)


def test_cvats_rotated_boxes_become_hulls(tmp_path: Path) -> None:
    turned = "<attributes><attribute><name>occluded</name><value>0</value></attribute>" + (
        "<attribute><name>rotation</name><value>90.0</value></attribute></attributes></object>"
    )
    root = voc(tmp_path / "VOC", a=xml([("good", 30, 20, 70, 40)]).replace("</object>", turned), b=xml([GOOD]))
    made = run(root)
    found = labels(tmp_path / "out/data.json")
    assert found == {"JPEGImages/a.jpg": [("good", [40.0, 10.0, 20.0, 40.0])], "JPEGImages/b.jpg": [BOX]}
    assert "1 rotated boxes are replaced by the upright boxes around them" in made.notes
    put(root / "Annotations/b.xml", xml([GOOD]).replace("</object>", turned.replace("90.0", "a little")))
    with pytest.raises(DataError, match="the rotation is 'a little', not a number of degrees"):
        import_labels(root, tmp_path / "other")


def test_what_has_no_area_or_is_there_twice_is_dropped_with_a_count(tmp_path: Path) -> None:
    made = run(voc(tmp_path / "VOC", a=xml([GOOD, GOOD, ("good", 50, 10, 50, 20), ("lose", 10, 10, 30, 40)])))
    assert labels(tmp_path / "out/data.json")["JPEGImages/a.jpg"] == [BOX, ("lose", BOX[1])]
    assert "1 boxes have no area and are dropped" in made.notes
    assert any(note.startswith("1 boxes are there twice") for note in made.notes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>', "it has a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "it has a DOCTYPE"),
        ("<annotation><object>", "the xml cannot be read"),
        ("<annotation>&undeclared;</annotation>", "the xml cannot be read"),
        ("<annotation><object></annotation>", "the xml cannot be read"),
        (xml([("good", 10, 10, "nan", 40)]), "which are no numbers"),
        (xml([("good", 10, 10, "", 40)]), "xmin ymin xmax ymax are 10, 10, absent, 40"),
        (xml([("good", 30, 10, 10, 40)]), "ymax are 30, 10, 10, 40, a negative size. Fix: swap the two corners"),
        (xml([("good", 50, 10, 130, 40)]), "leaves the image"),
        (xml([("", 10, 10, 30, 40)]), "the object has no class"),
    ],
)
def test_a_bad_xml_is_one_fault_and_can_be_skipped(tmp_path: Path, text: str, told: str) -> None:
    root = voc(tmp_path / "VOC", a=text, b=xml([GOOD]))
    assert told in refusal(root, form="voc")
    run(root, form="voc", skip=True)
    assert list(labels(tmp_path / "out/data.json")) == ["JPEGImages/b.jpg"]


def test_files_of_another_set_beside_are_not_taken_for_labels(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", a=xml([GOOD]))
    put(root / "labels/a.txt", "0 0.2 0.4166667 0.2 0.5")
    put(root / "labels/classes.txt", "good")
    assert "there are labels of voc and yolo" in refusal(root)
    run(root, form="voc")
    other = import_labels(root, tmp_path / "other", form="yolo")
    assert labels(tmp_path / "out/data.json") == labels(other.parts[0].file) == {"JPEGImages/a.jpg": [BOX]}
