"""The ground tiles that a process has at hand, and how the processes of one pool share the work of making them."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from cvpeft.data.render.ground import Tile, paint_tile
from cvpeft.errors import ResourceError
from cvpeft.files import replacing

__all__ = ["hand_on", "share", "tile"]

_shared: list[Path] = []  # the folder of this process's pool, if it has one


@lru_cache(maxsize=16)
def tile(name: str) -> Tile:
    """The tile of a recipe, made once per process or read where another process of the pool has handed it on."""
    file = _file(name)
    return _read(file) if file and file.exists() else paint_tile(name)


def share(folder: Path) -> None:
    """Let this process find the tiles of others in a folder that is theirs alone and goes with them."""
    _shared[:] = [folder]


def hand_on(name: str) -> None:
    """Make a tile for all processes that share the folder. Where there is no room for it, each makes its own."""
    file = _file(name)
    if file and not file.exists():
        made = tile(name)
        with suppress(ResourceError), replacing(file) as part, part.open("wb") as stream:
            np.savez(stream, np.array([made.metres, len(made.face)]), *made.face, *made.relief)


def _file(name: str) -> Path | None:
    return _shared[0] / f"{name}.npz" if _shared else None


def _read(file: Path) -> Tile:
    with np.load(file) as arrays:  # which unpickles nothing unless it is told to
        (metres, faces), *levels = (arrays[f"arr_{number}"] for number in range(len(arrays)))
    return Tile(float(metres), tuple(levels[: int(faces)]), tuple(levels[int(faces) :]))
