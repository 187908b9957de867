from __future__ import annotations

from pathlib import Path

from cvpeft.cli import main
from cvpeft.peft.inject import methods
from cvpeft.study.registry import FAMILIES, methods_table

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_what_the_command_prints(capsys) -> None:
    assert main(["summary", "--methods"]) == 0
    assert capsys.readouterr().out == PAGE.read_text("utf-8")


def test_every_method_is_taken_where_the_table_says_so() -> None:
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in methods_table().splitlines()]
    assert [row[0].strip("`") for row in rows] == sorted(methods())
    first = head.index(next(iter(FAMILIES)))
    taken = {name: [row[0] for row in rows if row[first + i] == "yes"] for i, name in enumerate(FAMILIES)}
    for family in ("ViT, DeiT", "DINOv2", "DINOv3"):
        assert len(taken[family]) == len(rows)
    for family in ("ConvNeXt", "ConvNeXt (conv mlp), V2", "Swin"):
        assert len(taken[family]) >= 9
    assert all(row[-1] for row in rows)


def test_a_summary_of_nothing_is_refused(capsys) -> None:
    assert main(["summary"]) == 2
    assert "no config is named" in capsys.readouterr().err
