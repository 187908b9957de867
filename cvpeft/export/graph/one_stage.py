"""The inference graphs of torchvision's one-stage heads: RetinaNet (arXiv:1708.02002) and FCOS (arXiv:1904.01355).

Letters: B images, N anchors of a level, K classes, M candidates of all levels together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet

from cvpeft.export.graph.base import Detected, InferenceGraph, anchors_of, best
from cvpeft.export.graph.ops import DROPPED, clip_boxes, decode_boxes, nms_mask, take

__all__ = ["FCOSGraph", "RetinaNetGraph"]


class _OneStageGraph(InferenceGraph):
    """Per level the best (anchor, class) pairs above the threshold, then NMS per class over all levels."""

    anchors: Tensor

    def __init__(self, detector: RetinaNet | FCOS, **form: bool) -> None:
        super().__init__(detector, **form)
        self.head = detector.head
        self.score_threshold, self.nms_iou = detector.score_thresh, detector.nms_thresh
        self.candidates, self.limit = detector.topk_candidates, detector.detections_per_img
        anchors = anchors_of(detector.anchor_generator, list(self.probe().values()), self.size)
        self.per_level = [len(level) for level in anchors]
        self.register_buffer("anchors", torch.cat(anchors), persistent=False)  # (sum of N, 4)

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Probabilities (B, sum of N, K)."""
        raise NotImplementedError

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes xyxy from deltas and anchors, both (B, n, 4)."""
        raise NotImplementedError

    def detect(self, features: dict[str, Tensor]) -> Detected:
        outputs = self.head(list(features.values()))
        scores = self.scores(outputs)
        K = scores.shape[-1]
        parts = [x.split(self.per_level, dim=-2) for x in (scores, outputs["bbox_regression"], self.anchors)]
        levels = [self._level(*part) for part in zip(*parts, strict=True)]
        boxes, scores, labels = (torch.cat(x, dim=1) for x in zip(*levels, strict=True))  # (B, M, 4), (B, M), (B, M)
        if not self.suppresses:
            return best(boxes, scores, labels, boxes.shape[1])
        of_class = labels.unsqueeze(1) == torch.arange(K, device=labels.device).view(1, K, 1)
        keep = nms_mask(boxes, torch.where(of_class, scores.unsqueeze(1), DROPPED), self.nms_iou).any(dim=1)  # (B, M)
        return best(boxes, torch.where(keep, scores, DROPPED), labels, self.limit)

    def _level(self, scores: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """scores (B, N, K), deltas (B, N, 4), anchors (N, 4) -> boxes (B, n, 4), scores (B, n), labels (B, n)."""
        K = scores.shape[-1]
        scores = scores.flatten(1)  # (B, N * K)
        scores = torch.where(scores > self.score_threshold, scores, DROPPED)
        scores, index = scores.topk(min(self.candidates, scores.shape[1]), dim=1)
        anchor = index // K
        boxes = clip_boxes(self.decode(take(deltas, anchor), anchors[anchor]), self.size)
        return boxes, scores, index % K


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
