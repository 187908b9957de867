"""The run folder: made once, never overwritten, entered by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvpeft.config import schema
from cvpeft.config.load import dump
from cvpeft.detector.saved import RESOLVED, run_folder
from cvpeft.errors import ConfigError, ResourceError
from cvpeft.train.checkpoint import write_atomic
from cvpeft.train.log import environment

__all__ = ["data_digest", "is_finished", "open_run"]


@contextmanager
def open_run(settings: schema.Settings) -> Iterator[Path]:
    """The run folder for these settings, locked while the block runs.

    A new one gets the resolved config and the environment before anything else. An unfinished one of the same settings
    is given as it is. ConfigError: it holds another run, a finished one, or something else.
    """
    folder = run_folder(settings)
    _check(folder, dump(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResourceError("WRITE", f"cannot make the run folder ({e.strerror})", where=str(folder)) from e
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise ResourceError(
                "LOCK",
                "another process trains in this folder",
                where=str(folder),
                fix="wait, or choose another run.name",
            ) from e
        if not (folder / RESOLVED).exists():
            write_atomic(folder / "env.json", json.dumps(environment(settings.train.device), indent=1))
            write_atomic(folder / RESOLVED, dump(settings))
        yield folder


def _check(folder: Path, text: str) -> None:
    resolved = folder / RESOLVED
    other = "choose another run.name, or move the folder away"
    if not resolved.exists():
        if folder.exists() and any(f.name not in (".lock", "env.json") for f in folder.iterdir()):
            raise ConfigError("RUN", "the folder holds something that is no run", where=str(folder), fix=other)
        return
    if resolved.read_text(encoding="utf-8") != text:
        raise ConfigError(
            "RUN",
            "the folder holds a run of another config",
            where=str(folder),
            why="it would be overwritten",
            fix=other,
        )
    if is_finished(folder):
        raise ConfigError("RUN", "this run is finished", where=str(folder), why="it would be overwritten", fix=other)


def is_finished(folder: Path) -> bool:
    """Whether training in this folder came to its end."""
    state = folder / "last" / "state.json"
    return state.exists() and bool(json.loads(state.read_text())["progress"]["finished"])


def data_digest(data: schema.Data) -> str:
    """sha256 over the bytes of all json files of a config, in order."""
    digest = hashlib.sha256()
    for file in (*data.train, *data.val, *data.test):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
