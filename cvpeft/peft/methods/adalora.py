"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): LoRA as an SVD, whose triplets stay where they matter.

dW = s P diag(l) Q with l = 0 at the start; a penalty holds the columns of P and the rows of Q orthonormal. Every place
begins with more triplets (a column, a value, a row) than it may keep. In training all places' triplets are ranked by
importance, the sum of I U over their numbers w: I is the moving average of |w dL/dw|, U that of how far it strays from
I. The budget falls from all triplets to the target as a cubic, and the values of those beyond it are set to zero; they
may come back until the last part of training, where the choice stands.

The adapter holds a moving average of training, in which what was cut last has faded and is small rather than zero.

Letters: I inputs, O outputs, R rank, k side of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Foreign, plain
from cvpeft.peft.weight_change import WeightChange, check_rank, drawn, is_depthwise, matrix_shape, triplets
from cvpeft.types import Site

__all__ = ["AdaLora"]

FACTORS = ("P", "values", "Q")


class AdaLora(WeightChange):
    """Singular triplets under one budget; R (I k k + O + 1) parameters, and twice as many numbers while training.

    rank: R, at the start. target: triplets left in the end, on average over all places; empty: two thirds of R.
    alpha: the change is scaled by alpha / rank; empty: 2 rank. warmup, settle: parts of all steps at the beginning and
    the end in which no triplet is cut. every: steps between two cuts. Places that differ in these three have budgets of
    their own. smoothing: of both moving averages.
    orthogonality: factor of the penalty, the mean of |P'P - 1| and |QQ' - 1| over all places.
    """

    undecayed = ("P", "Q")

    def __init__(
        self,
        base: nn.Module,
        site: Site,
        *,
        rank: int = 12,
        target: int | None = None,
        alpha: float | None = None,
        warmup: float = 0.1,
        settle: float = 0.3,
        every: int = 10,
        smoothing: float = 0.85,
        orthogonality: float = 0.1,
    ) -> None:
        super().__init__(base, site)
        check_rank(self.method, rank, alpha)
        target = max(1, 2 * rank // 3) if target is None else target
        if not 1 <= target <= rank or every < 1 or orthogonality < 0:
            what = f"target {target} of rank {rank}, every {every}, orthogonality {orthogonality:g}"
            raise AdapterError("ADALORA", what, fix="set target from 1 to rank, every from 1, orthogonality from 0")
        if not (warmup >= 0 and settle > 0 and warmup + settle < 1 and 0 < smoothing < 1):
            what = f"warmup {warmup:g}, settle {settle:g}, smoothing {smoothing:g}"
            fix = "set warmup and settle so that steps are left between them, smoothing above 0 below 1"
            raise AdapterError("ADALORA", what, why="no triplet could be chosen", fix=fix)
        self.scale = 2.0 if alpha is None else alpha / rank
        self.target, self.warmup, self.settle, self.every = target, warmup, settle, every
        self.smoothing, self.orthogonality = smoothing, orthogonality
        rows, columns = matrix_shape(base)
        self.P, self.Q = drawn(base, rows, rank), drawn(base, rank, columns)
        self.values = drawn(base, rank, zero=True)
        for factor in (self.P, self.Q):
            nn.init.normal_(factor, std=0.02)
        for name in FACTORS:
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(self.get_parameter(name)), persistent=False)
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(self.get_parameter(name)), persistent=False)
        self.register_buffer("kept", torch.ones_like(self.values, dtype=torch.bool), persistent=False)

    def change(self) -> Tensor:
        matrix = self.P @ (self.scale * self.values[:, None] * self.Q)  # (O, I k k)
        return matrix.view_as(plain(self.base).get_parameter("weight"))

    def mixed(self, states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """The weighted sum of the changes, of which the largest triplets are kept."""
        changes = (w * (s["P"] * s["values"]) @ s["Q"] for w, s in zip(weights, states, strict=True))
        P, values, Q = triplets(sum(changes, torch.zeros(())), len(self.values))
        return {"P": P, "values": values, "Q": Q}

    def to_hf(self) -> Foreign | None:
        if is_depthwise(plain(self.base)):
            return None
        rank = len(self.values)
        return Foreign("ADALORA", self._as_hf(), {"total_step": 1}, rank, self.scale * rank, "lora_alpha")

    @classmethod
    def hf_numbers(cls, forms: Mapping[str, Foreign]) -> dict[str, Any]:
        """Every place begins with the most triplets that one has, and a mask tells which are kept.

        AdapterError: scales differ, of which HF peft has one.
        """
        ranks = {path: form.rank or 1 for path, form in forms.items()}
        scales = {path: (form.alpha or 0.0) / ranks[path] for path, form in forms.items()}
        start, scale = max(ranks.values()), next(iter(scales.values()))
        if other := [path for path, one in scales.items() if not math.isclose(one, scale, rel_tol=1e-6)]:
            what = f"alpha / rank is {scales[other[0]]:g} at {other[0]} and {scale:g} elsewhere"
            why, fix = "HF peft's AdaLoRA has one", "export to ONNX, or merged weights"
            raise AdapterError("FOREIGN", what, why=why, fix=fix)
        masks = {f"{path}.lora_E": [i < rank for i in range(start)] for path, rank in ranks.items() if rank < start}
        return {"init_r": start, "target_r": start, "lora_alpha": scale * start, "rank_pattern": masks}

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        if stored.kind != "ADALORA":
            return None
        return {"rank": stored.rank, "target": stored.rank, "alpha": stored.alpha}  # no triplet is cut any more

    def settled_hf(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Where no triplet was kept, one of zeros."""
        if any(len(tensors.get(name, self.Q)) for name in ("lora_A", "lora_E")):
            return tensors
        return {name: torch.zeros_like(tensor) for name, tensor in self._as_hf().items()}

    def _as_hf(self) -> dict[str, Tensor]:
        return {"lora_A": self.Q, "lora_B": self.P, "lora_E": self.values[:, None]}

    # What training adds

    @classmethod
    def penalty(cls, adapters: Sequence[Self]) -> Tensor | None:
        grams = [gram for a in adapters for gram in (a.P.T @ a.P, a.Q @ a.Q.T)]  # (R, R)
        strays = [torch.linalg.matrix_norm(g - torch.eye(len(g), device=g.device)) for g in grams]
        factors = [a.orthogonality for a in adapters for _ in range(2)]
        return torch.stack([factor * stray for factor, stray in zip(factors, strays, strict=True)]).mean()

    @classmethod
    @torch.no_grad()
    def after_step(cls, adapters: Sequence[Self], step: int, total: int) -> None:
        groups: dict[tuple[float, float, int], list[Self]] = {}
        for adapter in adapters:
            groups.setdefault((adapter.warmup, adapter.settle, adapter.every), []).append(adapter)
        for same in groups.values():
            cls._step_together(same, step, total)

    @classmethod
    def _step_together(cls, adapters: Sequence[Self], step: int, total: int) -> None:
        """Under one schedule, and so one budget."""
        first = adapters[0]
        begin, last = round(first.warmup * total), total - max(1, round(first.settle * total))
        if step < last:
            for adapter in adapters:
                adapter._observe()
        if step == last or (begin < step < last and step % first.every == 0):
            left = max(0.0, 1 - (step - begin) / max(1, last - begin)) ** 3
            _cut(adapters, left)
        elif step > last:
            for adapter in adapters:
                adapter.values.masked_fill_(~adapter.kept, 0.0)

    def _observe(self) -> None:
        """Take this step's gradients into the moving averages."""
        for name in FACTORS:
            factor = self.get_parameter(name)
            if factor.grad is None:
                continue
            mean, stray = self.get_buffer(f"sensitivity_{name}"), self.get_buffer(f"uncertainty_{name}")
            now = (factor * factor.grad).abs()
            mean.lerp_(now, 1 - self.smoothing)
            stray.lerp_((now - mean).abs(), 1 - self.smoothing)

    def importance(self) -> Tensor:
        """(R,) of each triplet."""
        P, values, Q = (self.get_buffer(f"sensitivity_{n}") * self.get_buffer(f"uncertainty_{n}") for n in FACTORS)
        return values + P.mean(0) + Q.mean(1)


def _cut(adapters: Sequence[AdaLora], left: float) -> None:
    """Set the least important values of all places to zero; left: of the way from target to rank, the part kept."""
    most, least = sum(len(a.values) for a in adapters), sum(a.target for a in adapters)
    scores = [adapter.importance() for adapter in adapters]
    beyond = most - int((most - least) * left + least)
    if not beyond:
        return
    threshold = torch.cat(scores).kthvalue(beyond).values
    for adapter, score in zip(adapters, scores, strict=True):
        adapter.kept.copy_(score > threshold)
        adapter.values.masked_fill_(~adapter.kept, 0.0)
