"""Data set -> batches for the network, the same ones for any number of workers and from any restart point."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvpeft.data.coco import CocoData, ImageRecord
from cvpeft.data.images import wrong_size
from cvpeft.data.mosaic import mosaic, window
from cvpeft.data.transforms import Augment, keep
from cvpeft.errors import CvpeftError, DataError, ResourceError
from cvpeft.runtime.image import Letterbox, Size, decode
from cvpeft.runtime.tiles import TiledPhoto
from cvpeft.types import Target

__all__ = [
    "Batch", "EvalLoader", "Sample", "TrainLoader", "collate", "dead_workers_told", "eval_loader", "read_sample",
    "train_loader",
]  # fmt: skip


@dataclass
class Sample:
    """One network input. letterbox: see Augment; name: file names in the json, of a mosaic all four."""

    image: Tensor  # (3, H, W) uint8 RGB
    target: Target
    letterbox: Letterbox
    name: str


@dataclass
class Batch:
    """Network inputs of one step, and what belongs to each."""

    images: Tensor  # (B, 3, H, W) uint8 RGB
    targets: list[Target]
    letterboxes: list[Letterbox]
    names: list[str]

    def pin_memory(self) -> Batch:
        """Called by the DataLoader; the targets are too small to be worth it."""
        return replace(self, images=self.images.pin_memory())


def train_loader(
    data: CocoData,
    size: Size,
    augment: Augment,
    *,
    batch: int,
    workers: int,
    seed: int,
    epochs: int,
    start: tuple[int, int] = (0, 0),
    mosaic: float = 0.0,
    canvas: Size | None = None,
    pin: bool = False,
) -> TrainLoader:
    """Iterates over (epoch, step, Batch) from `start` to the end of the last epoch, both counted from 0.

    Order and augmentation depend on the data set and (seed, epoch, image id) alone. Every epoch shows each image once;
    its last batch may be smaller. mosaic: part of the inputs, 0..1, that show a quarter of the image beside quarters of
    three others. canvas: the inputs are windows of images that are letterboxed into this larger size, `augment` being
    made for it; half of the windows lie around a box, half anywhere. pin: batches are on their way to a GPU, which
    takes them faster out of memory that cannot be swapped out. Crowd boxes are left out of the targets.
    Raises DataError where no image has a box to learn from.
    """
    if not any((~image.crowd).any() for image in data.images):
        raise DataError("EMPTY", f"none of the {len(data.images)} training images has a box", fix="label some images")
    return TrainLoader(_Windows(data, size, augment, seed, mosaic, canvas), batch, workers, epochs, start, pin)


def eval_loader(
    data: CocoData, size: Size, *, batch: int, workers: int, canvas: Size | None = None, pin: bool = False
) -> EvalLoader:
    """Iterates over Batch in the order of the data set, letterboxed only; with a canvas, every image in its tiles.

    pin: see `train_loader`.
    """
    return EvalLoader(_Tiles(data, size, canvas), batch, workers, pin)


class TrainLoader:
    """See `train_loader`. `len` is the number of batches in an epoch. Workers live until the last epoch is over."""

    def __init__(
        self, inputs: _Windows, batch: int, workers: int, epochs: int, start: tuple[int, int], pin: bool
    ) -> None:
        self.plan = _Plan(len(inputs.images), batch, inputs.seed, epochs, start)
        self.loader = _loader(inputs, workers, self.plan, pin)

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[tuple[int, int, Batch]]:
        for (epoch, step), batch in zip(self.plan.places(), _batches(self.loader), strict=True):
            yield epoch, step, batch


class EvalLoader:
    """See `eval_loader`. `len` is the number of batches."""

    def __init__(self, inputs: _Tiles, batch: int, workers: int, pin: bool) -> None:
        order = [inputs.places[at : at + batch] for at in range(0, len(inputs.places), batch)]
        self.loader = _loader(inputs, workers, order, pin)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self.loader)


def read_sample(image: ImageRecord, size: Size, augment: Augment, seed: int) -> Sample:
    """Decode, check the size against the json's, augment. Raises DataError that names the image."""
    full = (image.height, image.width)
    pixels = _pixels(image, (round(size[0] * augment.detail), round(size[1] * augment.detail)))
    learnt = ~image.crowd
    canvas, boxes, labels, geometry = augment(pixels, _corners(image), image.labels[learnt], full, seed)
    return _sample(canvas, boxes, labels, geometry, image)


