"""`cvpeft COMMAND`: parse, call one library function, exit code. A command's modules are imported only when it runs.

Exit codes: 0 done, 2 config or data, 3 checkpoint, 4 resources, 5 numbers, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from cvpeft import __version__
from cvpeft.errors import ConfigError, CvpeftError

__all__ = ["main"]

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every mistake of the user ends in one sentence on stderr and its exit code."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    args = _parsed(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cvpeft").setLevel(logging.INFO)
    try:
        return int(args.command(args))
    except CvpeftError as error:
        return _told(error, error.exit_code, debug=args.debug)
    except MemoryError as error:
        return _told(f"E-MEMORY out of memory ({error}). Fix: lower train.batch or data.size", 4, debug=args.debug)
    except KeyboardInterrupt:
        return _told("stopped", 130, debug=False)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes `key=value` on one side of an option only: those that it leaves over are put to the others."""
    parser = _parser()
    args, left = parser.parse_known_args(argv)
    if strange := [text for text in left if text.startswith("-") or "=" not in text or "overrides" not in args]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if left:
        args.overrides = [*args.overrides, *left]
    return args


def _told(message: object, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cvpeft", description="Adapt object detectors with few trained parameters.")
    parser.add_argument("--version", action="version", version=f"cvpeft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_train, _eval, _predict, _export, _data, _summary, _compare, _pretrain, _demo):
        add(commands)
    return parser


def _add(
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


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the config's")


# One pair for each command: its arguments, and what it does


def _train(commands: argparse._SubParsersAction) -> None:
    about = "Train a detector as configured; the same command continues an interrupted run."
    parser = _add(
        commands, "train", run_train, about, "cvpeft train configs/manhole_lora.yaml train.epochs=5 run.name=quick"
    )
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument(
        "--keys", action="store_true", help="print every setting with its default and meaning, and stop"
    )
    _overrides(parser)


def run_train(args: argparse.Namespace) -> int:
    from cvpeft.study.job import train_job

    if args.keys:
        return _print_keys()
    if args.config is None:
        raise ConfigError("CONFIG", "no config is named", fix="cvpeft train configs/manhole_lora.yaml")
    train_job(args.config, args.overrides)
    return 0


def _print_keys() -> int:
    from cvpeft.config.describe import keys

    for key, kind, default, about in keys():
        print(f"{key:28} {kind}, default {default}\n{'':28} {about}")
    return 0


def _eval(commands: argparse._SubParsersAction) -> None:
    about = "Score a trained run: COCO numbers, per class and domain, false alarms, curves, latency."
    parser = _add(commands, "eval", run_eval, about, "cvpeft eval runs/manhole_lora --split val")
    parser.add_argument("run", type=Path, help="a run folder, or the config that it was trained from")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="JSON", help="other COCO json files to score"
    )
    _overrides(parser)


def run_eval(args: argparse.Namespace) -> int:
    from cvpeft.study.job import eval_job

    eval_job(args.run, args.split, args.data, args.overrides)
    return 0


def _predict(commands: argparse._SubParsersAction) -> None:
    about = "Detect on photos: pictures with boxes, and a COCO json of what was found."
    parser = _add(
        commands,
        "predict",
        run_predict,
        about,
        "cvpeft predict runs/manhole_lora/export/model.onnx photos/ --out found",
    )
    parser.add_argument("source", type=Path, help="a run folder or an exported .onnx file")
    parser.add_argument("images", nargs="+", help="files, folders or patterns")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--score", type=float, help="score from which a box counts, for all classes")
    parser.add_argument(
        "--canvas",
        type=_canvas,
        metavar="HxW",
        help="for small objects in large photos: bring each photo to this height and width and see it in overlapping "
        "tiles; `photo`: at its own size",
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="key=value", help="settings of a run folder"
    )


def run_predict(args: argparse.Namespace) -> int:
    from cvpeft.study.job import predict_job

    return predict_job(args.source, args.images, args.out, args.score, args.overrides, args.canvas)


def _canvas(text: str) -> tuple[int, int] | Literal["photo"]:
    if text == "photo":
        return "photo"
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither HEIGHTxWIDTH, as in 1280x1920, nor `photo`")
    return int(height), int(width)


def _export(commands: argparse._SubParsersAction) -> None:
    about = "Write a trained run as ONNX, proven equal to it, or as merged weights."
    parser = _add(commands, "export", run_export, about, "cvpeft export runs/manhole_lora")
    parser.add_argument("run", type=Path, help="a run folder, or the config that it was trained from")
    parser.add_argument(
        "--format",
        choices=("onnx", "weights", "peft"),
        default="onnx",
        help="weights: one safetensors, plain keys; peft: a folder for HF peft on the same timm backbone",
    )
    _overrides(parser)


def run_export(args: argparse.Namespace) -> int:
    from cvpeft.study.job import export_job

    export_job(args.run, args.format, args.overrides)
    return 0


def _data(commands: argparse._SubParsersAction) -> None:
    about = "Make data: render street scenes with manhole covers, or split a COCO json by street or city."
    parser = _add(commands, "data", run_render, about, "cvpeft data render --city a --images 400 --seed 0 OUT")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _split(verbs)
    about = "Rendered street scenes with manhole covers, as COCO json and images."
    render = _add(verbs, "render", run_render, about, "cvpeft data render --city a --images 400 --seed 0 OUT")
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
    split = _add(verbs, "split", run_split, about, example)
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


def _summary(commands: argparse._SubParsersAction) -> None:
    about = "Print what a config trains: parameters by part, file sizes, memory estimated and measured."
    parser = _add(commands, "summary", run_summary, about, "cvpeft summary configs/manhole_lora.yaml")
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--methods", action="store_true", help="print what methods there are, as Markdown, and stop")
    parser.add_argument(
        "--ranks",
        type=float,
        metavar="SHARE",
        help="config is a run: print the ranks that hold this share of its change",
    )
    parser.add_argument("--no-measure", action="store_true", help="do not run the one step that measures peak memory")
    _overrides(parser)


def run_summary(args: argparse.Namespace) -> int:
    if args.methods:
        from cvpeft.study.registry import methods_page

        print(methods_page(), end="")
        return 0
    from cvpeft.study.job import summary_job

    if args.config is None:
        raise ConfigError("CONFIG", "no config is named", fix="cvpeft summary configs/manhole_lora.yaml")
    if args.ranks is not None:
        from cvpeft.study.ranks import needed_ranks

        print(needed_ranks(args.config, args.ranks).yaml())
        return 0
    summary_job(args.config, args.overrides, measure=not args.no_measure)
    return 0


def _compare(commands: argparse._SubParsersAction) -> None:
    about = "Train one config in several modes, methods and seeds; or score cities' runs on each other's photos."
    parser = _add(
        commands,
        "compare",
        run_compare,
        about,
        "cvpeft compare configs/potholes_lora.yaml --seeds 0 1 2 --out runs/table\n"
        "  cvpeft compare --cities runs/berlin runs/lyon --out runs/cities",
    )
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument(
        "--cities", nargs="+", type=Path, default=[], metavar="RUN", help="finished runs; no config then"
    )
    parser.add_argument(
        "--modes", nargs="*", choices=("adapters", "full", "frozen"), default=["adapters", "full", "frozen"]
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="each alone, at its defaults (cvpeft summary --methods)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--sweep-lr",
        nargs="+",
        type=float,
        default=[],
        metavar="FACTOR",
        help="learning rates that each row tries first",
    )
    parser.add_argument(
        "--held-out", nargs=2, type=Path, metavar=("TRAIN", "VAL"), help="on these json files (cvpeft data split)"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")


def run_compare(args: argparse.Namespace) -> int:
    if args.cities:
        from cvpeft.study.cross import cross

        print(cross(args.cities, args.out).read_text())
        return 0
    from cvpeft.study.compare import Sweep, compare

    if args.config is None:
        raise ConfigError("CONFIG", "no config is named", fix="cvpeft compare configs/potholes_lora.yaml --out DIR")
    if bool(args.sweep_lr) != bool(args.held_out):
        what, why = "--sweep-lr and --held-out belong together", "Rates chosen on the scored images would flatter"
        raise ConfigError("SWEEP", what, why=why, fix="make the two json files with cvpeft data split")
    sweep = Sweep(tuple(args.sweep_lr), *args.held_out) if args.sweep_lr else None
    table = compare(
        args.config,
        modes=args.modes,
        methods=args.methods,
        seeds=args.seeds,
        overrides=args.overrides,
        out=args.out,
        sweep=sweep,
    )
    print(table.read_text())
    return 0


def _pretrain(commands: argparse._SubParsersAction) -> None:
    about = "Train base weights from nothing on rendered scenes: crops first, then the whole detector."
    example = "cvpeft pretrain configs/pretrain_convnext.yaml --out street_convnext_atto.safetensors"
    parser = _add(commands, "pretrain", run_pretrain, about, example)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file, not there yet")
    parser.add_argument("--crop-epochs", type=int, default=8, help="of the backbone on crops, before the detector")
    parser.add_argument("--formulas", type=int, default=0, help="classes of formula-drawn shapes among the crops")
    parser.add_argument("--minutes", type=float, help="cut the epochs of both parts to what fits into this time")
    _overrides(parser)


def run_pretrain(args: argparse.Namespace) -> int:
    from cvpeft.study.pretrain import pretrain

    pretrain(
        args.config,
        args.out,
        crop_epochs=args.crop_epochs,
        formulas=args.formulas,
        minutes=args.minutes,
        overrides=args.overrides,
    )
    return 0


def _demo(commands: argparse._SubParsersAction) -> None:
    about = "The main job on a rendered city: LoRA on the shipped base, mAP, ONNX, pictures."
    parser = _add(commands, "demo", run_demo, about, "cvpeft demo --quick")
    parser.add_argument(
        "--quick", action="store_true", help="a few images and steps: shows that all parts work, nothing more"
    )


def run_demo(args: argparse.Namespace) -> int:
    from cvpeft.study.demo import demo

    demo(quick=args.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
