"""No method is silently dead: each learns eight pictures by heart, and what it learned is in its own tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cvpeft.config import schema
from cvpeft.data.coco import load_coco
from cvpeft.data.loader import eval_loader
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.detector.saved import load_run
from cvpeft.eval.evaluate import evaluate
from cvpeft.export.run import export_onnx_run
from cvpeft.peft.adapter import Dense
from cvpeft.peft.inject import methods
from cvpeft.peft.state import disabled, owned
from cvpeft.train.loop import train
from tests.helpers import CLASSES, SIZE, ellipses, settings

EPOCHS = 150  # of one step
# Methods whose few numbers move little at the rate of the others, as their files say.
RATES = {"vera": 3e-2, "prefix": 3e-2}


def overfit(folder: Path, method: str, backbone: str) -> schema.Settings:
    ellipses(folder, 8)
    return settings(
        folder,
        data={"augment": "none", "val": (folder / "train.json",)},
        backbone={"name": backbone, "neck_width": 32},
        peft={"methods": (schema.Method(name=method),)},
        detector={"head_width": 64, "rois_per_image": 32, "proposals": 100},
        export={"verify_images": 8},
        train={
            "epochs": EPOCHS,
            "eval_every": EPOCHS,
            "batch": 8,
            "ema": 0.0,
            "lr": schema.LearningRates(adapter=RATES.get(method, 3e-3), neck=2e-3, head=2e-3),
        },
    )


def loss(model: nn.Module, data: schema.Settings) -> float:
    """The detector's loss on the eight pictures, drawn proposals and all from one seed."""
    batch = next(iter(eval_loader(load_coco(data.data.train, classes=CLASSES), SIZE, batch=8, workers=0)))
    torch.manual_seed(0)
    with torch.no_grad():
        losses: dict[str, Tensor] = model.train()(batch.images, batch.targets)
    model.eval()
    return float(sum(losses.values()))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(methods()))
def test_a_method_learns_eight_pictures_and_is_exported(method: str, tmp_path: Path) -> None:
    folder = check(overfit(tmp_path, method, "vit_tiny_patch16_224"))
    proof = json.loads((export_onnx_run(folder).parent / "parity.json").read_text())["unmerged_onnx"]
    assert proof["boxes"] >= 8
    assert proof["missing"] == proof["extra"] == 0


def test_lora_learns_eight_pictures(tmp_path: Path) -> None:
    """The one of them that every check runs."""
    check(overfit(tmp_path, "lora", "convnext_atto"))


def check(s: schema.Settings) -> Path:
    """Train and judge; returns the run's folder."""
    start = build_detector(s, CLASSES)
    adapt(start, s.peft, seed=s.run.seed)
    folder = train(s)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    course = [line["loss"] for line in lines if "loss" in line]
    assert min(course[-5:]) < 0.2 * course[0]
    model = load_run(folder).model
    report, _ = evaluate(model, load_coco(s.data.train, classes=CLASSES), s)
    assert report["coco"]["AP50"] >= 0.9
    before = owned(start)
    for key, tensor in owned(model).items():
        assert tensor.requires_grad == before[key].requires_grad
        assert not tensor.requires_grad or not torch.equal(tensor, before[key]), key
    with_it = loss(model, s)
    with disabled(model, only=lambda adapter: type(adapter) is not Dense):
        assert loss(model, s) > 1.2 * with_it
    return folder
