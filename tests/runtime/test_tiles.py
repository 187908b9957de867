"""Tiles: every pixel is seen at its scale, what is small is whole in one of them, and one object gives one box."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from cvpeft.runtime.image import PAD, Letterbox, Size, fit, letterbox
from cvpeft.runtime.tiles import EDGE, OVERLAP, Canvas, Found, TiledPhoto, join

TILE = (64, 96)
SOURCES = [(64, 96), (100, 100), (300, 500), (517, 203), (63, 999), (1000, 40), (1, 1)]
CANVASES: list[Canvas | None] = [None, (64, 96), (160, 192), (333, 777), "photo"]


def picture(size: Size) -> np.ndarray:
    """Every pixel another colour than its neighbours, none of them grey."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack((x % 251, y % 241, (x + y) % 2 * 255), 2).astype(np.uint8)


@pytest.mark.parametrize(("source", "canvas"), list(product(SOURCES, CANVASES)))
def test_tiles_show_the_whole_photo(source: Size, canvas: Canvas | None) -> None:
    image = picture(source)
    photo = TiledPhoto.of(source, TILE, canvas)
    seen = np.zeros(photo.whole.size, int)
    for tile, place in zip(photo.cut(image), photo.places, strict=True):
        assert tile.shape == (*TILE, 3)
        top, left = photo.whole.top - place.top, photo.whole.left - place.left
        seen[top : top + TILE[0], left : left + TILE[1]] += 1
        box = place.inverse(np.array([[0, 0, TILE[1], TILE[0]]]))[0]
        assert (box[2:] > box[:2]).all()  # no tile is all bars
    assert (seen > 0).all()
    wanted = source if canvas == "photo" else fit(source, canvas or TILE).inner
    assert photo.whole.inner == wanted


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_canvas_it_is_the_letterbox(source: Size) -> None:
    photo = TiledPhoto.of(source, TILE)
    canvas, geometry = letterbox(picture(source), TILE)
    assert photo.places == (geometry,)
    assert (next(photo.cut(picture(source))) == canvas).all()


def test_a_box_of_a_tile_lies_where_the_tile_was_cut() -> None:
    image = np.full((200, 300, 3), PAD, np.uint8)
    image[120:130, 200:215] = (250, 10, 10)
    photo = TiledPhoto.of((200, 300), TILE, "photo")
    found = 0
    for tile, place in zip(photo.cut(image), photo.places, strict=True):
        rows, columns = np.nonzero(tile[..., 0] == 250)
        if len(rows) == 150:
            box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
            assert place.inverse(box).tolist() == [[200, 120, 215, 130]]
            assert place.forward(np.array([[200, 120, 215, 130]])).tolist() == box.tolist()
            found += 1
    assert found


@pytest.mark.parametrize("source", [(300, 500), (1000, 1400), (65, 97), (640, 1024)])
def test_what_is_small_is_whole_in_one_tile(source: Size) -> None:
    height, width = (int(OVERLAP * side - 2 * EDGE) for side in TILE)
    windows = np.array(
        [
            place.inverse(np.array([[0, 0, TILE[1], TILE[0]]]))[0]
            for place in TiledPhoto.of(source, TILE, "photo").places
        ]
    )
    for y, x in product(range(0, source[0] - height, 3), range(0, source[1] - width, 3)):
        box = np.array([x, y, x + width, y + height])
        assert ((windows[:, :2] <= box[:2]) & (windows[:, 2:] >= box[2:])).all(1).any()


