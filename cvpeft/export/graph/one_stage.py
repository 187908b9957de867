"""The inference graphs of torchvision's one-stage heads: RetinaNet (arXiv:1708.02002) and FCOS (arXiv:1904.01355).

Letters: B images, N anchors of a level, K classes, M candidates of all levels together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet

from cvpeft.export.graph.base import Detected, InferenceGraph, anchor_grids, best, lengthened, top
from cvpeft.export.graph.ops import DROPPED, clip_boxes, decode_boxes, nms_mask, take

__all__ = ["FCOSGraph", "RetinaNetGraph"]


class _OneStageGraph(InferenceGraph):
    """Per level the best (anchor, class) pairs above the threshold, then NMS per class over all levels."""

    def __init__(self, detector: RetinaNet | FCOS, **form: bool) -> None:
        super().__init__(detector, **form)
        self.head = detector.head
        self.score_threshold, self.nms_iou = detector.score_thresh, detector.nms_thresh
        self.candidates, self.limit = detector.topk_candidates, detector.detections_per_img
        maps = list(self.probe().values())
        self.grids = anchor_grids(detector.anchor_generator, maps, self.size, free=self.free_size)

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Probabilities (B, sum of N, K)."""
        raise NotImplementedError

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes xyxy from deltas and anchors, both (B, n, 4)."""
        raise NotImplementedError

    def detect(self, features: dict[str, Tensor], size: tuple[int, int]) -> Detected:
        outputs = self.head(list(features.values()))
        scores = self.scores(outputs)
        K = scores.shape[-1]
        anchors = [grid(*m.shape[-2:]) for grid, m in zip(self.grids, features.values(), strict=True)]
        parts = [x.split([level.shape[0] for level in anchors], dim=1) for x in (scores, outputs["bbox_regression"])]
        levels = [self._level(size, *part) for part in zip(*parts, anchors, strict=True)]
        boxes, scores, labels = (torch.cat(x, dim=1) for x in zip(*levels, strict=True))  # (B, M, 4), (B, M), (B, M)
        if not self.suppresses:
            return _named(best(boxes, scores, labels, boxes.shape[1]))
        of_class = labels.unsqueeze(1) == torch.arange(K, device=labels.device).view(1, K, 1)
        keep = nms_mask(boxes, torch.where(of_class, scores.unsqueeze(1), DROPPED), self.nms_iou).any(dim=1)  # (B, M)
        return _named(best(boxes, torch.where(keep, scores, DROPPED), labels, self.limit))

    def _level(
        self, size: tuple[int, int], scores: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """scores (B, N, K), deltas (B, N, 4), anchors (N, 4) -> boxes (B, n, 4), scores (B, n), labels (B, n)."""
        K = scores.shape[-1]
        scores = scores.flatten(1)  # (B, N * K)
        scores = torch.where(scores > self.score_threshold, scores, DROPPED)
        scores, index = top(scores, self.candidates, free=self.free_size)
        anchor = index // K
        if self.free_size:
            scores = scores.clamp(min=DROPPED)
            deltas, anchors = lengthened(deltas, self.candidates), lengthened(anchors, self.candidates)
        boxes = clip_boxes(self.decode(take(deltas, anchor), anchors[anchor]), size)
        return boxes, scores, index % K


def _named(found: Detected) -> Detected:
    """Without what has label 0, for which these heads have a channel though no object has it. torchvision counts it
    towards its limit, so it goes last."""
    scores = torch.where(found.labels > 0, found.scores, DROPPED)
    return best(found.boxes, scores, found.labels, scores.shape[1])


class RetinaNetGraph(_OneStageGraph):
    def __init__(self, detector: RetinaNet, **form: bool) -> None:
        super().__init__(detector, **form)
        self.weights, self.clip = tuple(detector.box_coder.weights), detector.box_coder.bbox_xform_clip

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["cls_logits"].sigmoid()

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return decode_boxes(deltas, anchors, self.weights, self.clip)


class FCOSGraph(_OneStageGraph):
    def __init__(self, detector: FCOS, **form: bool) -> None:
        super().__init__(detector, **form)
        self.by_size = detector.box_coder.normalize_by_size

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        return (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Distances to the left, top, right and bottom side, in units of the anchor's size or in pixels."""
        corner, far = anchors[..., :2], anchors[..., 2:]
        centre = 0.5 * (corner + far)
        if self.by_size:
            size = far - corner
            deltas = deltas * torch.cat((size, size), dim=-1)
        return torch.cat((centre - deltas[..., :2], centre + deltas[..., 2:]), dim=-1)
