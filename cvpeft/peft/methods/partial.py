"""Partial tuning (Yosinski et al. 2014, arXiv 1411.1792; Partial-k of Jia et al. 2022, arXiv 2203.12119).

The last k blocks are trained whole, as copies, with the norms after them; what lies before them needs no backward
pass, which saves most of the memory of training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Dense, in_own_type
from cvpeft.types import Site

__all__ = ["Partial"]

BLOCK = re.compile(r"((?:.*\.)?blocks\.\d+)(\.|$)")  # whole steps: an FPN has inner_blocks and layer_blocks


class Partial(Dense):
    """Trains copies of the leaf modules of the last blocks.

    blocks: how many of the backbone, and everything in it after the first of them. Parameters that no leaf holds stay
    frozen: ConvNeXt's `gamma`, DINOv3's `gamma_1` and `gamma_2`, Swin's tables of relative positions.
    """

    choosers = ("blocks",)

    def __init__(self, base: nn.Module, site: Site, *, blocks: int = 1) -> None:
        if next(base.children(), None) is not None:
            what, why = f"partial cannot take {site.path}, which holds other modules", "each leaf is copied by itself"
            raise AdapterError("PARTIAL", what, why=why, fix="leave targets empty and set blocks")
        super().__init__(base, site)

    @classmethod
    def choose(cls, places: Sequence[tuple[nn.Module, Site]], settings: Mapping[str, Any]) -> list[Site]:
        count = settings.get("blocks", 1)
        places = [(module, site) for module, site in places if site.role not in {"neck", "head"}]
        blocks = list(dict.fromkeys(found[1] for _, site in places if (found := BLOCK.match(site.path))))
        if not 1 <= count <= len(blocks):
            fix = f"set blocks from 1 to {len(blocks)}"
            raise AdapterError("PARTIAL", f"the last {count} of {len(blocks)} blocks", fix=fix)
        start = next(i for i, (_, site) in enumerate(places) if site.path.startswith(f"{blocks[-count]}."))
        return [site for module, site in places[start:] if next(module.children(), None) is None]

    def forward(self, x: Tensor) -> Tensor:
        return in_own_type(self.trained, x)
