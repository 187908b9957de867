"""A trained method in the form in which HF peft stores it, there and back.

HF peft knows one kind of method a folder. Only what stands in the model itself goes along: it has no neck and head.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cvpeft.errors import AdapterError, CheckpointError
from cvpeft.peft.adapter import Adapter, Dense, Foreign, adapters
from cvpeft.peft.state import owned

__all__ = ["start_from_hf", "to_hf"]

PREFIX = "base_model.model."


def to_hf(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json and the tensors of adapter_model.safetensors for the methods in `model`.

    AdapterError: no method, two of them, or one that HF peft does not have.
    """
    known, first = _forms(model)
    tensors = {f"{PREFIX}{path}.{name}": t for path, form in known.items() for name, t in form.tensors.items()}
    return _config(known, first), {**tensors, **first.shared}


def start_from_hf(model: nn.Module, folder: Path) -> None:
    """Give the methods in `model` the values that a folder of HF peft holds.

    AdapterError, CheckpointError: the folder is none, or holds another kind, other places, ranks or scales; nothing is
    changed then.
    """
    forms, first = _forms(model)
    config, content = _read(folder)
    here = _named({"peft_type": first.kind, **first.settings})
    if _named(config) != here:
        raise _unlike(folder, f"it holds {_named(config)}, the config's methods are {here}")
    wanted = {f"{PREFIX}{path}.{name}": t for path, form in forms.items() for name, t in form.tensors.items()}
    wanted |= first.shared
    if wrong := sorted(wanted.keys() ^ content.keys()):
        raise _unlike(folder, f"{len(wrong)} tensors are in one of the two alone, first {', '.join(wrong[:3])}")
    for key, tensor in wanted.items():
        if content[key].shape != tensor.shape:
            raise _unlike(folder, f"{key} is {tuple(content[key].shape)}, here {tuple(tensor.shape)}")
    for path, form in forms.items():
        if form.alpha is not None and not math.isclose(_alpha(config, path, form), form.alpha, rel_tol=1e-6):
            raise _unlike(folder, f"alpha at {path} is {_alpha(config, path, form):g}, here {form.alpha:g}")
    storages = {t.untyped_storage().data_ptr() for t in owned(model).values()}
    if computed := [key for key, t in wanted.items() if t.untyped_storage().data_ptr() not in storages]:
        what = f"{computed[0]} is no tensor of this method but made of several"
        raise AdapterError(
            "FOREIGN", what, why="it cannot be taken over", fix="leave gates, starts and parts of qkv out"
        )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(content[key])


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        content = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        what = f"no folder of HF peft with adapter_config.json and adapter_model.safetensors ({error})"
        raise CheckpointError(
            "FOREIGN", what, where=str(folder), fix="name the folder that save_pretrained wrote"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError("FOREIGN", "adapter_config.json is no object", where=str(folder))
    return config, content


def _unlike(folder: Path, what: str) -> CheckpointError:
    fix = "write peft.methods as that folder's adapter_config.json has them"
    return CheckpointError("FOREIGN", what, where=str(folder), why="its values belong to another method", fix=fix)


def _named(config: Mapping[str, Any]) -> str:
    return f"{config.get('peft_type')}{' with use_dora' if config.get('use_dora') else ''}"


def _alpha(config: Mapping[str, Any], path: str, form: Foreign) -> float:
    """What the folder scales a site by, as an alpha that is divided by the rank."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (a for key, a in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", path)), config.get(form.alpha_name)
    )
    root = math.sqrt(form.rank) if config.get("use_rslora") and form.rank else 1.0
    return float(alpha or 0) * root


def _forms(model: nn.Module) -> tuple[dict[str, Foreign], Foreign]:
    """Path -> form of every Adapter in the model, and the first of them, which is like all others."""
    found = {path: _only(path, stack) for path, stack in adapters(model).items() if type(stack[0]) is not Dense}
    if not found:
        raise AdapterError("FOREIGN", "the model holds no method", fix="export a run of mode adapters")
    forms = {path: adapter.to_hf() for path, adapter in found.items()}
    if unknown := sorted({found[path].method for path, form in forms.items() if form is None}):
        what = f"HF peft has no such method as {', '.join(unknown)} stand here"
        raise AdapterError("FOREIGN", what, fix="export to ONNX, or merged weights")
    known = {path: form for path, form in forms.items() if form is not None}
    first = next(iter(known.values()))
    for path, form in known.items():
        if (form.kind, form.settings) != (first.kind, first.settings):
            what = f"{path} would be {form.kind} {dict(form.settings)}, others {first.kind} {dict(first.settings)}"
            raise AdapterError("FOREIGN", what, why="HF peft stores one kind in a folder")
    return known, first


def _only(path: str, stack: Sequence[Adapter]) -> Adapter:
    if len(stack) > 1:
        names = " and ".join(adapter.method for adapter in stack)
        raise AdapterError("FOREIGN", f"{names} stand together at {path}", why="HF peft stores one kind in a folder")
    return stack[0]


def _config(forms: Mapping[str, Foreign], first: Foreign) -> dict[str, Any]:
    # As one pattern, which has to match a whole path: the entries of a list also match the end of a longer one.
    targets = "|".join(map(re.escape, forms))
    config = {"peft_type": first.kind, "target_modules": targets, "inference_mode": True, **first.settings}
    for name in sorted({name for form in forms.values() for name in form.lists}):
        config[name] = [path for path, form in forms.items() if name in form.lists]
    if first.rank is not None:
        config["r"] = first.rank
        config["rank_pattern"] = {path: form.rank for path, form in forms.items() if form.rank != first.rank}
    if first.alpha is not None:
        config[first.alpha_name] = first.alpha
        config["alpha_pattern"] = {path: form.alpha for path, form in forms.items() if form.alpha != first.alpha}
    return config
