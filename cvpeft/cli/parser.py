"""What all commands share: a parser with an example, and settings on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["Command", "add_command", "add_overrides"]

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
    parser.set_defaults(command=run, called=name)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the config's")
