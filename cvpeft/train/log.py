"""The log of a run: one json line for each record, a csv for spreadsheets, a text log, TensorBoard if asked."""

from __future__ import annotations

import csv
import io
import json
import logging
import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cvpeft.errors import ConfigError
from cvpeft.train.checkpoint import write_atomic

__all__ = ["RunLog", "environment", "log_to", "peak_memory"]


class RunLog:
    """Records of a run by step: metrics.jsonl while it runs, metrics.csv beside it.

    folder: the run folder. start: records from this step on are dropped first, as a resumed run writes them again.
    """

    def __init__(self, folder: Path, *, start: int = 0, tensorboard: bool = False) -> None:
        self.file = folder / "metrics.jsonl"
        self.records = [r for r in _read(self.file) if r["step"] <= start]
        write_atomic(self.file, "".join(json.dumps(r) + "\n" for r in self.records))
        self.writer = _tensorboard(folder) if tensorboard else None

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one record; floats are kept as they are."""
        record = {"step": step, **values}
        self.records.append(record)
        with self.file.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        if self.writer is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(key, value, step)

    def write_csv(self) -> None:
        """All records as one table; a column for every key that ever occurred."""
        columns = list(dict.fromkeys(key for r in self.records for key in r))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.records)
        write_atomic(self.file.with_suffix(".csv"), text.getvalue())


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    if lines and not lines[-1].endswith("}"):
        lines.pop()  # a kill in the middle of a line
    return [json.loads(line) for line in lines]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise ConfigError(
            "EXTRA", "train.tensorboard needs the package tensorboard", fix="pip install 'cvpeft[viz]'"
        ) from e
    return SummaryWriter(str(folder / "tensorboard"))


def environment(device: str) -> dict[str, Any]:
    """What the numbers of a run may depend on: versions, machine, threads."""
    packages = (
        "cvpeft",
        "torch",
        "torchvision",
        "timm",
        "albumentations",
        "pycocotools",
        "onnxruntime",
        "numpy",
        "pillow",
    )
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else "cpu",
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU, or on a CPU of the whole process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def log_to(file: Path) -> logging.Handler:
    """Send everything that cvpeft logs to `file` as well."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("cvpeft").addHandler(handler)
    return handler
