"""A backbone and its pyramid learn to tell objects apart on crops, long before a detector could teach it from scenes.

A crop of 64 x 64 pixels costs a fifteenth of a scene and shows an object at the size that it has in one. Where the
renderer has noted what each pixel shows, the pyramid's finest levels learn that too: a name is one word for a crop, and
that a few of its pixels are a crack is told in the place where it is.
Letters: B batch, C channels, K classes with the background as class 0, P kinds of parts.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cvpeft.backbone.build import Backbone
from cvpeft.data.coco import CocoData, ImageRecord
from cvpeft.data.render import PARTS, parts_file
from cvpeft.data.render.formula import draw_formulas
from cvpeft.detector.device import depthwise_in_single
from cvpeft.errors import DataError
from cvpeft.runtime.image import decode
from cvpeft.train.optim import warmup_cosine, with_one_rate

__all__ = ["CropSettings", "Crops", "add_formulas", "crop_step_seconds", "cut_crops", "train_on_crops"]

log = logging.getLogger(__name__)
STORED = 128  # pixels of a stored crop's side; it shows twice the object's longer side
SIDE = 64  # of a network input
ZOOM = (0.4, 0.9)  # part of a stored crop that an input shows; below 0.5, the longer side of its object, it cuts that
FORMULAS = 100  # pictures of each class that a formula draws
NEGATIVES = 2  # crops of bare ground per image
HELD_OUT = 20  # every so manieth image is scored, not trained on
UNKNOWN = 255  # of a pixel of which nobody has noted what it shows
DENSE = 2.0  # weight of the loss on parts
RARE = {"break": 3.0}  # a crack is a pixel wide


@dataclass(frozen=True)
class CropSettings:
    """lr: at its highest; batch: crops per step; optimizer: as train.optimizer."""

    epochs: int = 8
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0
    optimizer: str = "adamw"


@dataclass(frozen=True)
class Crops:
    """Objects and bare ground. pixels: (N, 3, 128, 128) uint8 RGB; labels: (N,), 0 is ground; held_out: (N,) bool.

    parts: (N, 128, 128) uint8, what each pixel shows, as in PARTS, or 255 where that is not known.
    """

    pixels: Tensor
    labels: Tensor
    held_out: Tensor
    parts: Tensor | None = None


def cut_crops(data: CocoData, *, seed: int = 0, parts: bool = False) -> Crops:
    """A crop around every box, twice as wide as it, and two of the ground beside them for every image.

    All of them are held in memory, 48 KiB each and 64 with their parts. Images are mirrored beyond their borders.
    DataError: an image's parts are asked for and not there.
    """
    pixels, labels, held_out, shown = list[np.ndarray](), list[int](), list[bool](), list[np.ndarray]()
    for number, image in enumerate(tqdm(data.images, desc="crops", unit="image", disable=None)):
        scene, _ = decode(image.path)
        squares = [(*_square(box), int(label)) for box, label in zip(image.boxes, image.labels, strict=True)]
        squares += [(*square, 0) for square in _ground(image, np.random.default_rng((seed, image.id)))]
        noted = _parts(image) if parts else None
        for x, y, side, label in squares:
            pixels.append(_cut(scene, x, y, side))
            labels.append(label)
            held_out.append(number % HELD_OUT == 0)
            if noted is not None:
                shown.append(_cut(noted, x, y, side, cv2.INTER_NEAREST))
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)
    of_parts = torch.from_numpy(np.stack(shown)) if parts else None
    return Crops(stacked, torch.tensor(labels), torch.tensor(held_out), of_parts)


def _parts(image: ImageRecord) -> np.ndarray:
    """(H, W) uint8, what the pixels of a rendered image show."""
    file = parts_file(image.path)
    if not file.is_file():
        why, fix = "the crops are trained on them", "set data.render.parts=true and render anew, or leave it out"
        raise DataError("PARTS", "the parts of a rendered image are not there", where=str(file), why=why, fix=fix)
    return decode(file)[0][..., 0]


def add_formulas(crops: Crops, classes: int, *, seed: int = 0) -> Crops:
    """The same crops and, as further classes, as many of formula-drawn shapes, 100 pictures each."""
    pixels, labels = draw_formulas(classes, FORMULAS, STORED, seed)
    more = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    unknown = torch.full((len(more), STORED, STORED), UNKNOWN, dtype=torch.uint8)
    return Crops(
        torch.cat([crops.pixels, more]),
        torch.cat([crops.labels, torch.from_numpy(labels) + 1 + crops.labels.max()]),
        torch.cat([crops.held_out, torch.arange(len(labels)) % HELD_OUT == 0]),
        None if crops.parts is None else torch.cat([crops.parts, unknown]),
    )


def _square(box: np.ndarray) -> tuple[float, float, float]:
    x, y, width, height = box.tolist()
    return x + width / 2, y + height / 2, 2 * max(width, height)


def _ground(image: ImageRecord, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Squares whose inner half touches no box; fewer than NEGATIVES where there is no room."""
    squares = []
    for _ in range(NEGATIVES):
        half = float(rng.uniform(0.06, 0.25)) * image.width
        x, y = float(rng.uniform(0, image.width)), float(rng.uniform(0, image.height))
        left, top, width, height = image.boxes.T
        apart_x = np.maximum(left - x, x - left - width)
        apart_y = np.maximum(top - y, y - top - height)
        if np.all(np.maximum(apart_x, apart_y) > half / 2):
            squares.append((x, y, 2 * half))
    return squares


