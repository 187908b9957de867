"""Tiny torchvision detectors of each kind, trained for seconds on coloured rectangles: what an export is tried on."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from cvpeft.backbone.pyramid import build_pyramid
from cvpeft.detector.build import BackboneWithNeck
from tests.backbone.small import body

SIZE = (96, 128)
CLASSES = ("red", "green", "blue")
HEADS = ("faster_rcnn", "retinanet", "fcos")


class Batch(nn.Module):
    """Normalises, batches and leaves out label 0, nothing else: what the project's detectors have as `.transform`."""

    def __init__(self) -> None:
        super().__init__()
        self.size = SIZE
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, images, targets=None):
        images = torch.stack(list(images)).float()
        return ImageList((images / 255 - self.mean) / self.std, [self.size] * len(images)), targets

    def postprocess(self, result, image_shapes, original_sizes):
        return [{key: rows[found["labels"] > 0] for key, rows in found.items()} for found in result]


class Pyramid(nn.Module):
    """Three maps of strides 4, 8 and 16."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, 32, k, stride=s, padding=p), nn.GroupNorm(8, 32), nn.GELU(), nn.Conv2d(32, 32, 1)
            )
            for c, k, s, p in ((3, 7, 4, 3), (32, 3, 2, 1), (32, 3, 2, 1))
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = OrderedDict()
        for i, level in enumerate(self.levels):
            x = level(x)
            maps[str(i)] = x
        return maps


def stand_in(head: str, seed: int = 0) -> nn.Module:
    """An untrained detector in eval mode, its outputs spread so that no two scores tie."""
    torch.manual_seed(seed)
    sizes = ((8,), (16,), (32,))
    if head == "faster_rcnn":
        model = FasterRCNN(
            Pyramid(),
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3),
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 4, 2, canonical_scale=16, canonical_level=3),
            box_head=TwoMLPHead(32 * 4 * 4, 64),
            box_predictor=FastRCNNPredictor(64, len(CLASSES) + 1),
            rpn_pre_nms_top_n_train=100,
            rpn_post_nms_top_n_train=60,
            rpn_pre_nms_top_n_test=200,
            rpn_post_nms_top_n_test=100,
            rpn_batch_size_per_image=64,
            box_batch_size_per_image=32,
            box_score_thresh=0.01,
            box_detections_per_img=30,
        )
    elif head == "retinanet":
        model = RetinaNet(
            Pyramid(),
            len(CLASSES) + 1,
            anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3),
            score_thresh=0.01,
            detections_per_img=30,
            topk_candidates=150,
        )
    else:
        anchors = AnchorGenerator(sizes, ((1.0,),) * 3)
        options = {"score_thresh": 0.01, "detections_per_img": 30, "topk_candidates": 150}
        model = FCOS(Pyramid(), len(CLASSES) + 1, anchor_generator=anchors, **options)
    model.transform = Batch()
    return model.eval()


def on_small_backbone(family: str) -> nn.Module:
    """An FCOS on three levels of a small backbone of the family."""
    trunk, model = body(family), stand_in("fcos")
    model.backbone = BackboneWithNeck(trunk, build_pyramid(trunk.channels, 32, levels=3), 32)
    model.transform.size = trunk.size
    return spread(model).eval()


def spread(model: nn.Module) -> nn.Module:
    """Larger weights in the heads: boxes move and grow, some out of the image, and scores differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and name.startswith(("rpn.head", "head", "roi_heads.box_predictor")):
                parameter.mul_(6.0 if parameter.ndim == 4 else 3.0)
            if name.endswith("cls_logits.bias"):
                parameter.zero_()
    return model


def scenes(count: int, seed: int = 0) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """uint8 images (count, 3, H, W) of one to four coloured rectangles on noise, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    images = torch.randint(60, 140, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    targets = []
    for image in images:
        n = int(torch.randint(1, 5, (), generator=generator))
        extent = torch.rand(n, 2, generator=generator) * 30 + 8
        corner = torch.rand(n, 2, generator=generator) * (torch.tensor([width, height]) - extent)
        boxes = torch.cat((corner, corner + extent), dim=1).round()
        labels = torch.randint(1, len(CLASSES) + 1, (n,), generator=generator)
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[:, y1:y2, x1:x2] //= 3  # noise stays: on an even ground neighbours would tie in score
            image[label - 1, y1:y2, x1:x2] += 180
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


@cache
def trained(head: str, steps: int = 45) -> nn.Module:
    """A detector in eval mode that finds most rectangles; one object for all tests, so copy it before changing it."""
    model = stand_in(head).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        images, targets = scenes(4, seed=1000 + step)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()
