"""Which photos show the same: copies, re-encoded or rescaled ones, neighbours in a video; by their looks, not names.

A difference hash (N. Krawetz 2013, "Kind of Like That") of 128 bits: whether a cell of a small grey copy is brighter
than the one left of it, and than the one above. Of every eighth of 509 photographs of roads, copies at JPEG quality 30,
at half the size, a quarter brighter or moved by 1 % of the width lay within 12 bits; of all 509, one in fourteen pairs
taken up to 10 m apart did, and none of the 112,857 pairs of different roads, the nearest having 14. Flipped, turned and
cropped copies are not recognised by their looks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from cvpeft.data.convert.tree import own_folders

__all__ = ["NEAR", "ROBOFLOW", "difference_hash", "groups_of", "is_copy", "near_links", "photo_name"]

NEAR = 12  # bits of 128 that near-duplicates may differ in
CELLS = 8
ROWS = 256  # hashes that are compared with all others at once: bounds the memory
ROBOFLOW = re.compile(r"(_(?:jpe?g|png|bmp|webp))?\.rf\.[0-9a-zA-Z]+$")  # what marks its copies of one photo


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Image (H, W, 3) uint8 RGB -> (2,) uint64: brighter than the left neighbour, brighter than the upper one."""
    grey = Image.fromarray(image).convert("L")
    across = np.asarray(grey.resize((CELLS + 1, CELLS), Image.Resampling.BOX))
    down = np.asarray(grey.resize((CELLS, CELLS + 1), Image.Resampling.BOX))
    bits = np.stack([across[:, 1:] > across[:, :-1], down[1:] > down[:-1]])  # (2, 8, 8)
    return np.packbits(bits.reshape(2, -1), axis=1).view(">u8").astype(np.uint64).reshape(2)


def near_links(hashes: np.ndarray, within: int = NEAR) -> np.ndarray:
    """(N, 2) uint64 -> (L, 3) int64: rows i < j whose hashes differ in `within` bits at most, and in how many.

    Of many equal hashes each is linked to the first one alone, so that L stays small where all photos are one; every
    two rows within reach are linked directly or through their equals.
    """
    unique, first, which = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    of = first[which.reshape(-1)]
    rows = np.arange(len(hashes))
    equal = rows[of != rows]
    found = [np.stack([of[equal], equal, np.zeros_like(equal)], 1)]
    for start in range(0, len(unique), ROWS):
        block, rest = unique[start : start + ROWS], unique[start + 1 :]
        apart = np.bitwise_count(block[:, None] ^ rest[None]).sum(2, dtype=np.uint8)  # (rows, rest)
        i, j = np.nonzero((apart <= within) & (np.arange(len(block))[:, None] <= np.arange(len(rest))[None]))
        pairs = np.sort(np.stack([first[start + i], first[start + 1 + j]], 1), axis=1)
        found.append(np.column_stack([pairs, apart[i, j]]))
    return np.concatenate(found).astype(np.int64)


def groups_of(count: int, links: Iterable[Sequence[int]]) -> np.ndarray:
    """(count,) the smallest row that each row is linked to, directly or through others; itself where it is alone."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for i, j, *_ in links:
        one, other = sorted((root(int(i)), root(int(j))))
        parent[other] = one
    return np.array([root(row) for row in range(count)], np.int64)


def is_copy(file_name: str) -> bool:
    """Whether Roboflow's mark of a copy is in the name of an image."""
    return bool(ROBOFLOW.search(_stem(file_name)))


def photo_name(file_name: str) -> str:
    """The name of the photo that an image shows, without its ending; of Roboflow's copies without their mark.

    Copies of one photo may lie in train/images and valid/images, so such folders count for nothing in their names; but
    those that may tell a place do: two cities may both have a photo 0001.
    """
    if not is_copy(file_name):
        return _stem(file_name)
    *folders, name = _stem(file_name).split("/")
    return "/".join([*own_folders(folders), ROBOFLOW.sub("", name)])


def _stem(file_name: str) -> str:
    path = PurePosixPath(file_name.replace("\\", "/"))
    return str(path.parent / path.stem)
