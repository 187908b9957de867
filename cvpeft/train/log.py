"""The log of a run: one json line for each record, a csv for spreadsheets, a text log, TensorBoard if asked."""

from __future__ import annotations

import csv
import io
import json
import logging
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cvpeft.detector.device import processor
from cvpeft.errors import ConfigError, ResourceError
from cvpeft.files import write_whole
from cvpeft.train.memory import process_peak

__all__ = ["RunLog", "environment", "log_to", "peak_memory"]

log = logging.getLogger(__name__)


class RunLog:
    """Records of a run by step: metrics.jsonl while it runs, metrics.csv beside it.

    folder: the run folder. keep: records that the resume state knows of; later ones are dropped, as a resumed run
    writes them again. step: the step from which it does.
    A log that cannot be written is a warning: it must not end a run.
    """

    def __init__(self, folder: Path, *, keep: int = 0, step: int = 0, tensorboard: bool = False) -> None:
        self.file = folder / "metrics.jsonl"
        self.records = _read(self.file)[:keep]
        self._write()
        self.board = _Board(folder, step) if tensorboard else None

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one record; floats are kept as they are."""
        self.records.append({"step": step, **values})
        self._write()
        if self.board is not None:
            self.board.add(step, values)

    def _write(self) -> None:
        _try_write(self.file, "".join(json.dumps(r) + "\n" for r in self.records))

    def close(self) -> None:
        """Write all records as one table too, with a column for every key that ever occurred."""
        columns = list(dict.fromkeys(key for r in self.records for key in r))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.records)
        _try_write(self.file.with_suffix(".csv"), text.getvalue())
        if self.board is not None:
            self.board.close()


def _read(file: Path) -> list[dict[str, Any]]:
    """The records up to the first line that is no whole record; none where there is no file."""
    records: list[dict[str, Any]] = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        return records
    return records


def _try_write(file: Path, text: str) -> None:
    try:
        write_whole(file, text)
    except ResourceError as e:
        log.warning("%s", e)


class _Board:
    """TensorBoard's events from `step` on, until they cannot be written: then one warning, and no more of them."""

    def __init__(self, folder: Path, step: int) -> None:
        make = _tensorboard()
        self.writer: Any = None
        with self._until_it_fails():
            self.writer = make(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        with self._until_it_fails():
            for key, value in values.items():
                if self.writer is not None and isinstance(value, int | float):
                    self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        with self._until_it_fails():
            if self.writer is not None:
                self.writer.close()

    @contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:  # its thread's, or its own
            self.writer = None
            log.warning("TensorBoard's events cannot be written (%s): the run goes on without them", e)


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise ConfigError(
            "EXTRA", "train.tensorboard needs the package tensorboard", fix="pip install 'cvpeft[viz]'"
        ) from e
    return SummaryWriter


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What the numbers of a run may depend on: versions, machine, threads, number type."""
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
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision,
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    """None where it is installed under another name, as onnxruntime-gpu is, or stands on the path alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU, or on a CPU that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return process_peak()


class _LogFile(logging.FileHandler):
    """A file that may be on a full disk: one warning for all lines that are not in it."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True  # first, as the warning comes here too
            log.warning("%s cannot be written (%s): the run goes on, its log lacks lines", self.baseFilename, error)

    def close(self) -> None:
        with suppress(OSError):  # of lines that are still to be written
            super().close()


def log_to(file: Path) -> logging.Handler:
    """Send everything that cvpeft logs to `file` as well, as long as it can be written."""
    handler: logging.Handler
    try:
        handler = _LogFile(file, encoding="utf-8")
    except OSError as e:
        log.warning("%s cannot be written (%s): the run goes on without it", file, e)
        return logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("cvpeft").addHandler(handler)
    return handler
