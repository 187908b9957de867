"""Copies of a photo are found however they were saved, other photos are not; fast for ten thousand."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cvpeft.data.similar import NEAR, difference_hash, groups_of, near_links, photo_name
from cvpeft.runtime.image import decode

from .sets import picture


def resaved(image: Image.Image, **options: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resaved": lambda image: resaved(image, quality=30),
    "scaled": lambda image: image.resize((image.width // 2, image.height // 2)),
    "stretched": lambda image: image.resize((416, 416)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "moved": lambda image: image.crop((image.width // 100, 0, image.width, image.height)),
}


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one ^ other).sum())


@pytest.fixture(scope="module")
def roads(potholes: Path) -> list[tuple[str, Image.Image]]:
    """(section, photo) of every twentieth real photograph."""
    images = json.loads((potholes / "train.json").read_text())["images"][::20]
    return [(image["section"], Image.fromarray(decode(potholes / image["file_name"])[0])) for image in images]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_a_real_photo_is_near(roads: list[tuple[str, Image.Image]], change: str) -> None:
    far = [
        apart(difference_hash(np.asarray(photo)), difference_hash(np.asarray(CHANGES[change](photo))))
        for _, photo in roads
    ]
    assert max(far) <= NEAR, far


def test_other_roads_are_not_near(roads: list[tuple[str, Image.Image]]) -> None:
    hashes = [difference_hash(np.asarray(photo)) for _, photo in roads]
    links = near_links(np.array(hashes))
    assert [(i, j) for i, j, _ in links if roads[i][0] != roads[j][0]] == []


def test_links_are_those_of_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, equal hashes among them: the same groups as by comparing one by one."""
    monkeypatch.setattr("cvpeft.data.similar.ROWS", 7)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (60, 2), np.uint64)
    for row in range(20, 60):  # near copies of the first twenty, by up to three bits, some of them equal
        hashes[row] = hashes[row % 20]
        for bit in rng.integers(0, 64, int(rng.integers(0, 4))):
            hashes[row, 0] ^= np.uint64(1) << np.uint64(bit)
    hashes = hashes[rng.permutation(60)]
    plain = [(i, j) for i in range(60) for j in range(i + 1, 60) if apart(hashes[i], hashes[j]) <= NEAR]
    links = near_links(hashes)
    assert {(i, j) for i, j, _ in links} <= set(plain)
    assert all(apart(hashes[i], hashes[j]) == bits for i, j, bits in links)
    assert groups_of(60, links).tolist() == groups_of(60, plain).tolist()
    assert len(set(groups_of(60, links))) == 20


@pytest.mark.parametrize("count", [0, 1])
def test_few_photos(count: int) -> None:
    assert near_links(np.zeros((count, 2), np.uint64)).shape == (0, 3)
    assert groups_of(count, []).tolist() == list(range(count))


def test_ten_thousand_are_compared_in_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, (10_000, 2), np.uint64)
    hashes[5_000:5_100] = hashes[0]
    start = time.process_time()
    links = near_links(hashes)
    assert time.process_time() - start < 20  # about 1.5 s alone on a core
    assert len(links) == 100


def test_ten_thousand_equal_ones_need_few_links() -> None:
    links = near_links(np.ones((10_000, 2), np.uint64))
    assert len(links) == 9_999
    assert set(groups_of(10_000, links)) == {0}


def test_the_hash_does_not_depend_on_the_machine() -> None:
    """A golden: hashes may be stored, so that they must not change by themselves."""
    assert [f"{word:016x}" for word in difference_hash(picture(60, 100, 3))] == GOLDEN


GOLDEN = ["2293d3723435634e", "0909b61e1f71e2e6"]


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("a_jpg.rf.0123abcd.jpg", "a"),
        ("train/a.rf.XY9.jpg", "a"),
        ("valid/images/a_png.rf.XY9.jpg", "a"),
        ("lyon\\train\\images\\a_jpg.rf.XY9.jpg", "lyon/a"),
        ("train/images/a.jpg", "train/images/a"),
        ("a.jpg", "a"),
        ("b\\a.png", "b/a"),
        ("perf.rfc.jpg", "perf.rfc"),
        ("", "."),
    ],
)
def test_the_photo_behind_roboflows_copies(name: str, photo: str) -> None:
    assert photo_name(name) == photo
