"""An interrupted run ends in the very state of one that was never interrupted."""

from __future__ import annotations

import functools
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
from cvpeft.config.load import load
from cvpeft.detector import device
from cvpeft.errors import CheckpointError, ConfigError, DataError
from cvpeft.train import checkpoint, loop
from cvpeft.train.folder import is_finished
from tests.helpers import ellipses, settings

from .runs import in_child, make_data, outcome, records, stop_at

Whole = Callable[[str], dict[str, Any]]

SMALL = {"name": "convnext_atto", "weights": "none", "neck_width": 16}
VIT = {"name": "vit_tiny_patch16_224", "weights": "none", "neck_width": 16}


def method(name: str, **values: Any) -> dict[str, Any]:
    return {"methods": (schema.Method(name=name, settings=values),)}


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {"peft": method("lora", rank=2, dropout=0.3)},
    "lora-accumulate": {"peft": method("lora", rank=2), "train": {"batch": 1, "accumulate": 2}, "data": {"workers": 1}},
    "adalora": {"peft": method("adalora", rank=3, target=1, every=1)},  # step 4 of 6 is the last that cuts
    "vpt": {"backbone": VIT, "peft": method("vpt", tokens=2, dropout=0.2), "train": {"ema": 0.0}},
    "full": {"peft": {"mode": "full", "methods": ()}, "backbone": {**SMALL, "drop_path": 0.2}},
    "muon": {"peft": {"mode": "full", "methods": ()}, "backbone": SMALL, "train": {"optimizer": "muon"}},
    "frozen-bf16": {
        "peft": {"mode": "frozen", "methods": ()}, "train": {"precision": "bf16", "frozen_dtype": "compute"},
        "detector": {"head": "retinanet"},
    },
}  # fmt: skip


def run_of(data: Path, case: str, **train: Any) -> schema.Settings:
    sections = {key: dict(values) for key, values in CASES[case].items()}
    sections["train"] = {"save_every": 1, **sections.get("train", {}), **train}
    return settings(data, **sections)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """case -> the outcome of its run on the same data, made once in a child of its own."""

    @functools.cache
    def of(case: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("whole")
        make_data(folder)
        assert in_child(lambda: loop.train(run_of(folder, case))) == 0
        return outcome(folder / "runs/tiny")

    return of


@pytest.mark.parametrize(
    ("case", "cut"),
    [
        ("lora", 1),
        ("lora-accumulate", 2),
        ("lora-accumulate", 3),
        ("adalora", 3),
        ("vpt", 4),
        ("full", 2),
        ("muon", 3),
        ("frozen-bf16", 5),
    ],
)
def test_a_run_stopped_by_a_signal_ends_in_the_same_weights(
    data: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Whole, case: str, cut: int
) -> None:
    s = run_of(data, case)
    with monkeypatch.context() as patch:
        stop_at(patch, cut)
        with pytest.raises(loop.Interrupted) as caught:
            loop.train(s)
    assert caught.value.exit_code == 143
    state = json.loads((data / "runs/tiny/last/state.json").read_text())
    assert state["progress"]["step"] == cut
    torch.manual_seed(1234)  # nothing may depend on what the process did before
    assert outcome(loop.train(s)) == uninterrupted(case)


def test_a_signal_in_the_middle_of_an_accumulated_step_loses_no_batch(
    data: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Whole
) -> None:
    s = run_of(data, "lora-accumulate")
    real = loop.train_loader

    def signalling(*args: Any, **kwargs: Any) -> Any:
        for epoch, number, batch in real(*args, **kwargs):
            if (epoch, number) == (0, 1):  # the second of the two batches of the first step
                os.kill(os.getpid(), signal.SIGTERM)
            yield epoch, number, batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_loader", signalling)
        with pytest.raises(loop.Interrupted):
            loop.train(s)
    assert json.loads((data / "runs/tiny/last/state.json").read_text())["progress"]["batch"] == 0
    assert outcome(loop.train(s)) == uninterrupted("lora-accumulate")


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_signal_during_evaluation_is_obeyed_and_the_evaluation_made_again(
    data: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Whole, save_every: int
) -> None:
    s = run_of(data, "lora", save_every=save_every)
    real = loop.predict

    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "predict", signalled)
        with pytest.raises(loop.Interrupted) as caught:
            loop.train(s)
    assert caught.value.exit_code == 130
    assert len(records(data / "runs/tiny")) == 1  # the losses of the epoch, no figures yet
    assert outcome(loop.train(s)) == uninterrupted("lora")


def test_an_evaluation_that_fails_costs_no_epoch(
    data: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Whole
) -> None:
    s, photo = run_of(data, "lora", save_every=0), data / "images/val_2.png"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:600])
    with pytest.raises(DataError, match=r"val_2\.png - the image is damaged"):
        loop.train(s)
    state = json.loads((data / "runs/tiny/last/state.json").read_text())
    assert (state["progress"]["step"], state["progress"]["epoch"]) == (3, 0)
    photo.write_bytes(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)  # which is done, and not made again
        loop.train(s)
    assert outcome(data / "runs/tiny") == uninterrupted("lora")


