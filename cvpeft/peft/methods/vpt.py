"""Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119): learned tokens that every other token may attend to.

Deep: each block has prompts of its own, added before it and dropped after it. Shallow: prompts enter at the first
block, pass through all blocks, and are dropped after the last one.
Prompts stand last, after the patch tokens, so that class and register tokens keep their places. They have no place in
the image: under RoPE they are rotated by nothing.

Letters: B batch, N tokens, P prompts, D token width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, output_width
from cvpeft.types import Site

__all__ = ["Vpt"]

PATCH = 3 * 16 * 16  # inputs of the patch embedding in the paper's range of initial values, whatever the model's patch


class Vpt(Adapter):
    """Prompts around a block of a plain ViT; P D parameters each. Not an identity at the start: tokens attend to them.

    first, last: whether prompts enter before and leave after this block.
    tokens: prompts, P. depth: see the module. dropout: of the prompts, in training.
    """

    targets = ("block",)
    identity_at_init = False
    undecayed = ("prompts",)  # they are inputs, not weights

    def __init__(
        self,
        base: nn.Module,
        site: Site,
        first: bool = True,
        last: bool = True,
        *,
        tokens: int = 10,
        depth: Literal["deep", "shallow"] = "deep",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(base, site)
        _check(base, site, tokens, dropout)
        self.tokens, self.first, self.last = tokens, first or depth == "deep", last or depth == "deep"
        self.dropout = nn.Dropout(dropout)
        if self.first:
            width = output_width(base)
            bound = math.sqrt(6 / (PATCH + width))
            device = next(base.parameters()).device
            self.prompts = nn.Parameter(torch.empty(1, tokens, width, device=device).uniform_(-bound, bound))

    @classmethod
    def build(cls, places: Sequence[tuple[nn.Module, Site]], **settings: Any) -> list[Adapter]:
        end = len(places) - 1
        built: list[Adapter] = [cls(base, site, i == 0, i == end, **settings) for i, (base, site) in enumerate(places)]
        if settings.get("depth") == "shallow":
            _check_run([site for _, site in places])
        return built

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (B, N, D), or (B, N + P, D) after the first
        if self.first:
            prompts = self.dropout(self.prompts).to(x.dtype).expand(x.shape[0], -1, -1)
            x = torch.cat([x, prompts], 1)  # (B, N + P, D)
        if kwargs.get("rope") is not None:
            kwargs["rope"] = _extended(kwargs["rope"], self.tokens)
        y: Tensor = self.base(x, *args, **kwargs)
        return y[:, : -self.tokens] if self.last else y


def _check_run(sites: Sequence[Site]) -> None:
    """Shallow prompts pass through every block between the first and the last: one left out would meet them unaware."""
    numbers = [int(site.path.rpartition(".")[2]) for site in sites]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        found = f"shallow prompts at blocks {', '.join(map(str, numbers))}"
        raise AdapterError("VPT", found, why="they would pass through the blocks between", fix="name blocks in a row")


def _extended(rope: Tensor, rows: int) -> Tensor:  # (..., N, 2 d): sines, then cosines
    """Rows that rotate by nothing, sine 0 and cosine 1, for the prompts."""
    half = rope.shape[-1] // 2
    still = torch.cat([rope.new_zeros(half), rope.new_ones(half)])
    return torch.cat([rope, still.expand(*rope.shape[:-2], rows, -1)], -2)  # (..., N + P, 2 d)


def _check(base: nn.Module, site: Site, tokens: int, dropout: float) -> None:
    if tokens < 1 or not 0 <= dropout < 1:
        raise AdapterError("VPT", f"{tokens} tokens with dropout {dropout}", fix="tokens from 1, dropout below 1")
    if site.role != "block" or site.layout != "BNC":
        found = f"vpt cannot take {site.path}, whose role is {site.role} in a {site.layout} layout"
        raise AdapterError("VPT", found, why="prompts are tokens", fix="use it on the blocks of a plain ViT")
    if any("relative_position" in name or "rel_pos" in name for name, _ in base.named_parameters()):
        found = f"vpt cannot take {site.path}, whose attention has a table of relative positions"
        raise AdapterError("VPT", found, why="prompts have no position in it", fix="use a ViT, DINOv2 or DINOv3")
