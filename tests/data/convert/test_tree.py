"""A name that a labelling tool wrote leads to its image, and never to another place's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvpeft.data.convert.tree import Tree


@pytest.mark.parametrize(
    ("name", "image", "meant"),
    [
        ("..\\..\\label-studio\\upload\\1.png", "images/1.png", True),
        ("/data/local-files/?d=covers/1.png", "1.png", True),
        ("1.png", "lyon/1.png", True),
        ("berlin/1.png", "lyon/1.png", False),
        ("berlin/images/1.png", "lyon/images/1.png", False),
        ("berlin/north/1.png", "lyon/north/1.png", False),
        ("/home/me/berlin/1.png", "images/Berlin/train/1.png", True),
        ("images/berlin/1.png", "cities/berlin/1.png", True),
        ("../berlin/1.png", "cities/berlin/1.png", True),
        ("valid/1.png", "train/1.png", False),
        ("val2017/1.png", "images/valid/1.png", True),
    ],
)
def test_folders_of_a_name_and_of_its_image_do_not_contradict_each_other(name: str, image: str, meant: bool) -> None:
    assert Tree(Path(), (image,)).match(name, "labels.json") == (image if meant else None)


def test_folders_that_an_image_shares_with_its_labels_tell_nothing() -> None:
    tree = Tree(Path(), ("covers.v3/images/1.png",))
    assert tree.match("/content/covers/images/1.png", "covers.v3/train.txt") == "covers.v3/images/1.png"
    assert tree.match("/content/covers/images/1.png", "train.txt") is None


@pytest.mark.parametrize(
    ("name", "file", "meant"),
    [
        ("1.png", "berlin/labels.json", False),
        ("images/1.png", "berlin/annotations/train.json", False),
        ("../lyon/1.png", "berlin/labels.json", True),
        ("1.png", "berlin2/labels.json", True),
        ("1.png", "lyon/labels.json", True),
        ("1.png", "labels.json", True),
    ],
)
def test_labels_among_photos_mean_none_of_another_place(name: str, file: str, meant: bool) -> None:
    tree = Tree(Path(), ("berlin/images/2.png", "lyon/1.png"))
    assert tree.match(name, file) == ("lyon/1.png" if meant else None)


def test_labels_among_photos_mean_none_of_another_split() -> None:
    assert Tree(Path(), ("train/2.png", "valid/1.png")).match("1.png", "train/labels.json") is None


@pytest.mark.parametrize(("split", "meant"), [("train", False), ("val", True), ("", True)])
def test_labels_of_a_split_mean_no_photo_of_another(split: str, meant: bool) -> None:
    tree = Tree(Path(), ("train2017/2.png", "val2017/1.png"))
    assert tree.match("1.png", "annotations/instances.json", split) == ("val2017/1.png" if meant else None)