def seen_in(places: tuple[Letterbox, ...], objects: np.ndarray, scores: list[float]) -> list[Found]:
    """What a perfect detector finds in every tile: objects, cut at its sides, with a lower score where less is seen."""
    found = []
    for place in places:
        window = place.inverse(np.array([[0, 0, place.size[1], place.size[0]]]))[0]
        low, high = np.maximum(objects[:, :2], window[:2]), np.minimum(objects[:, 2:], window[2:])
        rows = np.flatnonzero(((high - low) >= 1).all(1))
        part = (high - low)[rows].prod(1) / (objects[rows, 2:] - objects[rows, :2]).prod(1)
        order = np.argsort(-np.array(scores)[rows] * part, kind="stable")
        rows, part = rows[order], part[order]
        boxes = np.concatenate((low[rows], high[rows]), 1)
        found.append(Found(boxes, np.array(scores)[rows] * part, np.ones(len(rows), np.int64)))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_every_object_is_found_once(seed: int) -> None:
    """Small ones, and ones that no single tile holds."""
    rng = np.random.default_rng(seed)
    photo = TiledPhoto.of((300, 500), TILE, "photo")
    grid = [(x, y) for x in range(0, 500, 125) for y in range(0, 300, 100)]
    cells = rng.permutation(len(grid))[:6]
    corners = np.array([grid[c] for c in cells], float) + rng.uniform(0, 5, (6, 2))
    objects = np.concatenate((corners, corners + rng.uniform(8, (115, 90), (6, 2))), 1)
    scores = sorted(rng.uniform(0.5, 1, 6).tolist(), reverse=True)
    joined = join(seen_in(photo.places, objects, scores), photo.places)
    assert len(joined.boxes) == 6
    assert (np.diff(joined.scores) <= 0).all()
    apart = np.abs(joined.boxes[:, None] - objects[None]).max(-1)  # (found, objects)
    assert sorted(apart.argmin(1)) == list(range(6))
    assert apart.min(1).max() < 1e-9


def test_neighbours_in_one_tile_stay_two() -> None:
    """What a tile's own NMS has kept is not thinned out again; another class is another object."""
    photo = TiledPhoto.of((64, 150), TILE, "photo")
    close = np.array([[60.0, 20, 80, 40], [64, 20, 84, 40]])
    found = [Found(close, np.array([0.9, 0.8]), np.array([1, 1])), Found(close[:1], np.array([0.7]), np.array([2]))]
    joined = join(found, photo.places)
    assert joined.labels.tolist() == [1, 1, 2]
    assert joined.scores.tolist() == [0.9, 0.8, 0.7]


def test_a_whole_box_wins_over_a_cut_one_and_takes_its_score() -> None:
    photo = TiledPhoto.of((64, 150), TILE, "photo")  # tiles 0..96 and 54..150
    cut, whole = np.array([[80.0, 20, 96, 40]]), np.array([[80.0, 20, 110, 40]])
    joined = join(
        [Found(cut, np.array([0.9]), np.array([1])), Found(whole, np.array([0.4]), np.array([1]))], photo.places
    )
    assert joined.boxes.tolist() == whole.tolist()
    assert joined.scores.tolist() == [0.9]


@pytest.mark.parametrize("source", [(3024, 4032), (4032, 3024), (2160, 3840), (1080, 1920), (2448, 3264), (4000, 6000)])
@pytest.mark.parametrize(
    ("tile", "canvas"), [((416, 640), (832, 1280)), ((640, 640), (1280, 1920)), ((448, 672), (1000, 1333))]
)
def test_the_border_of_a_photo_cuts_nothing(source: Size, tile: Size, canvas: Size) -> None:
    """An object that reaches the far border is whole in the last tile; what a neighbour saw of it adds nothing."""
    photo = TiledPhoto.of(source, tile, canvas)
    corner, tried = photo.places[-1], 0
    for other in photo.places[:-1]:
        if (other.left == corner.left) == (other.top == corner.top):  # a neighbour along one axis only
            continue
        low, high = (p.inverse(np.array([[0, 0, tile[1], tile[0]]]))[0] for p in (corner, other))
        if (high[2:] <= low[:2]).any():
            continue
        start = (np.maximum(low[:2], high[:2]) + np.minimum(low[2:], high[2:])) / 2
        whole, part = np.array([*start, source[1], source[0]]), np.array([*(start - EDGE), *np.minimum(low, high)[2:]])
        found = [Found(box[None], np.array([score]), np.array([1])) for box, score in ((whole, 0.5), (part, 0.9))]
        joined = join(found, [corner, other])
        assert joined.boxes.tolist() == [whole.tolist()]
        tried += 1
    assert tried


def test_nothing_found_is_no_box() -> None:
    photo = TiledPhoto.of((64, 150), TILE, "photo")
    nothing = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    assert join([nothing, nothing], photo.places).boxes.shape == (0, 4)
