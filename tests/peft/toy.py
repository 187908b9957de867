"""A small model and methods of its own: the machinery needs neither timm nor the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.peft.adapter import Adapter, output_width
from cvpeft.types import Site


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.norm(self.fc1(x)).relu())


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(Block(), Block()).eval()


def sites() -> list[Site]:
    return [Site(f"{i}.{name}", name, "BNC") for i in (0, 1) for name in ("fc1", "norm", "fc2")]


class Gain(Adapter):
    """y = g * base(x), with a g for each output."""

    targets = ("fc1", "fc2")
    accepts = (nn.Linear,)
    method = "gain"

    def __init__(self, base: nn.Module, site: Site, *, start: float = 1.0) -> None:
        super().__init__(base, site)
        self.gain = nn.Parameter(torch.full((output_width(base),), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.base(x)


class Shared(Adapter):
    """y = base(x) + b with one scalar b for all places."""

    targets = ("fc1", "fc2")
    method = "shared"

    def __init__(self, base: nn.Module, site: Site, bank: nn.ParameterDict, *, start: float = 0.0) -> None:
        super().__init__(base, site)
        self.bank = bank

    @classmethod
    def build(cls, places: Sequence[tuple[nn.Module, Site]], **settings: Any) -> list[Adapter]:
        bank = nn.ParameterDict({"b": nn.Parameter(torch.tensor(settings.get("start", 0.0)))})
        return [cls(base, site, bank) for base, site in places]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.bank["b"]


REGISTRY = {"gain": Gain, "shared": Shared}
