"""What a run learns, writes and refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cvpeft.config import schema
from cvpeft.config.load import load
from cvpeft.data.splits import open_split
from cvpeft.detector.saved import load_run
from cvpeft.errors import ConfigError, NumericalError, ResourceError
from cvpeft.eval.evaluate import evaluate, evaluate_run
from cvpeft.peft.inject import signatures
from cvpeft.peft.state import owned
from cvpeft.train import checkpoint, loop
from cvpeft.train.checkpoint import load_state
from tests.helpers import ellipses, settings

from .runs import in_child, make_data, outcome, records

SMALL = (16.0, 32.0, 64.0)  # anchors; RetinaNet's own start at 32 pixels, the photos have 64
LARGE = {"adapter": 5e-3, "neck": 3e-3, "head": 3e-3}  # learning rates


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in records(run) if "loss" in r]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("faster_rcnn", "convnext_atto"),
        *(
            pytest.param(head, body, marks=pytest.mark.slow)
            for head in ("faster_rcnn", "retinanet", "fcos")
            for body in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
        ),
    ],
)
def test_lora_learns_eight_photos_by_heart(tmp_path: Path, head: str, body: str) -> None:
    """Random transformers and heads without proposals need more steps than a ConvNeXt inside Faster R-CNN."""
    ellipses(tmp_path, 8)
    steps = 50 if body == "convnext_atto" else 400 if head == "retinanet" else 150
    run = loop.train(
        settings(
            tmp_path,
            data={"augment": "none", "val": (tmp_path / "train.json",)},
            backbone={"name": body, "neck_width": 32},
            peft={"methods": (schema.Method(name="lora", settings={"rank": 4}),)},
            detector={"head": head, "head_width": 64, "anchor_sizes": SMALL if head == "retinanet" else ()},
            train={"epochs": steps, "batch": 8, "eval_every": steps, "ema": 0.9, "lr": LARGE},
        )
    )
    first, *_, last = losses(run)
    assert last < 0.5 * first
    assert records(run)[-1]["val_AP50"] > 0.9
    assert "E-LEAK" in (run / "log.txt").read_text(), "val is train here, which is told and not refused"


def test_the_folder_holds_what_the_design_promises(data: Path) -> None:
    run = loop.train(settings(data))
    for name in (
        "config.resolved.yaml", "env.json", "metrics.jsonl", "metrics.csv", "log.txt", "last/manifest.json",
        "last-1/manifest.json", "best/adapter_config.json", "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json", "adapter/README.md", "eval/val/metrics.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert not list(run.rglob("*.part"))
    meta = json.loads((run / "adapter/adapter_config.json").read_text())
    assert meta["classes"] == ["good", "broke"]
    assert set(meta["thresholds"]) == {"good", "broke"}
    best = max((r for r in records(run) if "val_AP" in r), key=lambda r: r["val_AP"])
    assert meta["val"]["AP"] == best["val_AP"]
    assert f"AP {best['val_AP']:.3f}" in (run / "adapter/README.md").read_text()
    assert set(load_file(run / "adapter/adapter_model.safetensors")) == {
        k for ks in meta["tensors"].values() for k in ks
    }


def test_the_resolved_config_is_there_before_the_first_step(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    s = settings(data)
    monkeypatch.setattr(loop, "_step", stop)
    with pytest.raises(StoppedError):
        loop.train(s)
    assert load(data / "runs/tiny/config.resolved.yaml", methods=signatures()) == s


def test_val_without_a_box_warns_and_the_last_epoch_is_taken(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    ellipses(data, 3, name="val", negatives=3)
    run = loop.train(settings(data))
    assert "data.val has no box to find" in caplog.text
    meta = json.loads((run / "adapter/adapter_config.json").read_text())
    assert (meta["val"]["AP"], meta["val"]["epoch"]) == (None, 2)
    assert "AP none, as there is no box to find" in (run / "adapter/README.md").read_text()


def test_where_no_bar_is_shown_the_log_tells_how_far_it_is(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "TELL_EVERY", 0.0)
    caplog.set_level("INFO", "cvpeft")
    run = loop.train(settings(data))
    told = re.findall(r"step (\d) of 6, loss \d+\.\d{3}, \d+\.\d\d s a step, 0 min left", (run / "log.txt").read_text())
    assert told == ["1", "2", "3", "4", "5", "6"]


def test_the_log_has_each_record_once_and_the_table_the_same(data: Path) -> None:
    run = loop.train(settings(data, train={"epochs": 3, "eval_every": 2}))
    found = [(r["step"], r["epoch"], "loss" in r) for r in records(run)]
    assert found == [(3, 1, True), (6, 2, True), (6, 2, False), (9, 3, True), (9, 3, False)]
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + len(found)


def test_the_adapter_is_the_best_epoch_of_the_moving_average(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averages: list[dict[str, Any]] = []
    figures = iter([0.1, 0.3, 0.2, 0.3])
    real = loop.report

    def scored(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        result["coco"]["AP"] = next(figures)
        return result

    def noted(self: Any, tensors: Any) -> None:
        update(self, tensors)
        averages.append({k: v.clone() for k, v in self.average.items()})

    update = loop.EMA.update
    monkeypatch.setattr(loop.EMA, "update", noted)
    monkeypatch.setattr(loop, "report", scored)
    run = loop.train(settings(data, train={"epochs": 4}))
    file = load_file(run / "adapter/adapter_model.safetensors")
    assert all(torch.equal(file[k], v) for k, v in averages[3 * 2 - 1].items())
    assert json.loads((run / "adapter/adapter_config.json").read_text())["val"]["epoch"] == 2


def test_early_stop_ends_the_run_and_leaves_it_finished(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.report

    def worse(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        result["coco"]["AP"] = 0.0
        return result

    monkeypatch.setattr(loop, "report", worse)
    run = loop.train(settings(data, train={"epochs": 9, "early_stop": 2}))
    assert records(run)[-1]["epoch"] == 3  # the first is better than nothing, then two that are not
    assert ", 3 of 9 epochs, cvpeft" in (run / "adapter/README.md").read_text()
    with pytest.raises(ConfigError, match="finished"):
        loop.train(settings(data, train={"epochs": 9, "early_stop": 2}))


def test_evaluations_without_a_box_to_find_stop_nothing(tmp_path: Path) -> None:
    ellipses(tmp_path, 2)
    ellipses(tmp_path, 1, name="val", negatives=1)
    run = loop.train(settings(tmp_path, train={"epochs": 3, "early_stop": 1}))
    assert records(run)[-1]["epoch"] == 3


def test_without_val_the_last_average_is_the_adapter(tmp_path: Path) -> None:
    ellipses(tmp_path, 4)
    run = loop.train(settings(tmp_path))
    assert ", 2 of 2 epochs, cvpeft" in (run / "adapter/README.md").read_text()
    found = load_state(run / "last")
    assert found
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    assert adapter.keys() == found[0].tensors["ema"].keys()
    assert all(torch.equal(adapter[k], v) for k, v in found[0].tensors["ema"].items())
    assert any(not torch.equal(adapter[k], v) for k, v in found[0].tensors["model"].items())


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    """Four photos at once, or three and the rest. RetinaNet's losses are means over photos, whatever the batch."""
    ellipses(tmp_path, 4, negatives=1)
    results = []
    for name, batch, accumulate in (("one", 4, 1), ("parts", 3, 2)):
        s = settings(
            tmp_path,
            run={"name": name},
            data={"augment": "none"},
            detector={"head": "retinanet"},
            train={"batch": batch, "accumulate": accumulate, "clip": 0.0},
        )
        t = loop._prepare(s, _made(tmp_path / "runs" / name))
        t.model.train()
        t.optimizer.step = t.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign]
        batches = iter(loop._batches(t))
        losses = loop._step(t, [next(batches) for _ in range(accumulate)])
        results.append((losses, {k: p.grad for k, p in owned(t.model).items() if p.grad is not None}))
    (one, grads), (parts, summed) = results
    assert parts == pytest.approx(one, rel=1e-5)
    assert all(torch.allclose(grads[k], summed[k], rtol=1e-3, atol=1e-6) for k in grads)


