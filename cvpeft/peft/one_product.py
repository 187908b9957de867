"""LoRA at a frozen Linear in one product: y = x (W + s B A)' + b.

Beside base(x) + s B A x it saves two thin products and an addition the size of the output forward, and one of each
backward. It builds W + s B A once in each pass, which pays where there are many rows of x. Training and evaluation
compute the same, so a detector is scored as it was trained, and rounds as its merged weights do.

Letters: N rows of x, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["one_product", "pays"]


def pays(base: nn.Module, x: Tensor) -> bool:
    """Whether `base` is a plain frozen Linear, everything float32, with rows enough.

    Not where a graph is traced: an exported file knows no function of ours.
    """
    if type(base) is not nn.Linear or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled(x.device.type) or {x.dtype, base.weight.dtype} != {torch.float32}:
        return False
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return False
    rows, columns = base.weight.shape
    return x.numel() // columns * (rows + columns) > 2 * rows * columns  # what is added against what is built


def one_product(x: Tensor, base: nn.Linear, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """(..., O) of x (..., I), with A (R, I) and B (O, R) on top of the base's weight."""
    y: Tensor = _OneProduct.apply(x, base.weight, base.bias, A, B, scale)
    return y


class _OneProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, W, A, B)
        ctx.scale = scale
        return F.linear(x, torch.addmm(W, B, A, alpha=scale), b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        needs, scale = ctx.needs_input_grad, ctx.scale
        rows, dy = x.flatten(0, -2), grads[0].flatten(0, -2)  # (N, I), (N, O)
        dx = (dy @ torch.addmm(W, B, A, alpha=scale)).view_as(x) if needs[0] else None
        dA = scale * ((dy @ B).T @ rows) if needs[3] else None
        dB = scale * (dy.T @ (rows @ A.T)) if needs[4] else None
        return dx, None, None, dA, dB, None
