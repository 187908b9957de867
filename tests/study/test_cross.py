"""Every run on every run's photos, and the base that adapters leave as it was."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cvpeft.cli import main
from cvpeft.detector.saved import load_run
from cvpeft.errors import ConfigError
from cvpeft.eval.evaluate import evaluate_run
from cvpeft.export.run import export_weights_run
from cvpeft.study.cross import cross
from cvpeft.train.loop import train
from tests.helpers import QUICK, ellipses, settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """City one trained whole; on its merged weights an adapter for city two, and city two trained whole."""
    folder = tmp_path_factory.mktemp("cities")
    for seed, city in enumerate(("one", "two")):
        (folder / city).mkdir()
        ellipses(folder / city, 4, seed=seed)
        ellipses(folder / city, 2, name="val", seed=seed)
    full = {"mode": "full", "methods": ()}
    one = settings(folder / "one", run={"name": "one"}, peft=full)
    train(one)
    base = {**one.backbone.model_dump(), "weights": export_weights_run(folder / "one" / "runs" / "one")}
    train(settings(folder / "two", run={"name": "lora"}, backbone=base))
    train(settings(folder / "two", run={"name": "full"}, backbone=base, peft=full))
    return {name: folder / city / "runs" / name for name, city in (("one", "one"), ("lora", "two"), ("full", "two"))}


def rows(file: Path) -> dict[tuple[str, str], str]:
    with file.open() as f:
        return {(row["model"], row["city"]): row["AP50"] for row in csv.DictReader(f)}


def test_an_adapter_switched_off_scores_as_the_base_did(runs: dict[str, Path], tmp_path: Path) -> None:
    table = cross(list(runs.values()), tmp_path)
    found = rows(tmp_path / "cities.csv")
    assert {model for model, _ in found} == {"one", "lora", "base of lora", "full"}
    assert {city for _, city in found} == {"one", "lora"}
    for city in ("one", "lora"):
        assert found["base of lora", city] == found["one", city]
    text = table.read_text()
    assert text.count("\n| ") == 5
    assert "| base of lora |" in text


def test_the_figures_are_those_of_eval(runs: dict[str, Path], tmp_path: Path) -> None:
    cross([runs["lora"], runs["full"]], tmp_path)
    folder = evaluate_run(runs["lora"], split="val")
    assert (
        float(rows(tmp_path / "cities.csv")["lora", "lora"])
        == json.loads((folder / "metrics.json").read_text())["coco"]["AP50"]
    )


@pytest.mark.parametrize("detector", [QUICK, {"anchor_sizes": (8, 16, 32, 64)}])
def test_a_base_with_another_head_is_no_detector_of_the_run(
    runs: dict[str, Path], detector: dict[str, Any], tmp_path: Path
) -> None:
    """The run had a head of random weights to begin with, or one of other anchors: its scores would be nobody's."""
    base = load_run(runs["lora"]).settings.backbone.model_dump()
    two = runs["lora"].parents[1]
    train(settings(two, run={"name": "other", "dir": tmp_path}, backbone=base, detector=detector))
    cross([runs["full"], tmp_path / "other"], tmp_path)
    assert {model for model, _ in rows(tmp_path / "cities.csv")} == {"full", "other"}


def test_runs_are_called_by_their_folders_whatever_those_are_called(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = shutil.copytree(runs["full"], tmp_path / "full|2")
    monkeypatch.chdir(runs["one"])
    text = cross([Path(), odd], tmp_path / "out").read_text()
    assert {model for model, _ in rows(tmp_path / "out" / "cities.csv")} == {"one", "full|2"}
    cells = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    assert [line[1].strip() for line in cells] == ["model", "---", "one", "full\\|2"]
    assert {len(line) for line in cells} == {5}
    with pytest.raises(ConfigError, match="the runs one, one make no table"):
        cross([Path(), runs["one"]], tmp_path / "no")


def test_one_run_is_no_table(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    with pytest.raises(ConfigError, match="name two or more"):
        cross([runs["one"]], tmp_path)
    assert main(["compare", "--out", str(tmp_path)]) == 2
    assert "no config is named" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--set", "eval.batch=1"], ["eval.batch=1"], ["tiny.yaml"]])
def test_settings_beside_cities_are_refused(given: list[str], tmp_path: Path, capsys) -> None:
    """They would change nothing."""
    assert main(["compare", *given, "--cities", "runs/a", "runs/b", "--out", str(tmp_path)]) == 2
    assert f"E-CITIES {given[-1]} stands beside --cities. Every run is scored as it was" in capsys.readouterr().err
