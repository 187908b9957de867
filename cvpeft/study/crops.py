"""A backbone learns to tell objects apart on crops, long before a detector could teach it from whole scenes.

A crop of 64 x 64 pixels costs a fiftieth of a scene and shows an object at the size that it has in one.
Letters: B batch, C channels, K classes with the background as class 0.
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
from cvpeft.data.render.formula import draw_formulas
from cvpeft.runtime.image import decode
from cvpeft.train.optim import warmup_cosine

__all__ = ["CropSettings", "Crops", "add_formulas", "crop_step_seconds", "cut_crops", "train_on_crops"]

log = logging.getLogger(__name__)
STORED = 128  # pixels of a stored crop's side; it shows twice the object's longer side
SIDE = 64  # of a network input
ZOOM = (0.55, 1.0)  # part of a stored crop that an input shows; 0.75 in tests
FORMULAS = 100  # pictures of each class that a formula draws
NEGATIVES = 2  # crops of bare ground per image
HELD_OUT = 20  # every so manieth image is scored, not trained on


@dataclass(frozen=True)
class CropSettings:
    """lr: of AdamW at its highest; batch: crops per step."""

    epochs: int = 8
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Crops:
    """Objects and bare ground. pixels: (N, 3, 128, 128) uint8 RGB; labels: (N,), 0 is ground; held_out: (N,) bool."""

    pixels: Tensor
    labels: Tensor
    held_out: Tensor


def cut_crops(data: CocoData, *, seed: int = 0) -> Crops:
    """A crop around every box, twice as wide as it, and two of the ground beside them for every image.

    All of them are held in memory, 48 KiB each. Images are mirrored beyond their borders.
    """
    pixels, labels, held_out = list[np.ndarray](), list[int](), list[bool]()
    for number, image in enumerate(tqdm(data.images, desc="crops", unit="image", disable=None)):
        scene, _ = decode(image.path)
        squares = [(*_square(box), int(label)) for box, label in zip(image.boxes, image.labels, strict=True)]
        squares += [(*square, 0) for square in _ground(image, np.random.default_rng((seed, image.id)))]
        for x, y, side, label in squares:
            pixels.append(_cut(scene, x, y, side))
            labels.append(label)
            held_out.append(number % HELD_OUT == 0)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)
    return Crops(stacked, torch.tensor(labels), torch.tensor(held_out))


def add_formulas(crops: Crops, classes: int, *, seed: int = 0) -> Crops:
    """The same crops and, as further classes, as many of formula-drawn shapes, 100 pictures each."""
    pixels, labels = draw_formulas(classes, FORMULAS, STORED, seed)
    more = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return Crops(
        torch.cat([crops.pixels, more]),
        torch.cat([crops.labels, torch.from_numpy(labels) + 1 + crops.labels.max()]),
        torch.cat([crops.held_out, torch.arange(len(labels)) % HELD_OUT == 0]),
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


def _cut(scene: np.ndarray, x: float, y: float, side: float) -> np.ndarray:
    """The square around (x, y), resized to (128, 128, 3)."""
    height, width = scene.shape[:2]
    half = side / 2
    columns = np.clip(np.round(np.linspace(x - half, x + half, 2)), -width + 1, 2 * width - 1).astype(int)
    rows = np.clip(np.round(np.linspace(y - half, y + half, 2)), -height + 1, 2 * height - 1).astype(int)
    part = scene[_mirrored(rows, height)][:, _mirrored(columns, width)]
    return cv2.resize(part, (STORED, STORED), interpolation=cv2.INTER_AREA)


def _mirrored(ends: np.ndarray, length: int) -> np.ndarray:
    """Indices from ends[0] to ends[1], those outside 0..length-1 mirrored into it."""
    indices = np.abs(np.arange(ends[0], max(ends[1], ends[0] + 1)))
    return np.minimum(indices, 2 * (length - 1) - indices)


def train_on_crops(body: Backbone, crops: Crops, settings: CropSettings) -> float:
    """Train all of `body` in place; returns the share of held-out crops that its deepest map then tells rightly.

    Each of the last three maps has a linear classifier of its own on its mean over all places, so that the finer levels
    of a pyramid learn too (deep supervision: Lee et al. 2015). The classifiers are thrown away.
    """
    torch.manual_seed(settings.seed)
    classes = int(crops.labels.max()) + 1
    taken = body.channels[-3:]
    heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, classes)) for c in taken)
    optimizer = _optimizer(body, heads, settings)
    train, test = (~crops.held_out).nonzero()[:, 0], crops.held_out.nonzero()[:, 0]
    steps = math.ceil(len(train) / settings.batch) * settings.epochs
    factor, accuracy, step = warmup_cosine(steps, 0.03), 0.0, 0
    body.train()
    with tqdm(total=steps, desc="crops", unit="step", disable=None) as bar:
        for epoch in range(settings.epochs):
            order = train[torch.randperm(len(train))]
            for chosen in order.split(settings.batch):
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor(step)
                _step(body, heads, optimizer, crops.pixels[chosen], crops.labels[chosen])
                step += 1
                bar.update()
            accuracy = _accuracy(body, heads, crops, test)
            log.info("crops, epoch %d: %.3f of %d held out are told rightly", epoch + 1, accuracy, len(test))
    return accuracy


def crop_step_seconds(body: Backbone, batch: int) -> float:
    """Seconds that a training step takes here, by three of them on noise after one to warm up; `body` is spoilt."""
    heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 2)) for c in body.channels[-3:])
    optimizer = _optimizer(body.train(), heads, CropSettings())
    pixels, labels = torch.randint(0, 256, (batch, 3, STORED, STORED), dtype=torch.uint8), torch.zeros(batch).long()
    _step(body, heads, optimizer, pixels, labels)
    started = time.perf_counter()
    for _ in range(3):
        _step(body, heads, optimizer, pixels, labels)
    return (time.perf_counter() - started) / 3


def _optimizer(body: nn.Module, heads: nn.Module, settings: CropSettings) -> torch.optim.AdamW:
    parameters = [*body.parameters(), *heads.parameters()]
    return torch.optim.AdamW([
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ], lr=settings.lr)  # fmt: skip


def _step(
    body: Backbone, heads: nn.ModuleList, optimizer: torch.optim.Optimizer, pixels: Tensor, labels: Tensor
) -> None:
    scores = _scores(body, heads, _varied(pixels, body))
    weights = [0.5 ** (len(scores) - i - 1) for i in range(len(scores))]  # the deepest map counts most
    losses = [w * F.cross_entropy(s, labels, label_smoothing=0.05) for w, s in zip(weights, scores, strict=True)]
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def _scores(body: Backbone, heads: nn.ModuleList, x: Tensor) -> list[Tensor]:
    maps = body(x.contiguous(memory_format=torch.channels_last))[-len(heads) :]
    return [head(m.mean((2, 3))) for head, m in zip(heads, maps, strict=True)]  # (B, C, h, w) -> (B, K)


def _accuracy(body: Backbone, heads: nn.ModuleList, crops: Crops, test: Tensor) -> float:
    body.eval()
    with torch.no_grad():
        right = [
            (_scores(body, heads, _plain(crops.pixels[i], body))[-1].argmax(1) == crops.labels[i]).sum().item()
            for i in test.split(128)
        ]
    body.train()
    return sum(right) / max(len(test), 1)


def _varied(pixels: Tensor, body: Backbone) -> Tensor:
    """Turned by any angle, mirrored, zoomed, shifted, brighter or darker: (B, 3, 128, 128) uint8 -> (B, 3, 64, 64)."""
    count = len(pixels)
    angle = torch.rand(count) * 2 * math.pi
    zoom, mirror = torch.empty(count).uniform_(*ZOOM), torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    shift = torch.empty(count, 2).uniform_(-0.15, 0.15)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    turn = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], 1).view(count, 2, 3)
    x = _sampled(pixels, turn, body)
    return x * torch.empty(count, 1, 1, 1).uniform_(0.7, 1.3) + torch.empty(count, 3, 1, 1).uniform_(-0.3, 0.3)


def _plain(pixels: Tensor, body: Backbone) -> Tensor:
    middle = torch.tensor([[0.75, 0.0, 0.0], [0.0, 0.75, 0.0]])
    return _sampled(pixels, middle.expand(len(pixels), 2, 3), body)


def _sampled(pixels: Tensor, turn: Tensor, body: Backbone) -> Tensor:
    """Normalised, seen through an affine map `turn` (B, 2, 3) of output to input places, both in -1..1."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (body.mean, body.std))
    x = (pixels.float() / 255 - mean) / std
    grid = F.affine_grid(turn, [len(x), 3, SIDE, SIDE], align_corners=False)  # (B, 64, 64, 2)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
