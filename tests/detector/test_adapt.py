"""What is trained is the adapters, the neck and the head; the rest stays as it was, also through `.train()`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cvpeft.config import schema
from cvpeft.detector.adapt import adapt, parts
from cvpeft.detector.build import build_detector
from cvpeft.errors import AdapterError, ConfigError
from cvpeft.peft.adapter import adapters, walk
from cvpeft.peft.merge import merge
from cvpeft.peft.state import disabled, fingerprint, owned
from tests.helpers import settings

from .test_build import CONVNEXT, NONE, PAIRS, SOME, SWIN, VIT, detector_file, photos

LORA = {"methods": (schema.Method(name="lora", settings={"rank": 2}),)}
FROZEN: dict[str, Any] = {"mode": "frozen", "methods": ()}
WHOLE = LORA | {"scope": "detector"}
FULL: dict[str, Any] = {"mode": "full", "methods": ()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A detector file of the classes a and b."""
    return detector_file(tmp_path, adapted(tmp_path, peft=FULL, seed=7), ("a", "b"))


def adapted(
    folder: Path,
    body: str = "convnext_atto",
    head: str = "faster_rcnn",
    peft: Any = LORA,
    weights: Any = "none",
    **run: Any,
) -> nn.Module:
    backbone = {"name": body, "neck_width": 32, "weights": weights}
    s = settings(folder, backbone=backbone, detector={"head": head}, peft=peft, run=run)
    model = build_detector(s, ("a", "b"))
    adapt(model, s.peft, seed=s.run.seed)
    return model


@pytest.mark.parametrize("body", [VIT, CONVNEXT, SWIN])
def test_trained_are_exactly_adapters_neck_and_head(tmp_path: Path, body: str) -> None:
    model = adapted(tmp_path, body)
    tensors = owned(model)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(t) for t in tensors.values() if isinstance(t, nn.Parameter)}
    for key, part in parts(model, "adapters").items():
        assert (part == "adapter") == (".lora." in key) == key.startswith("backbone.body.")
        assert part == "adapter" or ".dense.trained." in key
    plain = build_detector(settings(tmp_path, backbone={"name": body, "neck_width": 32}), ("a", "b"))
    outside = {k for k, _ in plain.named_parameters() if not k.startswith("backbone.body.")}
    assert {k.replace(".dense.trained", "") for k in tensors if ".dense." in k} == outside


@pytest.mark.parametrize(("head", "body"), PAIRS)
def test_every_owned_parameter_gets_a_gradient_in_one_step(tmp_path: Path, head: str, body: str) -> None:
    model = adapted(tmp_path, body, head)
    torch.manual_seed(0)
    sum(model.train()(photos(), [SOME, NONE]).values()).backward()
    missing = [k for k, p in owned(model).items() if isinstance(p, nn.Parameter) and p.grad is None]
    assert not missing
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("peft", [LORA, FROZEN], ids=["lora", "frozen"])
def test_the_frozen_body_stays_in_eval_mode_and_unchanged(tmp_path: Path, peft: Any) -> None:
    model = adapted(tmp_path, "resnet18" if peft is FROZEN else "convnext_atto", peft=peft)
    before = fingerprint(model)
    model.train()
    assert all(place.module.training == (place.owner is not None) for place in walk(model.backbone.body))
    assert model.training
    assert model.backbone.neck.training
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sum(model(photos(), [SOME, NONE]).values()).backward()
    optimizer.step()
    assert fingerprint(model) == before
    model.eval()
    assert not any(m.training for m in model.modules())


