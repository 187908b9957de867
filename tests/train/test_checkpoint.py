"""Resume states on disks that fill up, fail and rot."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvpeft.errors import CheckpointError, ResourceError
from cvpeft.files import sweep
from cvpeft.train import checkpoint
from cvpeft.train.checkpoint import (
    State,
    copy_folder,
    load_state,
    optimizer_tensors,
    require_space,
    restore_optimizer,
    save_state,
)


def state(value: float) -> State:
    tensors = {"model": {"w": torch.full((4, 3), value)}, "ema": {"w": torch.zeros(3)}, "optimizer": {}}
    return State(tensors, {"step": value, "sums": {"loss": 0.1 + 0.2}})


def value(folder: Path) -> float:
    found = load_state(folder)
    assert found
    assert found[0].tensors["model"]["w"].unique().item() == found[0].values["step"]
    return float(found[0].values["step"])


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    assert load_state(tmp_path / "last") is None
    save_state(tmp_path / "last", state(1.0))
    save_state(tmp_path / "last", state(2.0))
    found = load_state(tmp_path / "last")
    assert found
    assert found[1].name == "last"
    assert found[0].values == {"step": 2.0, "sums": {"loss": 0.30000000000000004}}
    assert found[0].tensors["optimizer"] == {}
    shutil.rmtree(tmp_path / "last")
    assert value(tmp_path / "last") == 1.0


def test_only_one_is_kept_where_only_one_is_wanted(tmp_path: Path) -> None:
    for i in (1.0, 2.0, 3.0):
        save_state(tmp_path / "last", state(i), keep=False)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


class Fails:
    """Raises an OSError at the n-th call; counts otherwise."""

    def __init__(self, real: Callable[..., Any], at: int, number: int) -> None:
        self.real, self.at, self.number, self.calls = real, at, number, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **kwargs)


def bound(fails: Fails) -> Callable[..., Any]:
    return lambda *args, **kwargs: fails(*args, **kwargs)  # a function, so that a class binds it as a method


def refusal(folder: Path, new: State) -> ResourceError | None:
    try:
        save_state(folder, new)
    except ResourceError as error:
        return error
    return None


WRITES: list[tuple[Any, str]] = [
    (checkpoint, "save_file"), (Path, "write_text"), (Path, "mkdir"), (os, "replace"), (os, "fsync"),
    (checkpoint, "_sha256"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name"), WRITES, ids=[name for _, name in WRITES])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_write_that_fails_leaves_a_state_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    folder = tmp_path / "last"
    save_state(folder, state(1.0))
    points = 0
    for at in range(1, 30):
        fails = Fails(getattr(owner, name), at, number)
        before = value(folder)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, bound(fails))
            error = refusal(folder, state(before + 1))
        if error:
            points += 1
            assert error.exit_code == 4
            assert error.code == ("DISK" if number == errno.ENOSPC else "WRITE")
            assert os.strerror(number) in str(error)
            assert "MB free" in str(error)
        if fails.calls < at:
            break
        assert value(folder) in (before, before + 1)  # the later one where its last sync failed
        sweep(tmp_path)
        assert not list(tmp_path.glob("*.part"))
        save_state(folder, state(value(folder)))
    assert points > 0


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    save_state(small_disk / "last", state(1.0))
    large = State({"model": {"w": torch.zeros(2_000_000)}}, {"step": 2.0})
    with pytest.raises(ResourceError, match=r"E-DISK .*last cannot be written \(.*No space left on device.*MB free\)"):
        save_state(small_disk / "last", large)
    assert value(small_disk / "last") == 1.0
    assert sorted(p.name for p in small_disk.iterdir()) == ["last"]
    with pytest.raises(ResourceError, match="need about 5 MB for its states, 1 MB are free"):
        require_space(small_disk, 5 * 2**20)
    require_space(small_disk, 2**18)


def mutated(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    kind = rng.choice(["flip", "cut", "insert", "delete", "zero", "empty"])
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
    if kind == "delete":
        return content[:at] + content[at + rng.randrange(1, 9) :]
    return content[:at] + b"\0" * (len(content) - at) if kind == "zero" else b""


def mutate(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "last"
    save_state(folder, state(1.0))
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    rng = random.Random(0)
    for _ in range(count):
        file = rng.choice(list(whole))
        content = mutated(whole[file], rng)
        if content == whole[file] or (file.suffix == ".json" and _same_json(content, whole[file])):
            continue
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="E-STATE"):
            load_state(folder)
        file.write_bytes(whole[file])
    assert value(folder) == 1.0


def _same_json(one: bytes, other: bytes) -> bool:
    """White space in the manifest changes nothing."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_a_changed_state_is_never_loaded(tmp_path: Path) -> None:
    mutate(tmp_path, 200)


