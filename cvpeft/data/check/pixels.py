"""Every image decoded in full, by several processes: is it whole, how large is it upright, what does it look like."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from cvpeft.data.check.finding import Pixels
from cvpeft.data.similar import difference_hash
from cvpeft.errors import DataError, ResourceError
from cvpeft.runtime.image import decode, orientation

__all__ = ["decode_all", "sha256_of"]

CHUNK = 16  # images that a process takes at a time
FEW = 64  # images that are not worth the start of processes


def decode_all(paths: Sequence[Path], *, workers: int | None = None, progress: bool = True) -> dict[Path, Pixels]:
    """Decode each file once. workers: processes; None: one for each core. Nothing is written; no fault is raised."""
    unique = list(dict.fromkeys(paths))
    workers = min(workers or os.cpu_count() or 1, -(-len(unique) // FEW))
    found = {}
    with tqdm(total=len(unique), desc="check", unit="image", leave=False, disable=None if progress else True) as bar:
        for path, pixels in zip(unique, _decoded(unique, workers), strict=True):
            found[path] = pixels
            bar.update()
    return found


def _decoded(paths: list[Path], workers: int) -> Iterator[Pixels]:
    """The results of `_look`, in order, from this process or from a pool."""
    if workers <= 1:
        yield from map(_look, paths)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)
    try:
        yield from pool.map(_look, paths, chunksize=CHUNK)
    except BrokenProcessPool as broken:
        why, fix = "most often memory ran out", "run the same command with --workers 1"
        raise ResourceError("WORKER", "a process that decodes images died", why=why, fix=fix) from broken
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl+C reaches every process of a terminal; the first one tells it, and ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _look(path: Path) -> Pixels:
    try:
        image, size = decode(path)
        one, other = difference_hash(image).tolist()
        return Pixels(None, size, orientation(path), (one, other), sha256_of(path))
    except DataError as fault:
        return Pixels(fault)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
