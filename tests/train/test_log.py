from __future__ import annotations

import csv
import errno
import functools
import importlib.metadata
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cvpeft.train import memory
from cvpeft.train.log import RunLog, environment, log_to, peak_memory


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def filled(folder: Path) -> RunLog:
    log = RunLog(folder)
    log.add(3, {"loss": 0.1 + 0.2})
    log.add(3, {"val_AP": 0.5})
    log.add(6, {"loss": 1e-9})
    return log


def test_records_and_table_hold_the_same_numbers(tmp_path: Path) -> None:
    filled(tmp_path).close()
    assert lines(tmp_path) == [
        {"step": 3, "loss": 0.30000000000000004}, {"step": 3, "val_AP": 0.5}, {"step": 6, "loss": 1e-9},
    ]  # fmt: skip
    with (tmp_path / "metrics.csv").open() as f:
        table = list(csv.DictReader(f))
    assert [(row["step"], row["loss"], row["val_AP"]) for row in table] == [
        ("3", "0.30000000000000004", ""), ("3", "", "0.5"), ("6", "1e-09", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 9])
def test_a_resumed_run_keeps_what_its_state_knows(tmp_path: Path, keep: int) -> None:
    before = filled(tmp_path).records
    assert RunLog(tmp_path, keep=keep).records == before[:keep]
    assert lines(tmp_path) == before[:keep]


@pytest.mark.parametrize("damage", ['{"step": 9, "lo', "\0\0\0\0", '{"step": 9}}'])
def test_what_a_crash_left_in_the_log_is_dropped(tmp_path: Path, damage: str) -> None:
    before = filled(tmp_path).records
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write(damage)
    assert RunLog(tmp_path, keep=9).records == before


def test_a_full_disk_is_a_warning_and_no_record_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = filled(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        log.add(9, {"loss": 2.0})
    assert "No space left on device" in caplog.text
    assert len(lines(tmp_path)) == 3
    log.add(12, {"loss": 3.0})
    assert [r["step"] for r in lines(tmp_path)] == [3, 3, 6, 9, 12]


def test_tensorboard_forgets_what_is_written_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        log.add(step, {"loss": 10.0 + step, "name": "no number"})
    log.close()
    again = RunLog(tmp_path, keep=2, step=2, tensorboard=True)
    again.add(3, {"loss": 99.0})
    again.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 11.0), (2, 12.0), (3, 99.0)]


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (disk / "fill").write_bytes(b"x" * 2**21)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread tells it
@pytest.mark.parametrize("full_from", [0, 3])
@pytest.mark.parametrize("flush_secs", [0.01, 120])  # the thread meets the disk, or the end of the run does
def test_a_full_disk_ends_tensorboards_events_and_not_the_run(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full_from: int, flush_secs: int
) -> None:
    board = pytest.importorskip("torch.utils.tensorboard")
    monkeypatch.setattr(board, "SummaryWriter", functools.partial(board.SummaryWriter, flush_secs=flush_secs))
    if full_from == 0:
        fill(small_disk)
    log = RunLog(small_disk, tensorboard=True)
    for step in range(300):
        if step == full_from > 0:
            fill(small_disk)
        log.add(step, {"loss": 1.0, "AP": 0.5})
    log.close()
    assert caplog.text.count("TensorBoard's events cannot be written (") == 1
    assert len(log.records) == 300


def test_a_full_disk_costs_lines_of_the_log_and_one_warning(
    small_disk: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    handler = log_to(small_disk / "log.txt")
    try:
        fill(small_disk)
        for number in range(1000):
            logging.getLogger("cvpeft.train").warning("line %d of many", number)
    finally:
        logging.getLogger("cvpeft").removeHandler(handler)
        handler.close()
    assert caplog.text.count("log.txt cannot be written (") == 1
    assert caplog.text.count("of many") == 1000
    assert "Traceback" not in capfd.readouterr().err


def test_a_log_that_cannot_be_opened_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.txt").mkdir()
    log_to(tmp_path / "log.txt").close()
    assert "log.txt cannot be written (" in caplog.text


def test_the_environment_is_told() -> None:
    found = environment(torch.device("cpu"), "fp32")
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["device"] == "cpu"
    assert found["threads"] >= 1
    assert peak_memory(torch.device("cpu")) > 50


def test_a_package_that_goes_by_another_name_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu in the place of onnxruntime, cvpeft on the path of a checkout that is not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "cvpeft"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("cvpeft.train.log.version", version)
    found = environment(torch.device("cpu"), "fp32")["versions"]
    assert found["onnxruntime"] is found["cvpeft"] is None
    assert found["timm"] == real("timm")


def test_the_peak_is_told_where_the_kernel_keeps_no_high_water_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in gVisor's sandboxes: /proc/self/status is there and has other lines alone."""
    (tmp_path / "status").write_text("Name:\tpython\nVmSize:\t  900000 kB\nVmRSS:\t  400000 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.process_peak() > 50
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert memory.process_peak() == 2.0
