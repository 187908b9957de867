"""A city's adapter file for a shared base file: read, checked, and handed to ONNX Runtime.

Beside NAME.onnx_adapter lies NAME.json, which says what base it belongs to and the city's score thresholds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from cvpeft.errors import DataError
from cvpeft.runtime.metadata import are_thresholds
from cvpeft.runtime.onnx_file import first_line

__all__ = ["FITTING", "CityAdapter", "read_adapter"]

Shape = tuple[int, ...]
LARGEST = 2**30  # bytes
NEEDED = ("base_sha256", "adapter_sha256", "classes", "score_thresholds")
# What an adapter's json repeats of its base's metadata. Tensors of the same shapes would go into another base without
# a word; files of an older version lack some of it, and what either side lacks is not compared.
FITTING = ("classes", "input_size", "canvas", "mean", "std", "methods", "detector", "windows")
FIX = "cvpeft export BASE --adapters RUN writes both files; copy them together"


@dataclass(frozen=True)
class CityAdapter:
    """thresholds: class name -> score from which a box counts. handle: what ONNX Runtime takes."""

    thresholds: dict[str, float]
    handle: Any


def read_adapter(path: Path, *, base: Mapping[str, Any], shapes: Mapping[str, Shape]) -> CityAdapter:
    """The adapter in a .onnx_adapter file with the .json beside it.

    base: metadata of the base that it has to fit; shapes: of the tensors that the base can exchange, by name.
    DataError: one of the files is absent or damaged, or they belong to another base.
    """
    about, classes = _about(path), base["classes"]
    _check_fits(path, about, base)
    thresholds = about["score_thresholds"]
    if not are_thresholds(thresholds, classes):
        what = f"score_thresholds is {thresholds!r}, without a number for each of {', '.join(classes)}"
        raise DataError("ADAPTER", what[:300], where=str(path.with_suffix(".json")), fix=FIX)
    _check_content(path, about["adapter_sha256"], shapes)
    return CityAdapter({name: float(thresholds[name]) for name in classes}, _loaded(path))


def _about(path: Path) -> dict[str, Any]:
    if not path.name:  # as in --adapter ""
        raise DataError("ADAPTER", "no adapter file is named", where=str(path), fix="--adapter lyon.onnx_adapter")
    file = path.with_suffix(".json")
    try:
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        missing = set(NEEDED) - about.keys()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError("ADAPTER", f"not readable ({error})", where=str(file), fix=FIX) from error
    if missing:
        raise DataError("ADAPTER", f"lacks {', '.join(sorted(missing))}", where=str(file), fix=FIX)
    return about


def _check_fits(path: Path, about: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    own, found = str(base.get("base_sha256")), str(about["base_sha256"])
    differing = [key for key in FITTING if key in about and key in base and about[key] != base[key]]
    if found != own:
        what = f"it was made for base {found[:12]}, this one is {own[:12]}"
    elif differing:
        key = differing[0]
        what = f"it was made for a base whose {key} is {about[key]!r}, here it is {base[key]!r}"[:300]
    else:
        return
    raise DataError("ADAPTER", what, where=str(path), why="on another base it finds nonsense", fix=FIX)


def _check_content(path: Path, sha256: object, shapes: Mapping[str, Shape]) -> None:
    """The bytes are those that were proven, before a parser sees them; then names and shapes are the base's."""
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST else b""
    except OSError as error:
        raise DataError("ADAPTER", f"not readable ({error.strerror})", where=str(path), fix=FIX) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        what, why = "its content is not what its json says", "it was damaged or exchanged"
        raise DataError("ADAPTER", what, where=str(path), why=why, fix=FIX)
    try:
        content_of = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
        found = {name: tuple(value.shape()) for name, value in content_of.items()}
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        what = f"ONNX Runtime cannot read it: {first_line(error).rpartition(') ')[2]}"  # without its C++ signature
        raise DataError("ADAPTER", what, where=str(path), fix=FIX) from error
    if differing := sorted(name for name, _ in found.items() ^ shapes.items()):
        what = f"{len(set(differing))} tensors are not those of the base, first {differing[0]}"
        raise DataError("ADAPTER", what, where=str(path), fix=FIX)


def _loaded(path: Path) -> Any:
    handle = onnxruntime.LoraAdapter()
    handle.Load(str(path))
    return handle
