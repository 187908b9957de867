"""Resume states that survive a kill or a full disk at any moment.

A state is a folder: safetensors, state.json, and manifest.json with the sha256 of each, written last. It is written
under another name, synced, and only then takes its place; the one before stays as `last-1`. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from cvpeft.errors import CheckpointError, ResourceError
from cvpeft.files import TEMP, sync, unwritable

__all__ = [
    "State", "copy_folder", "load_state", "optimizer_tensors", "require_space", "restore_optimizer", "save_state",
]  # fmt: skip

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class State:
    """What a run needs to go on as if it had never stopped.

    tensors: groups of named tensors, such as "model", "ema", "optimizer", "rng".
    values: json values such as epoch and step.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


def save_state(folder: Path, state: State, *, keep: bool = True) -> None:
    """Write `state` to `folder`; the state that stood there becomes `folder-1` (or goes, with keep=False).

    ResourceError where the disk refuses; the old state is then untouched.
    """
    temp = folder.with_name(folder.name + TEMP)
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        for group, tensors in state.tensors.items():
            save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items()}, temp / f"{group}.safetensors")
        (temp / "state.json").write_text(json.dumps(dict(state.values), indent=1))
        (temp / MANIFEST).write_text(json.dumps({f.name: _sha256(f) for f in sorted(temp.iterdir())}, indent=1))
        for file in temp.iterdir():
            sync(file)
        sync(temp)
        _take_place(temp, folder, keep=keep)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temp, ignore_errors=True)  # its room may be what is missing
        raise _disk_error(e, folder) from e


def _take_place(temp: Path, folder: Path, *, keep: bool) -> None:
    previous = folder.with_name(folder.name + "-1")
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(folder, previous)  # a kill right here leaves `previous`, which load_state then takes
    os.replace(temp, folder)
    if not keep:
        shutil.rmtree(previous, ignore_errors=True)
    sync(folder.parent)


def load_state(folder: Path) -> tuple[State, Path] | None:
    """The newest whole state at `folder` or `folder-1`, and where it was; None where there never was one.

    A damaged `folder` is told and set aside as `folder.damaged`, or it would take the place of the whole `folder-1`.
    CheckpointError where there are states but none is whole.
    """
    faults: list[str] = []
    for place in (folder, folder.with_name(folder.name + "-1")):
        if not place.exists():
            continue
        try:
            state = _read(place)
        except (OSError, ValueError, SafetensorError) as e:
            faults.append(f"{place.name}: {e}")
            continue
        if faults:
            log.warning("%s is damaged (%s): going on from %s", folder, faults[0], place.name)
            _set_aside(folder)
        return state, place
    if faults:
        raise CheckpointError(
            "STATE",
            f"no whole resume state ({'; '.join(faults)})",
            where=str(folder),
            why="going on from a damaged state would change the result",
            fix="start again under another run.name",
        )
    return None


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)


def _read(folder: Path) -> State:
    manifest = json.loads((folder / MANIFEST).read_text())
    if not isinstance(manifest, dict):
        raise ValueError(f"{MANIFEST} is no object")
    if sorted(manifest) != sorted(f.name for f in folder.iterdir() if f.name != MANIFEST):
        raise ValueError(f"{MANIFEST} names other files")
    for name, digest in manifest.items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} was changed or is not whole")
    groups = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    return State(groups, json.loads((folder / "state.json").read_text()))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments as named tensors: "{index of the parameter}.{name of the moment}"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": t for i, moments in state.items() for name, t in moments.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the moments of `optimizer_tensors` back; learning rates come from the schedule.

    A state holds tensors in plain order. Moments lie in memory as their parameter does, as before: a step goes through
    both in one order.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, t in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = t
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, moments in optimizer.state.items():
        for name, t in moments.items():
            if t.shape == parameter.shape and t.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter, dtype=t.dtype, requires_grad=False).copy_(t)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a folder; `target` is absent, the old one or the whole new one, never a part."""
    temp = target.with_name(target.name + TEMP)
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir()
        for file in source.iterdir():
            sync(shutil.copyfile(file, temp / file.name))
        sync(temp)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temp, target)
    except OSError as e:
        shutil.rmtree(temp, ignore_errors=True)
        raise _disk_error(e, target) from e


def require_space(folder: Path, needed: int) -> None:
    """ResourceError where fewer than `needed` bytes are free: better before the first step than after many."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"the run will need about {needed / 2**20:.0f} MB for its states, {free / 2**20:.0f} MB are free"
        raise ResourceError("DISK", what, where=str(folder), fix="make room, or set run.dir to another disk")


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _disk_error(e: OSError | SafetensorError, place: Path) -> ResourceError:
    return unwritable(e, place.parent, place.name, why="The state before it is safe")
