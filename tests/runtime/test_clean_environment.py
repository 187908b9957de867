"""The runtime where nothing but numpy, Pillow and onnxruntime was installed, and cvpeft without its dependencies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.test_onnx_detector import METADATA, model_file
from tests.runtime.test_search import BOXES, FILES, placed, white

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "torchvision", "timm", "onnx", "cv2", "albumentations", "pycocotools", "pydantic", "tqdm")


def run(*command: str | Path, cwd: Path) -> str:
    # -I at the interpreter's place: neither PYTHONPATH nor the current folder may lend a module
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_packages_are_enough(tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    packages = ("numpy", "pillow", "onnxruntime", "hatchling")
    run(*pip, "install", "--no-compile", "--constraint", ROOT / "constraints.txt", *packages, cwd=tmp_path)
    run(*pip, "install", "--no-compile", "--no-deps", "--no-build-isolation", ROOT, cwd=tmp_path)
    run(*pip, "uninstall", "--yes", "hatchling", cwd=tmp_path)

    model = model_file(tmp_path / "model.onnx", METADATA, boxes=BOXES, scores=[0.6, 0.3, 0], labels=[1, 2, 0])
    placed(tmp_path / "photos" / "a.jpg")
    white(tmp_path / "photos" / "b.png")
    for command in (("-m", "cvpeft.runtime"), ("-m", "cvpeft.cli", "predict")):
        out = tmp_path / command[-1]
        told = run(python, "-I", *command, model, tmp_path / "photos", "--out", out, "--batch", "2", cwd=tmp_path)
        assert "4 boxes in 2 images, 0 unreadable" in told
        assert {file.name for file in out.iterdir()} == FILES | {"a.jpg", "b.jpg", "findings.geojson"}
        assert len(json.loads((out / "predictions.json").read_text(encoding="utf-8"))["annotations"]) == 4

    there = f"import importlib.util as u; print([m for m in {ABSENT} if u.find_spec(m)])"
    assert run(python, "-I", "-c", there, cwd=tmp_path).strip() == "[]"
