"""A folder that HF peft wrote, read strictly: numbers and names of modules are taken from it, and nothing else.

Its patterns are compared as text and never run, its paths never followed, and a key that is not known must say nothing.
Where methods stand is read off the tensors, not off `target_modules`, which may be a regular expression.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cvpeft.errors import CheckpointError
from cvpeft.peft.adapter import Foreign

__all__ = ["PREFIX", "HfFolder", "read_hf"]

PREFIX = "base_model.model."
MAX_BYTES = 2**20  # of adapter_config.json; a pattern for each of a thousand places has a tenth of it
TENSOR = re.compile(rf"{re.escape(PREFIX)}([\w.]+?)\.((?:lora|hada|lokr|ia3|vera|ln_tuning)_[\w.]+)")
SHARED = re.compile(r"base_model\.vera_[AB]")

READ = {
    "peft_type", "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "feedforward_modules", "init_lora_weights", "lora_dropout", "decompose_factor", "init_r",
}  # fmt: skip
# What trained values do not depend on once they stand in tensors.
SPENT = {
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_weights", "init_ia3_weights",
    "d_initial", "projection_prng_key", "save_projection", "vera_dropout", "rank_dropout", "rank_dropout_scale",
    "module_dropout", "decompose_both", "use_effective_conv2d", "eva_config", "megatron_core", "qalora_group_size",
    "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
}  # fmt: skip
NOTHING: tuple[object, ...] = (None, False, "none", 0, {}, [])
STARTS = (True, False, "true", "gaussian", "eva", "orthogonal")  # those that leave the base as it is


@dataclass(frozen=True)
class HfFolder:
    """kind: what it holds, in words. places: path -> what is stored there. shared: tensors by their whole names."""

    folder: Path
    kind: str
    places: Mapping[str, Foreign]
    shared: Mapping[str, Tensor]


def read_hf(folder: Path) -> HfFolder:
    """What a folder of HF peft holds.

    CheckpointError: it is none, is damaged, or says something that is not understood here.
    """
    config, content = _config(folder), _content(folder)
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise _refusal(folder, f"peft_type is {_shown(kind)}, expected text such as LORA")
    _check_known(folder, config)
    places: dict[str, dict[str, Tensor]] = {}
    shared: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if found := TENSOR.fullmatch(key):
            places.setdefault(found[1], {})[found[2]] = tensor
        elif SHARED.fullmatch(key):
            shared[key] = tensor
        else:
            raise _refusal(
                folder, f"the tensor {_shown(key)} belongs to no method", "leave modules_to_save and bias out"
            )
    stored = {path: _place(folder, config, kind, path, tensors) for path, tensors in places.items()}
    return HfFolder(folder, kind + (" with use_dora" if config.get("use_dora") else ""), stored, shared)


def _place(folder: Path, config: Mapping[str, Any], kind: str, path: str, tensors: Mapping[str, Tensor]) -> Foreign:
    alpha_name = next((name for name in ("lora_alpha", "alpha") if name in config), "alpha")
    if kind == "ADALORA":
        return _triplets(folder, config, path, tensors)
    rank = _number(folder, config, "r", "rank_pattern", path)
    alpha = _number(folder, config, alpha_name, "alpha_pattern", path)
    if rank is not None and (rank < 1 or rank != int(rank)):
        raise _refusal(folder, f"the rank at {path} is {rank:g}, expected a whole number from 1")
    if alpha is not None and rank and config.get("use_rslora"):
        alpha *= math.sqrt(rank)  # as one that is divided by the rank
    lists = ("feedforward_modules",) if _scales_inputs(folder, config, path, tensors) else ()
    return Foreign(kind, tensors, config, None if rank is None else int(rank), alpha, alpha_name, lists=lists)


def _triplets(folder: Path, config: Mapping[str, Any], path: str, tensors: Mapping[str, Tensor]) -> Foreign:
    """AdaLoRA at a place: the triplets that were kept there, perhaps none, under the scale of those at the start."""
    kept = tensors.get("lora_E")
    if kept is None or kept.ndim != 2:
        raise _refusal(folder, f"{path} has no lora_E of shape (rank, 1)")
    rank = max(1, len(kept))
    alpha, start = (_number(folder, config, name, "alpha_pattern", path) for name in ("lora_alpha", "init_r"))
    if alpha is None or start is None:
        raise _refusal(folder, "it names no lora_alpha or no init_r", "save it with save_pretrained")
    return Foreign("ADALORA", tensors, config, rank, alpha * rank / start, "lora_alpha")


def _number(folder: Path, config: Mapping[str, Any], name: str, patterns: str, path: str) -> float | None:
    """The number at a place: that of the first pattern that names it, else the one for all, if there is one."""
    special = config.get(patterns) or {}
    if not isinstance(special, dict):
        raise _refusal(folder, f"{patterns} is {_shown(special)}, expected an object")
    key = next((key for key in special if _names(folder, patterns, key, path)), None)
    value = config.get(name) if key is None else special[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9):
        raise _refusal(folder, f"{name} at {path} is {_shown(value)}, expected a number above 0")
    return value


def _names(folder: Path, where: str, pattern: str, path: str) -> bool:
    """Whether a pattern is this path or its last segments; one that is more than a path is refused."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        fix = "write the paths of the modules themselves"
        raise _refusal(folder, f"{where} has {_shown(pattern)}, a pattern and no path", fix)
    return path == name or (not pattern.startswith("^") and path.endswith(f".{name}"))


