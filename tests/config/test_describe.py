"""The table of keys holds the whole schema, in words."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from cvpeft.config import keys
from cvpeft.config.describe import expected
from cvpeft.config.schema import Settings


def test_keys_are_all_leaves_of_the_schema():
    table = {key: rest for key, *rest in keys()}
    assert {key.split(".")[0] for key in table} == set(Settings.model_fields)
    assert table["train.lr.adapter"] == ["a number above 0", "0.002", ""]
    assert table["data.render.city"][:2] == ["text", "required"]
    assert table["data.size"][:2] == ["a list of 2, each a whole number above 0", "[416, 640]"]
    assert table["backbone.weights"][:2] == ["one of timm, street, none or a path", "timm"]
    assert table["run.dir"][:2] == ["a path or null", "null"]
    assert "train.lr" not in table
    assert all(all(isinstance(part, str) for part in row) for row in keys())


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (Literal["a", 2], "one of a, 2"),
        (int | None, "a whole number or null"),
        (dict[str, int], "a mapping of keys"),
        (Annotated[float, Field(gt=0, le=1)], "a number above 0 to 1"),
        (Annotated[int, Field(le=3)], "a whole number up to 3"),
        (Annotated[int, Field(lt=3)], "a whole number below 3"),
        (list[str], "list[str]"),
    ],
)
def test_types_in_words(annotation, words):
    assert expected(annotation) == words
