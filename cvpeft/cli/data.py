"""Commands that make, change and look at data sets: data render, import, merge, autofix, check, split, stats, show,
benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cvpeft.cli.parser import add_command
from cvpeft.errors import DataError, visible

if TYPE_CHECKING:
    from cvpeft.data.convert.writer import Part

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    _data(commands)


def _data(commands: argparse._SubParsersAction) -> None:
    about = "Make data: render street scenes, import the labels of other tools, or split a COCO json by street or city."
    parser = add_command(commands, "data", run_render, about, "cvpeft data render --city a --images 400 --seed 0 OUT")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for add in (_render, _import, _merge, _autofix, _check, _split, _stats, _show, _benchmark):
        add(verbs)


def _render(verbs: argparse._SubParsersAction) -> None:
    about = "Rendered street scenes with manhole covers, as COCO json and images."
    render = add_command(verbs, "render", run_render, about, "cvpeft data render --city a --images 400 --seed 0 OUT")
    render.add_argument("--city", required=True)
    render.add_argument("--images", type=int, default=200)
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    render.add_argument("--name", default="train", help="name of the json file")
    render.add_argument("--parts", action="store_true", help="write what each pixel shows too: parts/*.png")
    render.add_argument("out", type=Path)


def run_render(args: argparse.Namespace) -> int:
    from cvpeft.data.render import render_dataset

    print(render_dataset(args.out, args.city, args.images, args.seed, tuple(args.size), args.name, parts=args.parts))
    return 0


def _import(verbs: argparse._SubParsersAction) -> None:
    about = "Labels of other tools (YOLO, VOC, COCO, LabelMe, VIA), checked, as one COCO json for each split."
    example = "cvpeft data import downloads/covers.v3 --out datasets/berlin --map broken=broke"
    parser = add_command(verbs, "import", run_import, about, example)
    parser.add_argument("source", type=Path, help="folder, or one file of labels in it; nothing in it is changed")
    parser.add_argument("--format", default="auto", dest="form", help="auto, coco, labelme, via, voc or yolo")
    out_help = "new folder for json files and hard links to the images; or a folder that holds them already"
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=out_help)
    parser.add_argument("--map", nargs="+", default=[], metavar="OLD=NEW", help="classes to rename or join")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking them")
    skip_help = "skip: leave out images with a fault, with a count, where all are refused otherwise"
    parser.add_argument("--on-fault", choices=("error", "skip"), default="error", help=skip_help)
    parser.add_argument("--negatives", action="store_true", help="images without a label file show nothing")
    parser.add_argument("--join", action="store_true", help="all splits into data.json, for cvpeft data split")


def run_import(args: argparse.Namespace) -> int:
    from cvpeft.data.convert.importer import import_labels

    made = import_labels(
        args.source, args.out, form=args.form, rename=_renames(args.map), copy=args.copy,
        skip=args.on_fault == "skip", negatives=args.negatives, join=args.join,
    )  # fmt: skip
    print(f"format: {made.form}")
    for note in made.notes:
        print(visible(note))
    for part in made.parts:
        print(_told(part))
    print(f"{made.log}: all that was put right or left out")
    return 0


def _renames(texts: list[str]) -> dict[str, str]:
    """`broken=broke` and the like as a dict."""
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (_, sign, new) in zip(texts, pairs, strict=True) if not (sign and new)]:
        raise DataError("MAP", f"'{wrong[0]}' is no OLD=NEW", fix="write --map broken=broke, each name once")
    if len({old for old, _, _ in pairs}) < len(pairs):
        raise DataError("MAP", f"a class is renamed twice in {' '.join(texts)}", fix="name each class once")
    return {old: new for old, _, new in pairs}


def _told(part: Part) -> str:
    return visible(f"{part.file}: {part.images} images, {_boxes(part.negatives, part.boxes)}")


def _boxes(negatives: int, boxes: Mapping[str, int]) -> str:
    return f"{negatives} without boxes" + "".join(f", {name} {count}" for name, count in boxes.items())


def _merge(verbs: argparse._SubParsersAction) -> None:
    about = (
        "Several COCO json files, one for each city, say, as one: ids anew, classes by name, every image its domain."
    )
    example = "cvpeft data merge berlin/train.json lyon/train.json --out train.json"
    parser = add_command(verbs, "merge", run_merge, about, example)
    parser.add_argument("json", type=Path, nargs="+", help="they stay as they are")
    out_help = "a json in a folder above all images, or a new folder for a json and hard links to the images"
    parser.add_argument("--out", type=Path, required=True, metavar="JSON_OR_FOLDER", help=out_help)
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking them")


def run_merge(args: argparse.Namespace) -> int:
    from cvpeft.data.convert.merge import merge_jsons

    part, notes = merge_jsons(args.json, args.out, copy=args.copy)
    for note in notes:
        print(visible(note))
    print(_told(part))
    return 0


def _autofix(verbs: argparse._SubParsersAction) -> None:
    about = "Repair a COCO json into a new one, where that changes no label's meaning, with a log of each change."
    example = "cvpeft data autofix train.json --out train_fixed.json"
    parser = add_command(verbs, "autofix", run_autofix, about, example)
    parser.add_argument("json", type=Path, help="it stays as it is")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="in the json's folder, or above")
    drop = "take out images that are missing or cannot be decoded, with their boxes, as long as they are few"
    parser.add_argument("--drop-unreadable", action="store_true", help=drop)


def run_autofix(args: argparse.Namespace) -> int:
    from cvpeft.data.convert.autofix import autofix

    fixed = autofix(args.json, args.out, drop_unreadable=args.drop_unreadable)
    for what, count in fixed.counts.items():
        print(visible(f"{count} x {what}"))
    print(f"{fixed.file}: {sum(fixed.counts.values())} changes, each in {fixed.log}")
    if fixed.left is not None:
        print("what is left has to be corrected by hand, in the new file")
        raise fixed.left
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
        boxes = _boxes(part.negatives, part.boxes)
        print(visible(f"{part.file}: {part.images} images in {part.groups} groups, {boxes}"))
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

    print(visible(stats(load_coco(args.json))))
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


def _benchmark(verbs: argparse._SubParsersAction) -> None:
    about = "Time the check of made-up photos and the reading of a made-up json, beside decoding and parsing alone."
    bench = add_command(
        verbs, "benchmark", run_benchmark, about, "cvpeft data benchmark --images 10000 --boxes 1000000"
    )
    bench.add_argument("--images", type=int, default=10_000)
    bench.add_argument("--boxes", type=int, default=1_000_000)


def run_benchmark(args: argparse.Namespace) -> int:
    from cvpeft.study.data_benchmark import benchmark_data

    for line in benchmark_data(max(1, args.images), max(1, args.boxes)):
        print(line, flush=True)
    return 0