def test_a_second_signal_stops_at_once(data: Path) -> None:
    trainer = loop.Trainer(settings(data), data, *[None] * 8)  # type: ignore[arg-type]
    with loop._signals(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        assert trainer.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
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
    (os, "replace", 0),  # before the folder has its config
    (os, "replace", 5),  # the state before is last-1, the new one is not last yet
    (checkpoint, "save_file", 9),  # in the middle of a state
    (checkpoint.shutil, "rmtree", 6),
    (loop, "write_report", 0),  # best/ is written, the state that knows of it is not
    (checkpoint.shutil, "copyfile", 1),  # adapter/ is half made
]
MORE_PLACES = [
    (os, "replace", 1),  # the environment is told, the config is not
    (os, "replace", 8),  # as at 5, one state later
    (os, "replace", 10),  # best/ has its tensors, not their description
    (checkpoint, "_sha256", 11),
    (loop, "report", 0),
    (loop, "save_adapter", 0),
    (loop, "copy_folder", 0),
]


@pytest.mark.parametrize(
    ("owner", "name", "count"), [*PLACES, *(pytest.param(*place, marks=pytest.mark.slow) for place in MORE_PLACES)]
)
def test_a_process_that_dies_anywhere_loses_no_run(
    data: Path, uninterrupted: Whole, owner: Any, name: str, count: int
) -> None:
    s = run_of(data, "lora")
    assert die_in(s, owner, name, count) == 9
    assert in_child(lambda: loop.train(s)) == 0
    assert outcome(data / "runs/tiny") == uninterrupted("lora")


def killed_at_random(data: Path, wanted: dict[str, Any], kills: int, seed: int) -> int:
    """Kill one run again and again, then compare it; returns how many of the kills met a living process."""
    rng, met = random.Random(seed), 0
    s = run_of(data, "lora-accumulate")
    for _ in range(kills):
        met += in_child(lambda: loop.train(s), kill_after=rng.uniform(0.05, 0.6)) == -signal.SIGPROF
        if is_finished(data / "runs/tiny"):
            break
    else:
        assert in_child(lambda: loop.train(s)) == 0
    assert outcome(data / "runs/tiny") == wanted
    return met


def test_kill_9_at_random_times_with_a_loader_process(data: Path, uninterrupted: Whole) -> None:
    assert killed_at_random(data, uninterrupted("lora-accumulate"), 3, seed=0) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills(data: Path, uninterrupted: Whole) -> None:
    met = seed = 0
    while met < 100:
        shutil.rmtree(data / "runs", ignore_errors=True)
        met += killed_at_random(data, uninterrupted("lora-accumulate"), 8, seed := seed + 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_every_step_as_a_cut(data: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Whole, case: str) -> None:
    s = run_of(data, case)
    for cut in range(1, uninterrupted(case)["records"][-1]["step"] + 1):
        shutil.rmtree(data / "runs", ignore_errors=True)
        with monkeypatch.context() as patch:
            stop_at(patch, cut)
            with pytest.raises(loop.Interrupted):
                loop.train(s)
        assert outcome(loop.train(s)) == uninterrupted(case)


STOPPED = {"save_every": 1}


def stopped(data: Path, monkeypatch: pytest.MonkeyPatch, **sections: dict[str, Any]) -> schema.Settings:
    s = settings(data, train=STOPPED, **sections)
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
    assert outcome(data / "runs/tiny") == outcome(loop.train(settings(data, run={"name": "whole"}, train=STOPPED)))


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


def test_another_number_type_is_refused_and_can_be_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = settings(data, train={"save_every": 1, "precision": "auto"})
    fast = [False]
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: fast[0])
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(loop.Interrupted):
            loop.train(auto)
    fast[0] = True
    run = data / "runs" / "tiny"
    before = [(run / name).read_bytes() for name in ("config.resolved.yaml", "env.json")]
    with pytest.raises(CheckpointError, match=r"began with train\.precision fp32 and is now at bf16") as caught:
        loop.train(auto)
    assert "set train.precision=fp32, or start again under another run.name" in str(caught.value)
    assert [(run / name).read_bytes() for name in ("config.resolved.yaml", "env.json")] == before
    assert loop.train(settings(data, train={"save_every": 1, "precision": "fp32"})) == run
    assert json.loads((run / "env.json").read_text())["precision"] == "fp32"
    assert load(run / "config.resolved.yaml").train.precision == "fp32"


def test_another_device_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = stopped(data, monkeypatch)
    found = checkpoint.load_state(data / "runs/tiny/last")
    assert found
    state = found[0]
    checkpoint.save_state(data / "runs/tiny/last", checkpoint.State(state.tensors, {**state.values, "device": "cuda"}))
    with pytest.raises(
        CheckpointError, match=r"began with train.device cuda and is now at cpu\..*set train.device=cuda"
    ):
        loop.train(s)


def test_a_state_of_another_version_is_refused_in_one_sentence(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = stopped(data, monkeypatch)
    found = checkpoint.load_state(data / "runs/tiny/last")
    assert found
    state = found[0]
    model = dict(state.tensors["model"])
    model.pop("backbone.neck.fpn.inner_blocks.0.0.dense.trained.weight")
    checkpoint.save_state(data / "runs/tiny/last", checkpoint.State({**state.tensors, "model": model}, state.values))
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
