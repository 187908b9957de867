"""What the inference graphs of all heads have in common: normalise in front, padded outputs behind.

Letters: B images, H and W the network input, N candidate boxes, K the largest number of detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from cvpeft.export.graph.ops import DROPPED, take

__all__ = ["AnchorGrid", "Detected", "InferenceGraph", "anchor_grids", "best", "lengthened", "top"]


class Detected(NamedTuple):
    """What a graph gives: rows fall in score, rows from `num` on are zeros."""

    boxes: Tensor  # (B, K, 4) float32 xyxy in pixels of the network input
    scores: Tensor  # (B, K) float32
    labels: Tensor  # (B, K) int64, numbered as the detector numbers them
    num: Tensor  # (B,) int64


class InferenceGraph(nn.Module):
    """A trained torchvision detector as one chain of tensor operations, equal to its own forward in eval mode.

    It holds the detector's own modules, not copies. The number of images is free, the size of the input may be.
    Subclasses say what happens from the feature maps on.
    """

    mean: Tensor
    std: Tensor
    size: tuple[int, int]  # (height, width) of the input
    score_threshold: float
    nms_iou: float
    limit: int  # K

    def __init__(
        self, detector: Any, *, takes_bytes: bool = False, suppresses: bool = True, free_size: bool = False
    ) -> None:
        """takes_bytes: images are (B, H, W, 3) uint8, as decoders give them. suppresses: False leaves the last NMS out,
        for programs that have their own; all candidates are given then, in the same form. free_size: inputs of every
        height and width that are multiples of 32, where the backbone can do it."""
        super().__init__()
        if detector.training:
            raise ValueError("the detector is in training mode: call .eval() first")
        self.takes_bytes, self.suppresses, self.free_size = takes_bytes, suppresses, free_size
        self.size = (detector.transform.size[0], detector.transform.size[1])
        self.backbone = detector.backbone
        self.register_buffer("mean", detector.transform.mean, persistent=False)  # (3, 1, 1), 0..1
        self.register_buffer("std", detector.transform.std, persistent=False)
        self.eval()

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, of images (B, 3, H, W) RGB 0..255."""
        maps: dict[str, Tensor] = self.backbone((images / 255 - self.mean) / self.std)
        return maps

    def probe(self) -> dict[str, Tensor]:
        """Feature maps of one grey image: their names and shapes are what anchors and scales are built from."""
        with torch.no_grad():
            return self.features(torch.zeros(1, 3, *self.size, device=self.mean.device))

    def detect(self, features: dict[str, Tensor], size: tuple[int, int]) -> Detected:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Detected:
        """images (B, 3, H, W) float32 RGB 0..255, letterboxed to `size`; see `takes_bytes`."""
        if self.takes_bytes:
            images = images.permute(0, 3, 1, 2).float()  # (B, H, W, 3) -> (B, 3, H, W)
        size = (images.shape[2], images.shape[3]) if self.free_size else self.size
        return self.detect(self.features(images), size)


class AnchorGrid(nn.Module):
    """The anchors of one feature map; a constant where the input's size is, else laid out anew for every size.

    cell: (A, 4) around the origin. stride: (down, across) in pixels of the input. grid: the map's (height, width) where
    it is fixed.
    """

    cell: Tensor
    fixed: Tensor | None

    def __init__(self, cell: Tensor, stride: tuple[int, int], grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.register_buffer("cell", cell, persistent=False)
        self.stride = stride
        self.register_buffer("fixed", None if grid is None else self._laid_out(*grid), persistent=False)

    def forward(self, height: int, width: int) -> Tensor:
        """Anchors (height * width * A, 4) xyxy, row by row, as torchvision's AnchorGenerator orders them."""
        return self._laid_out(height, width) if self.fixed is None else self.fixed

    def _laid_out(self, height: int, width: int) -> Tensor:
        y = torch.arange(height, device=self.cell.device, dtype=self.cell.dtype) * self.stride[0]
        x = torch.arange(width, device=self.cell.device, dtype=self.cell.dtype) * self.stride[1]
        y, x = (shift.reshape(-1, 1) for shift in torch.meshgrid(y, x, indexing="ij"))  # (height * width, 1)
        return (torch.cat((x, y, x, y), dim=1).unsqueeze(1) + self.cell).flatten(0, 1)


def anchor_grids(
    generator: AnchorGenerator, maps: Sequence[Tensor], size: tuple[int, int], *, free: bool
) -> nn.ModuleList:
    """An AnchorGrid for every feature map (1, C, h, w) of an input of `size`; free: for inputs of any size."""
    image = ImageList(maps[0].new_zeros(1, 3, *size), [size])
    generator(image, list(maps))  # moves its cells to the maps' type and device
    grids = []
    for cell, m in zip(generator.cell_anchors, maps, strict=True):
        height, width = m.shape[-2:]
        stride = (size[0] // height, size[1] // width)
        grids.append(AnchorGrid(cell, stride, None if free else (height, width)))
    return nn.ModuleList(grids)


def top(x: Tensor, k: int, *, free: bool) -> tuple[Tensor, Tensor]:
    """The k best of x (B, N) and where they are, or all N where there are fewer.

    free: N is not known; then always k, places from N on, with the value minus infinity, where there are fewer.
    """
    if not free:
        return x.topk(min(k, x.shape[1]), dim=1)
    return torch.cat((x, x.new_full((1, 1), -torch.inf).expand(x.shape[0], k)), dim=1).topk(k, dim=1)


def lengthened(x: Tensor, rows: int) -> Tensor:
    """x (..., N, 4) with `rows` rows of zeros behind it: what `top` may point at."""
    return torch.cat((x, x.new_zeros(1).expand(*x.shape[:-2], rows, x.shape[-1])), dim=-2)


def best(boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> Detected:
    """The `limit` best of boxes (B, N, 4), scores (B, N) and labels (B, N); dropped ones become zeros at the end."""
    scores, index = scores.topk(min(limit, scores.shape[1]), dim=1)  # (B, K)
    found = scores > DROPPED
    boxes = take(boxes, index) * found.unsqueeze(-1)
    return Detected(boxes, scores * found, labels.gather(1, index) * found, found.sum(dim=1))
