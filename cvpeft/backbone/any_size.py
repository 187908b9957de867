"""Backbones that timm builds for one size, let take every size: Swin, and ViTs whose only positions are DINOv3's RoPE.

Both depend on the size in tables alone: which tokens of a shifted window may see each other, and the angles of the
rotary embedding. Here they are computed from the shape as tensor operations, so that an exported graph does it too; the
weights are the same at every size. Set on the modules for the length of a `with`, so that paths and keys stay timm's.
Letters: B batch, H and W token grid, C channels, S and T height and width of a window, N windows of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.format import Format
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from cvpeft.backbone.window import window_side

__all__ = ["any_size", "fixed_because", "least_size", "resize"]

MASKED = -100.0  # timm's, added to the logits of tokens that may not see each other


def fixed_because(net: nn.Module) -> str:
    """Why a timm model takes inputs of its own size only; empty where it can be let take others."""
    if not hasattr(net, "patch_embed"):
        return ""
    if isinstance(net, SwinTransformer):
        return _swin_fixed_because(net)
    if getattr(net, "pos_embed", None) is not None:
        return "its absolute position embeddings are made for one size"
    if not isinstance(net, Eva) or not isinstance(net.rope, RotaryEmbeddingDinoV3):
        return "its position embeddings are made for one size"
    if any(map(window_side, net.blocks)):
        return "its attention windows (backbone.window) are laid out for one size"
    return ""


def _swin_fixed_because(net: SwinTransformer) -> str:
    """timm shrinks a window to a map that is no larger, and its table of relative positions with it."""
    small = [block for block in _swin_blocks(net) if not _larger(block)]
    if not small:
        return ""
    least = " x ".join(map(str, least_size(net)))
    return f"its windows are as large as the smallest map; trained at {least} or more they are not"


def least_size(net: nn.Module) -> tuple[int, int]:
    """(height, width) from which on every map is larger than its window; (1, 1) of other models."""
    if not isinstance(net, SwinTransformer):
        return 1, 1
    strides = [info["reduction"] for info in net.feature_info]
    windows: Any = net._ref_window_sizes  # (height, width) of each stage
    height, width = (
        max(stride * (window[axis] + 1) for stride, window in zip(strides, windows, strict=True)) for axis in (0, 1)
    )
    return height, width


def _swin_blocks(net: SwinTransformer) -> list[Any]:
    stages: Any = net.layers
    return [block for stage in stages for block in stage.blocks]


def _larger(block: Any) -> bool:
    return all(side > window for side, window in zip(block.input_resolution, block.window_size, strict=True))


@torch.no_grad()
def resize(net: nn.Module, size: tuple[int, int]) -> None:
    """Let timm itself make a model for another (height, width), its windows unchanged: what `any_size` must equal."""
    windows = {"window_size": net._ref_window_sizes} if isinstance(net, SwinTransformer) else {}
    if hasattr(net, "patch_embed"):
        net.set_input_size(img_size=size, **windows)  # type: ignore[operator]


@contextmanager
def any_size(root: nn.Module) -> Iterator[None]:
    """Within it the timm models in `root` of which `fixed_because` is empty take every multiple of 32."""
    with ExitStack() as stack:
        for module in root.modules():
            if fixed_because(module) == "":
                for owner, name, value in _changes(module):
                    stack.enter_context(_instead(owner, name, value))
        yield


def _changes(net: nn.Module) -> list[tuple[Any, str, Any]]:
    """Module, attribute and what stands there meanwhile."""
    if isinstance(net, SwinTransformer):
        strict = (net.patch_embed, "strict_img_size", False)
        return [strict, *((block, "_attn", partial(_window_attention, block)) for block in _swin_blocks(net))]
    if isinstance(net, Eva):
        patches = {"strict_img_size": False, "flatten": False, "output_fmt": Format.NHWC}
        return [
            *((net.patch_embed, name, value) for name, value in patches.items()),
            (net, "dynamic_img_size", True),
            (net.rope, "get_embed", partial(_rope_table, net.rope)),
        ]
    return []


@contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The attribute of the instance is `value`, and afterwards again what it was, or what its class has."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _window_attention(block: Any, x: Tensor) -> Tensor:
    """timm's SwinTransformerBlock._attn for x (B, H, W, C) of any H and W; its mask is made for them."""
    B, H, W, C = x.shape
    (S, T), shift = block.window_size, block.shift_size
    down, across = (H + S - 1) // S, (W + T - 1) // T
    if any(shift):
        x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    x = F.pad(x, (0, 0, 0, across * T - W, 0, down * S - H))
    x = x.reshape(B, down, S, across, T, C).transpose(2, 3).reshape(B * down * across, S * T, C)
    mask = None
    if any(shift):
        mask = _shift_mask(x, (down, across), (S, T), shift)  # (N, S T, S T)
        mask = mask.expand(B, -1, -1, -1).flatten(0, 1)  # one for each window of the batch
    x = block.attn(x, mask=mask)
    x = x.reshape(B, down, across, S, T, C).transpose(2, 3).reshape(B, down * S, across * T, C)[:, :H, :W]
    return torch.roll(x, shifts=shift, dims=(1, 2)) if any(shift) else x


def _shift_mask(x: Tensor, counts: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """What is added to the logits (N, S T, S T): MASKED between tokens that the roll has brought together."""
    regions = []  # (counts, window) each
    for n, side, moved in zip(counts, window, shift, strict=True):
        place = torch.arange(n * side, device=x.device)
        region = (place >= n * side - side).int() + (place >= n * side - moved).int()
        regions.append((region if moved else torch.zeros_like(place)).reshape(n, side))
    rows, columns = regions
    region = 3 * rows[:, None, :, None] + columns[None, :, None, :]  # (down, across, S, T)
    region = region.flatten(2).flatten(0, 1)  # (N, S T)
    apart = region[:, None, :] != region[:, :, None]
    return apart.to(x.dtype) * MASKED


def _rope_table(rope: Any, shape: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """timm's RotaryEmbeddingDinoV3.get_embed for a grid of any (height, width) -> (H W, 2 * head width)."""
    grid = shape[::-1] if rope.grid_indexing == "xy" else shape
    whole = {"max": torch.sym_max(*grid), "min": torch.sym_min(*grid)}
    axes = []
    for side in grid:
        steps = torch.arange(side, device=rope.periods.device).to(torch.float32) + (0.5 + rope.grid_offset)
        axes.append(2.0 * (steps / whole.get(rope.normalize_coords, side)) - 1.0)
    coords = torch.stack(torch.meshgrid(axes, indexing=rope.grid_indexing), dim=-1).flatten(0, 1)  # (H W, 2)
    angles = (2 * math.pi * coords[:, :, None] / rope.periods).flatten(1)
    sin, cos = (_spread(x, half=rope.rotate_half) for x in (angles.sin(), angles.cos()))
    table = torch.cat((sin, cos), dim=-1)
    return table if dtype is None else table.to(dtype)


def _spread(x: Tensor, *, half: bool) -> Tensor:
    """(H W, D / 2) -> (H W, D), as the rotation wants it."""
    return torch.cat((x, x), dim=-1) if half else x.repeat_interleave(2, -1)
