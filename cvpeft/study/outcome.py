"""What one training took and reached, read from its run folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open

from cvpeft.config import schema
from cvpeft.data.splits import open_split
from cvpeft.detector.saved import WEIGHTS, read_config
from cvpeft.errors import CheckpointError
from cvpeft.eval.coco_map import resampled

__all__ = ["PARTS", "Outcome", "read_outcome"]

PARTS = ("adapter", "backbone", "neck", "head")


@dataclass(frozen=True)
class Outcome:
    """One training.

    methods: names of the methods. adapter, backbone, neck, head: trained parameters. file_mib: of the adapter's
    safetensors. seconds: of training, the evaluations left out; step_seconds: of one step of them. peak_memory_mib: of
    the process, or of the GPU. epoch: the one that val chose; 0 without val. machine: what it ran on.
    samples: (S, 2) AP and AP50 on the same images drawn anew with replacement, S times.
    """

    mode: str
    methods: str
    seed: int
    adapter: int
    backbone: int
    neck: int
    head: int
    file_mib: float
    AP: float
    AP50: float
    seconds: float
    step_seconds: float
    peak_memory_mib: float
    epoch: int
    machine: str
    samples: np.ndarray = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.mode}-seed{self.seed}"


def read_outcome(folder: Path, mode: str, settings: schema.Settings, split: str) -> Outcome:
    """What the run of these settings in `folder` reached on val or test; CheckpointError where it has no figures."""
    meta = read_config(folder / "adapter")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [record for record in records if "seconds" in record]
    figures = folder / "eval" / "test" / "metrics.json"
    stats = json.loads(figures.read_text(encoding="utf-8"))["coco"] if split == "test" else meta.get("val")
    if not training or not stats or stats["AP"] is None:
        what = "the run has no figures: it logged no epoch, or there is no box to find"
        raise CheckpointError("FIGURES", what, where=str(folder), fix=f"look at its metrics.jsonl and at data.{split}")
    seconds = training[-1]["seconds"]
    return Outcome(
        mode=mode,
        methods=" ".join(method.name for method in settings.peft.methods),
        seed=settings.run.seed,
        **_parameters(folder / "adapter" / WEIGHTS, meta["tensors"], meta.get("untrained", ())),
        file_mib=(folder / "adapter" / WEIGHTS).stat().st_size / 2**20,
        AP=stats["AP"],
        AP50=stats["AP50"],
        seconds=seconds,
        step_seconds=seconds / max(1, training[-1]["step"]),
        peak_memory_mib=max(record["peak_memory_mb"] for record in training),
        epoch=meta.get("val", {}).get("epoch", 0),
        machine=_machine(folder / "env.json"),
        samples=_samples(folder, settings, split, meta["classes"]),
    )


def _samples(folder: Path, settings: schema.Settings, split: str, classes: Sequence[str]) -> np.ndarray:
    truth = open_split(settings.data, split, tuple(classes)).ground_truth()
    found = json.loads((folder / "eval" / split / "predictions.json").read_text(encoding="utf-8"))
    return resampled(truth, found)


def _machine(file: Path) -> str:
    if not file.exists():
        return ""
    env = json.loads(file.read_text(encoding="utf-8"))
    return (
        f"{env['processor']}, {env['threads']} threads, device {env['device']}, {env['precision']}, "
        f"Python {env['python']}, torch {env['versions']['torch']}, cvpeft {env['versions']['cvpeft']}"
    )


def _parameters(file: Path, tensors: Mapping[str, Sequence[str]], untrained: Collection[str]) -> dict[str, int]:
    """Part -> number of trained parameters in the adapter file, by its header alone."""
    with safe_open(file, framework="np") as source:
        slices = {key: source.get_slice(key) for keys in tensors.values() for key in keys if key not in untrained}
    sizes = {key: _count(s.get_shape()) for key, s in slices.items() if s.get_dtype().startswith("F")}
    return {part: sum(sizes.get(key, 0) for key in tensors.get(part, ())) for part in PARTS}


def _count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
