"""The adapter folder: everything a site's detector is, apart from the frozen base; and back into a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cvpeft import __version__
from cvpeft.config import schema
from cvpeft.config.load import load
from cvpeft.detector.adapt import adapt, parts
from cvpeft.detector.build import build_detector
from cvpeft.errors import CheckpointError
from cvpeft.files import write_whole
from cvpeft.peft.inject import signatures
from cvpeft.peft.state import fingerprint, load_owned, owned, save_owned

__all__ = [
    "LoadedRun", "describe", "load_adapter", "load_run", "name_of", "read_config", "run_folder", "save_adapter",
]  # fmt: skip

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
RESOLVED = "config.resolved.yaml"


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready to detect.

    trained: its settings as they were in training; settings: the same with the overrides of now.
    model: adapted, in eval mode, float32, on the CPU. meta: the content of adapter_config.json.
    """

    folder: Path
    trained: schema.Settings
    settings: schema.Settings
    model: nn.Module
    classes: tuple[str, ...]
    meta: Mapping[str, Any]


def describe(
    model: nn.Module, settings: schema.Settings, classes: Sequence[str], sites: Sequence[str]
) -> dict[str, Any]:
    """The content of adapter_config.json: what must agree before the tensors may be loaded, and what a reader wants."""
    tensors = parts(model, settings.peft.mode)
    return {
        "format": 1,
        "cvpeft": __version__,
        "mode": settings.peft.mode,
        "methods": [m.model_dump(mode="json") for m in settings.peft.methods],
        "sites": list(sites),
        "base": {
            "name": settings.backbone.name,
            "weights": Path(settings.backbone.weights).name,
            "sha256": fingerprint(model),
        },
        "windows": {"side": settings.backbone.window, "global_blocks": list(settings.backbone.global_blocks)},
        "detector": settings.detector.model_dump(mode="json") | {"neck_width": settings.backbone.neck_width},
        "classes": list(classes),
        "preprocessing": {
            "size": list(settings.data.size),
            "canvas": settings.data.canvas,
            "resize": "letterbox",
            "pad": 114,
            "colour": "RGB",
            "mean": model.transform.mean.flatten().tolist(),  # type: ignore[union-attr,operator]
            "std": model.transform.std.flatten().tolist(),  # type: ignore[union-attr,operator]
        },
        "tensors": {name: sorted(k for k, p in tensors.items() if p == name) for name in sorted(set(tensors.values()))},
        "untrained": sorted(k for k, t in owned(model).items() if not isinstance(t, nn.Parameter)),
    }


def save_adapter(folder: Path, model: nn.Module, meta: Mapping[str, Any], card: str) -> None:
    """Write the owned tensors, their description and a model card; each file is replaced as a whole.

    ResourceError: one of them cannot be written.
    """
    save_owned(folder / WEIGHTS, model, {"format": "cvpeft-adapter"})
    write_whole(folder / CONFIG, json.dumps(meta, indent=1), "the adapter")
    write_whole(folder / CARD, card, "the adapter")


def load_adapter(folder: Path, model: nn.Module, classes: Sequence[str]) -> None:
    """Load an adapter folder into an adapted model; CheckpointError where base, classes or tensors do not agree."""
    meta = read_config(folder)
    if list(classes) != meta["classes"]:
        raise CheckpointError(
            "CLASSES", f"made for the classes {meta['classes']}, not {list(classes)}", where=str(folder)
        )
    found = fingerprint(model)
    _check_size(folder, meta, model, found)
    if found != meta["base"]["sha256"]:
        raise CheckpointError(
            "BASE",
            f"made for base weights {meta['base']['sha256'][:12]} ({meta['base']['name']}), these are {found[:12]}",
            where=str(folder),
            why="an adapter on another base gives nonsense",
            fix=f"set backbone.weights to the file it was trained on ({meta['base']['weights']})",
        )
    load_owned(folder / WEIGHTS, model)


def _check_size(folder: Path, meta: Mapping[str, Any], model: Any, found: str) -> None:
    """Another data.size gives other position embeddings, so that the base is another one too, or looks the same where
    they are random and as many.
    """
    if (there := meta["preprocessing"].get("size")) is None:
        return
    here, body = list(model.transform.size), model.backbone.body
    has_positions = getattr(body.net, "pos_embed", None) is not None
    other_base = found != meta["base"]["sha256"] and body.fixed_because
    if there != here and (has_positions or other_base):
        what = f"made at data.size {there}, which is {here} now"
        raise CheckpointError("SIZE", what, where=str(folder), why=body.fixed_because, fix=f"set data.size={there}")


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder; CheckpointError where it is absent or damaged."""
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError("ADAPTER", f"no {CONFIG}", where=str(folder), fix="name the folder of a finished run")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError("ADAPTER", f"not readable json ({e})", where=str(file), why="it was damaged") from e
    faults = _faults(meta)
    if faults:
        raise CheckpointError("ADAPTER", "; ".join(faults), where=str(file), why="it was damaged")
    return dict(meta)


def _faults(meta: Any) -> list[str]:
    """What is missing of a description, or of another kind than it must be."""
    if not isinstance(meta, dict):
        return [f"it holds a {type(meta).__name__}, no description"]
    missing = sorted({"classes", "base", "mode", "preprocessing"} - meta.keys())
    if missing:
        return [f"lacks {', '.join(missing)}"]
    classes, base, thresholds = meta["classes"], meta["base"], meta.get("thresholds")
    right = {
        "classes": isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes),
        "mode": isinstance(meta["mode"], str),
        "preprocessing": isinstance(meta["preprocessing"], dict),
        "thresholds": not thresholds or (isinstance(thresholds, dict) and all(map(_is_score, thresholds.values()))),
        "base": isinstance(base, dict),
    }
    wrong = [f"{key} is of the wrong kind" for key, fine in right.items() if not fine]
    keys = ("name", "weights", "sha256") if isinstance(base, dict) else ()
    lacks = [f"base.{key}" for key in keys if not isinstance(base.get(key), str)]
    return wrong + ([f"lacks {', '.join(lacks)}"] if lacks else [])


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def load_run(folder: Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """Rebuild the detector of a finished run from its resolved config, the base weights and its adapter folder."""
    resolved = folder / RESOLVED
    if not resolved.is_file():
        raise CheckpointError(
            "RUN", f"no {RESOLVED}", where=str(folder), fix="name a folder under runs/ that training made"
        )
    trained = load(resolved, methods=signatures())
    settings = load(resolved, overrides, methods=signatures()) if overrides else trained
    meta = read_config(folder / "adapter")
    classes = tuple(meta["classes"])
    model = build_detector(settings, classes)
    adapt(model, settings.peft)
    load_adapter(folder / "adapter", model, classes)
    return LoadedRun(folder, trained, settings, model.eval(), classes, meta)


def run_folder(settings: schema.Settings) -> Path:
    """Where the run of these settings lies, or will lie."""
    return (settings.run.dir or Path("runs")).absolute() / settings.run.name


def name_of(run: Path) -> str:
    """What a run is called: the name of its folder, which may be given as `.`."""
    return Path(os.path.abspath(run)).name
