"""Damaged json files: one error, or a listed note, or exactly the clean data set; never a traceback, never outside."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cvpeft.data.coco import load_coco
from cvpeft.errors import DataError

from .sets import coco, write
from .test_coco import perfect_score, places, shuffled
from .test_images import names

QUICK = settings(
    max_examples=1000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FREE = ("info", "licenses", "supercategory", "segmentation", "id", "area")  # they change no box and no class
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5), st.lists(st.integers(-1, 99), max_size=5),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("fuzz"), coco())


def damaged(spot: int, value: Any, kind: str) -> tuple[dict[str, Any], Any]:
    content = coco()
    spots = list(places(content))
    holder, key = spots[spot % len(spots)]
    if kind == "drop":
        del holder[key]
    elif kind == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = value
    return content, key


def outcome_is_told(clean: Path, content: dict[str, Any], key: Any) -> None:
    file = clean.with_name("damaged.json")
    file.write_text(json.dumps(content))
    try:
        data = load_coco([file], classes=("good", "broke", "lose"))
    except DataError:
        return
    before = load_coco([clean]).ground_truth()["annotations"]
    after = data.ground_truth()["annotations"]
    if not data.notes and len(content["annotations"]) == len(before) and key in FREE:
        assert [(a["bbox"], a["category_id"]) for a in after] == [(a["bbox"], a["category_id"]) for a in before]
    lost = len(content["annotations"]) - len(after)
    dropped = sum(int(note.split()[1]) for note in data.notes if "dropped" in note)
    assert lost == dropped, data.notes


@QUICK
@given(spot=st.integers(0, 10_000), value=VALUES, kind=st.sampled_from(["value", "drop", "twice"]))
def test_one_place_is_damaged(clean: Path, spot: int, value: Any, kind: str) -> None:
    outcome_is_told(clean, *damaged(spot, value, kind))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(QUICK, max_examples=50_000, derandomize=False)
@given(spot=st.integers(0, 10_000), value=VALUES, kind=st.sampled_from(["value", "drop", "twice"]))
def test_one_place_is_damaged_at_length(clean: Path, spot: int, value: Any, kind: str) -> None:
    outcome_is_told(clean, *damaged(spot, value, kind))


@settings(QUICK, max_examples=20)
@given(
    orders=st.lists(st.permutations([1, 2, 3]), min_size=2, max_size=5), start=st.integers(0, 9), restart=st.booleans()
)
@example(orders=[[1, 2, 3], [3, 2, 1]], start=0, restart=True)
def test_perfect_predictions_on_cities_score_one(
    tmp_path: Path, orders: list[list[int]], start: int, restart: bool
) -> None:
    files = []
    for k, order in enumerate(orders):
        content = shuffled(coco(), list(order), start)
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = 0 if restart else number
        files.append(write(tmp_path / str(k), content, f"city{k}.json"))
    assert perfect_score(load_coco(files))[0] == 1.0


OPENED: list[str] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook cannot be taken away again: it listens only while there is a list."""
    if OPENED is not None and event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


@pytest.fixture(scope="module", autouse=True)
def watched() -> None:
    sys.addaudithook(watch)


def nothing_outside_is_opened(clean: Path, name: str) -> None:
    """The image states no size, so that its file is opened."""
    global OPENED
    link = clean.parent / "link"
    if not link.is_symlink():
        link.symlink_to("/etc")
    file = clean.with_name("named.json")
    file.write_text(json.dumps(coco(1, per_image=0) | {"images": [{"id": 1, "file_name": name}]}))
    OPENED = []
    try:
        load_coco([file], classes=("good",))
    except DataError:
        pass
    finally:
        opened, OPENED = OPENED, None
    root = str(clean.parent.resolve())
    assert [path for path in opened if not str(Path(path).resolve()).startswith(root)] == []


@QUICK
@given(name=names)
@example(name="../../../../../../etc/passwd")
@example(name="link/secret.png")
def test_no_file_name_opens_what_lies_outside(clean: Path, name: str) -> None:
    nothing_outside_is_opened(clean, name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(QUICK, max_examples=20_000, derandomize=False)
@given(name=names)
def test_no_file_name_opens_what_lies_outside_at_length(clean: Path, name: str) -> None:
    nothing_outside_is_opened(clean, name)
