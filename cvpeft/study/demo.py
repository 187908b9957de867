"""The main job: LoRA on a rendered city from the base weights that ship, mAP, a proven ONNX file, pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cvpeft.detector.saved import run_folder
from cvpeft.errors import ConfigError
from cvpeft.study.job import export_job, predict_job, read_settings, train_job

__all__ = ["demo"]

T = TypeVar("T")
CONFIG = Path("configs/manhole_lora.yaml")
QUICK = (
    "run.name=manhole_lora_quick",
    "data.root=datasets/rendered/quick_b",
    "data.render.train=16",
    "data.render.val=8",
    "data.render.test=8",
    "train.epochs=2",
    "eval.latency_images=2",
    "export.verify_images=4",
)


def demo(*, quick: bool = False) -> Path:
    """Run configs/manhole_lora.yaml from data to ONNX and print where everything is; returns the run folder.

    quick: a few images and two epochs, which shows that the parts fit and nothing more.
    One that was broken off goes on where it stopped. ConfigError: it has run to its end here.
    """
    started = time.perf_counter()
    overrides = QUICK if quick else ()
    settings = read_settings(CONFIG, overrides)
    run = run_folder(settings)
    if (run / "pictures").exists():
        raise ConfigError("RUN", "the demo has run here", where=str(run), fix=f"look at it, or move {run.parent} away")
    if not (run / "eval" / "test" / "metrics.json").exists():
        _timed("data, training, evaluation", lambda: train_job(CONFIG, overrides))
    model = _timed("export and proof", lambda: export_job(run, "onnx", ()))
    test = settings.data.test[0].parent / "images"
    shown = [str(p) for p in sorted(test.glob("*_test_*.jpg"))[:8]]
    _timed("pictures", lambda: predict_job(model, shown, run / "pictures", None))
    print(
        f"\nthe whole demo took {time.perf_counter() - started:.0f} s\n"
        f"  data      {settings.data.test[0].parent}\n"
        f"  adapter   {run / 'adapter'}\n"
        f"  figures   {run / 'eval' / 'test' / 'metrics.json'}\n"
        f"  ONNX      {model}\n"
        f"  proof     {model.with_name('parity.json')}\n"
        f"  pictures  {run / 'pictures'}"
    )
    return run


def _timed(what: str, job: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = job()
    print(f"[{what}: {time.perf_counter() - started:.0f} s]")
    return result
