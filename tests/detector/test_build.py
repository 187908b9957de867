"""Every head on every family gives losses, boxes in the frame, and the same weights for the same seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from cvpeft.backbone.weights import DETECTOR_FORMAT, grid_entry
from cvpeft.detector.build import Normalise, build_detector
from cvpeft.errors import BackboneError, ConfigError
from cvpeft.types import Target
from tests.helpers import SIZE, settings

HEADS = ["faster_rcnn", "retinanet", "fcos"]
VIT, CONVNEXT, SWIN = "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"
PAIRS = [
    *((head, body) for head in HEADS for body in (VIT, CONVNEXT)),
    ("faster_rcnn", SWIN),
    *(pytest.param(head, SWIN, marks=pytest.mark.slow) for head in ("retinanet", "fcos")),
]


def detector(folder: Path, head: str = "faster_rcnn", body: str = "convnext_atto", **sections: Any) -> nn.Module:
    backbone = {"name": body, "neck_width": 32, **sections.pop("backbone", {})}
    classes = sections.pop("classes", ("a", "b"))
    detector = {"head": head, "score_threshold": 0.0, **sections.pop("detector", {})}
    return build_detector(settings(folder, backbone=backbone, detector=detector, **sections), classes)


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "image_id": 1,
    }


def photos(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", HEADS)
def test_under_autocast_boxes_and_what_they_are_matched_with_stay_in_single(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 knows 512 and 516 and nothing between."""
    seen: list[Tensor] = []
    for coder in (BoxCoder, BoxLinearCoder):
        for name in {"encode", "decode", "encode_single", "decode_single"} & vars(coder).keys():
            plain = getattr(coder, name)

            def spied(self: Any, *given: Any, plain: Any = plain) -> Tensor:
                boxes = plain(self, *given)
                seen.extend([boxes] if isinstance(boxes, Tensor) else boxes)
                return boxes

            monkeypatch.setattr(coder, name, spied)
    torch.manual_seed(0)
    model = detector(tmp_path, head)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(photos(), [SOME, NONE])
        found = model.eval()(photos())
    assert seen
    assert {t.dtype for t in (*losses.values(), *seen)} == {torch.float32}
    boxes = torch.cat([one["boxes"] for one in found])
    assert boxes.dtype == torch.float32
    assert len(boxes) == 0 or (boxes != boxes.bfloat16()).any()


SOME, NONE = target([[5, 5, 40, 50], [50, 20, 90, 60]], [1, 2]), target([], [])


