"""Commands that count, compare and time: summary, compare, benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cvpeft.cli.parser import add_command, add_overrides
from cvpeft.errors import ConfigError

if TYPE_CHECKING:
    from cvpeft.study.compare import Sweep

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    _summary(commands)
    _compare(commands)
    _benchmark(commands)


def _summary(commands: argparse._SubParsersAction) -> None:
    about = "Print what a config trains: parameters by part, file sizes, memory estimated and measured."
    parser = add_command(commands, "summary", run_summary, about, "cvpeft summary configs/manhole_lora.yaml")
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--methods", action="store_true", help="print what methods there are, as Markdown, and stop")
    parser.add_argument(
        "--ranks",
        type=float,
        metavar="SHARE",
        help="config is a run: print the ranks that hold this share of its change",
    )
    parser.add_argument("--no-measure", action="store_true", help="do not run the one step that measures peak memory")
    add_overrides(parser)


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

        print(needed_ranks(args.config, args.ranks, args.overrides).yaml())
        return 0
    summary_job(args.config, args.overrides, measure=not args.no_measure)
    return 0


def _compare(commands: argparse._SubParsersAction) -> None:
    about = "Train one config in several modes, methods and seeds; or score cities' runs on each other's photos."
    parser = add_command(
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
    parser.add_argument(
        "--sweep-epochs",
        type=int,
        metavar="N",
        help="epochs of each such try; else the config's. Much shorter ones prefer rates that are too high for it",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings beside one another; 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")


def run_compare(args: argparse.Namespace) -> int:
    if args.cities:
        if given := [str(args.config)] * (args.config is not None) + args.overrides:
            what, why = f"{given[0]} stands beside --cities", "Every run is scored as it was trained"
            raise ConfigError("CITIES", what, why=why, fix="leave it out, or take cvpeft eval RUN key=value")
        from cvpeft.study.cross import cross

        print(cross(args.cities, args.out).read_text(encoding="utf-8"))
        return 0
    from cvpeft.study.compare import compare

    if args.config is None:
        raise ConfigError("CONFIG", "no config is named", fix="cvpeft compare configs/potholes_lora.yaml --out DIR")
    table = compare(
        args.config,
        modes=args.modes,
        methods=args.methods,
        seeds=args.seeds,
        overrides=args.overrides,
        out=args.out,
        sweep=_sweep(args),
        jobs=args.jobs,
    )
    print(table.read_text(encoding="utf-8"))
    return 0


def _sweep(args: argparse.Namespace) -> Sweep | None:
    from cvpeft.study.compare import Sweep

    if bool(args.sweep_lr) != bool(args.held_out):
        what, why = "--sweep-lr and --held-out belong together", "Rates chosen on the scored images would flatter"
        raise ConfigError("SWEEP", what, why=why, fix="make the two json files with cvpeft data split")
    if not args.sweep_lr:
        if args.sweep_epochs is not None:
            raise ConfigError("SWEEP", "--sweep-epochs without --sweep-lr", why="Nothing is tried", fix="give both")
        return None
    train, val = args.held_out
    return Sweep(tuple(args.sweep_lr), train, val, args.sweep_epochs)


def _benchmark(commands: argparse._SubParsersAction) -> None:
    about = "Time a run in every form, side by side: unmerged, merged, without its methods, ONNX; and adapter exchange."
    parser = add_command(commands, "benchmark", run_benchmark, about, "cvpeft benchmark runs/manhole_lora")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="several of one base: their exchange as well")
    parser.add_argument("--rounds", type=int, default=20)


def run_benchmark(args: argparse.Namespace) -> int:
    from cvpeft.study.benchmark import benchmark

    print(benchmark(args.runs, rounds=max(1, args.rounds)).table())
    return 0