def still_after_two_steps(model: nn.Module) -> list[str]:
    """Keys of the owned tensors that training has not moved."""
    before = {k: t.detach().clone() for k, t in owned(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(2):  # the first moves LoRA's B only
        optimizer.zero_grad()
        sum(model.train()(photos(), [SOME, SOME]).values()).backward()
        optimizer.step()
    return [k for k, t in owned(model).items() if torch.equal(t, before[k])]


def test_a_step_moves_adapter_neck_and_head(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    assert not still_after_two_steps(model)


def test_frozen_owns_no_part_of_the_body_on_any_family(tmp_path: Path) -> None:
    for body in ("convnext_atto", "resnet18"):  # of a ResNet no sites are known
        assert set(parts(adapted(tmp_path, body, peft=FROZEN), "frozen").values()) == {"neck", "head"}


def test_full_trains_everything_in_place(tmp_path: Path) -> None:
    model = adapted(tmp_path, peft=FULL)
    assert set(parts(model, "full").values()) == {"backbone", "neck", "head"}
    assert owned(model).keys() == model.state_dict().keys()
    assert all(m.training for m in model.train().modules())


def test_disabled_gives_the_plain_detector_bit_for_bit(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    plain = build_detector(settings(tmp_path, backbone={"name": "convnext_atto", "neck_width": 32}), ("a", "b")).eval()
    with torch.no_grad():
        for t in owned(model).values():
            t.add_(0.05)
        moved = model.eval()(photos())
        with disabled(model):
            bare = model(photos())
        wanted = plain(photos())
    assert all(torch.equal(a[k], b[k]) for a, b in zip(bare, wanted, strict=True) for k in a)
    assert not all(torch.equal(a["scores"], b["scores"]) for a, b in zip(moved, wanted, strict=True))


def test_initial_tensors_depend_on_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    one = owned(adapted(tmp_path))
    state = torch.get_rng_state()
    torch.manual_seed(6)
    same = owned(adapted(tmp_path))
    other = owned(adapted(tmp_path, seed=1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    downs = [k for k in one if ".lora." in k and one[k].abs().sum() > 0]
    assert downs
    assert not any(torch.equal(one[k], other[k]) for k in downs)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_without_a_method_and_families_without_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"peft.methods is empty.*set peft.methods to \[lora\], or peft.mode"):
        adapted(tmp_path, peft={"methods": ()})
    with pytest.raises(Exception, match="no sites are known in a ResNet"):
        adapted(tmp_path, "resnet18")


# ------------------------------------------------------------------------------------------- methods in neck and head


def test_in_scope_detector_methods_stand_everywhere_and_copies_are_small(tmp_path: Path, base: Path) -> None:
    model = adapted(tmp_path, peft=WHOLE, weights=base)
    stacks = adapters(model)
    where = {path.partition(".")[0] for path, stack in stacks.items() if stack[0].method == "lora"}
    assert where == {"backbone", "rpn", "roi_heads"}
    assert any(path.startswith("backbone.neck.") for path, stack in stacks.items() if stack[0].method == "lora")
    dense = [stack[0] for stack in stacks.values() if stack[0].method == "dense"]
    large = {adapter.site.path for adapter in dense if any(p.ndim > 1 for p in adapter.parameters())}
    assert large == {"head.cls_logits", "head.bbox_pred", "box_predictor.cls_score", "box_predictor.bbox_pred"}
    counts = Counter[str]()
    mine = owned(model)
    for key, part in parts(model, "adapters").items():
        assert (part == "adapter") == (".lora." in key)
        counts[part] += mine[key].numel()
    assert set(counts) == {"adapter", "neck", "head"}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(t) for t in mine.values() if isinstance(t, nn.Parameter)}


@pytest.mark.parametrize("head", ["faster_rcnn", "retinanet", "fcos"])
def test_in_scope_detector_a_step_reaches_all_and_disabling_gives_the_base_back(tmp_path: Path, head: str) -> None:
    base = detector_file(tmp_path, adapted(tmp_path, head=head, peft=FULL, seed=7), ("a", "b"))
    model = adapted(tmp_path, head=head, peft=WHOLE, weights=base)
    wanted = adapted(tmp_path, head=head, peft=FULL, weights=base).eval()(photos())
    assert not still_after_two_steps(model)
    model.eval()
    with disabled(model):
        bare = model(photos())
    assert all(torch.equal(a[k], b[k]) for a, b in zip(bare, wanted, strict=True) for k in a)


def test_in_scope_detector_merging_gives_the_plain_detector(tmp_path: Path, base: Path) -> None:
    model = adapted(tmp_path, peft=WHOLE, weights=base).eval().double()  # the base's weights are wild: no rounding here
    torch.manual_seed(0)
    with torch.no_grad():
        for t in owned(model).values():
            t.add_(0.01 * torch.randn_like(t))
    merged = merge(model)
    assert merged.state_dict().keys() == adapted(tmp_path, peft=FULL).state_dict().keys()
    x = photos().double() / 255
    one, other = model.backbone(x), merged.backbone(x)
    assert all((one[k] - other[k]).abs().max() <= 1e-9 * one[k].abs().max() for k in one)
    heads = zip(model.rpn.head(list(one.values())), merged.rpn.head(list(other.values())), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-8) for maps in heads for a, b in zip(*maps, strict=True))


def test_scope_detector_without_a_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone.weights brings no neck and head"):
        adapted(tmp_path, peft=WHOLE)
    base = detector_file(tmp_path, adapted(tmp_path, head="retinanet", peft=FULL), ("a", "b"))
    with pytest.raises(ConfigError, match=r"no neck and fcos head.*random tensors.*peft.scope=backbone"):
        adapted(tmp_path, head="fcos", peft=WHOLE, weights=base)
    body = tmp_path / "body.safetensors"
    save_file(timm.create_model("convnext_atto").state_dict(), body)
    with pytest.raises(ConfigError, match=r"body.safetensors.*no neck and faster_rcnn head"):
        adapted(tmp_path, peft=WHOLE, weights=body)
