"""Tensor operations of the exported graphs: batched, of fixed shape, without a loop over images.

Letters: B images, N candidate boxes, K classes or boxes kept, G groups of boxes.
"""

import torch
from torch import Tensor
from torchvision.ops import nms

__all__ = ["DROPPED", "clip_boxes", "decode_boxes", "nms_mask", "take", "wide_enough"]

DROPPED = -1.0  # score of a candidate that has fallen out; every true score is a probability


@torch.library.custom_op("cvpeft::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes survive non-maximum suppression, as a mask of fixed shape.

    boxes (G, N, 4) xyxy, scores (G, K, N) -> bool (G, K, N). Every (group, class) is suppressed on its own; boxes whose
    score is `DROPPED` neither survive nor suppress. An operator of its own, because its ONNX form (NonMaxSuppression
    and ScatterND, see onnx.py) has the group and class axes too: no shifted coordinates, which cost precision.
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)  # (G, K, N)
    for group, group_scores in enumerate(scores):
        for k, class_scores in enumerate(group_scores):
            candidates = torch.where(class_scores > DROPPED)[0]
            kept = nms(boxes[group, candidates], class_scores[candidates], iou_threshold)
            keep[group, k, candidates[kept]] = True
    return keep


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, D) chosen per image by index (B, K) -> (B, K, D)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def decode_boxes(deltas: Tensor, boxes: Tensor, weights: tuple[float, float, float, float], clip: float) -> Tensor:
    """Boxes xyxy from deltas (..., 4) relative to boxes (..., 4) xyxy; Faster R-CNN (arXiv:1506.01497), equation 2.

    weights: what the deltas of x, y, width and height were multiplied with. clip: largest logarithm of a growth.
    """
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]  # (..., 2)
    centre = corner + 0.5 * size
    scale = deltas.new_tensor(weights)
    shift = deltas[..., :2] / scale[:2]
    growth = (deltas[..., 2:] / scale[2:]).clamp(max=clip)
    centre = shift * size + centre
    half = 0.5 * (growth.exp() * size)
    return torch.cat((centre - half, centre + half), dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) xyxy cut to an image of size (height, width)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1)


def wide_enough(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of boxes (..., 4) are at least `side` pixels -> bool (...)."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(dim=-1)
