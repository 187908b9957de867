"""Commands that make, change and look at data sets: data render, split, check, stats, show."""

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
    for add in (_render, _split, _check, _stats, _show):
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
    about_by = "fields of the json's images, folder, near-duplicates (photos that look alike); images that agree in all"
    split.add_argument("--by", nargs="+", default=[], metavar="FIELD", help=f"{about_by} stay together")
    split.add_argument("--parts", nargs="+", default=["train=0.8", "val=0.2"], metavar="NAME=SHARE")
    split.add_argument("--leave-out", metavar="VALUE", help="two parts: the images of this FIELD, and all others")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("--allow-leaks", action="store_true", help="near-duplicates may lie in different parts")


def run_split(args: argparse.Namespace) -> int:
    from cvpeft.data.split import leave_out, read_shares, split_json

    if args.leave_out is not None:
        parts = leave_out(args.json, args.by, args.leave_out, allow_leaks=args.allow_leaks)
    else:
        shares = read_shares(args.parts)
        parts = split_json(args.json, shares, by=args.by, seed=args.seed, allow_leaks=args.allow_leaks)
    for part in parts:
        boxes = "".join(f", {name} {count}" for name, count in part.boxes.items())
        print(f"{part.file}: {part.images} images in {part.groups} groups, {part.negatives} without boxes{boxes}")
    return 0


def _check(verbs: argparse._SubParsersAction) -> None:
    about = "Tell everything that is wrong with a data set: json, boxes, every image decoded, copies across splits."
    example = "cvpeft data check train.json val.json\n  cvpeft data check --config configs/potholes_lora.yaml"
    check = add_command(verbs, "check", run_check, about, example)
    check.add_argument("json", type=Path, nargs="*", help="COCO json files, each a split")
    check.add_argument("--config", type=Path, help="its data.train, val and test, and its anchors")
    check.add_argument("--out", type=Path, default=Path("data_check"), metavar="DIR", help="folder of the two reports")
    check.add_argument("--skip-unreadable", action="store_true", help="unreadable images are warnings, up to 5 %%")
    check.add_argument("--allow-missing", action="store_true", help="images that are not there are warnings")
    check.add_argument("--write-manifest", type=Path, metavar="FILE", help="the sha256 of every file, if all is well")
    check.add_argument("--verify", type=Path, metavar="FILE", help="tell every byte that is not as in this manifest")
    check.add_argument("--workers", type=int, help="processes that decode; default: one for each core")


def run_check(args: argparse.Namespace) -> int:
    from cvpeft.study.data_check import check_job

    return check_job(
        args.json,
        config=args.config,
        out=args.out,
        manifest=args.write_manifest,
        verify=args.verify,
        skip_unreadable=args.skip_unreadable,
        allow_missing=args.allow_missing,
        workers=args.workers,
    )


def _stats(verbs: argparse._SubParsersAction) -> None:
    about = "Count a data set: boxes of each class and city, small, medium and large, images without any."
    stats = add_command(verbs, "stats", run_stats, about, "cvpeft data stats train.json")
    stats.add_argument("json", type=Path, nargs="+", help="COCO json files, read as one data set")


def run_stats(args: argparse.Namespace) -> int:
    from cvpeft.data.coco import load_coco
    from cvpeft.data.stats import stats

    print(stats(load_coco(args.json)))
    return 0


def _show(verbs: argparse._SubParsersAction) -> None:
    about = "Write a contact sheet: images of a data set with their boxes and names."
    show = add_command(verbs, "show", run_show, about, "cvpeft data show train.json --out sheet.jpg")
    show.add_argument("json", type=Path, nargs="+", help="COCO json files, read as one data set")
    show.add_argument("--out", type=Path, required=True, metavar="FILE", help="a JPEG, not there yet")
    show.add_argument("--images", type=int, default=24, metavar="N")
    show.add_argument("--columns", type=int, default=4, metavar="N")
    show.add_argument("--seed", type=int, help="any images; without it the first ones")


def run_show(args: argparse.Namespace) -> int:
    from cvpeft.data.coco import load_coco
    from cvpeft.data.pictures import write_sheet

    data = load_coco(args.json)
    shown = write_sheet(args.out, data, images=max(1, args.images), seed=args.seed, columns=max(1, args.columns))
    print(f"{args.out}: {shown} of {len(data.images)} images")
    return 0
