"""HF peft as an outsider: the same numbers in, the same values and gradients out, for every method that it has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from cvpeft.peft.adapter import Adapter
from cvpeft.peft.inject import methods
from cvpeft.peft.merge import merge
from cvpeft.types import Site

FC, QKV, DOWN = Site("fc", "mlp.fc1", "BNC"), Site("qkv", "attn.qkv", "BNC"), Site("conv", "downsample", "NCHW")
FC2, NORM = Site("fc2", "mlp.fc2", "BNC"), Site("norm1", "norm1", "BNC")
LINEAR: Callable[[], nn.Module] = lambda: nn.Linear(16, 24)  # noqa: E731
CONV: Callable[[], nn.Module] = lambda: nn.Conv2d(4, 24, 3, stride=2, padding=1)  # noqa: E731
TOKENS, IMAGE = (2, 5, 16), (2, 4, 9, 9)
LEAF = {"target_modules": ["leaf"]}


@dataclass
class Case:
    """names: our tensor -> theirs, both below the layer; shapes may differ, the order of the numbers may not."""

    method: str
    settings: dict[str, Any]
    base: Callable[[], nn.Module]
    site: Site
    shape: tuple[int, ...]
    config: peft.PeftConfig
    names: dict[str, str]


LORA = {"change.A": "lora_A.default.weight", "change.B": "lora_B.default.weight"}
HADA = {"B1": "hada_w1_a.default", "A1": "hada_w1_b.default", "B2": "hada_w2_a.default", "A2": "hada_w2_b.default"}
KRON = {"C": "lokr_w1.default", "B": "lokr_w2_a.default", "A": "lokr_w2_b.default"}
ADALORA = {"P": "lora_B.default", "values": "lora_E.default", "Q": "lora_A.default"}
LOHA, LOKR = peft.LoHaConfig(r=3, alpha=6, **LEAF), peft.LoKrConfig(r=2, alpha=3, **LEAF)
CASES = {
    "rslora": Case(
        "lora", {"rank": 4, "alpha": 6.0, "scaling": "rank_stabilized"}, LINEAR, FC, TOKENS,
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, **LEAF), LORA),
    "dora": Case(
        "dora", {"rank": 4, "alpha": 6.0}, LINEAR, FC, TOKENS,
        peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, **LEAF),
        {"A": "lora_A.default.weight", "B": "lora_B.default.weight",
         "magnitude": "lora_magnitude_vector.default.weight"}),
    "dora-conv": Case(
        "dora", {"rank": 4, "alpha": 6.0}, CONV, DOWN, IMAGE,
        peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, **LEAF),
        {"A": "lora_A.default.weight", "B": "lora_B.default.weight",
         "magnitude": "lora_magnitude_vector.default.weight"}),
    "adalora": Case(
        "adalora", {"rank": 4, "target": 2, "alpha": 6.0}, LINEAR, FC, TOKENS,
        peft.AdaLoraConfig(init_r=4, lora_alpha=6, total_step=9, **LEAF), ADALORA),
    "adalora-conv": Case(
        "adalora", {"rank": 4, "target": 2, "alpha": 6.0}, CONV, DOWN, IMAGE,
        peft.AdaLoraConfig(init_r=4, lora_alpha=6, total_step=9, **LEAF), ADALORA),
    "vera": Case(
        "vera", {"rank": 4}, LINEAR, FC, TOKENS,
        peft.VeraConfig(r=4, **LEAF),
        {"b": "vera_lambda_b.default", "d": "vera_lambda_d.default", "pair.A": "vera_A.default",
         "pair.B": "vera_B.default"}),
    "loha": Case("loha", {"rank": 3, "alpha": 6.0}, LINEAR, FC, TOKENS, LOHA, HADA),
    "loha-conv": Case("loha", {"rank": 3, "alpha": 6.0}, CONV, DOWN, IMAGE, LOHA, HADA),
    "lokr": Case("lokr", {"rank": 2, "alpha": 3.0}, LINEAR, FC, TOKENS, LOKR, KRON),
    "lokr-conv": Case("lokr", {"rank": 2, "alpha": 3.0}, CONV, DOWN, IMAGE, LOKR, KRON),
    "ia3-outputs": Case(
        "ia3", {}, LINEAR, FC, TOKENS, peft.IA3Config(feedforward_modules=[], **LEAF), {"scale": "ia3_l.default"}),
    "ia3-inputs": Case(
        "ia3", {}, LINEAR, FC2, TOKENS, peft.IA3Config(feedforward_modules=["leaf"], **LEAF),
        {"scale": "ia3_l.default"}),
    "norm": Case(
        "norm", {}, lambda: nn.LayerNorm(16), NORM, TOKENS, peft.LNTuningConfig(**LEAF),
        {"trained.weight": "ln_tuning_layers.default.weight", "trained.bias": "ln_tuning_layers.default.bias"}),
}  # fmt: skip


class Holder(nn.Module):
    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.leaf = leaf

    def forward(self, x: Tensor) -> Tensor:
        return self.leaf(x)


def _pair(case: Case) -> tuple[Adapter, peft.PeftModel]:
    """Ours and theirs on the same base, as if trained to the same numbers."""
    torch.manual_seed(0)
    base = case.base()
    method = methods()[case.method]
    ours = method.build([(copy.deepcopy(base).requires_grad_(False), case.site)], **case.settings)[0]  # type: ignore[union-attr]
    theirs = peft.get_peft_model(Holder(copy.deepcopy(base)), case.config)
    layer = theirs.base_model.model.leaf
    with torch.no_grad():
        for mine, name in case.names.items():
            tensor = _tensor(ours, mine)
            tensor.add_(0.3 * torch.randn_like(tensor))
            _tensor(layer, name).copy_(tensor.view_as(_tensor(layer, name)))
    return ours, theirs


def _tensor(module: nn.Module, name: str) -> Tensor:
    for step in name.split("."):
        module = getattr(module, step) if hasattr(module, step) else module[step]  # type: ignore[index]
    return module  # type: ignore[return-value]


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_merge_are_those_of_an_outsider(name: str) -> None:
    case = CASES[name]
    ours, theirs = _pair(case)
    x = torch.randn(case.shape)
    out, reference = ours(x), theirs(x)
    assert (out - ours.base(x)).abs().max() > 0.05
    assert torch.allclose(out, reference, atol=1e-5)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (reference * weight).sum().backward()
    layer = theirs.base_model.model.leaf
    for mine, other in case.names.items():
        if (gradient := _tensor(ours, mine).grad) is not None:
            assert torch.allclose(gradient, _tensor(layer, other).grad.view_as(gradient), atol=1e-4), mine
    merged = merge(Holder(ours)).leaf
    with torch.no_grad():
        assert torch.allclose(merged(x), theirs.merge_and_unload()(x), atol=1e-5)


def test_keys_and_values_of_a_fused_qkv_are_scaled_and_queries_are_not() -> None:
    base, x = nn.Linear(8, 24), torch.randn(2, 5, 8)
    ours = methods()["ia3"].build([(base, QKV)])[0]  # type: ignore[union-attr]
    with torch.no_grad():
        ours.scale.mul_(3)
        q, k, v = (ours(x) / base(x)).chunk(3, -1)
    assert torch.allclose(q, torch.ones_like(q))
    assert torch.allclose(torch.cat([k, v]), torch.full_like(torch.cat([k, v]), 3.0), atol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_start_of_pissa_and_olora_is_the_outsiders_and_the_base_stays(init: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(16, 24)
    ours = methods()["lora"].build([(copy.deepcopy(base), FC)], rank=4, init=init)[0]  # type: ignore[union-attr]
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=init, **LEAF)
    layer = peft.get_peft_model(Holder(copy.deepcopy(base)), config).base_model.model.leaf
    started = (base.weight - layer.base_layer.weight).detach()  # what they have taken off their base
    assert started.abs().max() > 0.1
    assert torch.allclose(2.0 * ours.change.B @ ours.change.A, started, atol=1e-5)
    assert torch.equal(ours.base.weight, base.weight)
