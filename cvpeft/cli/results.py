"""Commands on a trained run: eval, predict, export."""

from __future__ import annotations

import argparse
from pathlib import Path

from cvpeft.cli.parser import add_canvas, add_command, add_overrides

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
    add_overrides(parser)


def run_eval(args: argparse.Namespace) -> int:
    from cvpeft.study.job import eval_job

    eval_job(args.run, args.split, args.data, args.overrides)
    return 0


def _predict(commands: argparse._SubParsersAction) -> None:
    about = "Detect on photos: pictures with boxes, and a COCO json of what was found."
    parser = add_command(
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
    add_canvas(parser)
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="key=value", help="settings of a run folder"
    )


def run_predict(args: argparse.Namespace) -> int:
    from cvpeft.study.job import predict_job

    return predict_job(args.source, args.images, args.out, args.score, args.overrides, args.canvas)


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
    from cvpeft.study.job import cities_job, export_job

    if args.adapters:
        cities_job(args.run, args.adapters, args.overrides)
    else:
        export_job(args.run, args.format, args.overrides)
    return 0
