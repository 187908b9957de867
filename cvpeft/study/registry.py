"""The methods there are, as a table: made from the folder and by trying each on small models, never by hand."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch

from cvpeft.backbone.sites import sites
from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter
from cvpeft.peft.inject import MethodSpec, inject, methods, probe

__all__ = ["FAMILIES", "methods_page", "methods_table"]

# Small members of the families, LayerScale at 1: at the 1e-5 of a fresh model no adapter has a visible effect.
_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64}
_SWIN = {"depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2)}
_CONVNEXT_V2 = {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16)}
_CONVNEXT = {**_CONVNEXT_V2, "ls_init_value": 1.0}
FAMILIES: Mapping[str, Sequence[tuple[str, dict[str, Any]]]] = {
    "ViT, DeiT": [("deit_tiny_patch16_224", _VIT)],
    "DINOv2": [("vit_small_patch14_reg4_dinov2", {**_VIT, "img_size": 56, "init_values": 1.0})],
    "DINOv3": [("vit_small_patch16_dinov3", {**_VIT, "init_values": 1.0})],
    "BEiT, EVA-02, SwinV2": [
        ("beit_base_patch16_224", {**_VIT, "init_values": 1.0}),
        ("eva02_tiny_patch14_224", {**_VIT, "img_size": 56}),
        ("swinv2_tiny_window8_256", {**_SWIN, "img_size": 64}),
    ],
    "ConvNeXt": [("convnext_tiny", _CONVNEXT)],
    "ConvNeXt (conv mlp), V2": [("convnext_atto", _CONVNEXT), ("convnextv2_atto", _CONVNEXT_V2)],
    "Swin": [("swin_tiny_patch4_window7_224", {**_SWIN, "img_size": 56})],
}
SMALL = {"rank": 4}  # ranks that the small models' channels allow
HEAD = """# The methods

Made by `cvpeft summary --methods > docs/methods.md`: by trying each method, where it stands by default, on small models
of every family. BEiT, EVA-02 and SwinV2 read the weight of `attn.qkv` and never call it: what would stand there is
refused. Give it other targets (`attn.proj`, `mlp.fc1`, `mlp.fc2`), and `lora_qkv` beside it.

What is not here: side networks (LST, E3VA), a ladder of small blocks beside a backbone that needs no backward pass. An
Adapter takes the place of one module and computes something of the same signature; a ladder takes the place of none,
taps every block and adds to the last map. It would be a backbone, not a method. What saves that memory here is
`partial`, which trains the last blocks alone."""
MOST_ROLES = 6  # more are counted


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
    """The method on the family's small models; empty where one of them refuses it, or never calls what it stands at."""
    models = [_adapted(name, model, arguments) for model, arguments in FAMILIES[family]]
    return [adapter for found in models for adapter in found] if all(models) else []


def _adapted(name: str, model: str, arguments: Mapping[str, Any]) -> list[Adapter]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = timm.create_model(model, num_classes=0, **arguments)
        side = arguments.get("img_size", 64)
        try:
            inject(net, sites(net), [MethodSpec(name, settings=_settings(name))])
            probe(net, lambda: net.forward_intermediates(torch.zeros(1, 3, side, side), norm=True))
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
    numbers = dict.fromkeys(re.findall(r"\b\d{4}\.\d{4,5}\b", text))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in numbers)