def test_a_loss_that_is_not_finite_names_the_photos_and_poisons_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, names = loop._losses, []

    def poisoned(t: Any, batch: Any) -> Any:
        if t.progress.step == 3:
            names.extend(batch.names)
            batch.targets[0]["boxes"] = torch.full((1, 4), float("inf"))
            batch.targets[0]["boxes"][:, :2] = 0
            batch.targets[0]["labels"] = torch.ones(1, dtype=torch.int64)
        return real(t, batch)

    monkeypatch.setattr(loop, "_losses", poisoned)
    with pytest.raises(NumericalError, match=r"E-NAN .*step 4 is not finite") as caught:
        loop.train(settings(data, train={"save_every": 1}, detector={"head": "retinanet"}))
    assert caught.value.exit_code == 5
    assert names
    assert all(name in str(caught.value) for name in names)
    assert "learning rates adapter " in str(caught.value)
    assert str(caught.value).endswith("set train.precision=fp32, under another run.name")  # this folder refuses both
    for file in (data / "runs/tiny").rglob("*.safetensors"):
        assert all(t.isfinite().all() for t in load_file(file).values() if t.is_floating_point()), file


def test_a_gradient_that_is_not_finite_is_caught_before_the_step(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.utils.clip_grad_norm_
    calls = []

    def norm(parameters: Any, limit: float) -> torch.Tensor:
        calls.append(limit)
        if len(calls) == 2:
            parameters[0].grad[0] = float("nan")
        return real(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    with pytest.raises(NumericalError, match=r"step 2 is not finite \(gradient norm nan\) on images/"):
        loop.train(settings(data, train={"save_every": 1}))
    found = load_state(data / "runs/tiny/last")
    assert found
    assert found[0].values["progress"]["step"] == 1
    assert all(t.isfinite().all() for t in found[0].tensors["model"].values())


def test_frozen_matrices_in_the_compute_type_train_the_same_adapter_keys(data: Path) -> None:
    s = settings(
        data,
        backbone={"name": "vit_tiny_patch16_224"},
        train={"precision": "bf16", "frozen_dtype": "compute"},
    )
    trainer = loop._prepare(s, _made(data / "runs/other"))
    assert trainer.model.backbone.body.net.blocks[0].mlp.fc1.base.weight.dtype == torch.bfloat16
    assert trainer.model.backbone.body.net.blocks[0].norm1.weight.dtype == torch.float32
    assert {t.dtype for t in owned(trainer.model).values()} == {torch.float32}
    run = loop.train(s)
    loaded = load_run(run)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert json.loads((evaluate_run(run, split="val") / "metrics.json").read_text())["images"] == 3


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_in_process_and_from_the_saved_adapter_the_figures_are_identical(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = settings(data, train={"epochs": 6, "eval_every": 6}, backbone={"name": "vit_tiny_patch16_224"})
    run = loop.train(s)
    in_training = json.loads((run / "eval/val/metrics.json").read_text())
    boxes = json.loads((run / "eval/val/predictions.json").read_text())
    loaded = load_run(run)
    result, found = evaluate(loaded.model, open_split(s.data, "val", loaded.classes), s)
    folder = evaluate_run(run, split="val")
    again = json.loads((folder / "metrics.json").read_text())
    assert len(boxes) > 0
    assert found == boxes == json.loads((folder / "predictions.json").read_text())
    for key in ("coco", "per_class", "per_domain", "pr_curve", "confusion"):
        assert in_training[key] == json.loads(json.dumps(result[key])) == again[key], key


WEIGHTS_PART = hashlib.sha256(b"adapter_model.safetensors").hexdigest()[:16]  # how its temporary file is named


def fails_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int) -> list[str]:
    """The n-th and every later call finds the disk full; returns where each of the calls writes to."""
    real, calls = getattr(owner, name), []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1]))
        if len(calls) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, full)
    return calls


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    make_data(folder)
    assert in_child(lambda: loop.train(settings(folder, train={"save_every": 1}))) == 0
    return outcome(folder / "runs/tiny")


