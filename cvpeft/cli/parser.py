"""What all commands share: a parser with an example, settings on the command line, and how photos are seen."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Literal

__all__ = ["Command", "add_canvas", "add_command", "add_overrides"]

Command = Callable[[argparse.Namespace], int]


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Command, about: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the config's")


def add_canvas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--canvas",
        type=_canvas,
        metavar="HxW",
        help="for small objects in large photos: bring each photo to this height and width and see it in overlapping "
        "tiles; `photo`: at its own size",
    )


def _canvas(text: str) -> tuple[int, int] | Literal["photo"]:
    if text == "photo":
        return "photo"
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither HEIGHTxWIDTH, as in 1280x1920, nor `photo`")
    return int(height), int(width)
