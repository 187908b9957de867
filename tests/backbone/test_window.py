"""Windowed attention changes what a block sees, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cvpeft.backbone.build import build_backbone
from cvpeft.backbone.sites import sites
from cvpeft.backbone.window import last_of_each_quarter, window_blocks
from cvpeft.config import schema
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.errors import BackboneError
from cvpeft.peft.inject import MethodSpec, freeze, inject, probe
from tests.helpers import settings

VIT, DINOV3, DINOV2 = "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"


def net(name: str, size: tuple[int, int] = (64, 64), **window: object) -> nn.Module:
    torch.manual_seed(3)
    body = build_backbone(name, "none", size, **window).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # LayerScale of 1e-5 would hide what attention does
        for key, p in body.named_parameters():
            if "gamma" in key or ".ls" in key:
                p.fill_(1.0)
    return body


def last(body: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return body(x)[0]


def image(size: tuple[int, int] = (64, 64), batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [VIT, DINOV3, DINOV2])
def test_one_window_over_the_whole_map_is_global_attention(name: str) -> None:
    x = image()
    plain, windowed = net(name), net(name, window=4)
    assert torch.allclose(last(plain, x), last(windowed, x), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "side"), [(VIT, (64, 64), 2), (VIT, (64, 96), 3), (VIT, (96, 64), 4), (DINOV3, (64, 96), 3)]
)
def test_smaller_windows_see_less_and_keep_the_shape(name: str, size: tuple[int, int], side: int) -> None:
    x = image(size)
    plain, windowed = last(net(name, size), x), last(net(name, size, window=side), x)
    assert plain.shape == windowed.shape
    assert not torch.allclose(plain, windowed, atol=1e-3)


@pytest.mark.parametrize("name", [VIT, DINOV3])
def test_a_block_does_not_see_beyond_its_window(name: str) -> None:
    """A single windowed block: what changes in one window changes nothing in the others."""
    body = build_backbone(name, "none", (64, 64))
    prefix = body.net.num_prefix_tokens
    window_blocks(body.net, (4, 4), 2, range(1, len(body.net.blocks)))
    rope = {"rope": body.net.rope.get_embed((4, 4))} if name == DINOV3 else {}
    block, x = body.net.blocks[0].eval(), torch.randn(1, prefix + 16, body.channels[0])
    moved = x.clone()
    moved[:, prefix] += torch.randn(body.channels[0])  # the upper left token
    with torch.no_grad():
        change = (block(moved, **rope) - block(x, **rope)).abs().amax((0, 2))[prefix:].unflatten(0, (4, 4)) > 0
    assert change[:2, :2].all()
    assert change.sum() == 4


def test_padded_windows_cut_and_join_the_same_grid() -> None:
    """With a block that does nothing the tokens come back where they were, class tokens as their mean."""
    model = nn.Module()
    model.blocks, model.num_prefix_tokens = nn.ModuleList([nn.Identity()]), 2
    window_blocks(model, (5, 7), 3, ())
    x = torch.randn(2, 2 + 35, 8)
    assert torch.allclose(model.blocks[0](x), x, atol=1e-6)


def test_gradients_flow_through_windows() -> None:
    body = net(VIT, (64, 96), window=3)
    x = image((64, 96)).requires_grad_()
    body(x)[0].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amax((0, 1)).min() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in body.net.blocks.parameters())


def test_paths_and_keys_are_the_same_with_and_without() -> None:
    plain, windowed = net(VIT), net(VIT, window=2)
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in windowed.named_modules()]
    assert plain.state_dict().keys() == windowed.state_dict().keys()


@pytest.mark.parametrize("name", [VIT, DINOV3])
def test_a_copy_keeps_its_windows_and_is_its_own(name: str) -> None:
    x, body = image(), net(name, window=2)
    before = last(body, x)
    other = copy.deepcopy(body)
    assert torch.equal(last(other, x), before)
    with torch.no_grad():
        other.net.blocks[0].norm1.weight.zero_()
    assert torch.equal(last(body, x), before)
    assert not torch.equal(last(other, x), before)


def test_the_last_block_of_each_quarter_stays_global() -> None:
    assert last_of_each_quarter(12) == (2, 5, 8, 11)
    assert last_of_each_quarter(24) == (5, 11, 17, 23)
    assert last_of_each_quarter(2) == (0, 1)
    body = net(VIT, window=2)
    assert [i for i, b in enumerate(body.net.blocks) if not b._forward_pre_hooks] == [2, 5, 8, 11]
    body = net(VIT, window=2, global_blocks=(0,))
    assert [i for i, b in enumerate(body.net.blocks) if not b._forward_pre_hooks] == [0]


def test_adapters_work_inside_windows_and_prompts_are_refused(tmp_path) -> None:
    def adapted(method: str) -> nn.Module:
        backbone = {"name": VIT, "window": 2}
        s = settings(tmp_path, backbone=backbone, peft={"methods": (schema.Method(name=method),)})
        model = build_detector(s, ("a",))
        adapt(model, s.peft)
        return model

    assert adapted("lora").eval()(torch.zeros(1, 3, 64, 96))[0]["boxes"].shape[1] == 4
    with pytest.raises(BackboneError, match=r"isual prompts cannot be combined with windows.*set backbone.window=0"):
        adapted("vpt")


def test_wrong_settings_are_told() -> None:
    with pytest.raises(BackboneError, match=r"backbone.global_blocks names \[-1, 12\], the backbone has blocks 0..11"):
        net(VIT, window=2, global_blocks=(-1, 3, 12))
    with pytest.raises(BackboneError, match="a side within the token grid"):
        net(DINOV3, (32, 64), window=3)
    with pytest.raises(BackboneError, match=r"cannot be used|set backbone\.window=0"):
        net("eva02_tiny_patch14_224", window=9)


def test_methods_that_look_at_neighbours_see_the_window_inside_a_block_and_the_whole_map_around_it() -> None:
    body = net(VIT, (64, 96), window=2, global_blocks=(11,))
    grids = {site.path: site.grid for site in sites(body.net)}
    assert (grids["blocks.0"], grids["blocks.0.attn"], grids["blocks.3.mlp.fc1"]) == ((4, 6), (2, 2), (2, 2))
    assert grids["blocks.11.attn"] == (4, 6)
    inject(body.net, sites(body.net), [MethodSpec("convpass"), MethodSpec("mona")])
    freeze(body.net)
    probe(body.net, lambda: body(image((64, 96))))
