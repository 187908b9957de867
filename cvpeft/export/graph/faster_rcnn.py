"""The inference graph of torchvision's Faster R-CNN (arXiv:1506.01497) with a feature pyramid (arXiv:1612.03144).

Letters: B images, N anchors of a level, R proposals per image, K classes without background, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, roi_align

from cvpeft.export.graph.base import AnchorGrid, Detected, InferenceGraph, anchor_grids, best, lengthened, top
from cvpeft.export.graph.ops import DROPPED, clip_boxes, decode_boxes, nms_mask, take, wide_enough

__all__ = ["FasterRCNNGraph"]

MIN_SIDE = 1e-2  # pixels; torchvision's RoIHeads drops smaller detections


class FasterRCNNGraph(InferenceGraph):
    def __init__(self, detector: FasterRCNN, **form: bool) -> None:
        super().__init__(detector, **form)
        maps = self.probe()
        heads = detector.roi_heads
        self.proposals = _Proposals(detector.rpn, list(maps.values()), self.size, free=self.free_size)
        self.pool = _Pool(heads.box_roi_pool, maps, self.size)
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        self.weights, self.clip = tuple(heads.box_coder.weights), heads.box_coder.bbox_xform_clip
        self.score_threshold, self.nms_iou = heads.score_thresh, heads.nms_thresh
        self.limit = heads.detections_per_img

    def detect(self, features: dict[str, Tensor], size: tuple[int, int]) -> Detected:
        proposals, found = self.proposals(list(features.values()), size)  # (B, R, 4), (B, R)
        B, R, _ = proposals.shape
        logits, deltas = self.box_predictor(self.box_head(self.pool(features, proposals)))
        scores = logits.softmax(dim=-1).view(B, R, -1)[..., 1:]  # (B, R, K): background is class 0
        K = scores.shape[-1]
        deltas = deltas.view(B, R, K + 1, 4)[:, :, 1:]
        boxes = decode_boxes(deltas, proposals.unsqueeze(2), self.weights, self.clip)  # (B, R, K, 4)
        boxes = clip_boxes(boxes, size)
        valid = (scores > self.score_threshold) & wide_enough(boxes, MIN_SIDE) & found.unsqueeze(-1)
        scores = torch.where(valid, scores, DROPPED)
        labels = torch.arange(1, K + 1, device=scores.device).expand(B, R, K)
        if self.suppresses:
            scores = self._suppressed(boxes, scores)
        limit = self.limit if self.suppresses else R * K
        return best(boxes.reshape(B, R * K, 4), scores.reshape(B, R * K), labels.reshape(B, R * K), limit)

    def _suppressed(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, R, K) after NMS. Every class has boxes (B, R, K, 4) of its own: (image, class) is one group."""
        B, R, K = scores.shape
        grouped = scores.transpose(1, 2).reshape(B * K, 1, R)
        keep = nms_mask(boxes.transpose(1, 2).reshape(B * K, R, 4), grouped, self.nms_iou)
        return torch.where(keep.view(B, K, R).transpose(1, 2), scores, DROPPED)


class _Proposals(nn.Module):
    """The region proposal network: maps -> proposals (B, R, 4), best first, and which rows are filled (B, R)."""

    def __init__(
        self, rpn: RegionProposalNetwork, maps: Sequence[Tensor], size: tuple[int, int], *, free: bool
    ) -> None:
        super().__init__()
        self.head = rpn.head
        self.free = free
        self.weights, self.clip = tuple(rpn.box_coder.weights), rpn.box_coder.bbox_xform_clip
        self.before_nms, self.after_nms = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
        self.nms_iou, self.score_threshold, self.min_side = rpn.nms_thresh, rpn.score_thresh, rpn.min_size
        self.grids = anchor_grids(rpn.anchor_generator, maps, size, free=free)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        levels = [self._level(size, *parts) for parts in zip(self.grids, *self.head(maps), strict=True)]
        boxes = torch.cat([boxes for boxes, _ in levels], dim=1)
        scores = torch.cat([scores for _, scores in levels], dim=1)
        scores, index = scores.topk(min(self.after_nms, scores.shape[1]), dim=1)
        found = scores > DROPPED
        return take(boxes, index) * found.unsqueeze(-1), found

    def _level(self, size: tuple[int, int], grid: AnchorGrid, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """logits (B, A, h, w), deltas (B, 4A, h, w) -> boxes (B, n, 4), scores (B, n); the suppressed are DROPPED."""
        anchors = grid(logits.shape[2], logits.shape[3])  # (N, 4)
        logits = logits.permute(0, 2, 3, 1).flatten(1)  # (B, N), N = h w A, as the anchors are ordered
        deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # (B, N, 4)
        logits, index = top(logits, self.before_nms, free=self.free)  # (B, n)
        if self.free:  # a box without an area is dropped below
            deltas, anchors = lengthened(deltas, self.before_nms), lengthened(anchors, self.before_nms)
        boxes = clip_boxes(decode_boxes(take(deltas, index), anchors[index], self.weights, self.clip), size)
        scores = logits.sigmoid()
        valid = wide_enough(boxes, self.min_side) & (scores >= self.score_threshold)
        scores = torch.where(valid, scores, DROPPED)
        keep = nms_mask(boxes, scores.unsqueeze(1), self.nms_iou).squeeze(1)
        return boxes, torch.where(keep, scores, DROPPED)


class _Pool(nn.Module):
    """RoIAlign over a pyramid: proposals (B, R, 4) -> (B * R, C, side, side), each from the level of its size."""

    def __init__(self, pool: MultiScaleRoIAlign, maps: dict[str, Tensor], size: tuple[int, int]) -> None:
        super().__init__()
        self.names = [name for name in maps if name in pool.featmap_names]
        # torchvision takes a stride for the nearest power of two, from the height alone; k below is its logarithm
        self.k = [round(torch.tensor(size[0] / maps[name].shape[-2]).log2().item()) for name in self.names]
        self.side, self.sampling = tuple(pool.output_size), pool.sampling_ratio
        self.canonical_side, self.canonical_k = pool.canonical_scale, pool.canonical_level

    def forward(self, maps: dict[str, Tensor], proposals: Tensor) -> Tensor:
        B, R, _ = proposals.shape
        image = torch.arange(B, device=proposals.device, dtype=proposals.dtype).view(B, 1, 1).expand(B, R, 1)
        rois = torch.cat((image, proposals), dim=-1).reshape(B * R, 5)
        k = self._level(rois[:, 1:])  # (B * R)
        pooled = rois.new_zeros(B * R, maps[self.names[0]].shape[1], *self.side)
        for name, level in zip(self.names, self.k, strict=True):
            rows = torch.where(k == level)[0]
            here = roi_align(maps[name], rois[rows], self.side, 2.0**-level, self.sampling)
            pooled = pooled.index_put((rows,), here)
        return pooled

    def _level(self, boxes: Tensor) -> Tensor:
        """The level of each box (N, 4): equation 1 of the feature pyramid paper."""
        width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
        k = self.canonical_k + torch.log2((width * height).sqrt() / self.canonical_side) + 1e-6
        return k.floor().clamp(self.k[0], self.k[-1])
