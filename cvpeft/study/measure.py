"""What training takes, measured: a few real steps on random images, in a process of its own.

`python -m cvpeft.study.measure CONFIG` is that process; its peak memory is its own, whatever its caller did before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from cvpeft.backbone.weights import DETECTOR_FORMAT
from cvpeft.config import schema
from cvpeft.config.load import dump, load
from cvpeft.data.loader import Batch, train_loader
from cvpeft.data.splits import open_splits
from cvpeft.data.transforms import build_augment
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.detector.device import pick_device, pick_precision
from cvpeft.errors import ResourceError
from cvpeft.export.run import write_weights
from cvpeft.peft.inject import signatures
from cvpeft.train.log import peak_memory
from cvpeft.train.loop import train

__all__ = ["Measured", "measure_training", "saved_bytes", "without_weights"]

STEPS = 2  # AdamW's moments are there from the second one on
BOXES = 3


@dataclass(frozen=True)
class Measured:
    """Memory in MiB.

    peak: of the training process, or what it took of the GPU. before: of the same process before there was a model;
    0 on a GPU. activations: what one forward pass keeps for the backward pass. device: where it ran.
    """

    peak: float
    before: float
    activations: float
    device: str


def measure_training(settings: schema.Settings, classes: Sequence[str]) -> Measured:
    """Train for two steps at the configured batch on random images with random weights, in a fresh process.

    ResourceError where that process dies; what it said last is told.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(dump(_prepared(settings, classes, Path(folder))), encoding="utf-8")
        command = [sys.executable, "-m", "cvpeft.study.measure", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own program)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        what = f"the training step that measures memory ended with {how}: {last}"
        raise ResourceError("MEASURE", what, why="mostly memory did not suffice", fix="lower train.batch or data.size")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _prepared(settings: schema.Settings, classes: Sequence[str], folder: Path) -> schema.Settings:
    """The same training on a data set of random images, in `folder`."""
    file = _random_data(folder, settings.data.size, classes, STEPS * settings.train.batch)
    run = schema.Run(name="run", dir=folder, seed=settings.run.seed)
    data = {"root": folder, "train": (file,), "val": (), "test": (), "render": None, "workers": 0}
    steps = {"epochs": 1, "accumulate": 1, "early_stop": 0, "save_every": 0, "tensorboard": False}
    return settings.model_copy(
        update={
            "run": run,
            "data": settings.data.model_copy(update={**data, "classes": tuple(classes)}),
            "backbone": settings.backbone.model_copy(update={"weights": _weights(settings, classes, folder)}),
            "train": settings.train.model_copy(update=steps),
        }
    )


def without_weights(settings: schema.Settings) -> schema.Settings:
    """The same detector with random weights, whatever its config wants: enough to count and to measure."""
    return settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"weights": "none"})})


def _weights(settings: schema.Settings, classes: Sequence[str], folder: Path) -> Path | Literal["none"]:
    """none; where methods stand in neck and head a random detector, as training wants a base there."""
    if settings.peft.scope == "backbone":
        return "none"
    file = folder / "base.safetensors"
    write_weights(file, build_detector(without_weights(settings), classes).state_dict(), {"format": DETECTOR_FORMAT})
    return file


def _random_data(folder: Path, size: tuple[int, int], classes: Sequence[str], count: int) -> Path:
    rng = np.random.default_rng(0)
    height, width = size
    side = min(size) // 4
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for i in range(1, count + 1):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((width, height)).save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for x, y in rng.integers(0, (width - side, height - side), (BOXES, 2)).tolist():
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            label = 1 + len(annotations) % len(classes)
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": label, **box})
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    file = folder / "train.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def saved_bytes(model: nn.Module, batch: Batch, *, precision: str) -> int:
    """Bytes that one forward pass keeps for the backward pass, the model's own tensors left out.

    model: a detector in train mode; batch: on its device. Views of one storage count once.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=precision == "bf16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model(batch.images, batch.targets)
        total = torch.stack([value.float() for value in losses.values()]).sum()
    assert (
        total.requires_grad
    )  # so that everything kept is still alive, and no storage was counted under a reused place
    return sum(kept.values())


def _activations(settings: schema.Settings, device: torch.device) -> int:
    """`saved_bytes` of the first training batch."""
    data = open_splits(settings.data).train
    augment = build_augment(settings.data.augment, settings.data.canvas or settings.data.size)
    loader = train_loader(
        data,
        settings.data.size,
        augment,
        batch=settings.train.batch,
        workers=0,
        seed=settings.run.seed,
        epochs=1,
        mosaic=settings.data.mosaic,
        canvas=settings.data.canvas,
    )
    batch = next(iter(loader))[2]
    model = build_detector(settings, data.classes)
    adapt(model, settings.peft)
    batch.images = batch.images.to(device)
    for target in batch.targets:
        target["boxes"], target["labels"] = target["boxes"].to(device), target["labels"].to(device)
    return saved_bytes(model.to(device).train(), batch, precision=pick_precision(settings.train.precision, device))


def _main(config: Path) -> None:
    before = psutil.Process().memory_info().rss / 2**20
    settings = load(config, methods=signatures())
    device = pick_device(settings.train.device)
    train(settings)
    peak = peak_memory(device)
    kept = _activations(settings, device) / 2**20
    on_gpu = device.type == "cuda"
    print(json.dumps(asdict(Measured(peak, 0.0 if on_gpu else before, kept, str(device)))))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
