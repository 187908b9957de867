"""The benchmark of data measures what it says it measures, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cvpeft.cli import main
from cvpeft.study import data_benchmark


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_benchmark, "SCENES", 4)


def test_the_photos_are_sound_and_no_two_alike(tmp_path: Path) -> None:
    content = data_benchmark._photos(tmp_path, 30)
    outcome = data_benchmark.check({"all": [content]}, workers=1, progress=False)
    assert len(outcome.case.pixels) == 30
    assert {finding.code for finding in outcome.findings} <= {"W-CLASS", "W-NEAR", "W-SLIVER"}, outcome.lines()
    assert len({pixels.sha256 for pixels in outcome.case.pixels.values()}) == 30


def test_it_prints_ratios_and_removes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_benchmark.tempfile, "tempdir", str(tmp_path))
    assert main(["data", "benchmark", "--images", "4", "--boxes", "25"]) == 0
    told = capsys.readouterr().out
    assert "cvpeft data check" in told
    assert "load_coco" in told
    assert told.count(" x") >= 2
    assert list(tmp_path.iterdir()) == []


def test_memory_is_that_of_the_check_and_not_of_torch() -> None:
    """Torch alone takes half a GiB, which the command that is measured never loads."""
    code = "import sys, cvpeft.study.data_benchmark; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
