"""An interrupted run ends in the very state of one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cvpeft.config import schema
from cvpeft.errors import CheckpointError, ConfigError
from cvpeft.train import checkpoint, loop
from cvpeft.train.folder import is_finished
from tests.helpers import ellipses, settings

from .runs import in_child, outcome, records, stop_at, train_to_the_end

SMALL = {"name": "convnext_atto", "weights": "none", "neck_width": 16}
VIT = {"name": "vit_tiny_patch16_224", "weights": "none", "neck_width": 16}


def method(name: str, **values: Any) -> dict[str, Any]:
    return {"methods": (schema.Method(name=name, settings=values),)}


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {"peft": method("lora", rank=2, dropout=0.3)},
    "lora-accumulate": {"peft": method("lora", rank=2), "train": {"batch": 1, "accumulate": 2}, "data": {"workers": 1}},
    "vpt": {"backbone": VIT, "peft": method("vpt", tokens=2, dropout=0.2), "train": {"ema": 0.0}},
    "full": {"peft": {"mode": "full", "methods": ()}, "backbone": {**SMALL, "drop_path": 0.2}},
    "frozen-bf16": {
        "peft": {"mode": "frozen", "methods": ()}, "train": {"precision": "bf16", "frozen_dtype": "compute"},
        "detector": {"head": "retinanet"},
    },
}  # fmt: skip


def both(data: Path, name: str, case: str, **train: Any) -> tuple[schema.Settings, schema.Settings]:
    """The settings of a run to be interrupted and of one that is not."""
    sections = {key: dict(values) for key, values in CASES[case].items()}
    sections["train"] = {"save_every": 1, **sections.get("train", {}), **train}
    return settings(data, run={"name": name}, **sections), settings(data, run={"name": "whole"}, **sections)


def same(run: Path, whole: Path) -> None:
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_stopped_by_a_signal_ends_in_the_same_weights(
    data: Path, monkeypatch: pytest.MonkeyPatch, case: str, cut: int
) -> None:
    cut_up, whole = both(data, "cut", case)
    with monkeypatch.context() as patch:
        stop_at(patch, cut)
        with pytest.raises(loop.Interrupted) as caught:
            loop.train(cut_up)
    assert caught.value.exit_code == 143
    state = json.loads((data / "runs/cut/last/state.json").read_text())
    assert state["progress"]["step"] == cut
    torch.manual_seed(1234)  # nothing may depend on what the process did before
    same(loop.train(cut_up), loop.train(whole))


def test_a_signal_in_the_middle_of_an_accumulated_step_loses_no_batch(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_up, whole = both(data, "cut", "lora-accumulate")
    real = loop.train_loader

    def signalling(*args: Any, **kwargs: Any) -> Any:
        for epoch, number, batch in real(*args, **kwargs):
            if (epoch, number) == (0, 1):  # the second of the two batches of the first step
                os.kill(os.getpid(), signal.SIGTERM)
            yield epoch, number, batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_loader", signalling)
        with pytest.raises(loop.Interrupted):
            loop.train(cut_up)
    assert json.loads((data / "runs/cut/last/state.json").read_text())["progress"]["batch"] == 0
    same(loop.train(cut_up), loop.train(whole))


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_signal_during_evaluation_is_obeyed_and_the_evaluation_made_again(
    data: Path, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    cut_up, whole = both(data, "cut", "lora", save_every=save_every)
    real = loop.predict

    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "predict", signalled)
        with pytest.raises(loop.Interrupted) as caught:
            loop.train(cut_up)
    assert caught.value.exit_code == 130
    assert len(records(data / "runs/cut")) == 1  # the losses of the epoch, no figures yet
    same(loop.train(cut_up), loop.train(whole))


def test_a_second_signal_stops_at_once(data: Path) -> None:
    trainer = loop.Trainer(settings(data), data, *[None] * 6)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt), loop._signals(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        assert trainer.signum == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


class Dies:
    """Ends the process, as kill -9 would, at the n-th call of a function."""

    def __init__(self, real: Callable[..., Any], count: int) -> None:
        self.real, self.count = real, count

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count -= 1
        if self.count < 0:
            os._exit(9)
        return self.real(*args, **kwargs)


def die_in(settings: schema.Settings, owner: Any, name: str, count: int) -> int:
    def job() -> None:
        setattr(owner, name, Dies(getattr(owner, name), count))  # in the child alone
        loop.train(settings)

    return in_child(job)


PLACES = [
    (checkpoint.os, "replace", 0),  # before the folder has its config
    (checkpoint.os, "replace", 1),
    (checkpoint.os, "replace", 5),
    (checkpoint.os, "replace", 8),
    (checkpoint, "save_file", 9),  # in the middle of a state
    (checkpoint.shutil, "rmtree", 6),
    (checkpoint, "_sha256", 11),
    (loop, "report", 0),  # after the first epoch, before its figures
    (loop, "save_adapter", 0),
    (loop, "write_report", 1),
    (loop, "copy_folder", 0),
    (checkpoint.shutil, "copyfile", 1),  # adapter/ is half made
]


@pytest.mark.parametrize(("owner", "name", "count"), PLACES, ids=[f"{name}-{count}" for _, name, count in PLACES])
def test_a_process_that_dies_anywhere_loses_no_run(data: Path, owner: Any, name: str, count: int) -> None:
    cut_up, whole = both(data, "cut", "lora")
    assert die_in(cut_up, owner, name, count) == 9
    assert train_to_the_end(cut_up, data / "runs/cut") == 1
    assert in_child(lambda: loop.train(whole)) == 0
    same(data / "runs/cut", data / "runs/whole")


def killed_at_random(data: Path, kills: int, seed: int) -> int:
    """Kill one run again and again, then compare it; returns how many of the kills met a living process."""
    rng = random.Random(seed)
    cut_up, whole = both(data, "cut", "lora-accumulate", epochs=6)
    met = 0
    for _ in range(kills):
        met += in_child(lambda: loop.train(cut_up), kill_after=rng.uniform(0.3, 1.6)) == -signal.SIGKILL
        if is_finished(data / "runs/cut"):
            break
    train_to_the_end(cut_up, data / "runs/cut", limit=1)
    if not (data / "runs/whole").exists():
        assert in_child(lambda: loop.train(whole)) == 0
    same(data / "runs/cut", data / "runs/whole")
    return met


def test_kill_9_at_random_times_with_a_loader_process(data: Path) -> None:
    assert killed_at_random(data, 3, seed=0) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills(data: Path) -> None:
    met = seed = 0
    while met < 100:
        shutil.rmtree(data / "runs/cut", ignore_errors=True)
        met += killed_at_random(data, 8, seed := seed + 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_every_step_as_a_cut(data: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    cut_up, whole = both(data, "cut", case)
    loop.train(whole)
    steps = records(data / "runs/whole")[-1]["step"]
    for cut in range(1, steps + 1):
        shutil.rmtree(data / "runs/cut", ignore_errors=True)
        with monkeypatch.context() as patch:
            stop_at(patch, cut)
            with pytest.raises(loop.Interrupted):
                loop.train(cut_up)
        same(loop.train(cut_up), data / "runs/whole")


def stopped(data: Path, monkeypatch: pytest.MonkeyPatch, **sections: dict[str, Any]) -> schema.Settings:
    s = settings(data, train={"epochs": 2, "batch": 2, "precision": "fp32", "save_every": 1}, **sections)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(loop.Interrupted):
            loop.train(s)
    return s


def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s = stopped(data, monkeypatch)
    file = data / "runs/tiny/last/ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    loop.train(s)
    assert "ema.safetensors was changed or is not whole" in caplog.text
    assert "last-1" in caplog.text
    whole = s.model_copy(update={"run": s.run.model_copy(update={"name": "whole"})})
    same(data / "runs/tiny", loop.train(whole))


def test_two_damaged_states_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = stopped(data, monkeypatch)
    for name in ("last", "last-1"):
        (data / "runs/tiny" / name / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"E-STATE .*last: state.json was changed.*last-1: state.json") as caught:
        loop.train(s)
    assert caught.value.exit_code == 3


def test_other_labels_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = stopped(data, monkeypatch)
    ellipses(data, 5, seed=7)
    with pytest.raises(CheckpointError, match="the json files of the data are not those that the run began with"):
        loop.train(s)


def test_other_base_weights_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    file = data / "base.safetensors"
    net = timm.create_model("convnext_atto")
    save_file(net.state_dict(), file)
    s = stopped(data, monkeypatch, backbone={"weights": file})
    tensors = load_file(file)
    tensors["stages.0.blocks.0.mlp.fc1.weight"][0] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="the base weights are not those that the run began with"):
        loop.train(s)


def test_a_state_of_another_version_is_refused_in_one_sentence(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = stopped(data, monkeypatch)
    found = checkpoint.load_state(data / "runs/tiny/last")
    assert found
    state = found[0]
    model = dict(state.tensors["model"])
    model.pop("backbone.neck.fpn.inner_blocks.0.0.dense.trained.weight")
    checkpoint.save_state(
        data / "runs/tiny/last", checkpoint.State({**state.tensors, "model": model}, state.values)
    )
    with pytest.raises(CheckpointError, match=r"another version \(ValueError: 1 tensors differ, first backbone.neck"):
        loop.train(s)


def test_another_config_and_a_finished_run_are_refused(data: Path) -> None:
    s = settings(data)
    run = loop.train(s)
    before = outcome(run)
    with pytest.raises(ConfigError, match=r"tiny - this run is finished\."):
        loop.train(s)
    with pytest.raises(ConfigError, match=r"tiny - the folder holds a run of another config\."):
        loop.train(settings(data, train={"epochs": 3}))
    assert outcome(run) == before
