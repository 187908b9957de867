"""Commands that train: train, pretrain, demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from cvpeft.cli.parser import add_command, add_overrides
from cvpeft.errors import ConfigError

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    _train(commands)
    _pretrain(commands)
    _demo(commands)


def _train(commands: argparse._SubParsersAction) -> None:
    about = "Train a detector as configured; the same command continues an interrupted run."
    parser = add_command(
        commands, "train", run_train, about, "cvpeft train configs/manhole_lora.yaml train.epochs=5 run.name=quick"
    )
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument(
        "--keys", action="store_true", help="print every setting with its default and meaning, and stop"
    )
    add_overrides(parser)


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


def _pretrain(commands: argparse._SubParsersAction) -> None:
    about = "Train base weights from nothing on rendered scenes: crops first, then the whole detector."
    example = "cvpeft pretrain configs/pretrain_convnext.yaml --out street_convnext_atto.safetensors"
    parser = add_command(commands, "pretrain", run_pretrain, about, example)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file, not there yet")
    parser.add_argument("--crop-epochs", type=int, default=8, help="of the backbone on crops, before the detector")
    parser.add_argument("--crop-lr", type=float, default=2e-3, help="learning rate of that part at its highest")
    parser.add_argument("--formulas", type=int, default=0, help="classes of formula-drawn shapes among the crops")
    parser.add_argument("--minutes", type=float, help="cut the epochs of both parts to what fits into this time")
    add_overrides(parser)


def run_pretrain(args: argparse.Namespace) -> int:
    from cvpeft.study.pretrain import pretrain

    pretrain(
        args.config,
        args.out,
        crop_epochs=args.crop_epochs,
        crop_lr=args.crop_lr,
        formulas=args.formulas,
        minutes=args.minutes,
        overrides=args.overrides,
    )
    return 0


def _demo(commands: argparse._SubParsersAction) -> None:
    about = "The main job on a rendered city: LoRA on the shipped base, mAP, ONNX, pictures."
    parser = add_command(commands, "demo", run_demo, about, "cvpeft demo --quick")
    parser.add_argument(
        "--quick", action="store_true", help="a few images and steps: shows that all parts work, nothing more"
    )


def run_demo(args: argparse.Namespace) -> int:
    from cvpeft.study.demo import demo

    demo(quick=args.quick)
    return 0
