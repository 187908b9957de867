"""A plain detector -> the same detector, adapted: methods in the backbone, neck and head trained as copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cvpeft.backbone.sites import sites
from cvpeft.config import schema
from cvpeft.errors import AdapterError
from cvpeft.peft.inject import MethodSpec, freeze, inject, make_dense, probe
from cvpeft.types import Site

__all__ = ["adapt", "part_of"]

BODY, NECK = "backbone.body.", "backbone.neck."


def adapt(model: nn.Module, peft: schema.Peft, *, seed: int = 0) -> list[Site]:
    """Attach the methods of `peft` in place and freeze the rest; returns the sites that were taken.

    model: from build_detector. Mode full leaves it as it is: every tensor is trained in place.
    seed: of the methods' initial tensors, which depend on nothing else.
    AdapterError where a method finds no site, or a site is never called in a forward pass.
    """
    if peft.mode == "full":
        return []
    if peft.mode == "adapters" and not peft.methods:
        raise AdapterError(
            "METHOD",
            "peft.mode is adapters and peft.methods is empty",
            why="the backbone would stay as it is",
            fix="set peft.methods to [lora], or peft.mode to frozen or full",
        )
    trunk: Any = model.backbone
    body: Any = trunk.body
    taken: list[Site] = []
    if peft.methods:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            specs = [MethodSpec(m.name, m.targets, m.settings) for m in peft.methods]
            taken = inject(body.net, sites(body.net), specs)
    freeze(body)
    make_dense(trunk.neck)
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
