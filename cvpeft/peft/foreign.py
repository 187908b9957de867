"""A trained method in the form in which HF peft stores it, there and back.

HF peft knows one kind of method a folder. Only what stands in the model itself goes along: it has no neck and head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError, CheckpointError
from cvpeft.peft.adapter import Adapter, Dense, Foreign, adapters
from cvpeft.peft.hf_folder import PREFIX, HfFolder, read_hf
from cvpeft.peft.inject import MethodSpec, adapter_class, methods
from cvpeft.peft.state import owned

__all__ = ["methods_of", "start_from_hf", "to_hf"]


def to_hf(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json and the tensors of adapter_model.safetensors for the methods in `model`.

    AdapterError: no method, two of them, or one that HF peft does not have.
    """
    known, first = _forms(model)
    kind = type(adapters(model)[next(iter(known))][0])
    tensors = {f"{PREFIX}{path}.{name}": t for path, form in known.items() for name, t in form.tensors.items()}
    return _config(kind, known, first), {**tensors, **first.shared}


def start_from_hf(model: nn.Module, folder: Path) -> None:
    """Give the methods in `model` the values that a folder of HF peft holds.

    AdapterError, CheckpointError: the folder is none, or holds another kind, other places, ranks or scales; nothing is
    changed then.
    """
    forms, first = _forms(model)
    stored = read_hf(folder)
    here = first.kind + (" with use_dora" if first.settings.get("use_dora") else "")
    if stored.kind != here:
        raise _unlike(folder, f"it holds {stored.kind}, the config's methods are {here}")
    found = _given(model, stored)
    wanted = {f"{PREFIX}{path}.{name}": t for path, form in forms.items() for name, t in form.tensors.items()}
    wanted |= first.shared
    if wrong := sorted(wanted.keys() ^ found.keys()):
        raise _unlike(folder, f"{len(wrong)} tensors are in one of the two alone, first {', '.join(wrong[:3])}")
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            raise _unlike(folder, f"{key} is {tuple(found[key].shape)}, here {tuple(tensor.shape)}")
    for path, form in forms.items():
        _check_numbers(folder, path, stored.places[path], form)
    storages = {t.untyped_storage().data_ptr() for t in owned(model).values()}
    if computed := [key for key, t in wanted.items() if t.untyped_storage().data_ptr() not in storages]:
        what = f"{computed[0]} is no tensor of this method but made of several"
        fix = "leave peft.methods out, then they follow from the folder"
        raise AdapterError("FOREIGN", what, why="it cannot be taken over", fix=fix)
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(found[key])


def methods_of(folder: Path) -> list[MethodSpec]:
    """The method that takes over what a folder of HF peft holds: targets, rank and scale of every place.

    CheckpointError: the folder is none, or holds a kind that is not here.
    """
    stored = read_hf(folder)
    for name, method in methods().items():
        if kind := adapter_class(method):
            each = {path: kind.from_hf(form) for path, form in stored.places.items()}
            settings = {path: one for path, one in each.items() if one is not None}
            if settings and len(settings) == len(each):
                return [MethodSpec(name, tuple(settings), _with_patterns(settings))]
    what = f"it holds {stored.kind} at {len(stored.places)} places, which no method here takes up"
    raise CheckpointError("FOREIGN", what, where=str(folder), fix="start from another folder, or from none")


def _with_patterns(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of most places, and as `patterns` those that differ."""
    every = list(settings.values())
    common = max(every, key=every.count)
    special = {path: dict(one) for path, one in settings.items() if one != common}
    return {**common, "patterns": special} if special else dict(common)


def _given(model: nn.Module, stored: HfFolder) -> dict[str, Tensor]:
    """The folder's tensors by their whole names, at each place in the one form that the method there gives."""
    here = adapters(model)
    found = dict(stored.shared)
    for path, form in stored.places.items():
        tensors = here[path][0].settled_hf(form.tensors) if path in here else form.tensors
        found |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in tensors.items()}
    return found


def _check_numbers(folder: Path, path: str, there: Foreign, here: Foreign) -> None:
    for name in ("rank", "alpha"):
        theirs, ours = getattr(there, name), getattr(here, name)
        if ours is not None and not math.isclose(theirs or 0, ours, rel_tol=1e-6):
            raise _unlike(folder, f"{name} at {path} is {theirs or 0:g}, here {ours:g}")
    if there.lists != here.lists:
        inputs = "inputs" if there.lists else "outputs"
        raise _unlike(folder, f"{path} has its {inputs} scaled, here it is the other side")


def _unlike(folder: Path, what: str) -> CheckpointError:
    fix = "leave peft.methods out, then they follow from the folder"
    return CheckpointError("FOREIGN", what, where=str(folder), why="its values belong to another method", fix=fix)


def _forms(model: nn.Module) -> tuple[dict[str, Foreign], Foreign]:
    """Path -> form of every Adapter in the model, and the first of them, which is like all others."""
    found = {path: _only(path, stack) for path, stack in adapters(model).items() if type(stack[0]) is not Dense}
    if not found:
        raise AdapterError("FOREIGN", "the model holds no method", fix="export a run of mode adapters")
    forms = {path: adapter.to_hf() for path, adapter in found.items()}
    if unknown := [f"{found[path].method} at {path}" for path, form in forms.items() if form is None]:
        rest = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        what = f"HF peft has no such method as {unknown[0]}{rest}"
        raise AdapterError("FOREIGN", what, fix="export to ONNX, or merged weights")
    known = {path: form for path, form in forms.items() if form is not None}
    first = next(iter(known.values()))
    for path, form in known.items():
        if (form.kind, form.settings) != (first.kind, first.settings):
            what = f"{path} would be {form.kind} {dict(form.settings)}, others {first.kind} {dict(first.settings)}"
            raise AdapterError("FOREIGN", what, why="HF peft stores one kind in a folder")
        if other := [name for name, tensor in form.shared.items() if tensor is not first.shared[name]]:
            what = f"{path} does not share {other[0]} with {next(iter(known))}"
            why, fix = "HF peft stores one of it in a folder", "export to ONNX, or merged weights"
            raise AdapterError("FOREIGN", what, why=why, fix=fix)
    return known, first


def _only(path: str, stack: Sequence[Adapter]) -> Adapter:
    if len(stack) > 1:
        names = " and ".join(adapter.method for adapter in stack)
        raise AdapterError("FOREIGN", f"{names} stand together at {path}", why="HF peft stores one kind in a folder")
    return stack[0]


def _config(kind: type[Adapter], forms: Mapping[str, Foreign], first: Foreign) -> dict[str, Any]:
    # As one pattern, which has to match a whole path: the entries of a list also match the end of a longer one.
    targets = "|".join(map(re.escape, forms))
    config = {"peft_type": first.kind, "target_modules": targets, "inference_mode": True, **first.settings}
    for name in sorted({name for form in forms.values() for name in form.lists}):
        config[name] = [path for path, form in forms.items() if name in form.lists]
    return config | kind.hf_numbers(forms)
