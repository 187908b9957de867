"""What is trained is the adapters, the neck and the head; the rest stays as it was, also through `.train()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cvpeft.config import schema
from cvpeft.detector.adapt import adapt, part_of
from cvpeft.detector.build import build_detector
from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import walk
from cvpeft.peft.state import disabled, fingerprint, owned
from tests.helpers import settings

from .test_build import CONVNEXT, NONE, PAIRS, SOME, SWIN, VIT, photos

LORA = {"methods": (schema.Method(name="lora", settings={"rank": 2}),)}
FROZEN: dict[str, Any] = {"mode": "frozen", "methods": ()}
FULL: dict[str, Any] = {"mode": "full", "methods": ()}


def adapted(
    folder: Path, body: str = "convnext_atto", head: str = "faster_rcnn", peft: Any = LORA, **run: Any
) -> nn.Module:
    s = settings(folder, backbone={"name": body, "neck_width": 32}, detector={"head": head}, peft=peft, run=run)
    model = build_detector(s, ("a", "b"))
    adapt(model, s.peft, seed=s.run.seed)
    return model


def parts(model: nn.Module, mode: str) -> set[str]:
    return {part_of(mode)(key) for key in owned(model)}


@pytest.mark.parametrize("body", [VIT, CONVNEXT, SWIN])
def test_trained_are_exactly_adapters_neck_and_head(tmp_path: Path, body: str) -> None:
    model = adapted(tmp_path, body)
    tensors = owned(model)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(t) for t in tensors.values() if isinstance(t, nn.Parameter)}
    for key in tensors:
        part = part_of("adapters")(key)
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


def test_a_step_moves_adapter_neck_and_head(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    before = {k: t.detach().clone() for k, t in owned(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(2):  # the first moves LoRA's B only
        optimizer.zero_grad()
        sum(model.train()(photos(), [SOME, SOME]).values()).backward()
        optimizer.step()
    still = [k for k, t in owned(model).items() if torch.equal(t, before[k])]
    assert not still


def test_frozen_owns_no_part_of_the_body_on_any_family(tmp_path: Path) -> None:
    for body in ("convnext_atto", "resnet18"):  # of a ResNet no sites are known
        assert parts(adapted(tmp_path, body, peft=FROZEN), "frozen") == {"neck", "head"}


def test_full_trains_everything_in_place(tmp_path: Path) -> None:
    model = adapted(tmp_path, peft=FULL)
    assert parts(model, "full") == {"backbone", "neck", "head"}
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
