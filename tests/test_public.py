"""What the package promises by name, and what may never stand in its code."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import cvpeft
from cvpeft.peft.inject import methods

ROOT = Path(__file__).parents[1]
MODULES = [m.name for m in pkgutil.walk_packages(cvpeft.__path__, "cvpeft.")]
PICKLE = re.compile(
    r"torch\.load\(|\btorch\.save\(|import pickle|yaml\.load\(|\beval\(|\bexec\(|shell=True|allow_pickle"
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    if Path(module.__file__ or "").stat().st_size == 0:
        return  # an empty __init__: a room without a door of its own
    assert module.__doc__, name
    if not (module.__file__ or "").endswith("__init__.py"):
        assert module.__all__, name
        for public in module.__all__:
            assert hasattr(module, public), f"{name}.{public}"


def test_the_methods_are_the_files_of_their_folder() -> None:
    files = {file.stem for file in (ROOT / "cvpeft/peft/methods").glob("*.py")} - {"__init__"}
    assert methods().keys() == files
    assert files >= {"adapter", "lora", "vpt"}


def test_nothing_is_ever_unpickled_or_run_from_a_string() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("cvpeft", "tools", "datasets")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if PICKLE.search(line) and "model.eval()" not in line and ".eval()" not in line
    ]
    assert found == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("albumentations", {"data/transforms.py"}),
        ("pycocotools", {"eval/coco_map.py"}),
        ("onnx", {"export/onnx.py", "export/quantize.py"}),  # what writes graphs, and what rewrites them
    ],
)
def test_only_these_files_import_it(package: str, allowed: set[str]) -> None:
    pattern = re.compile(rf"^\s*(import|from) {package}\b", re.MULTILINE)
    base = ROOT / "cvpeft"
    found = {str(f.relative_to(base)) for f in base.rglob("*.py") if pattern.search(f.read_text(encoding="utf-8"))}
    assert found == allowed
