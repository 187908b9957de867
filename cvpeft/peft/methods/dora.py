"""DoRA (Liu et al. 2024, arXiv 2402.09353): a weight's rows have a trained length, and a direction that LoRA changes.

W' = m V / |V| by rows, with V = W + s B A, m = |W| and B = 0 at the start; the gradient does not flow through |V|, as
in the paper's section 4.3. In a convolution a row is all that one output channel reads.

Letters: I inputs, O outputs, R rank, k side of a kernel.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, Foreign
from cvpeft.peft.weight_change import apply_weight, check_plain, check_rank, drawn, is_depthwise, matrix_shape
from cvpeft.types import Site

__all__ = ["Dora"]


class Dora(Adapter):
    """LoRA with a trained length of each row; R (I k k + O) + O parameters. It multiplies W, so it must come first.

    rank: R. alpha: the change of direction is scaled by alpha / rank; empty: 2 rank.
    """

    targets = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "neck", "head")
    accepts = (nn.Linear, nn.Conv2d)

    def __init__(self, base: nn.Module, site: Site, *, rank: int = 8, alpha: float | None = None) -> None:
        super().__init__(base, site)
        check_plain(self.method, base, site)
        if isinstance(base, Adapter):
            what = f"dora at {site.path} stands upon {base.method}"
            raise AdapterError("DORA", what, why="it multiplies the weight itself", fix="list dora first")
        check_rank(self.method, rank, alpha)
        self.scale = 2.0 if alpha is None else alpha / rank
        rows, columns = matrix_shape(base)
        self.A, self.B = drawn(base, rank, columns), drawn(base, rows, rank, zero=True)
        self.magnitude = nn.Parameter(_length(self._direction()).squeeze(1))  # (O,)

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        y = apply_weight(base, x, self._weight().to(x.dtype))
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        if bias is None:
            return y
        return y + (bias[:, None, None] if isinstance(base, nn.Conv2d) else bias).to(y.dtype)

    def to_hf(self) -> Foreign | None:
        if is_depthwise(self.base):
            return None
        A, B, row = self.A, self.B, self.magnitude
        if isinstance(self.base, nn.Conv2d):
            A, B = A.view(len(A), *self.base.weight.shape[1:]), B[:, :, None, None]  # type: ignore[assignment]
            row = row[None, :, None, None]  # type: ignore[assignment]
        tensors = {"lora_A.weight": A, "lora_B.weight": B, "lora_magnitude_vector": row}
        rank = len(self.A)
        return Foreign("LORA", tensors, {"use_dora": True}, rank, self.scale * rank, "lora_alpha")

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        if stored.kind != "LORA" or not stored.settings.get("use_dora"):
            return None
        return {"rank": stored.rank, "alpha": stored.alpha}

    def merged(self) -> nn.Module:
        module = copy.deepcopy(self.base)
        weight = module.get_parameter("weight")
        weight.data = self._weight().detach().to(weight.dtype)
        return module

    def _direction(self) -> Tensor:
        frozen = self.base.get_parameter("weight").detach().float().flatten(1)  # (O, I k k)
        return frozen + self.scale * self.B @ self.A

    def _weight(self) -> Tensor:
        direction = self._direction()
        row = self.magnitude[:, None] / _length(direction)  # (O, 1)
        return (direction * row).view(self.base.get_parameter("weight").shape)


def _length(matrix: Tensor) -> Tensor:
    """(O, 1) length of each row, without a gradient; a row of zeros has one too."""
    return torch.linalg.vector_norm(matrix.detach(), dim=1, keepdim=True).clamp_min(1e-12)