def _scales_inputs(folder: Path, config: Mapping[str, Any], path: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether an IA3 vector is of inputs: (1, I) at a Linear; at a convolution the list alone tells."""
    vector = tensors.get("ia3_l")
    if vector is None or vector.ndim == 2:
        return vector is not None and len(vector) == 1
    where, listed = "feedforward_modules", config.get("feedforward_modules") or []
    names = listed.split("|") if isinstance(listed, str) else listed
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _refusal(folder, f"{where} is {_shown(listed)}, expected a list of names")
    return any(_names(folder, where, name, path) for name in names)


def _check_known(folder: Path, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key not in READ | SPENT and value not in NOTHING:
            raise _refusal(folder, f"{key} is {_shown(value)}, which is not understood here")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key, False), bool):
            raise _refusal(folder, f"{key} is {_shown(config[key])}, expected true or false")
    factor, dropout = config.get("decompose_factor", -1), config.get("lora_dropout", 0.0)
    if type(factor) is not int or not (factor == -1 or factor > 0):
        raise _refusal(folder, f"decompose_factor is {_shown(factor)}, expected -1 or a whole number from 1")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise _refusal(folder, f"lora_dropout is {_shown(dropout)}, expected a number from 0 below 1")
    if (start := config.get("init_lora_weights", True)) not in STARTS:
        what = f"init_lora_weights is {_shown(start)}, a start that changes the base, which is not in the folder"
        raise _refusal(folder, what, "save it with path_initial_model_for_weight_conversion")


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        with file.open("rb") as source:
            content = source.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        config = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise _none(folder, error) from error
    if not isinstance(config, dict):
        raise CheckpointError("FOREIGN", "adapter_config.json is no object", where=str(folder))
    return config


def _content(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise _none(folder, error) from error


def _none(folder: Path, error: Exception) -> CheckpointError:
    what = f"no folder of HF peft with adapter_config.json and adapter_model.safetensors ({error})"
    return CheckpointError("FOREIGN", what, where=str(folder), fix="name the folder that save_pretrained wrote")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _shown(value: object) -> str:
    return repr(value)[:80]


def _refusal(folder: Path, what: str, fix: str = "") -> CheckpointError:
    return CheckpointError("FOREIGN", what, where=str(folder / "adapter_config.json"), fix=fix)