@pytest.mark.parametrize(("head", "body"), PAIRS)
def test_losses_are_finite_with_and_without_boxes_and_predictions_lie_in_the_frame(
    tmp_path: Path, head: str, body: str
) -> None:
    torch.manual_seed(0)
    model = detector(tmp_path, head, body)
    for targets in ([SOME, SOME], [SOME, NONE], [NONE, NONE]):
        losses = model.train()(photos(), targets)
        assert all(math.isfinite(v) and v >= 0 for v in (loss.item() for loss in losses.values())), losses
        sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        found = model.eval()(photos())
    assert len(found) == 2
    for one in found:
        boxes, scores, labels = one["boxes"], one["scores"], one["labels"]
        assert 0 < len(boxes) == len(scores) == len(labels) <= 100
        assert boxes.min() >= 0
        assert boxes[:, 0::2].max() <= SIZE[1]
        assert boxes[:, 1::2].max() <= SIZE[0]
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (scores.diff() <= 0).all()
        assert set(labels.tolist()) <= {1, 2}


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone(tmp_path: Path, head: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = detector(tmp_path, head).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    same = detector(tmp_path, head).state_dict()
    other = detector(tmp_path, head, run={"seed": 1}).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_the_backbone_does_not_depend_on_the_head_and_drops_no_path_where_it_is_frozen(tmp_path: Path) -> None:
    one, other = detector(tmp_path, "faster_rcnn"), detector(tmp_path, "retinanet", backbone={"drop_path": 0.5})
    assert all(torch.equal(p, q) for p, q in zip(one.backbone.body.parameters(), other.backbone.body.parameters(),
                                                 strict=True))  # fmt: skip
    assert not any("DropPath" in type(m).__name__ for m in other.modules())
    full = detector(tmp_path, backbone={"drop_path": 0.5}, peft={"mode": "full", "methods": ()})
    assert any("DropPath" in type(m).__name__ for m in full.modules())


def test_images_are_normalised_once_and_a_wrong_size_is_refused() -> None:
    n = Normalise((2, 3), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    images, targets = n(torch.full((2, 3, 2, 3), 255, dtype=torch.uint8), [SOME, NONE])
    assert images.tensors[0, :, 0, 0].tolist() == [1.0, 3.0, 1.0]
    assert images.image_sizes == [(2, 3), (2, 3)]
    assert targets is not None
    assert targets[0]["boxes"] is SOME["boxes"]
    assert n.state_dict() == {}
    for shape in ((1, 3, 3, 2), (1, 1, 2, 3), (1, 3, 4, 6)):
        with pytest.raises(BackboneError, match=r"E-SIZE a batch of \(1, .*expected \(B, 3, 2, 3\)"):
            n(torch.zeros(shape), None)


@pytest.mark.parametrize(
    ("head", "levels", "default"), [("faster_rcnn", 4, "16, 32, 64, 128"), ("retinanet", 3, "32, 64, 128")]
)
def test_the_number_of_anchor_sizes_must_be_that_of_the_levels(
    tmp_path: Path, head: str, levels: int, default: str
) -> None:
    sizes = (8.0, 16.0, 32.0, 64.0)[:levels]
    model = detector(tmp_path, head, detector={"anchor_sizes": sizes})
    found = (model.rpn if head == "faster_rcnn" else model).anchor_generator.sizes
    assert [level[0] for level in found] == list(sizes)
    with pytest.raises(ConfigError, match=rf"has 2 sizes, {head} has {levels} pyramid levels.*\[{default}\]"):
        detector(tmp_path, head, detector={"anchor_sizes": (8.0, 16.0)})


def test_fcos_has_no_anchors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FCOS has no anchors"):
        detector(tmp_path, "fcos", detector={"anchor_sizes": (8.0, 16.0, 32.0)})


@pytest.mark.parametrize("head", ["faster_rcnn", "retinanet"])
def test_anchors_cover_the_frame_at_the_strides_of_the_levels(tmp_path: Path, head: str) -> None:
    model = detector(tmp_path, head)
    generator = (model.rpn if head == "faster_rcnn" else model).anchor_generator
    images, _ = model.transform(photos(1))
    maps = list(model.backbone(images.tensors).values())
    strides = [SIZE[0] // m.shape[2] for m in maps]
    assert strides == [4, 8, 16, 32][-len(maps) :]
    anchors = generator(images, maps)[0]
    per_cell = len(generator.sizes[0]) * 3
    assert len(anchors) == sum(m.shape[2] * m.shape[3] for m in maps) * per_cell
    first, second = anchors[0], anchors[per_cell]
    assert (second - first).tolist() == [strides[0], 0, strides[0], 0]


def detector_file(folder: Path, model: nn.Module, classes: tuple[str, ...]) -> Path:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    content = {k: v.contiguous() for k, v in model.state_dict().items()}
    about = {"format": DETECTOR_FORMAT, "classes": "\n".join(classes), **grid_entry(model.backbone.body.net)}
    save_file(content, folder / "base.safetensors", about)
    return folder / "base.safetensors"


@pytest.mark.parametrize("head", HEADS)
def test_a_detector_file_gives_neck_and_head_and_predictors_to_the_same_classes_only(tmp_path: Path, head: str) -> None:
    base = detector(tmp_path, head)
    file = detector_file(tmp_path, base, ("a", "b"))
    wanted = base.state_dict()
    same = detector(tmp_path, head, backbone={"weights": file}).state_dict()
    assert all(torch.equal(same[k], wanted[k]) for k in wanted)
    for classes in (("a", "c"), ("b", "a"), ("a", "b", "c")):
        other = detector(tmp_path, head, backbone={"weights": file}, classes=classes).state_dict()
        differing = {k for k in wanted if wanted[k].shape != other[k].shape or not torch.equal(wanted[k], other[k])}
        assert differing
        assert all(".box_predictor." in k or ".cls_logits." in k for k in differing)


def test_a_detector_file_of_another_width_is_refused(tmp_path: Path) -> None:
    file = detector_file(tmp_path, detector(tmp_path), ("a", "b"))
    with pytest.raises(
        BackboneError, match=r"backbone.neck.* is \(.*\), this detector has \(.*set backbone.neck_width"
    ):
        detector(tmp_path, backbone={"weights": file, "neck_width": 64})


def test_a_detector_file_of_another_head_gives_backbone_and_neck(tmp_path: Path) -> None:
    base = detector(tmp_path, "retinanet")
    file = detector_file(tmp_path, base, ("a", "b"))
    other = detector(tmp_path, "fcos", backbone={"weights": file}).state_dict()
    wanted = base.state_dict()
    assert all(torch.equal(other[k], v) for k, v in wanted.items() if k.startswith("backbone."))


@pytest.mark.parametrize("body", [VIT, CONVNEXT])
@pytest.mark.parametrize(
    ("head", "other"), [("faster_rcnn", "retinanet"), ("faster_rcnn", "fcos"), ("fcos", "faster_rcnn")]
)
def test_a_neck_of_another_number_of_levels_gives_those_that_both_have(
    tmp_path: Path, body: str, head: str, other: str
) -> None:
    base = detector(tmp_path, head, body).eval()
    with torch.no_grad():
        for p in base.backbone.neck.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.1)
    file = detector_file(tmp_path, base, ("a", "b"))
    model = detector(tmp_path, other, body, backbone={"weights": file}).eval()
    x = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        wanted, found = (list(m.backbone(x).values())[-3:] for m in (base, model))
    assert len(wanted) == len(found) == 3
    assert all(torch.equal(one, two) for one, two in zip(wanted, found, strict=True))