@pytest.mark.slow
def test_a_hundred_thousand_changed_states_are_never_loaded(tmp_path: Path) -> None:
    mutate(tmp_path, 100_000)


def test_an_absent_file_and_a_foreign_one_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save_state(folder, state(1.0))
    (folder / "ema.safetensors").rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"manifest\.json names other files"):
        load_state(folder)
    (tmp_path / "kept").rename(folder / "ema.safetensors")
    (folder / "extra.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"manifest\.json names other files"):
        load_state(folder)


def test_a_damaged_newest_state_is_set_aside_and_cannot_push_out_the_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save_state(folder, state(1.0))
    save_state(folder, state(2.0))
    (folder / "manifest.json").write_text("{")
    assert value(folder) == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last-1", "last.damaged"]
    save_state(folder, state(3.0))
    shutil.rmtree(folder)
    assert value(folder) == 1.0


def test_a_folder_is_copied_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "best", tmp_path / "adapter"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_text("new")
    target.mkdir()
    (target / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", Fails(shutil.copyfile, 2, errno.ENOSPC))
        with pytest.raises(ResourceError, match="adapter cannot be written"):
            copy_folder(source, target)
    assert {p.name: p.read_text() for p in target.iterdir()} == {"a": "old"}
    copy_folder(source, target)
    assert {p.name: p.read_text() for p in target.iterdir()} == {"a": "new", "b": "new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "best"]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int) -> None:
    for i in range(start, start + count):
        optimizer.zero_grad()
        model(torch.full((2, 3), float(i))).square().sum().backward()
        optimizer.step()


def test_the_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        groups = [{"params": [model[1].weight, model[0].weight], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.2}]
        return model, torch.optim.AdamW(groups)

    one, through = fresh()
    steps(one, through, 5, 0)
    first, before = fresh()
    steps(first, before, 2, 0)
    second, after = fresh()
    second.load_state_dict(first.state_dict())
    moments: dict[str, Tensor] = optimizer_tensors(before)
    save_state(tmp_path / "last", State({"optimizer": moments}, {}))
    found = load_state(tmp_path / "last")
    assert found
    restore_optimizer(after, found[0].tensors["optimizer"])
    steps(second, after, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), second.parameters(), strict=True))


def test_moments_come_back_in_the_memory_order_of_their_weights(tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        model(torch.linspace(0, number, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()

    first, before = fresh()
    for number in (1, 2):
        step(first, before, number)
    save_state(tmp_path / "last", State({"optimizer": optimizer_tensors(before)}, {}))
    second, after = fresh()
    second.load_state_dict(first.state_dict())
    found = load_state(tmp_path / "last")
    assert found
    restore_optimizer(after, found[0].tensors["optimizer"])
    mine, theirs = optimizer_tensors(after), optimizer_tensors(before)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert {key: t.stride() for key, t in mine.items()} == {key: t.stride() for key, t in theirs.items()}
    step(first, before, 3)
    step(second, after, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("text", ["null", "5", "[]", '"a"', '{"state.json": 3, "model.safetensors": 1}'])
def test_a_manifest_that_is_no_list_of_files_falls_back(tmp_path: Path, text: str) -> None:
    for number in (1.0, 2.0):
        save_state(tmp_path / "last", state(number))
    (tmp_path / "last" / checkpoint.MANIFEST).write_text(text)
    found = load_state(tmp_path / "last")
    assert found
    assert found[1].name == "last-1"
