"""Timing in turn, and the table of a run's forms."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cvpeft.cli import main
from cvpeft.eval.timing import median_ms, side_by_side
from cvpeft.export.cities import export_cities
from cvpeft.export.run import export_onnx_run
from cvpeft.train.loop import train
from tests.helpers import ellipses, settings


def test_calls_take_turns_after_one_round_to_warm_up() -> None:
    order: list[str] = []
    times = side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert median_ms({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    ellipses(folder, 4)
    ellipses(folder, 4, name="val")
    run = train(settings(folder))
    export_onnx_run(run)
    shutil.copytree(run, run.with_name("other"))
    return run


def test_every_form_has_a_line_and_a_ratio(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(run), "--rounds", "2"]) == 0
    text = capsys.readouterr().out
    lines = dict(re.findall(r"^\| ([a-zO][^|]*?) \| [\d.]+ \| ([\d.]+) \|$", text, re.MULTILINE))
    assert list(lines) == ["unmerged", "merged", "base", "ONNX Runtime, model.onnx"]
    assert lines["unmerged"] == "1.00"
    assert "adapter in" not in text


def test_two_runs_of_one_base_are_exchanged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(run), str(run.with_name("other")), "--rounds", "2"]) == 0
    assert re.search(r"Putting another adapter in: [\d.]+ ms in torch\.", capsys.readouterr().out)


def test_adapter_files_are_exchanged_in_onnx_runtime_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run.with_name("other")
    export_cities(other, [other])
    assert main(["benchmark", str(other), "--rounds", "2"]) == 0
    assert re.search(r"Putting another adapter in: [\d.]+ ms in ONNX Runtime\.", capsys.readouterr().out)