def _cut(scene: np.ndarray, x: float, y: float, side: float, sampling: int = cv2.INTER_AREA) -> np.ndarray:
    """The square around (x, y), resized to (128, 128, 3) or, of one channel, (128, 128)."""
    height, width = scene.shape[:2]
    half = side / 2
    columns = np.clip(np.round(np.linspace(x - half, x + half, 2)), -width + 1, 2 * width - 1).astype(int)
    rows = np.clip(np.round(np.linspace(y - half, y + half, 2)), -height + 1, 2 * height - 1).astype(int)
    part = scene[_mirrored(rows, height)][:, _mirrored(columns, width)]
    return cv2.resize(part, (STORED, STORED), interpolation=sampling)


def _mirrored(ends: np.ndarray, length: int) -> np.ndarray:
    """Indices from ends[0] to ends[1], those outside 0..length-1 mirrored into it."""
    indices = np.abs(np.arange(ends[0], max(ends[1], ends[0] + 1)))
    return np.minimum(indices, 2 * (length - 1) - indices)


def train_on_crops(
    body: Backbone, neck: nn.Module, crops: Crops, settings: CropSettings, *, precision: str = "fp32"
) -> float:
    """Train all of `body` and `neck` in place; returns the share of held-out crops that are then told rightly.

    Each of the last three maps of the backbone has a linear classifier of its own on its mean over all places, so that
    the finer levels of a pyramid learn too (deep supervision: Lee et al. 2015). Where the crops' parts are known, the
    two finest levels of the pyramid are told the share of each part in each of their cells, and the finest one
    classifies the crop besides; otherwise `neck` stays as it is. What reads the maps is thrown away.
    """
    torch.manual_seed(settings.seed)
    readers = _Readers(body, neck, int(crops.labels.max()) + 1, dense=crops.parts is not None, precision=precision)
    optimizer = with_one_rate(settings.optimizer, readers, settings.lr, settings.weight_decay)
    train, test = (~crops.held_out).nonzero()[:, 0], crops.held_out.nonzero()[:, 0]
    steps = math.ceil(len(train) / settings.batch) * settings.epochs
    factor, accuracy, step = warmup_cosine(steps, 0.03), 0.0, 0
    readers.train()
    with tqdm(total=steps, desc="crops", unit="step", disable=None) as bar:
        for epoch in range(settings.epochs):
            order = train[torch.randperm(len(train))]
            for chosen in order.split(settings.batch):
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor(step)
                _step(readers, optimizer, crops, chosen)
                step += 1
                bar.update()
            accuracy = _accuracy(readers, crops, test)
            log.info("crops, epoch %d: %.3f of %d held out are told rightly", epoch + 1, accuracy, len(test))
    return accuracy


def crop_step_seconds(body: Backbone, neck: nn.Module, settings: CropSettings, *, dense: bool, precision: str) -> float:
    """Seconds that a training step takes here, by three of them on noise after one to warm up; both are spoilt."""
    readers = _Readers(body, neck, 2, dense=dense, precision=precision).train()
    optimizer = with_one_rate(settings.optimizer, readers, settings.lr, settings.weight_decay)
    chosen = torch.arange(settings.batch)
    pixels = torch.randint(0, 256, (settings.batch, 3, STORED, STORED), dtype=torch.uint8)
    parts = torch.zeros(settings.batch, STORED, STORED, dtype=torch.uint8) if dense else None
    noise = Crops(pixels, torch.zeros(settings.batch).long(), torch.zeros(settings.batch).bool(), parts)
    _step(readers, optimizer, noise, chosen)
    started = time.perf_counter()
    for _ in range(3):
        _step(readers, optimizer, noise, chosen)
    return (time.perf_counter() - started) / 3


