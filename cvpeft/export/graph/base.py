"""What the inference graphs of all heads have in common: normalise in front, padded outputs behind.

Letters: B images, H and W the fixed network input, N candidate boxes, K the largest number of detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from cvpeft.export.graph.ops import DROPPED, take

__all__ = ["Detected", "InferenceGraph", "anchors_of", "best"]


class Detected(NamedTuple):
    """What a graph gives: rows fall in score, rows from `num` on are zeros."""

    boxes: Tensor  # (B, K, 4) float32 xyxy in pixels of the network input
    scores: Tensor  # (B, K) float32
    labels: Tensor  # (B, K) int64, numbered as the detector numbers them
    num: Tensor  # (B,) int64


class InferenceGraph(nn.Module):
    """A trained torchvision detector as one chain of tensor operations, equal to its own forward in eval mode.

    It holds the detector's own modules, not copies. The size of its input is fixed, the number of images is not.
    Subclasses say what happens from the feature maps on.
    """

    mean: Tensor
    std: Tensor
    size: tuple[int, int]  # (height, width) of the input
    score_threshold: float
    nms_iou: float
    limit: int  # K

    def __init__(self, detector: Any, *, takes_bytes: bool = False, suppresses: bool = True) -> None:
        """takes_bytes: images are (B, H, W, 3) uint8, as decoders give them. suppresses: False leaves the last NMS out,
        for programs that have their own; all candidates are given then, in the same form."""
        super().__init__()
        if detector.training:
            raise ValueError("the detector is in training mode: call .eval() first")
        self.takes_bytes, self.suppresses = takes_bytes, suppresses
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

    def detect(self, features: dict[str, Tensor]) -> Detected:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Detected:
        """images (B, 3, H, W) float32 RGB 0..255, letterboxed to `size`; see `takes_bytes`."""
        if self.takes_bytes:
            images = images.permute(0, 3, 1, 2).float()  # (B, H, W, 3) -> (B, 3, H, W)
        return self.detect(self.features(images))


def anchors_of(generator: AnchorGenerator, maps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """The anchors (N, 4) xyxy of every feature map (1, C, h, w), for a network input of size (height, width)."""
    image = ImageList(maps[0].new_zeros(1, 3, *size), [size])
    per_map = [
        h * w * a for (h, w), a in zip((m.shape[-2:] for m in maps), generator.num_anchors_per_location(), strict=True)
    ]
    return list(generator(image, list(maps))[0].split(per_map))


def best(boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> Detected:
    """The `limit` best of boxes (B, N, 4), scores (B, N) and labels (B, N); dropped ones become zeros at the end."""
    scores, index = scores.topk(min(limit, scores.shape[1]), dim=1)  # (B, K)
    found = scores > DROPPED
    boxes = take(boxes, index) * found.unsqueeze(-1)
    return Detected(boxes, scores * found, labels.gather(1, index) * found, found.sum(dim=1))
