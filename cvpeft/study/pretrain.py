"""The base weights that ship: crops first, then the whole detector, all of it from rendered scenes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from cvpeft.backbone.build import build_backbone
from cvpeft.backbone.weights import DETECTOR_FORMAT
from cvpeft.config import schema
from cvpeft.config.load import dump
from cvpeft.data.render import RENDERER_VERSION
from cvpeft.data.splits import open_splits
from cvpeft.detector.build import PREDICTORS
from cvpeft.detector.saved import RESOLVED, load_run, run_folder
from cvpeft.errors import ConfigError
from cvpeft.export.run import write_weights
from cvpeft.peft.merge import merge
from cvpeft.study.crops import SIDE, CropSettings, cut_crops, train_on_crops
from cvpeft.study.job import read_settings, train_job
from cvpeft.train.folder import data_digest, is_finished

__all__ = ["pretrain"]


def pretrain(config: Path, out: Path, *, crop_epochs: int = 8, overrides: Sequence[str] = ()) -> Path:
    """Train a base detector from nothing and write it to `out` in float16, without class predictors; returns `out`.

    config: mode full and backbone.weights none, as configs/pretrain_convnext.yaml. Its run stands on a backbone that
    was trained on crops of the same images for `crop_epochs`, which lies in RUN_crops. Each of the two parts is made
    once; the same command goes on where it stopped.
    ConfigError: another mode or weights, `out` exists, or one of the parts was made with other settings.
    """
    settings = read_settings(config, overrides)
    if settings.peft.mode != "full" or settings.backbone.weights != "none":
        what = f"peft.mode is {settings.peft.mode}, backbone.weights {settings.backbone.weights}"
        raise ConfigError("PRETRAIN", what, where=str(config), why="A base is trained whole", fix="set full and none")
    if out.exists():
        raise ConfigError("PRETRAIN", "the file is there", where=str(out), why="It would be lost", fix="move it away")
    run = run_folder(settings)
    backbone = run.with_name(f"{run.name}_crops") / "backbone.safetensors"
    recipe = {
        "crop_epochs": str(crop_epochs),
        "seed": str(settings.run.seed),
        "backbone": settings.backbone.name,
        "crop_data": _data_digest(settings),
    }
    if not backbone.exists():
        _train_backbone(settings, backbone, crop_epochs, recipe)
    elif recipe.items() - _facts(backbone).items():
        raise _other_recipe(backbone)
    whole = [*overrides, f"backbone.weights={json.dumps(str(backbone.absolute()))}"]
    if not is_finished(run):
        train_job(config, whole)
    elif (run / RESOLVED).read_text(encoding="utf-8") != dump(read_settings(config, whole)):
        raise _other_recipe(run)
    _write(run, backbone, out)
    print(f"written: {out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return out


def _data_digest(settings: schema.Settings) -> str:
    """sha256 of the json files, which are rendered first if they are not there."""
    open_splits(settings.data)
    return data_digest(settings.data)


def _other_recipe(place: Path) -> ConfigError:
    what, why = "it was made with other settings or data", "The file would be of two recipes"
    return ConfigError("PRETRAIN", what, where=str(place), why=why, fix="set another run.name, or move it away")


def _facts(file: Path) -> dict[str, str]:
    with safe_open(str(file), "pt") as f:
        return dict(f.metadata() or {})


def _train_backbone(settings: schema.Settings, file: Path, epochs: int, recipe: Mapping[str, str]) -> None:
    started = time.perf_counter()
    torch.manual_seed(settings.run.seed)
    body = build_backbone(settings.backbone.name, "none", (SIDE, SIDE))
    body.to(memory_format=torch.channels_last)
    crops = cut_crops(open_splits(settings.data).train, seed=settings.run.seed)
    accuracy = train_on_crops(body, crops, CropSettings(epochs=epochs, seed=settings.run.seed))
    facts = {
        **recipe,
        "crops": str(len(crops.labels)),
        "crop_accuracy": f"{accuracy:.3f}",
        "crop_seconds": f"{time.perf_counter() - started:.0f}",
    }
    write_weights(file, body.net.state_dict(), facts)


def _write(run: Path, backbone: Path, out: Path) -> None:
    loaded = load_run(run)
    facts = _facts(backbone)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    facts |= {
        "format": DETECTOR_FORMAT,
        "backbone": loaded.settings.backbone.name,
        "detector": json.dumps(loaded.meta["detector"]),
        "renderer": RENDERER_VERSION,
        "data": json.dumps(loaded.settings.data.render.model_dump() if loaded.settings.data.render else {}),
        "seed": str(loaded.settings.run.seed),
        "steps": str(last["step"]),
    }
    tensors = {
        key: t.half() if t.is_floating_point() else t
        for key, t in merge(loaded.model).state_dict().items()
        if not key.startswith(PREDICTORS)
    }
    write_weights(out, tensors, facts)
