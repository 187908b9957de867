"""Rendered data of a config: made once, never taken for what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvpeft.config import schema
from cvpeft.data.coco import load_coco
from cvpeft.data.render import render_dataset
from cvpeft.data.split import split_json
from cvpeft.data.splits import open_split, open_splits, render_missing
from cvpeft.errors import ConfigError, DataError

from .sets import coco, write


def data(folder: Path, **render: object) -> schema.Data:
    size = {"city": "b", "train": 2, "val": 1, "test": 1, "size": (96, 128)}
    return schema.Data(
        root=folder,
        train=(folder / "train.json",),
        val=(folder / "val.json",),
        render=schema.Render.model_validate(size | render),
    )


def test_rendered_splits_are_made_once_and_those_of_other_settings_refused(tmp_path: Path) -> None:
    splits = open_splits(data(tmp_path))
    assert len(splits.train.images) == 2
    assert splits.test is None
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    open_splits(data(tmp_path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    for other in ({"city": "a"}, {"train": 3}, {"seed": 1}):
        with pytest.raises(DataError, match=r"train.json - the file is there and holds "):
            open_splits(data(tmp_path, **other))


def test_every_file_of_a_split_holds_scenes_of_its_own(tmp_path: Path) -> None:
    """The first file, and files of other names, are those that render_dataset makes of the split's seed."""
    files = tuple(tmp_path / name for name in ("a/train.json", "b/train.json", "a/more.json"))
    render_missing(data(tmp_path, seed=1).model_copy(update={"train": files, "val": ()}))
    scenes = [[image.path.read_bytes() for image in load_coco([file]).images] for file in files]
    assert len({scene for found in scenes for scene in found}) == 6
    for file, found in zip(files[::2], scenes[::2], strict=True):
        alone = render_dataset(tmp_path / "alone", "b", 2, 3, (96, 128), file.stem)
        assert [image.path.read_bytes() for image in load_coco([alone]).images] == found


def test_files_of_the_user_are_read_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, coco(3), "train.json")
    write(tmp_path, coco(2), "val.json")
    assert len(open_splits(data(tmp_path)).train.images) == 3


def test_a_part_of_a_rendered_file_is_read_as_it_is(tmp_path: Path) -> None:
    """`cvpeft compare --sweep-lr` trains on such parts, and every training completes what the config renders."""
    render_missing(data(tmp_path))
    kept, held = split_json(tmp_path / "train.json", {"kept": 0.5, "held": 0.5})
    splits = open_splits(data(tmp_path).model_copy(update={"train": (kept.file,), "val": (held.file,)}))
    assert [len(split.images) for split in (splits.train, splits.val) if split] == [1, 1]


def test_a_split_that_is_not_named_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data.test names no json file.*set data.test, or give --split val or --data"
    ):
        open_split(data(tmp_path), "test", ("good",))
