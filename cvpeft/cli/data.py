"""Commands that make and change data sets: data render, data split."""

from __future__ import annotations

import argparse
from pathlib import Path

from cvpeft.cli.parser import add_command

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    _data(commands)


def _data(commands: argparse._SubParsersAction) -> None:
    about = "Make data: render street scenes with manhole covers, or split a COCO json by street or city."
    parser = add_command(commands, "data", run_render, about, "cvpeft data render --city a --images 400 --seed 0 OUT")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for add in (_render, _split):
        add(verbs)


def _render(verbs: argparse._SubParsersAction) -> None:
    about = "Rendered street scenes with manhole covers, as COCO json and images."
    render = add_command(verbs, "render", run_render, about, "cvpeft data render --city a --images 400 --seed 0 OUT")
    render.add_argument("--city", required=True)
    render.add_argument("--images", type=int, default=200)
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    render.add_argument("--name", default="train", help="name of the json file")
    render.add_argument("out", type=Path)


def run_render(args: argparse.Namespace) -> int:
    from cvpeft.data.render import render_dataset

    print(render_dataset(args.out, args.city, args.images, args.seed, tuple(args.size), args.name))
    return 0


def _split(verbs: argparse._SubParsersAction) -> None:
    about = "Split a COCO json so that what belongs together (a street, copies of a photo) lies in one part."
    example = "cvpeft data split train.json --by section --parts kept=0.75 held=0.25"
    split = add_command(verbs, "split", run_split, about, example)
    split.add_argument("json", type=Path, help="the parts are written beside it")
    split.add_argument("--by", default="", metavar="FIELD", help="field of the json's images, or folder")
    split.add_argument("--parts", nargs="+", default=["train=0.8", "val=0.2"], metavar="NAME=SHARE")
    split.add_argument("--leave-out", metavar="VALUE", help="two parts: the images of this FIELD, and all others")
    split.add_argument("--seed", type=int, default=0)


def run_split(args: argparse.Namespace) -> int:
    from cvpeft.data.split import leave_out, read_shares, split_json

    if args.leave_out is not None:
        parts = leave_out(args.json, args.by, args.leave_out)
    else:
        parts = split_json(args.json, read_shares(args.parts), by=args.by, seed=args.seed)
    for part in parts:
        boxes = "".join(f", {name} {count}" for name, count in part.boxes.items())
        print(f"{part.file}: {part.images} images in {part.groups} groups, {part.negatives} without boxes{boxes}")
    return 0
