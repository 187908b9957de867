"""ViTDet's windowed attention for plain ViTs: most blocks attend inside windows, a few over the whole map.

Set on by hooks, so that module paths, and with them adapters, are the same with and without windows.
Letters: B batch, P prefix tokens, H and W token grid, S side of a window, D token width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import BackboneError

__all__ = ["last_of_each_quarter", "window_blocks", "window_side"]


def last_of_each_quarter(depth: int) -> tuple[int, ...]:
    """ViTDet's default: the last block of each quarter stays global."""
    return tuple(sorted({max(depth * part // 4 - 1, 0) for part in (1, 2, 3, 4)}))


def window_blocks(net: nn.Module, grid: tuple[int, int], side: int, global_blocks: Iterable[int]) -> None:
    """Let every block of `net` but the global ones attend inside `side` x `side` windows (Li et al. 2022).

    Class and register tokens go into every window and are averaged after it. RoPE is relative, so that every window may
    take the rows of the first one.
    """
    stay = set(global_blocks)
    blocks = list(net.blocks)  # type: ignore[arg-type]
    if wrong := sorted(i for i in stay if not 0 <= i < len(blocks)):
        raise BackboneError(
            "WINDOW", f"backbone.global_blocks names {wrong}, the backbone has blocks 0..{len(blocks) - 1}"
        )
    windows = _Windows(grid, side, int(net.num_prefix_tokens))  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        if i not in stay:
            block.register_forward_pre_hook(windows.split, with_kwargs=True)
            block.register_forward_hook(windows.join)


def window_side(block: nn.Module) -> int:
    """Side in tokens of the windows that `window_blocks` has given a block; 0: it attends to the whole map."""
    owners = (getattr(hook, "__self__", None) for hook in block._forward_pre_hooks.values())
    return next((owner.side for owner in owners if isinstance(owner, _Windows)), 0)


@dataclass(frozen=True)
class _Windows:
    """The two hooks; plain numbers only, so that a copied model keeps working hooks."""

    grid: tuple[int, int]
    side: int
    prefix: int

    @property
    def counts(self) -> tuple[int, int]:
        """Windows down and across; the last ones are padded with zeros, as in ViTDet."""
        return -(-self.grid[0] // self.side), -(-self.grid[1] // self.side)

    def split(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (x, *rest), (h, w), (down, across), s = args, self.grid, self.counts, self.side
        if x.shape[1] != self.prefix + h * w:
            raise BackboneError(
                "WINDOW",
                f"a block was given {x.shape[1]} tokens, {self.prefix + h * w} were expected",
                why="visual prompts cannot be combined with windows",
                fix="set backbone.window=0",
            )
        prefix, tokens = x[:, : self.prefix], x[:, self.prefix :]
        tokens = F.pad(
            tokens.unflatten(1, (h, w)), (0, 0, 0, across * s - w, 0, down * s - h)
        )  # (B, down*S, across*S, D)
        tokens = tokens.unflatten(2, (across, s)).unflatten(1, (down, s)).transpose(2, 3)  # (B, down, across, S, S, D)
        tokens = tokens.flatten(3, 4).flatten(0, 2)  # (B*windows, S*S, D)
        prefix = prefix.repeat_interleave(down * across, 0)  # (B*windows, P, D)
        if kwargs.get("rope") is not None:
            kwargs = {**kwargs, "rope": self._first_window(kwargs["rope"])}
        return (torch.cat([prefix, tokens], 1), *rest), kwargs

    def join(self, _: nn.Module, args: tuple[Any, ...], x: Tensor) -> Tensor:
        (h, w), (down, across), s = self.grid, self.counts, self.side
        x = x.unflatten(0, (-1, down * across))  # (B, windows, P + S*S, D)
        prefix = x[:, :, : self.prefix].mean(1)
        tokens = x[:, :, self.prefix :].unflatten(2, (s, s)).unflatten(1, (down, across)).transpose(2, 3)
        tokens = tokens.flatten(3, 4).flatten(1, 2)[:, :h, :w]  # (B, H, W, D)
        return torch.cat([prefix, tokens.flatten(1, 2)], 1)  # (B, P + H*W, D)

    def _first_window(self, rope: Tensor) -> Tensor:
        if rope.ndim != 2 or self.side > min(self.grid):
            raise BackboneError(
                "WINDOW",
                "windows need one rotary embedding for all heads and a side within the token grid",
                fix="set backbone.window=0",
            )
        return rope.unflatten(0, self.grid)[: self.side, : self.side].flatten(0, 1)  # (S*S, D)
