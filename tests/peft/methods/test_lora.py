from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.peft.methods.lora import Lora
from cvpeft.types import Site

QKV = Site("attn.qkv", "attn.qkv", "BNC")
CONV = Site("conv", "downsample", "NCHW")


class Holder(nn.Module):
    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.leaf = leaf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leaf(x)


def drawn(base: nn.Module, site: Site, **settings: object) -> Lora:
    torch.manual_seed(0)
    lora = Lora(base.requires_grad_(False), site, **settings)  # type: ignore[arg-type]
    nn.init.normal_(lora.change.B, std=0.3)
    return lora


@pytest.mark.parametrize(
    ("base", "site", "x"),
    [
        (nn.Linear(6, 10), Site("fc", "mlp.fc1", "BNC"), torch.randn(2, 5, 6)),
        (nn.Linear(6, 18, bias=False), QKV, torch.randn(2, 5, 6)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), CONV, torch.randn(2, 3, 9, 9)),
        (nn.Conv2d(3, 8, 1), CONV, torch.randn(2, 3, 5, 5)),
    ],
    ids=["linear", "qkv", "conv3", "conv1"],
)
def test_parity_with_an_outsider_in_values_and_gradients(base: nn.Module, site: Site, x: torch.Tensor) -> None:
    ours = drawn(copy.deepcopy(base), site, rank=4, alpha=6.0)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["leaf"])
    theirs = peft.get_peft_model(Holder(copy.deepcopy(base)), config)
    layer = theirs.base_model.model.leaf
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(ours.change.A)
        layer.lora_B["default"].weight.copy_(ours.change.B.view_as(layer.lora_B["default"].weight))
    out, reference = ours(x), theirs(x)
    assert torch.allclose(out, reference, atol=1e-6)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (reference * weight).sum().backward()
    assert torch.allclose(ours.change.A.grad, layer.lora_A["default"].weight.grad, atol=1e-5)
    theirs_b = layer.lora_B["default"].weight.grad
    assert torch.allclose(ours.change.B.grad.view_as(theirs_b), theirs_b, atol=1e-5)
    merged = theirs.merge_and_unload().leaf
    assert torch.allclose(ours.merged().weight, merged.weight, atol=1e-6)


@pytest.mark.parametrize("parts", ["q", "v", "qv", "kv", "qkv"])
def test_parts_of_qkv_change_their_rows_only(parts: str) -> None:
    base, x = nn.Linear(6, 18), torch.randn(2, 5, 6)
    lora = drawn(base, QKV, rank=2, qkv=parts)
    assert sum(p.numel() for p in lora.change.parameters()) == len(parts) * 2 * (6 + 6)
    change = (lora(x) - base(x)).unflatten(-1, (3, 6)).abs().amax((0, 1, 3))
    assert [part for part, moved in zip("qkv", change, strict=True) if moved > 1e-6] == list(parts)
    assert torch.allclose(lora.merged()(x), lora(x), atol=1e-5)
    each = [2.0 * b @ a for a, b in zip(lora.change.A.chunk(len(parts)), lora.change.B, strict=True)]
    rows = (lora.merged().weight - base.weight).unflatten(0, (3, 6))
    for part, expected in zip(parts, each, strict=True):
        assert torch.allclose(rows["qkv".index(part)], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("groups", [1, 6])
def test_a_merged_convolution_is_exact_for_any_stride_dilation_and_padding(mode: str, groups: int) -> None:
    base = nn.Conv2d(6, 6, (3, 5), stride=(2, 1), padding=(2, 3), dilation=(1, 2), groups=groups, padding_mode=mode)
    lora, x = drawn(base, CONV, rank=3), torch.randn(2, 6, 11, 13)
    assert (lora(x) - base(x)).abs().max() > 0.1
    assert torch.allclose(lora.merged()(x), lora(x), atol=1e-5)
    with torch.no_grad():
        assert (lora(x) - base(x)).shape == base(x).shape


def test_depthwise_needs_few_parameters() -> None:
    lora = drawn(nn.Conv2d(384, 384, 7, padding=3, groups=384), CONV, rank=4)
    assert sum(p.numel() for p in lora.change.parameters()) == 4 * (384 + 49)


def test_presets_and_their_override() -> None:
    def rank_and_scale(**settings: object) -> tuple[int, float]:
        lora = Lora(nn.Linear(4, 4), Site("fc", "fc", "BNC"), **settings)  # type: ignore[arg-type]
        return len(lora.change.A), lora.scale

    assert rank_and_scale() == (8, 2.0)
    assert [rank_and_scale(preset=p)[0] for p in ("large", "small", "ultra_small")] == [16, 4, 1]
    assert rank_and_scale(preset="large", rank=2) == (2, 2.0)
    assert rank_and_scale(rank=4, alpha=2.0) == (4, 0.5)


def test_dropout_acts_in_training_only() -> None:
    lora, x = drawn(nn.Linear(6, 6), Site("fc", "fc", "BNC"), dropout=0.5), torch.randn(4, 6)
    assert not torch.equal(lora.train()(x), lora(x))
    assert torch.equal(lora.eval()(x), lora(x))
    assert torch.allclose(lora.merged()(x), lora(x), atol=1e-5)


class Strange(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("base", "settings", "message"),
    [
        (nn.Conv2d(4, 8, 3, groups=2), {}, "Conv2d in 2 groups"),
        (nn.Conv2d(4, 8, 3, groups=4), {}, "Conv2d in 4 groups"),
        (Strange(4, 4), {}, "a Strange with a forward of its own"),
        (nn.Linear(4, 4), {"rank": 0}, "rank 0"),
        (nn.Linear(4, 4), {"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_what_lora_cannot_take(base: nn.Module, settings: dict[str, object], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        Lora(base, CONV, **settings)  # type: ignore[arg-type]


def test_a_rank_beyond_the_shorter_side_is_mixed_too() -> None:
    adapter = Lora(nn.Conv2d(4, 4, 3, groups=4), Site("a", "conv_dw", "NCHW"), rank=12)
    state = {"change.A": torch.randn(12, 9), "change.B": torch.randn(4, 12)}
    mixed = adapter.mixed([state, state], [0.5, 0.5])
    assert {key: t.shape for key, t in mixed.items()} == {key: t.shape for key, t in state.items()}
    assert torch.allclose(mixed["change.B"] @ mixed["change.A"], state["change.B"] @ state["change.A"], atol=1e-5)
