"""Tokens become the map that they came from, and return to their places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.grid import middle_only, on_map
from cvpeft.types import Site


def plus(amount: float):
    return lambda x: x + amount


def test_placed_tokens_and_the_others_go_their_own_ways() -> None:
    site = Site("blocks.0", "block", "BNC", (2, 3), prefix_tokens=2)
    x = torch.randn(2, 2 + 6 + 1, 4)  # two class or register tokens, the map, one prompt
    seen: list[Tensor] = []
    y = on_map(x, site, lambda m: seen.append(m) or m + 1, plus(10))  # type: ignore[func-returns-value]
    assert torch.equal(y[:, 2:8], x[:, 2:8] + 1)
    assert torch.equal(y[:, :2], x[:, :2] + 10)
    assert torch.equal(y[:, 8:], x[:, 8:] + 10)
    assert torch.equal(seen[0][:, :, 1, 2], x[:, 2 + 5])  # row 1, column 2


@pytest.mark.parametrize(("layout", "shape"), [("NHWC", (2, 3, 5, 4)), ("NCHW", (2, 4, 3, 5))])
def test_maps_are_given_channels_first(layout: str, shape: tuple[int, ...]) -> None:
    x, seen = torch.randn(shape), []
    y = on_map(x, Site("b", "block", layout), lambda m: seen.append(m.shape) or m * 2, plus(0))  # type: ignore[arg-type, func-returns-value]
    assert torch.equal(y, 2 * x)
    assert seen == [(2, 4, 3, 5)]


@pytest.mark.parametrize("grid", [None, (4, 4)])
def test_tokens_of_another_map_are_refused(grid: tuple[int, int] | None) -> None:
    with pytest.raises(AdapterError, match=r"blocks\.0 sees 6 tokens"):
        on_map(torch.zeros(1, 6, 4), Site("blocks.0", "block", "BNC", grid), plus(1), plus(1))


@pytest.mark.parametrize("groups", [1, 4])
def test_a_lone_token_sees_the_middle_of_a_kernel(groups: int) -> None:
    conv, x = nn.Conv2d(4, 4, 5, padding=2, groups=groups), torch.randn(2, 4, 3, 1)
    alone = torch.cat([conv(x[:, :, i : i + 1]) for i in range(3)], 2)
    assert torch.allclose(middle_only(conv, x), alone, atol=1e-6)
