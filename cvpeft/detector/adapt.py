"""A plain detector -> the same detector, adapted: methods in the backbone, neck and head trained as copies.

Where the base is a whole detector, methods may stand in neck and head too, so that little more than the predictors is
trained as a copy: a site's adapter is then a small file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cvpeft.backbone.sites import sites
from cvpeft.config import schema
from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Dense, tensors, walk
from cvpeft.peft.foreign import methods_of
from cvpeft.peft.inject import MethodSpec, freeze, inject, make_dense, probe, stop_gradients
from cvpeft.peft.state import owned
from cvpeft.types import Site

__all__ = ["adapt", "as_trained", "parts", "with_methods"]

BODY, NECK = "backbone.body.", "backbone.neck."
# torchvision's names of the layers that give scores and boxes: what a site has to learn anew, and small
OUTPUTS = ("box_predictor.cls_score", "box_predictor.bbox_pred", "cls_logits", "bbox_pred", "bbox_reg", "bbox_ctrness")


def adapt(model: nn.Module, peft: schema.Peft, *, seed: int = 0) -> list[Site]:
    """Attach the methods of `peft` in place and freeze the rest; returns the sites that were taken.

    model: from build_detector. Mode full leaves it as it is: every tensor is trained in place.
    seed: of the methods' initial tensors, which depend on nothing else.
    AdapterError where a method finds no site, or a site is never called in a forward pass.
    """
    if peft.mode == "full":
        return []
    peft = with_methods(peft)
    if peft.mode == "adapters" and not peft.methods:
        raise AdapterError(
            "METHOD",
            "peft.mode is adapters and peft.methods is empty",
            why="the backbone would stay as it is",
            fix="set peft.methods to [lora], or peft.mode to frozen or full",
        )
    whole = peft.scope == "detector" and bool(peft.methods)
    taken: list[Site] = []
    if peft.methods:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            specs = [MethodSpec(m.name, m.targets, m.settings) for m in peft.methods]
            taken = _attach(model, specs, whole)
    trunk: Any = model.backbone
    freeze(trunk.body)
    for root in (trunk.neck, *(child for name, child in model.named_children() if name != "backbone")):
        make_dense(root, _stays_small if whole else None)
    if whole:
        stop_gradients(model)  # no freeze: RPN and box head compute losses in train mode only
    if taken:
        _probe(model, whole)
    return taken


def with_methods(peft: schema.Peft) -> schema.Peft:
    """The same section, where methods are not given those that take over the folder of HF peft it starts from.

    CheckpointError: there is no such folder, or it holds what no method takes up.
    """
    if peft.methods or peft.from_ is None:
        return peft
    found = [schema.Method(name=s.name, targets=s.targets, settings=dict(s.settings)) for s in methods_of(peft.from_)]
    return peft.model_copy(update={"methods": tuple(found)})


def as_trained(settings: schema.Settings) -> schema.Settings:
    """The settings as a run writes them down, the methods of `with_methods` among them; CheckpointError as there."""
    return settings.model_copy(update={"peft": with_methods(settings.peft)})


def _attach(model: nn.Module, specs: list[MethodSpec], whole: bool) -> list[Site]:
    net: Any = model.backbone.body.net  # type: ignore[union-attr]
    if not whole:
        return inject(net, sites(net), specs)
    inside = [replace(site, path=f"{BODY}net.{site.path}") for site in sites(net)]
    return inject(model, [*inside, *_outside(model)], specs)


def _outside(model: nn.Module) -> list[Site]:
    """The linear maps of neck and head but the output layers, in model order; their roles are "neck" and "head"."""
    return [
        Site(path, "neck" if path.startswith(NECK) else "head", "BNC" if isinstance(module, nn.Linear) else "NCHW")
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not path.startswith(BODY) and not path.endswith(OUTPUTS)
    ]


def _stays_small(path: str, module: nn.Module) -> bool:
    """Output layers and norms."""
    return path.endswith(OUTPUTS) or not any(p.ndim > 1 for p in module.parameters(recurse=False))


def _probe(model: nn.Module, whole: bool) -> None:
    body: Any = model.backbone.body  # type: ignore[union-attr]
    blank = torch.zeros(1, 3, *body.size)
    if whole:
        probe(model, lambda: model(blank))
    else:
        probe(body.net, lambda: body(blank))


def parts(model: nn.Module, mode: str) -> dict[str, str]:
    """Canonical key of every owned tensor -> "adapter" ("backbone" in mode full), "neck" or "head".

    What a method trains is adapter wherever it stands; neck and head are what is trained as a copy.
    """
    owner = {id(t): place.owner for place in walk(model) for _, t in tensors(place.module)}
    return {key: _part(key, isinstance(owner[id(t)], Dense | None), mode) for key, t in owned(model).items()}


def _part(key: str, copied: bool, mode: str) -> str:
    if not copied or key.startswith(BODY):
        return "backbone" if mode == "full" else "adapter"
    return "neck" if key.startswith(NECK) else "head"