def _pixels(image: ImageRecord, at_least: Size) -> np.ndarray:
    """(h, w, 3), a large JPEG at a fraction of its size; DataError where the size is not the json's."""
    pixels, found = decode(image.path, at_least=at_least)
    if found != (image.height, image.width):
        raise wrong_size(image.path, (image.height, image.width), found)
    return pixels


def _corners(image: ImageRecord) -> np.ndarray:
    """Boxes that are learnt (N, 4), x1 y1 x2 y2."""
    boxes = image.boxes[~image.crowd] * 1.0
    boxes[:, 2:] += boxes[:, :2]  # x y w h -> x1 y1 x2 y2
    return boxes


def _sample(canvas: np.ndarray, boxes: np.ndarray, labels: np.ndarray, place: Letterbox, image: ImageRecord) -> Sample:
    target: Target = {
        "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "labels": torch.from_numpy(np.ascontiguousarray(labels)),
        "image_id": image.id,
    }
    tensor = torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))  # (H, W, 3) -> (3, H, W)
    return Sample(tensor, target, place, image.file_name)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size -> a batch."""
    return Batch(
        torch.stack([sample.image for sample in samples]),
        [sample.target for sample in samples],
        [sample.letterbox for sample in samples],
        [sample.name for sample in samples],
    )


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way out of a worker; torch would wrap it into a traceback."""

    kind: type[CvpeftError]
    code: str
    text: str

    def error(self) -> CvpeftError:
        error = self.kind.__new__(self.kind, self.text)
        error.code = self.code
        return error


class _Inputs(Dataset[Sample | _Failure]):
    """Indexed by a pair of numbers; a user's error comes back instead of the sample."""

    def __getitem__(self, place: tuple[int, int]) -> Sample | _Failure:
        try:
            return self.sample(*place)
        except CvpeftError as error:
            return _Failure(type(error), error.code, str(error))

    def sample(self, first: int, second: int) -> Sample:
        raise NotImplementedError


class _Windows(_Inputs):
    """Training inputs, by (epoch, index), so that workers need not be told that an epoch begins."""

    def __init__(
        self, data: CocoData, size: Size, augment: Augment, seed: int, mosaic: float, canvas: Size | None
    ) -> None:
        self.images, self.size, self.augment, self.seed = data.images, size, augment, seed
        self.mosaic, self.canvas = mosaic, canvas or size

    def sample(self, epoch: int, index: int) -> Sample:
        image = self.images[index]
        seeds = np.random.SeedSequence((self.seed, epoch, image.id))
        sample = self._read(image, int(seeds.generate_state(1, np.uint64)[0]))
        rng = np.random.default_rng(seeds.spawn(1)[0])
        if rng.random() < self.mosaic:
            others = [self.images[i] for i in rng.integers(len(self.images), size=3)]
            samples = [sample, *(self._read(other, int(rng.integers(2**63))) for other in others)]
            pixels, target = mosaic([(s.image, s.target) for s in samples], self.size, rng)
            return replace(sample, image=pixels, target=target, name=" + ".join(s.name for s in samples))
        if self.canvas == self.size:
            return sample
        pixels, target = window(sample.image, sample.target, self.size, rng, anywhere=rng.random() < 0.5)
        return replace(sample, image=pixels, target=target)

    def _read(self, image: ImageRecord, seed: int) -> Sample:
        return read_sample(image, self.canvas, self.augment, seed)


