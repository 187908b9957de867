"""AdamW whose matrices step along their orthogonalised momentum: a network from nothing learns in far fewer steps.

Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; the step's length is that of Liu et
al. 2025, Muon is scalable for LLM training, so that the learning rates of AdamW fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "is_matrix"]

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of a quintic that five times drives singular values of 0.01..1 to 0.7..1.2
TURNS = 5
LENGTH = 0.2  # root mean square of a step of AdamW, over its rate
SMALLEST = 16  # side of a matrix that has directions worth balancing


def is_matrix(p: Tensor) -> bool:
    """Whether Muon turns its step: a linear map, a convolution among them, of 16 and more inputs and outputs.

    A depthwise kernel maps no channel to another, and what has fewer outputs (predictors, factors of a low rank) is
    left to AdamW.
    """
    return p.ndim > 1 and p.shape[1] > 1 and min(p.shape[0], p[0].numel()) >= SMALLEST


class Muon(torch.optim.AdamW):
    """AdamW for all but matrices (`is_matrix`), for which each group is parted in two.

    Of a matrix M (out, in; kernels flattened) with gradient G, momentum B and rate r:
    B <- 0.95 B + G;  O <- U V^T of G + 0.95 B = U S V^T;  M <- (1 - r * decay) M - 0.2 r sqrt(max(out, in)) O.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__([
            {**group, "params": params, "orthogonal": turned}
            for group in groups
            for turned in (False, True)
            if (params := [p for p in group["params"] if is_matrix(p) is turned])
        ])  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of every parameter that has a gradient; the gradients stay."""
        held = [
            (p, p.grad, group)
            for group in self.param_groups
            for p in group["params"]
            if group["orthogonal"] and p.grad is not None
        ]
        for p, grad, group in held:
            self._turn(p, grad, group)
            p.grad = None  # AdamW passes it by
        loss = super().step(closure)
        for p, grad, _ in held:
            p.grad = grad
        return loss

    def _turn(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:  # AdamW wants a "step" of every state that it loads
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(p)
        state["step"] += 1
        momentum = state["momentum"].mul_(MOMENTUM).add_(grad)
        step = orthogonal(grad.add(momentum, alpha=MOMENTUM).flatten(1))
        rate = group["lr"]
        p.mul_(1 - rate * group["weight_decay"])
        p.sub_(step.view(grad.shape), alpha=LENGTH * rate * max(step.shape) ** 0.5)


def orthogonal(m: Tensor) -> Tensor:
    """Of (out, in) = U S V^T about U V^T: all singular values near 1, by Newton and Schulz in bf16."""
    a, b, c = NEWTON_SCHULZ
    tall = m.shape[0] > m.shape[1]
    x = (m.T if tall else m) / m.norm().clamp(min=1e-7)
    x = x.to(torch.bfloat16, memory_format=torch.contiguous_format)
    for _ in range(TURNS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(m.dtype)
