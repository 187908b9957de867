"""Hostile models and images: one clear error each, no crash, no waiting, and no more than 1 GB of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.hostile_images import HARMLESS, IMAGES, LARGE
from tests.runtime.hostile_models import MODELS

CHILD = Path(__file__).with_name("hostile_child.py")
Outcomes = dict[str, dict[str, Any]]
LIMIT_MB = 1024
SLOWEST = 20.0  # seconds for one file, on a busy machine


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What each hostile or odd file gave."""
    folder = tmp_path_factory.mktemp("hostile")
    makers = {f"models/{name}": case.make for name, case in MODELS.items()}
    makers |= {f"images/{name}": case.make for name, case in IMAGES.items()}
    makers |= {f"images/{name}": make for name, make in HARMLESS.items()}
    return opened(folder, makers)


def opened(folder: Path, makers: Mapping[str, Callable[[Path], Any]]) -> Outcomes:
    """Make the files, open them all in one process without torch, and tell what each gave."""
    for name, make in makers.items():
        (folder / name).parent.mkdir(exist_ok=True)
        make(folder / name)
    done = subprocess.run([sys.executable, CHILD, folder], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    return {outcome["file"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(("readme", "words"), [("README.md", "{} malformed or hostile"), ("README.zh.md", "{} 个损坏")])
def test_there_are_as_many_as_the_readme_says(readme: str, words: str) -> None:
    text = (Path(__file__).parents[2] / readme).read_text(encoding="utf-8")
    assert words.format(len(MODELS) + len(IMAGES)) in text


@pytest.mark.parametrize("file", [*(f"models/{name}" for name in MODELS), *(f"images/{name}" for name in IMAGES)])
def test_a_hostile_file_is_one_clear_error(outcomes: Outcomes, file: str) -> None:
    folder, name = file.split("/")
    case = MODELS[name] if folder == "models" else IMAGES[name]
    outcome = outcomes[file]
    assert outcome["kind"] == "CvpeftError", outcome
    assert outcome["code"] == case.code, outcome
    assert case.word in outcome["told"]
    assert name in outcome["told"]
    assert "\n" not in outcome["told"]
    assert len(outcome["told"]) < 1200
    assert outcome["seconds"] < SLOWEST


@pytest.mark.parametrize("name", HARMLESS)
def test_an_odd_file_is_read(outcomes: Outcomes, name: str) -> None:
    assert outcomes[f"images/{name}"]["kind"] == "none"


def test_all_of_them_together_take_little_memory(outcomes: Outcomes) -> None:
    assert max(outcome["peak_mb"] for outcome in outcomes.values()) < LIMIT_MB


@pytest.mark.slow
def test_the_largest_images_that_are_read_take_no_more(tmp_path: Path) -> None:
    outcomes = opened(tmp_path, {f"images/{name}": make for name, make in LARGE.items()})
    assert {outcome["kind"] for outcome in outcomes.values()} == {"none"}
    assert max(outcome["peak_mb"] for outcome in outcomes.values()) < LIMIT_MB
