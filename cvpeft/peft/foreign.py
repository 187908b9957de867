"""A trained method in the form in which HF peft stores it, so that `peft.PeftModel.from_pretrained` takes it up.

HF peft knows one kind of method a folder. Only what stands in the model itself goes along: it has no neck and head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, Dense, Foreign, adapters

__all__ = ["to_hf"]

PREFIX = "base_model.model."


def to_hf(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json and the tensors of adapter_model.safetensors for the methods in `model`.

    AdapterError: no method, two of them, or one that HF peft does not have.
    """
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
    tensors = {f"{PREFIX}{path}.{name}": t for path, form in known.items() for name, t in form.tensors.items()}
    return _config(known, first), {**tensors, **first.shared}


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
