"""The methods there are, as a table: made from the folder and by trying each on small models, never by hand."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from cvpeft.backbone.sites import sites
from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter
from cvpeft.peft.inject import MethodSpec, inject, methods

__all__ = ["FAMILIES", "methods_page", "methods_table"]

# Small members of the families, LayerScale at 1: at the 1e-5 of a fresh model no adapter has a visible effect.
_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64}
_CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16), "ls_init_value": 1.0}
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ViT, DeiT": ("deit_tiny_patch16_224", _VIT),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", {**_VIT, "img_size": 56, "init_values": 1.0}),
    "DINOv3": ("vit_small_patch16_dinov3", {**_VIT, "init_values": 1.0}),
    "ConvNeXt": ("convnext_tiny", _CONVNEXT),
    "ConvNeXt (conv mlp), V2": ("convnext_atto", _CONVNEXT),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2), "img_size": 56},
    ),
}
HEAD = """# The methods

Made by `cvpeft summary --methods > docs/methods.md`: by trying each method on a small model of every family."""
MOST_ROLES = 6  # more are counted
SMALL = {"rank": 4}  # ranks that the small models' channels allow


def methods_page() -> str:
    """The table, and after it what each file says of its method: formula, settings, parameters."""
    parts = [HEAD, methods_table(), *(_section(name) for name in sorted(methods()))]
    return "\n\n".join(parts) + "\n"


def _section(name: str) -> str:
    method = methods()[name]
    texts = (sys.modules[method.__module__].__doc__, method.__doc__)
    said = "\n\n".join(inspect.cleandoc(text) for text in texts if text)
    settings = ", ".join(f"{key}: {_shown(value)}" for key, value in _keywords(method).items())
    return f"## {name}\n\n`- {name}: {{{settings}}}`\n\n```text\n{said}\n```"


def _shown(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def methods_table() -> str:
    """Markdown: what each method is, where it stands by default, whether it folds, and which families take it."""
    head = ("method", "stands at, by default", "folds into the base", "starts as identity", *FAMILIES, "papers")
    rows = [head, tuple("---" for _ in head), *(_row(name) for name in sorted(methods()))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(name: str) -> tuple[str, ...]:
    taken = {family: _attached(name, family) for family in FAMILIES}
    adapters = next(found for found in taken.values() if found)
    identity = all(adapter.identity_at_init for adapter in adapters)
    roles = dict.fromkeys(site for found in taken.values() for site in _roles(found))
    fits = ["yes" if taken[family] else "no" for family in FAMILIES]
    return (f"`{name}`", _listed(list(roles)), _folds(adapters), "yes" if identity else "no", *fits, _papers(name))


def _attached(name: str, family: str) -> list[Adapter]:
    """One small model with the method; empty where the method refuses it."""
    model, arguments = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = timm.create_model(model, num_classes=0, **arguments)
        try:
            inject(net, sites(net), [MethodSpec(name, settings=_settings(name))])
        except AdapterError:
            return []
    return [module for module in net.modules() if isinstance(module, Adapter)]


def _settings(name: str) -> dict[str, Any]:
    return {key: value for key, value in SMALL.items() if key in _keywords(methods()[name])}


def _keywords(method: Any) -> dict[str, Any]:
    """Settings and their defaults."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _listed(roles: list[str]) -> str:
    return ", ".join(roles) if len(roles) <= MOST_ROLES else f"{', '.join(roles[:3])} and {len(roles) - 3} more roles"


def _roles(adapters: list[Adapter]) -> list[str]:
    return [adapter.site.role for adapter in adapters]


def _folds(adapters: list[Adapter]) -> str:
    can = {adapter.method: type(adapter).merged is not Adapter.merged for adapter in adapters}
    if all(can.values()):
        return "yes"
    return f"{', '.join(name for name, folds in can.items() if folds)} only" if any(can.values()) else "no"


def _papers(name: str) -> str:
    method = methods()[name]
    text = sys.modules[method.__module__].__doc__ or ""
    numbers = dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", text))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in numbers)
