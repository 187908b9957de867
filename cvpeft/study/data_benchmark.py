"""What `cvpeft data check` and reading labels cost, beside what cannot be spared: decoding alone, parsing alone."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvpeft.data.check.run import check
from cvpeft.data.coco import load_coco
from cvpeft.data.render import render_dataset
from cvpeft.train.memory import process_peak

__all__ = ["benchmark_data"]

SIZE = (480, 640)  # (height, width)
SCENES = 24  # rendered; the others are these, moved and with noise of their own, so that no two are alike
BOXES_OF_AN_IMAGE = 10
NOISE = 4  # grey levels; JPEGs of it are as large as those of a phone at this size
QUALITY = 90


def benchmark_data(images: int, boxes: int) -> Iterator[str]:
    """Lines that tell seconds, ratios and peak memory; all files lie in a temporary folder and are gone at the end.

    images: JPEGs of 640 x 480 to be checked, decoded and compared; boxes: annotations of a json to be read.
    """
    with tempfile.TemporaryDirectory(prefix="cvpeft-") as place:
        folder = Path(place)
        content = _photos(folder, images)
        size = sum(file.stat().st_size for file in (folder / "photos").iterdir()) / max(1, images) / 1024
        yield f"{images} JPEGs of {SIZE[1]} x {SIZE[0]}, {size:.0f} KiB each, {os.cpu_count()} cores"
        files = sorted((folder / "photos").iterdir())
        bare = _seconds(lambda: _decode_alone(files))
        whole = _seconds(lambda: check({"all": [content]}, progress=False))
        yield f"decoding alone        {bare:7.1f} s"
        yield f"cvpeft data check     {whole:7.1f} s   {whole / bare:.2f} x, {images / whole:.0f} images/s"
        yield f"peak memory: {_peak()}"
        labels = _labels(folder, boxes)
        parse = _seconds(lambda: json.loads(labels.read_bytes()))
        read = _seconds(lambda: load_coco([labels]))
        yield f"json of {boxes} boxes, {labels.stat().st_size / 2**20:.0f} MiB"
        yield f"json.loads alone      {parse:7.1f} s"
        yield f"load_coco             {read:7.1f} s   {read / parse:.2f} x"
        yield f"peak memory: {_peak()}"


def _photos(folder: Path, count: int) -> Path:
    """Write folder/photos/*.jpg and their json."""
    scenes = json.loads(render_dataset(folder / "scenes", "a", SCENES, 0, SIZE, progress=False).read_text())
    pixels = [np.asarray(Image.open(folder / "scenes" / image["file_name"])) for image in scenes["images"]]
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(-NOISE, NOISE + 1, (2 * SIZE[0], SIZE[1], 3), np.int16)
    entries: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": scenes["categories"]}
    for number in range(count):
        moved = np.roll(pixels[number % SCENES], rng.integers(SIZE[1]), axis=1)
        start = rng.integers(SIZE[0])
        noisy = np.clip(moved + noise[start : start + SIZE[0]], 0, 255).astype(np.uint8)
        name = f"photos/{number:06d}.jpg"
        Image.fromarray(noisy).save(folder / name, quality=QUALITY)
        entries["images"].append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        entries["annotations"].append(_box(number, number, rng))
    return _write(folder / "photos.json", entries)


def _labels(folder: Path, boxes: int) -> Path:
    """A json of `boxes` annotations; its images are there, and empty: none is opened to read labels."""
    (folder / "named").mkdir()
    rng = np.random.default_rng(1)
    entries: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "good"}]}
    for number in range(-(-boxes // BOXES_OF_AN_IMAGE)):
        name = f"named/{number:07d}.jpg"
        (folder / name).touch()
        entries["images"].append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
    entries["annotations"] = [_box(n, n // BOXES_OF_AN_IMAGE, rng) for n in range(boxes)]
    return _write(folder / "labels.json", entries)


def _box(number: int, image: int, rng: np.random.Generator) -> dict[str, Any]:
    x, y, w, h = (round(float(v), 2) for v in rng.uniform((0, 0, 8, 8), (500, 400, 120, 80)))
    return {"id": number, "image_id": image, "category_id": 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}


def _write(file: Path, content: dict[str, Any]) -> Path:
    file.write_text(json.dumps(content))
    return file


def _decode_alone(files: Sequence[Path]) -> None:
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for _ in pool.map(_decode, files, chunksize=16):
            pass


def _decode(file: Path) -> None:
    with Image.open(file) as image:
        image.load()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak() -> str:
    """Of this process, and of the largest of those that it has started."""
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return f"{process_peak():.0f} MiB here, {child:.0f} MiB in the largest process beside"
