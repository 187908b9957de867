"""The outside of a COCO file: bytes -> three lists, or one sentence on what the file is instead."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from cvpeft.errors import DataError

__all__ = [
    "Lists",
    "crowd_mark",
    "dummy_category",
    "is_id",
    "is_number",
    "read_coco_file",
    "read_json",
    "short",
    "stated_size",
    "whole",
]

MAX_BYTES = 512 * 2**20

Lists = dict[str, list[Any]]


def read_coco_file(file: Path) -> Lists:
    """The lists images, annotations, categories of a json; their entries are not looked at. Raises DataError."""
    return _sections(file, read_json(file))


def read_json(file: Path) -> object:
    """What a json of at most 512 MB holds; DataError where it cannot be read, is no JSON, or holds NaN or Infinity."""
    where = str(file)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            what = f"the json has {size / 2**20:.0f} MB, the limit is {MAX_BYTES // 2**20} MB"
            raise DataError("SIZE", what, where=where, fix="store masks outside of it, or split it by city")
        with _no_collection():
            return json.loads(file.read_text("utf-8-sig"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        fix = "check the path, and data.root where a config names it; a part that you do not have is set to []"
        raise DataError("FILE", "the json file does not exist", where=where, fix=fix) from error
    except OSError as error:
        raise DataError("FILE", f"the json file cannot be read ({error.strerror})", where=where) from error
    except RecursionError as error:
        raise DataError("JSON", "brackets are nested too deep for COCO", where=where) from error
    except ValueError as error:  # also a byte that is not UTF-8, a number of thousands of digits
        raise DataError(
            "JSON", f"this is not JSON ({error})", where=where, fix="export the labels as COCO json"
        ) from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of objects, none of which is garbage: Python would look through all of them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _sections(file: Path, content: object) -> dict[str, list[Any]]:
    """The three lists of a COCO file. Raises DataError that says what the file seems to be instead."""
    expected = "a COCO file is an object with the lists images, annotations, categories"
    if isinstance(content, list):
        scored = content and isinstance(content[0], dict) and "score" in content[0]
        guess = "a list of predictions" if scored else "a list"
        raise DataError("COCO", f"the top level is {guess}", where=str(file), why=expected)
    if not isinstance(content, dict):
        raise DataError("COCO", f"the top level is {short(content)}", where=str(file), why=expected)
    wrong = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if wrong:
        tool = "; this looks like a LabelMe file" if "shapes" in content else ""
        what = f"no list named {' or '.join(wrong)}; found the keys {', '.join(map(str, content)) or 'none'}"
        raise DataError("COCO", what[:300] + tool, where=str(file), why=expected)
    first = next((a for a in content["annotations"] if isinstance(a, dict)), {})
    if "caption" in first and "bbox" not in first:
        raise DataError("COCO", "the annotations are captions, not boxes", where=str(file))
    if not content["images"]:
        raise DataError("COCO", "the list of images is empty", where=str(file))
    return content


def dummy_category(content: Lists, used: set[object]) -> str | None:
    """The name of the category 0 without boxes that Roboflow puts above all others, whose supercategory it is.

    used: ids of the categories that have boxes.
    """
    entries = [c for c in content["categories"] if isinstance(c, dict)]
    name = next((c.get("name") for c in entries if c.get("id") == 0), None)
    others = [c for c in entries if c.get("id") != 0]
    if 0 in used or not others or not isinstance(name, str):
        return None
    return name if all(c.get("supercategory") == name for c in others) else None


def is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(value: object) -> object:
    """An id as a whole number where it is one in other clothes, "7" or 7.0; all else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def crowd_mark(value: object) -> object:
    """iscrowd as 0 or 1 where it is one of them in other clothes, "0" or "true"; all else as it is."""
    if value in ("0", "false", "False", ""):
        return 0
    return 1 if value in ("1", "true", "True") else value


def stated_size(height: object, width: object) -> tuple[int, int] | None:
    """(height, width) as a json states them; None where these are no numbers."""
    return (int(height), int(width)) if is_number(height) and is_number(width) else None


def is_number(value: object) -> TypeGuard[float]:
    """JSON knows 1e999 and integers of any length, which are not finite as floats."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
