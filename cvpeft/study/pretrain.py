"""The base weights that ship: crops first, then the whole detector, all of it from rendered scenes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cvpeft.backbone.weights import DETECTOR_FORMAT, grid_entry
from cvpeft.config import schema
from cvpeft.data.render import RENDERER_VERSION
from cvpeft.data.splits import open_splits
from cvpeft.detector.build import PREDICTORS, BackboneWithNeck, build_detector
from cvpeft.detector.device import pick_device, pick_precision
from cvpeft.detector.saved import RESOLVED, load_run, run_folder
from cvpeft.errors import ConfigError
from cvpeft.export.run import write_weights
from cvpeft.files import refuse_existing, write_whole
from cvpeft.peft.merge import merge
from cvpeft.study.crops import (
    FORMULAS,
    NEGATIVES,
    SIDE,
    CropSettings,
    add_formulas,
    crop_step_seconds,
    cut_crops,
    train_on_crops,
)
from cvpeft.study.job import read_settings, train_job
from cvpeft.study.measure import without_weights
from cvpeft.train.folder import data_digest, is_finished, same_run
from cvpeft.train.optim import with_one_rate

__all__ = ["pretrain"]

UNTOLD = {  # of a file that was made before these could be chosen
    "formulas": "0", "crop_lr": "0.002", "parts": "False", "optimizer": "adamw",
}  # fmt: skip
WORK = 0.8  # part of the time that the steps get; the rest goes to loading, saving and what else the machine does


def pretrain(
    config: Path,
    out: Path,
    *,
    crop_epochs: int = 8,
    crop_lr: float = CropSettings.lr,
    formulas: int = 0,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train a base detector from nothing and write it to `out` in float16, without class predictors; returns `out`.

    config: mode full and backbone.weights none, as configs/pretrain_convnext.yaml. Its run stands on a backbone that
    was trained on crops of the same images for `crop_epochs` (0: not at all), which lies in RUN_crops. Each of the two
    parts is made once; the same command goes on where it stopped.
    crop_lr: the learning rate of that part at its highest; a plain ViT wants a lower one than a ConvNeXt.
    formulas: classes of formula-drawn shapes that the crops hold besides.
    minutes: both parts get as many epochs, at most the configured ones, as fit into this time by a measurement at the
    first call; they are written down beside the crops, so that the recipe is one that other machines can repeat.
    ConfigError: another mode or weights, or one of the parts was made with other settings. DataError: `out` exists.
    """
    settings = read_settings(config, overrides)
    if settings.peft.mode != "full" or settings.backbone.weights != "none":
        what = f"peft.mode is {settings.peft.mode}, backbone.weights {settings.backbone.weights}"
        raise ConfigError("PRETRAIN", what, where=str(config), why="A base is trained whole", fix="set full and none")
    _check_numbers(crop_epochs, crop_lr, formulas, minutes)
    refuse_existing(out, fix="move it away")
    run = run_folder(settings)
    backbone = run.with_name(f"{run.name}_crops") / "backbone.safetensors"
    digest = _data_digest(settings)
    if minutes is not None:
        fitted = _fitted(settings, backbone.with_name("fitted.json"), crop_epochs, formulas, minutes)
        crop_epochs, overrides = fitted["crop_epochs"], [*overrides, f"train.epochs={fitted['epochs']}"]
        print(f"in about {minutes:g} minutes: --crop-epochs {crop_epochs} train.epochs={fitted['epochs']}")
    recipe = {
        "crop_epochs": str(crop_epochs),
        "crop_lr": str(crop_lr),
        "formulas": str(formulas),
        "seed": str(settings.run.seed),
        "backbone": settings.backbone.name,
        "crop_data": digest,
        "parts": str(_has_parts(settings)),
        "optimizer": settings.train.optimizer,
    }
    if not backbone.exists():
        crop_settings = CropSettings(
            epochs=crop_epochs, lr=crop_lr, seed=settings.run.seed, optimizer=settings.train.optimizer
        )
        _train_backbone(settings, backbone, crop_settings, formulas, recipe)
    elif recipe.items() - (UNTOLD | _facts(backbone)).items():
        raise _other_recipe(backbone)
    whole = [*overrides, f"backbone.weights={json.dumps(str(backbone.absolute()))}"]
    if not is_finished(run):
        train_job(config, whole)
    elif not same_run(run / RESOLVED, read_settings(config, whole)):
        raise _other_recipe(run)
    _write(run, backbone, out)
    print(f"written: {out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return out


def _check_numbers(crop_epochs: int, crop_lr: float, formulas: int, minutes: float | None) -> None:
    """Before the first scene is rendered."""
    for name, value, fits in (
        ("--crop-epochs", crop_epochs, crop_epochs >= 0),
        ("--crop-lr", crop_lr, 0 < crop_lr < float("inf")),
        ("--formulas", formulas, formulas >= 0),
        ("--minutes", minutes, minutes is None or 0 < minutes < float("inf")),
    ):
        if not fits:
            fix = "give no negative number, and for rate and time one above 0"
            raise ConfigError("PRETRAIN", f"{name} is {value}", fix=fix)


def _data_digest(settings: schema.Settings) -> str:
    """sha256 of the json files, which are rendered first if they are not there."""
    open_splits(settings.data)
    return data_digest(settings.data)


def _fitted(settings: schema.Settings, file: Path, crop_epochs: int, formulas: int, minutes: float) -> dict[str, int]:
    """Epochs of both parts that fit into the time, cut by the same share; measured once and then read from `file`."""
    asked = {"minutes": minutes, "crop_epochs": crop_epochs, "formulas": formulas, "epochs": settings.train.epochs}
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("asked") != asked:
            raise _other_recipe(file)
        return found
    images = open_splits(settings.data).train.images
    count = sum(len(image.boxes) for image in images) + NEGATIVES * len(images) + FORMULAS * formulas
    trunk, dense = _trunk(settings), _has_parts(settings)
    crops = CropSettings(optimizer=settings.train.optimizer)
    step = crop_step_seconds(trunk.body, trunk.neck, crops, dense=dense, precision=_precision(settings))
    crop_epoch = count / crops.batch * step
    batch = settings.train.batch * settings.train.accumulate
    epoch = len(images) / batch * _detector_step_seconds(settings) * settings.train.accumulate
    whole = crop_epochs * crop_epoch + settings.train.epochs * epoch
    share = min(1.0, 60 * minutes * WORK / whole)
    fitted = {
        "crop_epochs": max(1, int(share * crop_epochs)) if crop_epochs else 0,
        "epochs": max(1, int(share * settings.train.epochs)),
    }
    write_whole(file, json.dumps({**fitted, "asked": asked}))
    return fitted


def _detector_step_seconds(settings: schema.Settings) -> float:
    """Seconds of a training step on one batch of noise, by two of them after one to warm up."""
    model = build_detector(without_weights(settings), ("a",)).train()
    optimizer = with_one_rate(settings.train.optimizer, model, settings.train.lr.backbone, settings.train.weight_decay)
    h, w = settings.data.size
    images = torch.randint(0, 256, (settings.train.batch, 3, h, w), dtype=torch.uint8)
    box = torch.tensor([[w / 4, h / 4, w / 2, h / 2]])
    targets = [{"boxes": box, "labels": torch.ones(1).long()} for _ in images]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        torch.stack(list(model(images, targets).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - started)
    return sum(times[1:]) / 2


def _other_recipe(place: Path) -> ConfigError:
    what, why = "it was made with other settings or data", "The file would be of two recipes"
    return ConfigError("PRETRAIN", what, where=str(place), why=why, fix="set another run.name, or move it away")


def _facts(file: Path) -> dict[str, str]:
    with safe_open(str(file), "pt") as f:
        return dict(f.metadata() or {})


def _trunk(settings: schema.Settings) -> BackboneWithNeck:
    """Backbone and pyramid of the detector to come, for crops."""
    of_crops = settings.model_copy(update={"data": settings.data.model_copy(update={"size": (SIDE, SIDE)})})
    trunk: BackboneWithNeck = build_detector(of_crops, ("a",)).backbone  # type: ignore[assignment]
    return trunk.to(memory_format=torch.channels_last)


def _has_parts(settings: schema.Settings) -> bool:
    return settings.data.render is not None and settings.data.render.parts


def _precision(settings: schema.Settings) -> str:
    return pick_precision(settings.train.precision, pick_device("cpu"))


def _train_backbone(
    settings: schema.Settings, file: Path, crop_settings: CropSettings, formulas: int, recipe: Mapping[str, str]
) -> None:
    started = time.perf_counter()
    trunk, facts = _trunk(settings), dict(recipe)
    if crop_settings.epochs:
        crops = cut_crops(open_splits(settings.data).train, seed=settings.run.seed, parts=_has_parts(settings))
        if formulas:
            crops = add_formulas(crops, formulas, seed=settings.run.seed)
        precision = _precision(settings)
        accuracy = train_on_crops(trunk.body, trunk.neck, crops, crop_settings, precision=precision)
        seconds = time.perf_counter() - started
        facts |= {"crops": str(len(crops.labels)), "crop_accuracy": f"{accuracy:.3f}", "crop_seconds": f"{seconds:.0f}"}
    tensors = {f"backbone.{key}": t for key, t in trunk.state_dict().items()}
    write_weights(file, tensors, facts | {"format": DETECTOR_FORMAT} | grid_entry(trunk.body.net))


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
        **grid_entry(loaded.model.backbone.body.net),  # type: ignore[union-attr,arg-type]
    }
    tensors = {
        key: t.half() if t.is_floating_point() else t
        for key, t in merge(loaded.model).state_dict().items()
        if not key.startswith(PREDICTORS)
    }
    write_weights(out, tensors, facts)
