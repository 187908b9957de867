"""Settings -> a torchvision detector on a timm backbone; the one place where backbone and peft meet.

Letters: B batch, H height, W width, K classes without background.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from cvpeft.backbone.build import Backbone, build_backbone
from cvpeft.backbone.pyramid import at_levels, build_pyramid
from cvpeft.backbone.weights import read_weights, street_file
from cvpeft.config import schema
from cvpeft.detector.device import pick_device, pick_precision
from cvpeft.errors import BackboneError, ConfigError
from cvpeft.types import Target

__all__ = ["STRIDES", "BackboneWithNeck", "Normalise", "anchor_sides", "build_detector"]

log = logging.getLogger(__name__)
STRIDES = (4, 8, 16, 32)
NECK = "backbone.neck."
PREDICTORS = ("roi_heads.box_predictor.", "head.classification_head.cls_logits.")  # their shape depends on the classes


class BackboneWithNeck(nn.Module):
    """Backbone and pyramid as torchvision's detectors want them."""

    def __init__(self, body: Backbone, neck: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.neck, self.out_channels = body, neck, out_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.neck(self.body(x))
        return OrderedDict((name, single(t)) for name, t in maps.items())  # anchors take their type from it


def single(found: Any) -> Any:
    """The same tensor, or list or dict of tensors, in at least single precision."""
    if isinstance(found, Tensor):
        return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
    if isinstance(found, Mapping):
        return {name: single(one) for name, one in found.items()}
    return type(found)(single(one) for one in found)


class Normalise(nn.Module):
    """Takes the place of torchvision's GeneralizedRCNNTransform, which would resize a second time.

    Images arrive letterboxed, 0..255; this scales, normalises and batches them, and leaves boxes as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> tuple[ImageList, list[Target] | None]:
        if tuple(images.shape[1:]) != (3, *self.size):
            found = f"a batch of {tuple(images.shape)}, expected (B, 3, {self.size[0]}, {self.size[1]})"
            raise BackboneError("SIZE", found, fix="letterbox images to data.size first")
        x = (images.float() / 255 - self.mean) / self.std  # (B, 3, H, W)
        return ImageList(x, [self.size] * len(x)), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_: object) -> list[dict[str, Tensor]]:
        """One-stage heads have a channel for label 0, which no object has: what it finds is nothing."""
        return [{key: t[found["labels"] > 0] for key, t in found.items()} for found in result]


def build_detector(settings: schema.Settings, classes: Sequence[str]) -> nn.Module:
    """A plain torchvision detector, its backbone's weights loaded, nothing adapted or frozen yet.

    In train mode model(images, targets) gives a dict of losses, in eval mode model(images) a list of Predictions.
    images: (B, 3, H, W) RGB, 0..255, of data.size. The same settings give the same initial weights.
    """
    c = settings.detector
    levels = 4 if c.head == "faster_rcnn" else 3  # dense towers on stride 4 would cost more than the backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        b = settings.backbone
        weights = street_file(b.name) if b.weights == "street" else b.weights
        body = build_backbone(
            b.name,
            weights,
            settings.data.size,
            window=b.window,
            global_blocks=b.global_blocks,
            drop_path=b.drop_path if settings.peft.mode == "full" else 0.0,
        )
        neck = build_pyramid(body.channels, b.neck_width, levels=levels)
        trunk = BackboneWithNeck(body, neck, b.neck_width)
        model = {"faster_rcnn": _faster_rcnn, "retinanet": _retinanet, "fcos": _fcos}[c.head](trunk, c, len(classes))
    _boxes_in_single(model)
    model.transform = Normalise(settings.data.size, body.mean, body.std)
    if isinstance(weights, Path) and not _load_rest(model, weights, classes) and settings.peft.scope == "detector":
        what = f"peft.scope is detector, and this file has no neck and {c.head} head"
        why = "methods would stand in random tensors"
        raise ConfigError("SCOPE", what, where=str(weights), why=why, fix="set peft.scope=backbone")
    return model.to(memory_format=_layout(body, settings.train))


def _boxes_in_single(model: nn.Module) -> None:
    """Scores and box codes leave autocast as they are made.

    torchvision decodes boxes in the type of the codes, and matches what is labelled in the type of the proposals:
    bfloat16 has steps of 2 pixels from 256 on and of 4 from 512 on.
    """
    for name in ("rpn.head", "roi_heads.box_predictor", "head"):
        if (module := dict(model.named_modules()).get(name)) is not None:
            module.register_forward_hook(_as_single)


def _as_single(_module: nn.Module, _inputs: object, found: Any) -> Any:
    return single(found)


def _layout(body: Backbone, train: schema.Train) -> torch.memory_format:
    """The faster one: NHWC for convolutional backbones and in bf16.

    A plain ViT leaves only the 3x3 convolutions of neck and RPN, whose float32 backward pass is slower in NHWC.
    """
    precision = pick_precision(train.precision, pick_device(train.device))
    return torch.contiguous_format if body.plain and precision == "fp32" else torch.channels_last


def _faster_rcnn(trunk: BackboneWithNeck, c: schema.Detector, classes: int) -> nn.Module:
    sides = anchor_sides(c)
    pool = MultiScaleRoIAlign([str(i) for i in range(len(STRIDES))], output_size=7, sampling_ratio=2)
    return FasterRCNN(
        trunk,
        rpn_anchor_generator=AnchorGenerator(sides, (c.aspect_ratios,) * len(sides)),
        rpn_pre_nms_top_n_train=2 * c.proposals,
        rpn_pre_nms_top_n_test=2 * c.proposals,
        rpn_post_nms_top_n_train=c.proposals,
        rpn_post_nms_top_n_test=c.proposals,
        box_roi_pool=pool,
        box_head=TwoMLPHead(trunk.out_channels * 7 * 7, c.head_width),
        box_predictor=FastRCNNPredictor(c.head_width, classes + 1),
        box_score_thresh=c.score_threshold,
        box_nms_thresh=c.nms_iou,
        box_detections_per_img=c.max_detections,
        box_batch_size_per_image=c.rois_per_image,
    )


def _retinanet(trunk: BackboneWithNeck, c: schema.Detector, classes: int) -> nn.Module:
    sides = anchor_sides(c)
    return RetinaNet(
        trunk,
        num_classes=classes + 1,
        anchor_generator=AnchorGenerator(sides, (c.aspect_ratios,) * len(sides)),
        score_thresh=c.score_threshold,
        nms_thresh=c.nms_iou,
        detections_per_img=c.max_detections,
    )


def _fcos(trunk: BackboneWithNeck, c: schema.Detector, classes: int) -> nn.Module:
    if c.anchor_sizes:
        raise ConfigError(
            "ANCHORS", "FCOS has no anchors", where="detector.anchor_sizes", fix="leave detector.anchor_sizes empty"
        )
    if trunk.out_channels % 32:
        what = f"FCOS's towers are normalised in 32 groups, backbone.neck_width is {trunk.out_channels}"
        raise ConfigError("WIDTH", what, fix="set backbone.neck_width to a multiple of 32")
    return FCOS(
        trunk,
        num_classes=classes + 1,
        anchor_generator=AnchorGenerator(tuple((s,) for s in STRIDES[1:]), ((1.0,),) * 3),  # points, one a cell
        score_thresh=c.score_threshold,
        nms_thresh=c.nms_iou,
        detections_per_img=c.max_detections,
    )


def anchor_sides(c: schema.Detector) -> tuple[tuple[float, ...], ...]:
    """Sides of the anchors of each pyramid level, in input pixels, finest first; RetinaNet has three to an octave.

    ConfigError: not one size for each level.
    """
    if c.head == "retinanet":
        return tuple(tuple(size * 2 ** (i / 3) for i in range(3)) for size in _anchor_sizes(c, STRIDES[1:]))
    return tuple((size,) for size in _anchor_sizes(c, STRIDES))


def _anchor_sizes(c: schema.Detector, strides: Sequence[int]) -> tuple[float, ...]:
    sizes = c.anchor_sizes or tuple(4.0 * s for s in strides)
    if len(sizes) != len(strides):
        raise ConfigError(
            "ANCHORS",
            f"detector.anchor_sizes has {len(sizes)} sizes, {c.head} has {len(strides)} pyramid levels",
            why="each level has one size, finest first",
            fix=f"give {len(strides)} sizes, or none for {[4 * s for s in strides]}",
        )
    return tuple(sizes)


def _load_rest(model: nn.Module, file: Path, classes: Sequence[str]) -> bool:
    """Neck and head of a detector file: of the neck the levels that both have, the head where it is of the same kind,
    class predictors where the class names are the same too. Returns whether neck and head were taken.
    """
    source = read_weights(file)
    if not source.rest:
        return False
    own = model.state_dict()
    left = () if source.metadata.get("classes") == "\n".join(classes) else PREDICTORS
    same_head = _head(source.rest) == _head(own)
    neck = {k: t for k, t in source.rest.items() if k.startswith("backbone.")}
    head = {k: t for k, t in source.rest.items() if k not in neck and same_head}
    fitting = {k: t for k, t in (at_levels(neck, [k for k in own if k.startswith(NECK)]) | head).items() if k in own}
    fitting = {k: t for k, t in fitting.items() if not k.startswith(left)}
    _check_shapes(fitting, own, file)
    model.load_state_dict({**own, **fitting})
    log.info("%s: %d of %d tensors of neck and head taken over", file, len(fitting), len(source.rest))
    return same_head


def _head(keys: Iterable[str]) -> set[str]:
    """What tells one kind of head from another: its tensors without the class predictors, which a base may lack."""
    return {key for key in keys if not key.startswith(("backbone.", *PREDICTORS))}


def _check_shapes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> None:
    for key, t in tensors.items():
        if t.shape != own[key].shape:
            raise BackboneError(
                "WEIGHTS",
                f"{key} is {tuple(t.shape)}, this detector has {tuple(own[key].shape)}",
                where=str(file),
                fix="set backbone.neck_width, detector.head_width and anchors as in the base",
            )
