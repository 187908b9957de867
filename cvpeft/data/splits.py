"""The train, val and test data of a config, rendered first where the config asks for rendered scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvpeft.config import schema
from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.render import is_rendered, render_dataset, renderers
from cvpeft.errors import ConfigError

__all__ = ["Splits", "open_split", "open_splits", "render_missing"]


SEEDS = 1_000_003  # from one file of a name to the next: farther than the seeds that people write


@dataclass(frozen=True)
class Splits:
    """The three parts; val and test are None where the config names no files for them."""

    train: CocoData
    val: CocoData | None
    test: CocoData | None


def open_splits(data: schema.Data) -> Splits:
    """All splits of a config; the classes of train are the classes of all."""
    if not data.train:
        raise ConfigError("DATA", "data.train names no json file", fix="set data.train to a COCO json, or several")
    render_missing(data)
    train = load_coco(data.train, classes=data.classes)

    def other(files: Sequence[Path]) -> CocoData | None:
        return load_coco(files, classes=train.classes) if files else None

    return Splits(train, other(data.val), other(data.test))


def open_split(data: schema.Data, split: str, classes: Sequence[str]) -> CocoData:
    """One split of a config by name; ConfigError where the config names no file for it."""
    files: tuple[Path, ...] = getattr(data, split)
    if not files:
        raise ConfigError("SPLIT", f"data.{split} names no json file", fix=_other_split(data, split))
    render_missing(data)
    return load_coco(files, classes=classes)


def _other_split(data: schema.Data, split: str) -> str:
    named = [f"--split {name}" for name in ("val", "train") if getattr(data, name)]
    return f"set data.{split}, or give {' or '.join([*named[:1], '--data FILE'])}"


def render_missing(data: schema.Data) -> None:
    """Render the json files that do not exist yet, where data.render is set.

    DataError: one was rendered with other settings. Files that the renderer did not write are left alone.
    """
    r = data.render
    if r is None:
        return
    parts = ((data.train, r.train), (data.val, r.val), (data.test, r.test))
    with renderers() as pool:
        for offset, (files, images) in enumerate(parts):  # each split has scenes of its own
            for number, file in enumerate(files):
                if not file.exists() or is_rendered(file):
                    # The renderer draws from the file's name too, but a/train.json and b/train.json share theirs.
                    same = sum(other.stem == file.stem for other in files[:number])
                    seed = 3 * (r.seed + SEEDS * same) + offset
                    render_dataset(file.parent, r.city, images, seed, r.size, file.stem, pool=pool, parts=r.parts)
