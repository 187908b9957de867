"""The run folder: made once, never overwritten, entered by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from cvpeft.config import schema
from cvpeft.config.load import dump, load
from cvpeft.detector.saved import CONFIG, RESOLVED, run_folder
from cvpeft.errors import ConfigError, ResourceError
from cvpeft.files import TEMP, write_whole
from cvpeft.train.log import environment

__all__ = ["data_digest", "is_finished", "locked", "open_run", "record", "same_run"]

LOCK = ".lock"
RESULTS = ("last", "last-1", "best", "adapter")  # what took time to make


@contextmanager
def open_run(settings: schema.Settings) -> Iterator[Path]:
    """The run folder for these settings, locked while the block runs.

    A new one gets the resolved config before anything else, and so does one that never came to a first state, which is
    begun anew. An unfinished one of the same settings is given as it is (what does not touch the result may differ,
    such as data.workers) until `record`. ConfigError: it holds another run, a finished one, or something else.
    """
    folder, text = run_folder(settings), dump(settings)
    with locked(folder, "another process trains in this folder", "choose another run.name"):
        _check(folder, settings)
        if not _has_results(folder) and _text(folder / RESOLVED) != text:
            write_whole(folder / RESOLVED, text)
        yield folder


def record(settings: schema.Settings, folder: Path, device: torch.device, precision: str) -> None:
    """config.resolved.yaml and env.json, where they do not say this already.

    For the moment before the first step: a run that is refused until then leaves both as they were.
    """
    said = {"env.json": json.dumps(environment(device, precision), indent=1), RESOLVED: dump(settings)}
    for name, text in said.items():
        if _text(folder / name) != text:
            write_whole(folder / name, text)


@contextmanager
def locked(folder: Path, taken: str, instead: str) -> Iterator[None]:
    """Hold a folder while the block runs, and make it if need be; ResourceError where another process holds it.

    The lock is the process's own: loader workers that outlive it do not hold it. taken, instead: what the error says.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / LOCK).open("a"))
        except OSError as e:
            what = f"the folder cannot be made ({e.strerror})"
            raise ResourceError("WRITE", what, where=str(folder), fix=f"permit writing there, or {instead}") from e
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise ResourceError("LOCK", taken, where=str(folder), fix=f"wait, or {instead}") from e
        yield


def _check(folder: Path, settings: schema.Settings) -> None:
    other = "choose another run.name, or move the folder away"
    if not (folder / RESOLVED).is_file():
        if any(f.name not in (LOCK, "env.json") and f.suffix != TEMP for f in folder.iterdir()):
            raise ConfigError("RUN", "the folder holds something that is no run", where=str(folder), fix=other)
        return
    if _has_results(folder) and not _may_go_on(folder / RESOLVED, settings):
        raise ConfigError(
            "RUN",
            "the folder holds a run of another config",
            where=str(folder),
            why="it would be overwritten",
            fix=other,
        )
    if is_finished(folder):
        raise ConfigError("RUN", "this run is finished", where=str(folder), why="it would be overwritten", fix=other)


def _has_results(folder: Path) -> bool:
    return any((folder / name).exists() for name in RESULTS)


def same_run(resolved: Path, settings: schema.Settings) -> bool:
    """Whether a resolved config says the same as `settings`: settings that came later than it count as their defaults.

    What does not touch the result (workers, when state is saved) may differ.
    """
    if _text(resolved) == dump(settings):
        return True
    try:
        return _essence(load(resolved)) == _essence(settings)
    except ConfigError:  # damaged, or of a version with other settings
        return False


def _may_go_on(resolved: Path, settings: schema.Settings) -> bool:
    """Whether it is the same run but for device and number type: the state holds what auto came to."""
    try:
        train = load(resolved).train
    except ConfigError:
        return same_run(resolved, settings)
    as_before = {"device": train.device, "precision": train.precision}
    return same_run(resolved, settings.model_copy(update={"train": settings.train.model_copy(update=as_before)}))


def _essence(s: schema.Settings) -> schema.Settings:
    """The settings without those that do not touch the result."""
    data = s.data.model_copy(update={"workers": 0})
    train = s.train.model_copy(update={"save_every": 0, "tensorboard": False})
    return s.model_copy(update={"data": data, "train": train})


def is_finished(folder: Path) -> bool:
    """Whether training in this folder came to its end.

    Its last state says so. Where that was deleted, or left out of a copy, the adapter does, which is made at the end.
    """
    if not any((folder / name).exists() for name in ("last", "last-1")):
        return (folder / "adapter" / CONFIG).is_file()
    try:
        return bool(json.loads((folder / "last" / "state.json").read_text())["progress"]["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no state yet, or a damaged one, which load_state tells


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def data_digest(data: schema.Data) -> str:
    """sha256 over the bytes of all json files of a config, in order."""
    digest = hashlib.sha256()
    for file in (*data.train, *data.val, *data.test):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