@pytest.mark.parametrize(
    ("owner", "name", "at", "place"),
    [
        (checkpoint, "save_file", 6, "last.part/ema.safetensors"),  # of the second state
        (os, "replace", 8, "tiny/last-1"),
        (checkpoint.shutil, "copyfile", 2, "adapter.part/"),
        pytest.param(os, "replace", 9, "tiny/last", marks=pytest.mark.slow),
        pytest.param(os, "replace", 11, "best/adapter_config.json", marks=pytest.mark.slow),
        pytest.param(os, "fsync", 17, "last.part/", marks=pytest.mark.slow),  # of the second state
        pytest.param(os, "fsync", 21, "last.part/", marks=pytest.mark.slow),  # of the third
        pytest.param(os, "fsync", 29, f"best/.{WEIGHTS_PART}", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up_ends_the_run_in_one_sentence_and_it_can_go_on(
    data: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any], owner: Any, name: str, at: int, place: str
) -> None:
    s = settings(data, train={"save_every": 1})
    with monkeypatch.context() as patch:
        calls = fails_at(patch, owner, name, at)
        with pytest.raises(ResourceError) as caught:
            loop.train(s)
    assert f"tiny/{place.removeprefix('tiny/')}" in calls[at - 1]
    assert caught.value.exit_code == 4
    state = load_state(data / "runs/tiny/last")
    assert state
    assert state[0].values["progress"]["step"] >= 1
    assert outcome(loop.train(s)) == undisturbed


def test_figures_that_cannot_be_written_do_not_end_a_run(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise ResourceError("WRITE", "no room")

    monkeypatch.setattr(loop, "write_report", full)
    run = loop.train(settings(data))
    assert (run / "adapter/adapter_model.safetensors").exists()
    assert "the figures of this evaluation were not written: E-WRITE no room" in caplog.text


def test_figures_of_an_earlier_epoch_never_stand_beside_a_later_adapter(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, real, calls = iter([0.1, 0.2, 0.15]), loop.report, []
    write, folder = loop.write_report, data / "runs/tiny/eval/val"

    def better(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        result["coco"]["AP"] = next(figures)
        return result

    def first_alone(*args: Any) -> None:
        calls.append(folder.exists() and [f.name for f in folder.iterdir()])
        if len(calls) > 1:
            raise ResourceError("DISK", "no room")
        write(*args)

    monkeypatch.setattr(loop, "report", better)
    monkeypatch.setattr(loop, "write_report", first_alone)
    run = loop.train(settings(data, train={"epochs": 3}))
    assert json.loads((run / "adapter/adapter_config.json").read_text())["val"]["epoch"] == 2
    assert calls == [False, []]
    assert not (folder / "metrics.json").exists()


@pytest.mark.parametrize(
    ("train", "mode", "ways"),
    [
        ({"precision": "fp32"}, "frozen", "halve train.batch and double train.accumulate, or lower data.size"),
        (
            {"precision": "bf16"},
            "frozen",
            "halve train.batch and double train.accumulate, set train.frozen_dtype=compute, or lower data.size",
        ),
        ({"precision": "bf16", "batch": 1}, "frozen", "set train.frozen_dtype=compute, or lower data.size"),
        ({"precision": "bf16", "batch": 1}, "full", "lower data.size"),
        ({"precision": "bf16", "batch": 1, "frozen_dtype": "compute"}, "frozen", "lower data.size"),
    ],
)
def test_memory_that_runs_out_is_told_with_what_helps(
    data: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], mode: str, ways: str
) -> None:
    def greedy(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loop, "_losses", greedy)
    with pytest.raises(ResourceError, match=r"E-MEMORY .*memory ran out at train.batch=") as caught:
        loop.train(settings(data, train=train, peft={"mode": mode, "methods": ()}))
    assert caught.value.exit_code == 4
    assert str(caught.value).endswith(f" Fix: {ways}, under another run.name")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_dtype_without_effect_is_told(data: Path, caplog: pytest.LogCaptureFixture, precision: str) -> None:
    trainer = loop._prepare(
        settings(data, train={"precision": precision, "frozen_dtype": "compute"}), _made(data / "runs/other")
    )
    told = "train.frozen_dtype=compute changes nothing where the precision is fp32" in caplog.text
    assert told == (precision == "fp32") != trainer.holds_low


def test_a_loader_process_that_dies_in_the_middle_of_a_step_is_told_and_the_run_can_go_on(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._losses

    def kill_and_wait(t: Any, batch: Any) -> Any:
        if t.progress.step == 1:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)
            time.sleep(5)  # torch raises as soon as the process hears of it
        return real(t, batch)

    s = settings(data, train={"save_every": 1}, data={"workers": 1})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_losses", kill_and_wait)
        with pytest.raises(ResourceError, match=r"E-WORKER a loader process died .*Killed.*data\.workers=0") as caught:
            loop.train(s)
    assert caught.value.exit_code == 4
    assert not multiprocessing.active_children()
    assert (loop.train(s) / "adapter").is_dir()


def test_other_runtime_errors_are_not_taken_for_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(loop, "_losses", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        loop.train(settings(data))


def test_a_disk_without_room_is_told_before_the_first_step(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = checkpoint.shutil.disk_usage(data)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"E-DISK .*the run will need about \d+ MB for its states, 0 MB are free"):
        loop.train(settings(data))
    assert not (data / "runs/tiny/last").exists()


def test_the_same_seed_gives_the_same_run_and_another_one_another(data: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(int(np.random.default_rng().integers(2**31)))
        run = loop.train(settings(data, run={"name": name, "seed": seed}, train={"epochs": 1}))
        return load_file(run / "last/model.safetensors")

    one, same, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not any(torch.equal(one[k], other[k]) for k in one if ".lora." in k)


def test_a_run_on_the_cpu_pins_nothing_for_a_gpu(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    for name in ("train_loader", "eval_loader"):
        real = getattr(loop, name)

        def seen(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(torch.cuda, "is_available", lambda: True)
                made.append(real(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(loop, name, seen)
    loop.train(settings(data, train={"epochs": 1}))
    assert [entry.loader.pin_memory for entry in made] == [False, False]


def test_the_batches_do_not_depend_on_the_workers(data: Path) -> None:
    runs = [loop.train(settings(data, run={"name": f"w{n}"}, data={"workers": n})) for n in (0, 2)]
    one, other = (load_file(r / "last/model.safetensors") for r in runs)
    assert all(torch.equal(one[k], other[k]) for k in one)
