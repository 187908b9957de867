"""Tokens as the map that they came from, and back, for methods that look at neighbours.

Letters: B batch, C channels, H and W of the map, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.types import Site

__all__ = ["middle_only", "on_map"]


def on_map(x: Tensor, site: Site, change: Callable[[Tensor], Tensor], rest: Callable[[Tensor], Tensor]) -> Tensor:
    """What `change` makes of x as (B, C, H, W), in the layout of x; its channels may differ, H and W stay.

    Tokens without a place in the map (class, registers, prompts) are given to `rest` as (B, C, P, 1).
    AdapterError where the tokens are not those of the site's grid.
    """
    if site.layout == "NCHW":
        return change(x)
    if site.layout == "NHWC":
        return change(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    h, w = site.grid or (0, 0)
    first, end = site.prefix_tokens, site.prefix_tokens + h * w
    if not h or x.shape[1] < end:
        what = f"{site.path} sees {x.shape[1]} tokens, its map has {h} x {w}"
        raise AdapterError("GRID", what, why="neighbours are not known", fix="leave this place out")
    placed = x[:, first:end].transpose(1, 2).unflatten(2, (h, w))  # (B, C, H, W)
    placed = change(placed).flatten(2).transpose(1, 2)  # (B, N, C)
    if x.shape[1] == h * w:
        return placed
    loose = torch.cat([x[:, :first], x[:, end:]], 1).transpose(1, 2).unsqueeze(3)  # (B, C, P, 1)
    loose = rest(loose).squeeze(3).transpose(1, 2)  # (B, P, C)
    return torch.cat([loose[:, :first], placed, loose[:, first:]], 1)


def middle_only(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(B, C, P, 1): what a padded convolution of odd side gives for tokens without neighbours."""
    row, column = conv.kernel_size[0] // 2, conv.kernel_size[1] // 2
    return F.conv2d(x, conv.weight[:, :, row, column, None, None], conv.bias, groups=conv.groups)
