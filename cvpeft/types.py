"""The few shapes that every room shares, and the letters used for them.

B batch, C channels, H height, W width, N tokens or boxes, D token width, K classes without background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Layout", "Prediction", "Site", "Target"]

Layout = Literal["BNC", "NHWC", "NCHW"]


class Target(TypedDict):
    """What is to be found in one network input."""

    boxes: Tensor  # (N, 4) float32, x1 y1 x2 y2 in pixels of the network input
    labels: Tensor  # (N,) int64, 1..K in the order of the class names; 0 is background
    image_id: int


class Prediction(TypedDict):
    """What was found in one network input."""

    boxes: Tensor  # (N, 4) float32, x1 y1 x2 y2 in pixels of the network input
    scores: Tensor  # (N,) float32 in 0..1, falling
    labels: Tensor  # (N,) int64, 1..K


@dataclass(frozen=True)
class Site:
    """One place in a model where an Adapter may stand.

    path: dotted module path in the model that is injected into, e.g. "blocks.3.attn.qkv".
    role: what the module is there, whatever the family calls it, e.g. "attn.qkv", "mlp", "block", "conv_dw".
    layout: order of the axes of the module's input: tokens (BNC), channels last (NHWC) or channels first (NCHW).
    grid: (height, width) of the token grid there; None where the family has none fixed.
    heads: attention heads at this place; 0 outside of attention.
    prefix_tokens: class and register tokens that stand before the patch tokens; 0 where there are none.
    """

    path: str
    role: str
    layout: Layout
    grid: tuple[int, int] | None = None
    heads: int = 0
    prefix_tokens: int = 0
