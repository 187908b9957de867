"""Many scenes as a COCO data set on disk: same arguments, same bytes, whatever the number of workers."""

from __future__ import annotations

import difflib
import json
import multiprocessing
import os
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from cvpeft.data.faults import seed_faults
from cvpeft.data.render.cities import CITIES, CLASSES
from cvpeft.data.render.scene import render_scene
from cvpeft.data.render.tiles import hand_on, share
from cvpeft.errors import DataError, ResourceError

__all__ = ["RENDERER_VERSION", "is_rendered", "parts_file", "render_dataset", "renderers"]

RENDERER_VERSION = "1.2"  # part of every seed: another picture from the same arguments needs another version
LEAST_SIZE = 64  # px
CHUNK = 4  # images that a process takes at a time


@dataclass(frozen=True)
class _Job:
    """Everything that decides the content of a data set."""

    out: Path
    city: str
    seed: int
    images: int
    size: tuple[int, int]
    name: str
    parts: bool

    def spec(self) -> dict[str, Any]:
        spec = {
            "renderer": RENDERER_VERSION, "city": self.city, "seed": self.seed, "images": self.images,
            "name": self.name, "height": self.size[0], "width": self.size[1],
        }  # fmt: skip
        return spec | ({"parts": True} if self.parts else {})

    @property
    def json(self) -> Path:
        return self.out / f"{self.name}.json"

    def file_name(self, index: int) -> str:
        return f"images/{self.city}_{self.name}_{self.seed}_{index:05d}.jpg"

    def files(self, index: int) -> list[Path]:
        image = self.out / self.file_name(index)
        return [image, parts_file(image)] if self.parts else [image]


def render_dataset(
    out: Path, city: str, images: int, seed: int, size: tuple[int, int] = (480, 640), name: str = "train",
    workers: int | None = None, progress: bool = True, pool: ProcessPoolExecutor | None = None, parts: bool = False,
) -> Path:  # fmt: skip
    """Write out/images/*.jpg and the COCO file out/{name}.json, and return the latter's path.

    parts: write out/parts/*.png too, of each image what its pixels show: indices of PARTS, (h, w) uint8.
    size: (h, w) px; workers: processes, the number of cores when None, started for this set alone unless a `pool` of
    `renderers` is given. An image depends on renderer version, city, name, seed, index and size alone. A finished set
    with the same arguments is left as it is; a broken-off one is completed. DataError: an unknown city or a senseless
    number, or files in the way that another set of arguments wrote; nothing is overwritten then.
    """
    job = _Job(Path(out), city, seed, images, (int(size[0]), int(size[1])), name, parts)
    _check(job)
    finished = _finished(job)
    todo = [i for i in range(images) if not (finished and all(file.exists() for file in job.files(i)))]
    rows = _run(job, todo, workers or _cores(), progress, pool)
    if not finished:
        _write_json(job, rows)
    return job.json


