"""LoRA at a fused qkv whose weight the attention reads itself, without calling it: timm's BEiT, EVA-02, SwinV2.

LoRA is of Hu et al. 2021, arXiv 2106.09685. Here the change is made in weight space: the whole attention is called with
W + s B A in the place of W, so that it does not matter how it uses W. B = 0 at the start. Where qkv is called, `lora`
does the same at less cost.

Letters: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter
from cvpeft.peft.weight_change import check_rank, drawn, folded, summed_products
from cvpeft.types import Site

__all__ = ["LoraQkv"]


class LoraQkv(Adapter):
    """A low-rank change of an attention's qkv; R (I + O) parameters. It stands at `attn` and must come first there.

    rank: R. alpha: the change is scaled by alpha / rank; empty: 2 rank.
    """

    targets = ("attn",)

    def __init__(self, base: nn.Module, site: Site, *, rank: int = 8, alpha: float | None = None) -> None:
        super().__init__(base, site)
        if isinstance(base, Adapter):
            what, why = f"lora_qkv cannot stand upon {base.method} at {site.path}", "it calls the attention itself"
            fix = "use lora at attn.qkv in its place, or, beside methods other than prefix, list it first"
            raise AdapterError("LORA_QKV", what, why=why, fix=fix)
        if not _has_qkv(base):
            what, why = (
                f"lora_qkv cannot take {site.path}, a {type(base).__name__}",
                "it holds no plain Linear named qkv",
            )
            raise AdapterError("LORA_QKV", what, why=why, fix="use lora")
        check_rank(self.method, rank, alpha)
        qkv = base.get_submodule("qkv")
        rows, columns = qkv.get_parameter("weight").shape
        self.scale = 2.0 if alpha is None else alpha / rank
        self.A, self.B = drawn(qkv, rank, columns), drawn(qkv, rows, rank, zero=True)

    @classmethod
    def choose(cls, places: Sequence[tuple[nn.Module, Site]], settings: Mapping[str, Any]) -> list[Site]:
        return [site for module, site in places if site.role in cls.targets and _has_qkv(module)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        qkv = self.base.get_submodule("qkv")
        if isinstance(qkv, Adapter):
            what = f"lora_qkv at {self.site.path} takes the weight of a module where {qkv.method} stands"
            raise AdapterError("LORA_QKV", what, why="one of the two would train nothing", fix="give one other targets")
        weight = qkv.get_parameter("weight")
        changed = weight + self._change().to(weight.dtype)
        return functional_call(self.base, {"qkv.weight": changed}, args, kwargs)

    def merged(self) -> nn.Module:
        module = copy.deepcopy(self.base)
        module.qkv = folded(module.get_submodule("qkv"), self._change())
        return module

    def mixed(self, states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """The weighted sum of the changes B A, cut to the rank by its SVD."""
        A, B = summed_products([(state["A"], state["B"]) for state in states], weights)
        return {"A": A, "B": B}

    def _change(self) -> Tensor:
        return self.scale * self.B @ self.A  # (O, I)


def _has_qkv(module: nn.Module) -> bool:
    return isinstance(dict(module.named_children()).get("qkv"), nn.Linear) and not isinstance(module, Adapter)
