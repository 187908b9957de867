"""Mutated configs end in settings or in a ConfigError that names the place, never in anything else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from cvpeft.config import Settings, dump, load
from cvpeft.errors import ConfigError

from .conftest import GOOD

QUICK = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["lora", "full", "road", "none", "~/x", "..", "1e-3", "*", "&a", "!x", "<<", "off", ".nan", "[", "{a"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Every key and index of a tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, child in children for place in [(*path, key), *_places(child, (*path, key))]]


TREE = YAML(typ="safe", pure=True).load(GOOD)
PLACES = _places(TREE)
NAMED = [place for place in PLACES if isinstance(place[-1], str) and place[:3] != ("data", "augment", 0)]
NOISE = st.text(alphabet="[]{}:,-&*!%|>'\"#?\n\t ~a0\\\0\x85", max_size=6)
STARTS = st.integers(0, len(GOOD))


def _mutated(place: tuple, kind: str, value: Any, name: str) -> Any:
    tree = json.loads(json.dumps(TREE))
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    if kind == "value":
        parent[place[-1]] = value
    elif kind == "drop":
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent[name] = parent.pop(place[-1])
    else:
        parent.append(value)
    return tree


def _outcome(path: Path, methods, overrides=()) -> Settings | ConfigError:
    try:
        found = load(path, overrides, methods=methods)
    except ConfigError as error:
        return error
    again = path.with_name("again.yaml")
    again.write_text(dump(found))
    assert repr(load(again, methods=methods)) == repr(found)
    return found


@QUICK
@given(
    place=st.sampled_from(PLACES),
    kind=st.sampled_from(["value", "drop", "rename"]),
    value=VALUES,
    name=st.text(max_size=8),
)
def test_mutated_values_and_keys(folder, methods, place, kind, value, name):
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(_mutated(place, kind, value, name), text)
    path = Path("x.yaml")
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    outcome = _outcome(path, methods)
    if isinstance(outcome, ConfigError):
        assert "x.yaml:" in str(outcome)


@QUICK
@given(place=st.sampled_from(NAMED), name=st.from_regex("[a-z_]{1,9}", fullmatch=True))
def test_unknown_key_is_named_with_its_line(folder, methods, place, name):
    old = str(place[-1])
    lines = GOOD.splitlines()
    number = next(index for index, line in enumerate(lines) if f"{old}:" in line and not line.startswith("#"))
    lines[number] = lines[number].replace(f"{old}:", f"{old}{name}zq:", 1)
    path = Path("x.yaml")
    path.write_text("\n".join(lines))
    outcome = _outcome(path, methods)
    assert isinstance(outcome, ConfigError)
    assert f"x.yaml:{number + 1}" in str(outcome)
    assert f"{old}{name}zq" in str(outcome)


@QUICK
@given(start=STARTS, length=st.integers(0, 12), noise=NOISE)
def test_mutated_text(folder, methods, start, length, noise):
    path = Path("x.yaml")
    path.write_text(GOOD[:start] + noise + GOOD[start + length :])
    _outcome(path, methods)


@QUICK
@given(place=st.sampled_from(PLACES), value=st.text(max_size=12) | VALUES.map(lambda value: json.dumps(value)))
def test_mutated_overrides(folder, methods, place, value):
    path = Path("x.yaml")
    path.write_text(GOOD)
    override = ".".join(map(str, place)) + "=" + value
    outcome = _outcome(path, methods, [override])
    if isinstance(outcome, ConfigError):
        assert "command line: " in str(outcome) or "x.yaml:" in str(outcome)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(QUICK, max_examples=20_000, derandomize=False)
@given(start=STARTS, length=st.integers(0, 40), noise=st.text(max_size=20))
def test_mutated_text_at_length(folder, methods, start, length, noise):
    path = Path("x.yaml")
    path.write_bytes((GOOD[:start] + noise + GOOD[start + length :]).encode("utf-8", "surrogatepass"))
    _outcome(path, methods)