@contextmanager
def renderers(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes for several calls of `render_dataset`: they make each ground tile once, which takes seconds in all.

    None starts before there is something to do, and none stays afterwards. workers: the number of cores when None.
    """
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory(prefix="cvpeft-tiles-", ignore_cleanup_errors=True) as folder:
        pool = ProcessPoolExecutor(workers or _cores(), context, initializer=_start, initargs=(Path(folder),))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return os.cpu_count() or 1


def _check(job: _Job) -> None:
    """Refuse what cannot be rendered, all faults together."""
    faults = []
    if job.city not in CITIES:
        near = difflib.get_close_matches(job.city, CITIES, n=1)
        fix = f"use {near[0]!r}" if near else f"use one of {', '.join(CITIES)}"
        faults.append(DataError("CITY", f"there is no city {job.city!r}", fix=fix))
    if job.images < 1:
        faults.append(DataError("COUNT", f"{job.images} images asked for", fix="ask for at least 1"))
    faults += seed_faults(job.seed)
    if min(job.size) < LEAST_SIZE:
        fix = f"use at least {LEAST_SIZE} px per side"
        faults.append(DataError("SIZE", f"the size is {job.size[0]} x {job.size[1]} px", fix=fix))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", job.name):
        fix = "use letters, digits, . _ -"
        faults.append(DataError("NAME", f"the name is {job.name!r}", why="it becomes a file name", fix=fix))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise DataError("RENDER", "\n".join(str(fault) for fault in faults))


def _finished(job: _Job) -> bool:
    """Whether the same set has been written before; DataError when the json is of something else."""
    if not job.json.exists():
        return False
    found = _spec_of(job.json)
    if found == job.spec():
        return True
    differs = "it was not rendered by this program" if not isinstance(found, dict) else _difference(found, job.spec())
    raise DataError("EXISTS", f"the file is there and {differs}", where=str(job.json), why="it would be overwritten",
                    fix="choose another folder or name, or move the file away")  # fmt: skip


def parts_file(image: Path) -> Path:
    """Where a rendered image's parts lie, if they were asked for."""
    return image.parents[1] / "parts" / f"{image.stem}.png"


def is_rendered(file: Path) -> bool:
    """Whether a COCO json says of itself that `render_dataset` wrote it, and under this name.

    A part of one that `cvpeft data split` made has its words and another name: it is the user's.
    """
    spec = _spec_of(file)
    return isinstance(spec, dict) and spec.get("name") == file.stem


def _spec_of(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["info"]["spec"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    keys = [key for key in asked if found.get(key) != asked[key]]
    return "holds " + ", ".join(f"{key} {found.get(key)!r} instead of {asked[key]!r}" for key in keys)


def _run(
    job: _Job, todo: list[int], workers: int, progress: bool, pool: ProcessPoolExecutor | None
) -> list[dict[str, Any]]:
    """Render the images in order of their index and write each as it comes."""
    bar = tqdm(total=len(todo), desc=f"render {job.city}/{job.name}", unit="image", disable=not progress or not todo)
    rows = []
    with bar:
        for row, files in _rendered(job, todo, min(workers, -(-len(todo) // CHUNK)), pool):
            for path, data in zip(job.files(row["index"]), files, strict=True):
                _put(path, data)
            rows.append(row)
            bar.update()
    return rows


def _rendered(
    job: _Job, todo: list[int], workers: int, pool: ProcessPoolExecutor | None
) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """The results of `_one`, in order, from a pool or from this process."""
    if workers <= 1:
        yield from (_one(job, index) for index in todo)
        return
    with nullcontext(pool) if pool else renderers(workers) as processes:
        try:
            grounds = {*CITIES[job.city].grounds, *CITIES[job.city].walks}
            for name in sorted(grounds, reverse=True):  # stones before asphalt: they take longest
                processes.submit(hand_on, name)
            yield from processes.map(_one, [job] * len(todo), todo, chunksize=CHUNK)
        except BrokenProcessPool as error:
            fix = "run the same command with fewer workers; what is rendered is kept"
            why = 'most often memory ran out, or a script does not guard its start by `if __name__ == "__main__"`'
            raise ResourceError("WORKER", "a rendering process died", where=str(job.json), why=why, fix=fix) from error


def _start(folder: Path) -> None:
    """One thread per process, for the pool already fills the cores; ground tiles are shared through its folder."""
    cv2.setNumThreads(1)
    share(folder)


def _one(job: _Job, index: int) -> tuple[dict[str, Any], list[bytes]]:
    """Render one image: its boxes and labels as plain lists, and the bytes of its files."""
    seed = zlib.crc32(f"{RENDERER_VERSION}/{job.city}/{job.name}".encode())
    rng = np.random.default_rng([seed, job.seed, index])
    city = CITIES[job.city]
    scene = render_scene(city, int(rng.integers(2**62)), job.size)
    quality = round(rng.uniform(*city.quality))
    _, data = cv2.imencode(".jpg", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    boxes = [[round(float(x), 2) for x in box] for box in scene.boxes]
    files = [data.tobytes()]
    if job.parts:
        files.append(cv2.imencode(".png", scene.parts)[1].tobytes())
    return {"index": index, "boxes": boxes, "labels": scene.labels.tolist()}, files


def _put(path: Path, data: bytes) -> None:
    """Write an image; one that is there already must be the same, or the torn beginning of it."""
    found = path.read_bytes() if path.exists() else b""
    if found == data:
        return
    if not data.startswith(found):
        raise DataError("EXISTS", "another image has this name", where=str(path), why="it would be overwritten",
                        fix="choose another folder or name, or move the image away")  # fmt: skip
    _write(path, data)


def _write(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file whole or not at all; the temporary name is fixed, so the next run clears what a killed one left."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        fix = "free space or choose another folder, then run the same command again"
        raise ResourceError("WRITE", f"it cannot be written: {error.strerror}", where=str(path), fix=fix) from error


def _write_json(job: _Job, rows: list[dict[str, Any]]) -> None:
    """The COCO file, last of all: where it stands, the set is complete."""
    images = [
        {
            "id": row["index"] + 1,
            "file_name": job.file_name(row["index"]),
            "height": job.size[0],
            "width": job.size[1],
            "city": job.city,
        }
        for row in rows
    ]
    pairs = [
        (row["index"] + 1, box, label) for row in rows for box, label in zip(row["boxes"], row["labels"], strict=True)
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": round(box[2] * box[3], 2), "iscrowd": 0}
        for i, (image, box, label) in enumerate(pairs, 1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    info = {"description": "rendered street scenes with manhole covers", "spec": job.spec()}
    text = json.dumps({"info": info, "images": images, "annotations": annotations, "categories": categories})
    _write(job.json, text.encode(), sync=True)
