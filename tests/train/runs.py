"""Running, ending and comparing whole runs."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cvpeft.train import loop
from tests.helpers import ellipses

MEASURED = {"seconds", "peak_memory_mb"}  # columns that differ from run to run


def make_data(folder: Path) -> None:
    """Five photos to train on, one of them without boxes, and three of val."""
    ellipses(folder, 5, negatives=1)
    ellipses(folder, 3, name="val")


def outcome(run: Path) -> dict[str, Any]:
    """All that must be equal between an interrupted and an uninterrupted run."""
    names = ("model", "ema", "optimizer", "rng", "methods")  # the last is there where methods remember something
    files = [file for name in names if (file := run / "last" / f"{name}.safetensors").exists() or name != "methods"]
    files += [run / "adapter" / "adapter_model.safetensors"]
    return {str(f.relative_to(run)): _digest(f) for f in files} | {
        "records": records(run),
        "config": json.loads((run / "adapter" / "adapter_config.json").read_text()),
        "leftovers": sorted(str(f.relative_to(run)) for f in run.rglob("*") if f.suffix in (".part", ".tmp")),
    }


def _digest(file: Path) -> str:
    """Of the tensors: safetensors writes its metadata in any order."""
    digest = hashlib.sha256()
    for key, tensor in sorted(load_file(file).items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal while it computes the given step, counted from 1."""
    real = loop._step

    def step_and_signal(t: Any, batches: Any) -> dict[str, float]:
        if t.progress.step + 1 == step:
            os.kill(os.getpid(), signum)
        return real(t, batches)

    monkeypatch.setattr(loop, "_step", step_and_signal)


def in_child(job: Callable[[], Any], *, kill_after: float | None = None) -> int:
    """Run `job` in a forked process; 0, or its exit code, or minus the signal that ended it.

    kill_after: seconds of its own computing time, however busy the machine is, after which it ends without a word, as
    by kill -9.
    """
    child = multiprocessing.get_context("fork").Process(target=_run, args=(job, kill_after))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def _run(job: Callable[[], Any], kill_after: float | None) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    if kill_after is not None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, kill_after)
    job()
