"""Commands on a trained run: eval, predict, export."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from cvpeft.cli.parser import add_command, add_overrides
from cvpeft.errors import ConfigError
from cvpeft.runtime.options import add_options

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    _eval(commands)
    _predict(commands)
    _export(commands)


def _eval(commands: argparse._SubParsersAction) -> None:
    about = "Score a trained run: COCO numbers, per class and domain, false alarms, curves, latency."
    parser = add_command(commands, "eval", run_eval, about, "cvpeft eval runs/manhole_lora --split val")
    parser.add_argument("run", type=Path, help="a run folder, or the config that it was trained from")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="JSON", help="other COCO json files to score"
    )
    parser.add_argument(
        "--review", action="store_true", help="review.html too: where the run and the labels disagree, in pictures"
    )
    add_overrides(parser)


def run_eval(args: argparse.Namespace) -> int:
    from cvpeft.study.job import eval_job

    eval_job(args.run, args.split, args.data, args.overrides, review=args.review)
    return 0


def _predict(commands: argparse._SubParsersAction) -> None:
    about = "Detect on photos and videos: pictures with boxes, COCO json, CSV, and GeoJSON from GPS positions."
    parser = add_command(
        commands,
        "predict",
        run_predict,
        about,
        "cvpeft predict runs/manhole_lora/export/model.onnx photos/ --out found",
    )
    add_options(parser, "a run folder or an exported .onnx file")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="key=value", help="settings of a run folder"
    )


def run_predict(args: argparse.Namespace) -> int:
    """An exported file needs no torch, so that a machine without it can run the command."""
    options = {"canvas": args.canvas, "one_name": args.one_name, "batch": args.batch, "every": args.every}
    if os.path.isdir(args.source):  # Path.is_dir raises where a name is too long
        _need_torch(args.source)
        if args.adapter:
            fix = "name the base.onnx, or the folder of the city's own run"
            raise ConfigError("ADAPTER", "an adapter file is for a base.onnx", where=str(args.source), fix=fix)
        from cvpeft.study.job import predict_job

        return predict_job(args.source, args.images, args.out, args.score, args.overrides, **options)
    if args.overrides:
        what = f"{args.source} has no config that {args.overrides[0]} could change"
        raise ConfigError("SOURCE", what, fix="leave it out")
    from cvpeft.runtime.search import search_onnx, tell

    return tell(search_onnx(args.source, args.images, args.out, score=args.score, adapter=args.adapter, **options))


def _need_torch(run: Path) -> None:
    if find_spec("torch") is None:
        fix = "name an exported file (cvpeft export, where torch is), or install cvpeft with its dependencies"
        raise ConfigError("TORCH", "a run folder is run by torch, which is not installed", where=str(run), fix=fix)


def _export(commands: argparse._SubParsersAction) -> None:
    about = "Write a trained run as ONNX, proven equal to it, in INT8, as merged weights, or for many cities."
    example = "cvpeft export runs/manhole_lora\n  cvpeft export runs/berlin --adapters runs/berlin runs/lyon"
    parser = add_command(commands, "export", run_export, about, example)
    parser.add_argument("run", type=Path, help="a run folder, or the config that it was trained from")
    parser.add_argument(
        "--format",
        choices=("onnx", "int8", "weights", "peft"),
        default="onnx",
        help="int8: ONNX in 8-bit integers, kept only where its AP holds; weights: one safetensors, plain keys; "
        "peft: a folder for HF peft on the same timm backbone",
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs on the same base: one base.onnx, and an .onnx_adapter for each",
    )
    add_overrides(parser)


def run_export(args: argparse.Namespace) -> int:
    if args.adapters and args.format != "onnx":
        what = f"--format {args.format} stands beside --adapters, which write one base.onnx and a file for each city"
        raise ConfigError("FORMAT", what, where=str(args.run), fix="leave one of them out")
    from cvpeft.study.job import cities_job, export_job

    if args.adapters:
        cities_job(args.run, args.adapters, args.overrides)
    else:
        export_job(args.run, args.format, args.overrides)
    return 0
