"""The options that the commands for exported files share. Imports nothing that takes time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

__all__ = ["add_canvas", "add_options"]


def add_options(parser: argparse.ArgumentParser, source: str) -> None:
    """source: what the first argument may be."""
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("images", nargs="+", help="files, folders or patterns; videos as files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--score", type=float, help="score from which a box counts, for all classes")
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="a city's .onnx_adapter, for a base.onnx")
    add_canvas(parser)
    parser.add_argument(
        "--one-name",
        type=float,
        metavar="IOU",
        help="one name for one object: of boxes of any classes that overlap by more than this, as 0.7, only the best",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="photos and tiles fed at once")
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="time between the frames of a video; 0: all"
    )


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