class _Readers(nn.Module):
    """Backbone and pyramid with what reads their maps on crops; precision: of a training step."""

    def __init__(self, body: Backbone, neck: nn.Module, classes: int, *, dense: bool, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.body, self.neck = body, neck if dense else None
        self.of_maps = nn.ModuleList(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, classes)) for c in body.channels[-3:])
        if dense:
            width = int(neck.out_channels)  # type: ignore[arg-type]
            self.of_parts = nn.ModuleList(nn.Conv2d(width, len(PARTS), 1) for _ in range(2))
            self.of_finest = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, classes))
        if precision == "bf16":
            depthwise_in_single(self)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores (B, K), the most trusted last, and scores of parts (B, P, h, w) of the two finest levels."""
        maps = self.body(x.contiguous(memory_format=torch.channels_last))
        scores = [read(m.mean((2, 3))) for read, m in zip(self.of_maps, maps[-len(self.of_maps) :], strict=True)]
        if self.neck is None:
            return scores, []
        finest, finer = list(self.neck(maps).values())[:2]
        scores.append(self.of_finest(torch.cat([finest.mean((2, 3)), finest.amax((2, 3))], 1)))
        return scores, [read(level) for read, level in zip(self.of_parts, (finest, finer), strict=True)]


def _step(readers: _Readers, optimizer: torch.optim.Optimizer, crops: Crops, chosen: Tensor) -> None:
    labels = crops.labels[chosen]
    x, shown = _varied(crops, chosen, readers.body)
    with torch.autocast("cpu", torch.bfloat16, enabled=readers.precision == "bf16"):
        scores, of_levels = readers(x)
    maps = len(readers.of_maps)  # the deepest counts most
    weights = [0.5 ** max(maps - i - 1, 0) for i in range(len(scores))]
    losses = [
        weight * F.cross_entropy(s.float(), labels, label_smoothing=0.05)
        for weight, s in zip(weights, scores, strict=True)
    ]
    if shown is not None:
        losses += [DENSE * 0.5**i * _parts_loss(s.float(), shown) for i, s in enumerate(of_levels)]
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    nn.utils.clip_grad_norm_(readers.parameters(), 1.0)
    optimizer.step()


def _parts_loss(scores: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy of scores (B, P, h, w) with the share that each part has of a cell, by (B, P, 64, 64) of 0 and 1;
    what is unknown has no share.
    """
    shares = F.adaptive_avg_pool2d(shown, scores.shape[-2:])  # type: ignore[arg-type]
    weight = torch.tensor([RARE.get(name, 1.0) for name in PARTS]).view(1, -1, 1, 1)
    return -(F.log_softmax(scores, 1) * shares * weight).sum(1).mean()


def _accuracy(readers: _Readers, crops: Crops, test: Tensor) -> float:
    readers.eval()
    with torch.no_grad():
        right = [
            (readers(_plain(crops, i, readers.body))[0][-1].argmax(1) == crops.labels[i]).sum().item()
            for i in test.split(128)
        ]
    readers.train()
    return sum(right) / max(len(test), 1)


def _varied(crops: Crops, chosen: Tensor, body: Backbone) -> tuple[Tensor, Tensor | None]:
    """Turned by any angle, mirrored, zoomed, shifted, brighter or darker.

    Pixels (B, 3, 64, 64), and the parts that they show, one channel each, (B, P, 64, 64) of 0 and 1.
    """
    count = len(chosen)
    angle = torch.rand(count) * 2 * math.pi
    zoom, mirror = torch.empty(count).uniform_(*ZOOM), torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    shift = torch.empty(count, 2).uniform_(-0.15, 0.15)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    turn = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], 1).view(count, 2, 3)
    x = _sampled(crops.pixels[chosen], turn, body)
    x = x * torch.empty(count, 1, 1, 1).uniform_(0.7, 1.3) + torch.empty(count, 3, 1, 1).uniform_(-0.3, 0.3)
    return x, None if crops.parts is None else _shown(crops.parts[chosen], turn)


def _plain(crops: Crops, chosen: Tensor, body: Backbone) -> Tensor:
    zoom = sum(ZOOM) / 2
    middle = torch.tensor([[zoom, 0.0, 0.0], [0.0, zoom, 0.0]])
    return _sampled(crops.pixels[chosen], middle.expand(len(chosen), 2, 3), body)


def _sampled(pixels: Tensor, turn: Tensor, body: Backbone) -> Tensor:
    """Normalised, seen through an affine map `turn` (B, 2, 3) of output to input places, both in -1..1."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (body.mean, body.std))
    x = (pixels.float() / 255 - mean) / std
    return F.grid_sample(x, _grid(turn), padding_mode="reflection", align_corners=False)


def _shown(parts: Tensor, turn: Tensor) -> Tensor:
    """Seen through the same map, one channel for each part: (B, 128, 128) uint8 -> (B, P, 64, 64) of 0 and 1."""
    seen = F.grid_sample(
        parts.float()[:, None], _grid(turn), mode="nearest", padding_mode="reflection", align_corners=False
    )
    return (seen == torch.arange(len(PARTS)).view(1, -1, 1, 1)).float()


def _grid(turn: Tensor) -> Tensor:
    """(B, SIDE, SIDE, 2) places in a stored crop."""
    return F.affine_grid(turn, [len(turn), 3, SIDE, SIDE], align_corners=False)
