"""What an exported file says of itself, checked before a word of it is believed."""

from __future__ import annotations

import json
import math
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvpeft.errors import DataError
from cvpeft.runtime.image import MAX_PIXELS

__all__ = ["LONGEST_NAME", "OUTPUTS", "are_thresholds", "foreign", "is_name", "read_metadata", "size_fault"]

OUTPUTS = ("boxes", "scores", "labels", "num")
NEEDED = (
    "classes", "input_size", "input_dtype", "input_layout", "score_thresholds", "resize", "pad_value", "color_order",
    "input_range", "nms",
)  # fmt: skip
KINDS = {("float32", "NCHW"): "tensor(float)", ("uint8", "NHWC"): "tensor(uint8)"}  # of the input
FEED = {
    "resize": "letterbox",
    "pad_value": 114,
    "color_order": "RGB",
    "input_range": [0, 255],
}  # what this program can feed
LONGEST = 2**20  # characters of all metadata together; an export writes some thousand
LARGEST_INPUT = 2**24  # pixels of a network input: 4096x4096
LONGEST_NAME = 200


def read_metadata(session: Any, path: Path) -> dict[str, Any]:
    """The file's own description as python values; DataError tells everything that is wrong with it."""
    found = _parsed(session.get_modelmeta().custom_metadata_map, path)
    missing = [key for key in NEEDED if key not in found]
    if missing:
        raise foreign(path, f"its metadata lacks {', '.join(missing)}")
    faults = [f"{key} is {_short(found[key])}, not {value!r}" for key, value in FEED.items() if found[key] != value]
    faults += [
        *_size_faults(found),
        *_free_faults(found.get("free_size")),
        *_class_faults(found),
        *_nms_faults(found["nms"]),
        *_signature_faults(session, found),
    ]
    if faults:
        raise foreign(path, "; ".join(faults))
    return found


def foreign(path: Path, what: str) -> DataError:
    """The sentence for a file that `cvpeft export` did not write."""
    why = "How to feed it and what its outputs mean is not known"
    return DataError(
        "MODEL", f"not a model of `cvpeft export`: {what}", where=str(path), why=why, fix="cvpeft export RUN"
    )


def _parsed(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    if sum(len(key) + len(text) for key, text in texts.items()) > LONGEST:
        raise foreign(path, f"its metadata has more than {LONGEST} characters")
    try:
        return {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError) as error:
        raise foreign(path, "its metadata is not JSON") from error


def _size_faults(found: Mapping[str, Any]) -> list[str]:
    size, canvas = found["input_size"], found.get("canvas")
    if not _is_size(size, LARGEST_INPUT):
        return [f"input_size is {_short(size)}, no height and width of at most {LARGEST_INPUT} pixels"]
    if canvas is None or (_is_size(canvas, MAX_PIXELS) and all(c >= s for c, s in zip(canvas, size, strict=True))):
        return []
    return [f"canvas is {_short(canvas)}, no height and width of at least input_size"]


def _free_faults(free: Any) -> list[str]:
    """Of the entry that says which other sizes the input may have."""
    known = free is None or (isinstance(free, dict) and _is_size(free.get("least"), LARGEST_INPUT))
    if known and (free is None or (type(free.get("multiple_of")) is int and free["multiple_of"] > 0)):
        return []
    return [f"free_size is {_short(free)}, without least and multiple_of"]


def size_fault(found: Mapping[str, Any], size: Sequence[int]) -> str:
    """What the file takes where an input of this (height, width) is none of it, by its checked metadata; else empty."""
    free, own = found.get("free_size"), found["input_size"]
    if free is None:
        return "" if list(size) == own else f"takes inputs of {own[0]} x {own[1]}"
    step, least = free["multiple_of"], free["least"]
    if all(side % step == 0 and side >= low for side, low in zip(size, least, strict=True)):
        return ""
    return f"takes inputs whose height and width are multiples of {step}, from {least[0]} x {least[1]} on"


def _class_faults(found: Mapping[str, Any]) -> list[str]:
    classes, thresholds = found["classes"], found["score_thresholds"]
    if not (isinstance(classes, list) and classes and all(is_name(name) for name in classes)):
        return [f"classes is {_short(classes)}, not a list of names"]
    if len(set(classes)) < len(classes):
        return [f"classes is {_short(classes)}, in which a name stands twice"]
    if not are_thresholds(thresholds, classes):
        return [f"score_thresholds is {_short(thresholds)}, without a number for each class in 0..1"]
    return []


def are_thresholds(value: Any, classes: Sequence[str]) -> bool:
    """Whether it holds a score in 0..1 for each class."""
    return isinstance(value, dict) and all(_is_score(value.get(name)) for name in classes)


def _nms_faults(nms: Any) -> list[str]:
    known = isinstance(nms, dict) and type(nms.get("inside")) is bool and _is_score(nms.get("iou"))
    if known and type(nms.get("max_detections")) is int and nms["max_detections"] > 0:
        return []
    return [f"nms is {_short(nms)}, without inside, iou and max_detections"]


def _signature_faults(session: Any, found: Mapping[str, Any]) -> list[str]:
    inputs = [(one.name, one.type, list(one.shape)) for one in session.get_inputs()]
    outputs = {output.name for output in session.get_outputs()}
    dtype, layout, size = found["input_dtype"], found["input_layout"], found["input_size"]
    kind = KINDS.get((str(dtype), str(layout)))
    faults = []
    if kind is None:
        faults.append(f"input_dtype is {_short(dtype)} and input_layout {_short(layout)}")
    elif [one[:2] for one in inputs] != [("images", kind)]:
        listed = ", ".join(f"{name} {kind}" for name, kind, _ in inputs) or "none"
        faults.append(f"its inputs are {listed[:LONGEST_NAME]}, not images {kind}")
    elif not _fits(inputs[0][2], size if isinstance(size, list) else [], last=layout == "NHWC", free=_is_free(found)):
        faults.append(f"input_size is {_short(size)}, but the input's shape is {_short(inputs[0][2])}")
    elif isinstance(inputs[0][2][0], int) and inputs[0][2][0] != 1:
        faults.append(f"it takes batches of exactly {inputs[0][2][0]} images")
    if outputs != set(OUTPUTS):
        faults.append(f"its outputs are {', '.join(sorted(outputs))[:LONGEST_NAME]}")
    return faults


def _is_free(found: Mapping[str, Any]) -> bool:
    """Whether the file says that it takes inputs of any size."""
    return found.get("free_size") is not None


def _fits(shape: list[Any], size: list[Any], *, last: bool, free: bool) -> bool:
    """Whether an input takes images of `size`; free: its sides may be names, which any number can take the place of."""
    wanted = [*size, 3] if last else [3, *size]
    if len(shape) != 1 + len(wanted):
        return False
    pairs = zip(shape[1:], wanted, strict=True)
    return all(side == want or (free and not isinstance(side, int)) for side, want in pairs)


def _is_size(value: Any, most: int) -> bool:
    """A height and a width, and no bomb."""
    sides = isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    return sides and math.prod(value) <= most


def is_name(value: Any) -> bool:
    """A class name: text that can be drawn and written to any file, without control characters and halves of a
    surrogate pair. Data with other names are refused before a training, whose file could not be opened."""
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME:
        return False
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value)


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _short(value: Any) -> str:
    """A value as python writes it, cut where it is long or deep."""
    cut = reprlib.Repr()
    cut.maxlist = cut.maxdict = 8
    cut.maxlevel, cut.maxstring, cut.maxother = 3, 60, 60
    return cut.repr(value)
