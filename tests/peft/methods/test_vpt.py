from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from cvpeft.backbone.sites import sites
from cvpeft.errors import AdapterError
from cvpeft.peft.inject import MethodSpec, inject, probe
from cvpeft.peft.methods.vpt import Vpt
from cvpeft.types import Site

P = 3
MODELS = {
    "class token": ("deit_tiny_patch16_224", {}),
    "registers, rotary halves": ("vit_small_patch16_dinov3", {"init_values": 1.0}),
    "rotary pairs": ("eva02_tiny_patch14_224", {"img_size": 64, "patch_size": 16}),
    "rotary by block": ("vit_small_patch16_rope_mixed_224", {"init_values": 1.0}),
}


def model(which: str) -> nn.Module:
    name, arguments = MODELS[which]
    torch.manual_seed(0)
    common = {"depth": 3, "embed_dim": 32, "num_heads": 2, "img_size": 64, "num_classes": 0}
    net = timm.create_model(name, **{**common, **arguments}).eval()
    for weight in (p for p in net.blocks.parameters() if p.ndim == 2):
        nn.init.normal_(weight, std=0.3)  # with small weights attention is uniform, and any rotation would do
    return net


def last_map(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.forward_intermediates(x, indices=1, intermediates_only=True, norm=True)[0]


def blocks_by_hand(net: nn.Module, x: torch.Tensor, prompts: list[torch.Tensor | None]) -> torch.Tensor:
    """Prompts put *before* the patches and counted as prefix tokens, which no model rotates: the same by another way.

    prompts: for each block what takes the prompts' place before it; None: they are carried on.
    """
    net = copy.deepcopy(net)
    known, B = net.num_prefix_tokens, len(x)
    embedded = net._pos_embed(net.patch_embed(x))
    tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
    tokens = net.norm_pre(tokens)
    tokens = torch.cat([tokens[:, :known], tokens.new_zeros(B, P, tokens.shape[-1]), tokens[:, known:]], 1)
    for i, block in enumerate(net.blocks):
        if (fresh := prompts[i]) is not None:
            tokens = torch.cat([tokens[:, :known], fresh.expand(B, -1, -1), tokens[:, known + P :]], 1)
        if rope is None:
            tokens = block(tokens)
        else:
            block.attn.num_prefix_tokens = known + P
            tokens = block(tokens, rope=rope[i] if net.rope_mixed else rope)
    patches = net.norm(tokens)[:, known + P :]
    return patches.transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_prompts_are_unrotated_tokens_that_all_others_attend_to(which: str, depth: str) -> None:
    net, x = model(which), torch.randn(2, 3, 64, 64)
    twin = copy.deepcopy(net)
    inject(net, sites(net), [MethodSpec("vpt", settings={"tokens": P, "depth": depth})])
    probe(net, lambda: last_map(net, x))
    own = [getattr(block, "prompts", None) for block in net.blocks]
    assert [prompts is not None for prompts in own] == [True, depth == "deep", depth == "deep"]
    for prompts in own:
        if prompts is not None:
            prompts.data.normal_()
    with torch.no_grad():
        out = last_map(net, x)
        assert torch.allclose(out, blocks_by_hand(twin, x, own), atol=1e-4)
        assert (out - last_map(twin, x)).abs().max() > 1e-2


def test_deep_prompts_leave_every_map_as_large_as_it_was() -> None:
    net, x = model("class token"), torch.randn(1, 3, 64, 64)
    inject(net, sites(net), [MethodSpec("vpt")])
    maps = net.forward_intermediates(x, indices=[0, 1, 2], intermediates_only=True)
    assert {tuple(m.shape) for m in maps} == {(1, 32, 4, 4)}


def test_shallow_prompts_of_some_blocks_leave_after_the_last_of_them() -> None:
    net, x = model("registers, rotary halves"), torch.randn(1, 3, 64, 64)
    inject(net, sites(net), [MethodSpec("vpt", ("blocks.0", "blocks.1"), {"depth": "shallow"})])
    assert last_map(net, x).shape == (1, 32, 4, 4)
    assert [(b.first, b.last) for b in list(net.blocks)[:2]] == [(True, False), (False, True)]


def test_the_range_of_the_first_values() -> None:
    vpt = Vpt(nn.Sequential(nn.Linear(192, 192)), Site("blocks.0", "block", "BNC"), tokens=50)
    assert 0.075 < vpt.prompts.abs().max() <= (6 / (3 * 16 * 16 + 192)) ** 0.5


@pytest.mark.parametrize(
    ("site", "settings", "message"),
    [
        (Site("b", "block", "NHWC"), {}, "NHWC"),
        (Site("b", "mlp", "BNC"), {}, "role is mlp"),
        (Site("b", "block", "BNC"), {"tokens": 0}, "0 tokens"),
    ],
)
def test_what_prompts_cannot_stand_at(site: Site, settings: dict[str, object], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        Vpt(nn.Linear(4, 4), site, **settings)  # type: ignore[arg-type]


def test_tables_of_relative_positions_are_refused() -> None:
    net = timm.create_model("beit_base_patch16_224", depth=1, embed_dim=32, num_heads=2, img_size=64, num_classes=0)
    with pytest.raises(AdapterError, match="table of relative positions"):
        inject(net, sites(net), [MethodSpec("vpt")])


def test_shallow_prompts_with_a_block_left_out_are_refused() -> None:
    net = model("registers, rotary halves")
    with pytest.raises(AdapterError, match=r"shallow prompts at blocks 0, 2.*the blocks between.*in a row"):
        inject(net, sites(net), [MethodSpec("vpt", ("blocks.0", "blocks.2"), {"depth": "shallow"})])