class _Tiles(_Inputs):
    """Evaluation inputs, by (index, tile). The tiles of an image follow one another, so that it is decoded once."""

    def __init__(self, data: CocoData, size: Size, canvas: Size | None) -> None:
        self.images, self.canvas = data.images, canvas or size
        self.photos = [TiledPhoto.of((image.height, image.width), size, canvas) for image in data.images]
        self.places = [(i, tile) for i, photo in enumerate(self.photos) for tile in range(len(photo.places))]
        self.cut: tuple[int, list[np.ndarray]] = (-1, [])  # the image at hand, and its tiles

    def sample(self, index: int, tile: int) -> Sample:
        image, place = self.images[index], self.photos[index].places[tile]
        if self.cut[0] != index:
            self.cut = (index, list(self.photos[index].cut(_pixels(image, self.canvas))))
        learnt = ~image.crowd
        boxes, labels = keep(place.forward(_corners(image)), image.labels[learnt], place)
        return _sample(self.cut[1][tile], boxes, labels, place, image)


class _Plan:
    """Which images are in which batch, from the start point on: lists of (epoch, index)."""

    def __init__(self, images: int, batch: int, seed: int, epochs: int, start: tuple[int, int]) -> None:
        self.images, self.batch, self.seed, self.epochs, self.start = images, batch, seed, epochs, start
        self.steps = -(-images // batch)

    def __len__(self) -> int:
        return max(0, (self.epochs - self.start[0]) * self.steps - self.start[1])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, step in self.places():
            if step == 0 or (epoch, step) == self.start:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.images).tolist()
            yield [(epoch, index) for index in order[step * self.batch : (step + 1) * self.batch]]

    def places(self) -> Iterator[tuple[int, int]]:
        for epoch in range(self.start[0], self.epochs):
            for step in range(self.start[1] if epoch == self.start[0] else 0, self.steps):
                yield epoch, step


def _loader(images: _Inputs, workers: int, batch_sampler: Any, pin: bool) -> DataLoader[Any]:
    return DataLoader(
        images,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=_collate_or_fail,
        worker_init_fn=_init_worker,
        pin_memory=pin,
        generator=torch.Generator(),  # else every pass over the data would advance torch's global one
    )


def _collate_or_fail(samples: Sequence[Sample | _Failure]) -> Batch | _Failure:
    failure = next((sample for sample in samples if isinstance(sample, _Failure)), None)
    return failure or collate([sample for sample in samples if isinstance(sample, Sample)])


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Signals wait until the block is over, and a process that begins in it is born deaf to them.

    A worker that does not share the memory of its parent imports for seconds before `_init_worker` runs.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has none
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_heard()})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heard() -> set[signal.Signals]:
    """What `_obey_parent` waits for; macOS and Windows have no way to."""
    return {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()


def _init_worker(_: int) -> None:
    """A worker is one of several: threads of its own would only fight for the same cores.

    Ctrl+C is sent to it as well as to its parent, which still wants to save, and ends its workers then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _heard():
        signal.pthread_sigmask(signal.SIG_BLOCK, _heard())
        threading.Thread(target=_obey_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _obey_parent() -> None:
    """End at the parent's SIGTERM alone: one to the whole group is for the parent, which still wants to save."""
    parent = multiprocessing.parent_process()  # os.getppid() is a server's where that starts the processes
    assert parent is not None
    while signal.sigwaitinfo(_heard()).si_pid != parent.pid:
        pass
    os._exit(0)


def _batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    with dead_workers_told():
        with _signals_held_back():
            batches = iter(loader)
        for batch in batches:
            if isinstance(batch, _Failure):
                raise batch.error()
            yield batch


@contextmanager
def dead_workers_told() -> Iterator[None]:
    """ResourceError in place of what torch raises where a loader process dies; it stands around all that takes batches.

    torch raises it from a signal handler, and so wherever the main process happens to be.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        what = f"a loader process died ({str(error).splitlines()[0].rstrip('. ')})"
        why = "mostly memory ran out, or /dev/shm is too small"
        fix = "set data.workers=0, or give docker --shm-size=2g"
        raise ResourceError("WORKER", what, why=why, fix=fix) from error
