"""LoRA at a frozen Linear in one product, y = x (W + s B A)' + b, and at a convolution in one, in evaluation.

Beside base(x) + s B A x it saves two thin products and an addition the size of the output forward, and one of each
backward. It builds W + s B A once in each pass, which pays where there are many rows of x. Training and evaluation
compute the same, so a detector is scored as it was trained, and rounds as its merged weights do. A convolution's change
is convolved on its own in training: through a built kernel the pass back would compute the gradient of all of it.

Letters: N rows of x, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["one_convolution", "one_product", "pays", "pays_at_convolution"]


def pays(base: nn.Module, x: Tensor) -> bool:
    """Whether `base` is a plain frozen Linear, everything float32, with rows enough.

    Not where a graph is traced: an exported file knows no function of ours.
    """
    if type(base) is not nn.Linear or not _is_plain_float32(base, x):
        return False
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return False
    rows, columns = base.weight.shape
    return x.numel() // columns * (rows + columns) > 2 * rows * columns  # what is added against what is built


def pays_at_convolution(base: nn.Module, x: Tensor) -> bool:
    """Whether `base` is a plain Conv2d that no gradient goes through, everything float32."""
    return type(base) is nn.Conv2d and not torch.is_grad_enabled() and _is_plain_float32(base, x)


def _is_plain_float32(base: nn.Linear | nn.Conv2d, x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    return x.dtype == base.weight.dtype == torch.float32


def one_convolution(x: Tensor, base: nn.Conv2d, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """(B, O, H', W') of x (B, I, H, W), with A (R, I, k, k) and B (O, R) on top of the base's kernel."""
    kernel = torch.addmm(base.weight.flatten(1), B, A.flatten(1), alpha=scale)
    return base._conv_forward(x, kernel.view(base.weight.shape), base.bias)


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
