"""A plain detector -> the same detector, adapted: methods in the backbone, neck and head trained as copies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from cvpeft.backbone.sites import sites
from cvpeft.config import schema
from cvpeft.peft.inject import MethodSpec, freeze, inject, make_dense, probe
from cvpeft.types import Site

__all__ = ["adapt", "part_of"]

BODY, NECK = "backbone.body.", "backbone.neck."


def adapt(model: nn.Module, peft: schema.Peft) -> list[Site]:
    """Attach the methods of `peft` in place and freeze the rest; returns the sites that were taken.

    model: from build_detector. Mode full leaves it as it is: every tensor is trained in place.
    AdapterError where a method finds no site, or a site is never called in a forward pass.
    """
    if peft.mode == "full":
        return []
    body = model.backbone.body
    taken = inject(body.net, sites(body.net), [MethodSpec(m.name, m.targets, m.settings) for m in peft.methods])
    freeze(body)
    make_dense(model.backbone.neck)
    for name, child in model.named_children():
        if name != "backbone":
            make_dense(child)
    if taken:
        probe(body.net, lambda: body(torch.zeros(1, 3, *body.size)))
    return taken


def part_of(mode: str) -> Callable[[str], str]:
    """Canonical key -> "adapter" ("backbone" in mode full), "neck" or "head"."""
    inside = "backbone" if mode == "full" else "adapter"

    def part(key: str) -> str:
        return inside if key.startswith(BODY) else "neck" if key.startswith(NECK) else "head"

    return part
