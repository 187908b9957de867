"""Adapters, full and frozen from one config: one training for each mode and seed, one table at the end.

Every training is a process of its own, so that its peak memory is its own. What is finished is not trained again, and
what was interrupted goes on: the same command always completes the same table.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cvpeft.config import schema
from cvpeft.config.load import load
from cvpeft.config.shipped import find_config
from cvpeft.data.coco import load_coco
from cvpeft.data.splits import open_split, render_missing
from cvpeft.detector.adapt import as_trained
from cvpeft.detector.device import processor
from cvpeft.detector.saved import RESOLVED, read_config, run_folder
from cvpeft.errors import ConfigError, DataError, NumericalError
from cvpeft.export.run import adapter_sha256
from cvpeft.files import write_whole
from cvpeft.peft.inject import signatures
from cvpeft.study.outcome import Outcome, read_outcome
from cvpeft.study.processes import Processes
from cvpeft.study.table import csv_text, write_tables
from cvpeft.study.timing import Latency, latencies
from cvpeft.train.folder import data_digest, is_finished, locked, same_run

__all__ = ["Sweep", "compare"]

OWN = ("run.name", "run.seed", "run.dir", "peft.mode")  # settings that tell the runs apart
DIVERGED = "diverged.txt"  # in the folder of a try: its losses left the finite numbers, which is an answer too
FIGURES = ("metrics.json", "predictions.json")  # of an evaluation; a full disk may have kept them from being written
ROUNDS = 10  # in which latencies are measured


@dataclass(frozen=True)
class Sweep:
    """What each row tries first, with the first seed: multiples of the learning rate of what it trains in the backbone.

    train, val: COCO json files, parts of the training data (`cvpeft data split`), so that no scored image is seen.
    epochs: of each try; as many as the table's trainings have when None.
    """

    factors: tuple[float, ...]
    train: Path
    val: Path
    epochs: int | None = None


@dataclass(frozen=True)
class _Asked:
    """The arguments of `compare`."""

    config: Path
    modes: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    overrides: Sequence[str]
    out: Path
    sweep: Sweep | None
    jobs: int

    @property
    def rows(self) -> list[str]:
        return [*self.methods, *self.modes]

    @property
    def command(self) -> str:
        """The command that makes this table."""
        parts = ["cvpeft", "compare", str(self.config), *(("--methods", *self.methods) if self.methods else ())]
        parts += ["--modes", *self.modes, "--seeds", *map(str, self.seeds), "--out", str(self.out)]
        if s := self.sweep:
            parts += ["--sweep-lr", *(f"{factor:g}" for factor in s.factors), "--held-out", str(s.train), str(s.val)]
            parts += ["--sweep-epochs", str(s.epochs)] if s.epochs is not None else []
        parts += ["--jobs", str(self.jobs)] if self.jobs > 1 else []
        for text in self.overrides:
            parts += ["--set", text]
        return shlex.join(parts)


@dataclass(frozen=True)
class Plan:
    """One training that belongs to the comparison."""

    config: str
    mode: str
    settings: schema.Settings
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return run_folder(self.settings)


def compare(
    config: Path,
    *,
    modes: Sequence[str] = ("adapters", "full", "frozen"),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    out: Path,
    sweep: Sweep | None = None,
    jobs: int = 1,
) -> Path:
    """Train what is missing and write out/table.md, .png, .csv (a row for each mode) and runs.csv; returns table.md.

    The runs lie in out/runs/MODE-seedN, or METHOD-seedN. overrides: `key=value` for all of them alike. AP is that of
    data.test where there is one, else of data.val. The table is written anew after each run.
    methods: names of methods, each of which is compared alone at its defaults, in place of what the config names.
    sweep: each row first finds its learning rate, all with the same budget; out/sweep.csv holds what was tried.
    jobs: trainings that go on beside one another, each on its share of the cores; all of them are slower then.
    ConfigError: nothing to compare, or a run in `out` has another config or other data than these. ResourceError LOCK:
    another comparison is at work in `out`. Interrupted: a signal came; the runs at hand have saved their state. Other
    errors are those of a training that failed.
    """
    asked = _Asked(config, modes, methods, seeds, overrides, out, sweep, jobs)
    plans = _plans(asked, {})
    split = _split(plans[0].settings)
    if not sweep:
        _check_protocol(plans)
    processes = Processes(jobs)
    with locked(out, "another comparison is at work in this folder", "choose another --out"), processes as start:
        _make_needs(start, plans[0].settings)
        render_missing(plans[0].settings.data)  # once, and not by several trainings at a time
        factors = _swept(start, asked, sweep) if sweep else {}
        plans = _plans(asked, factors)
        _check_protocol(plans)
        outcomes: list[Outcome] = []
        made = start.each([partial(_make, start, plan, f"[{n}/{len(plans)}]", split)
                             for n, plan in enumerate(plans, 1)])  # fmt: skip
        for plan, _ in zip(plans, made, strict=True):
            _check_protocol(plans)
            outcomes.append(read_outcome(plan.folder, plan.mode, plan.settings, split))
            times = _latencies(plans, out) if len(outcomes) == len(plans) else {}
            write_tables(
                out, outcomes, plans[0].settings, split, command=asked.command, planned=len(plans),
                notes=_notes(asked, factors, plans), latencies=times,
            )  # fmt: skip
    return out / "table.md"


def _make(start: Processes, plan: Plan, mark: str, split: str = "") -> None:
    """Train it and score it on the split, whatever of this is not done yet. mark: stands before its name."""
    name = plan.settings.run.name
    print(f"{mark} {name}", file=sys.stderr)
    if not is_finished(plan.folder):
        start.call("train", plan.config, *plan.overrides, name=name)
    if split and any(not (plan.folder / "eval" / split / file).exists() for file in FIGURES):
        start.call("eval", str(plan.folder), "--split", split, name=name)


def _latencies(plans: Sequence[Plan], out: Path) -> dict[str, Latency]:
    """Row -> how long its first run takes for an image; of all rows in turn, kept in out/latency.json for these very
    adapters on this machine.
    """
    first: dict[str, Path] = {}
    for plan in plans:
        first.setdefault(plan.mode, plan.folder)
    file = out / "latency.json"
    of = {row: adapter_sha256(run) for row, run in first.items()}
    where = f"{processor()}, {torch.get_num_threads()} threads"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if kept.get("of") == of and kept.get("where") == where:
            found: dict[str, Latency] = kept["ms"]
            return found
    found = latencies(first, rounds=ROUNDS)
    write_whole(file, json.dumps({"where": where, "of": of, "ms": found}, indent=1))
    return found


# Which trainings


def _plans(asked: _Asked, factors: Mapping[str, float]) -> list[Plan]:
    """Method by method and mode by mode; all configs are read before the first training begins.

    factors: row -> multiple of its learning rate; 1 where it is not named.
    """
    rows, seeds = asked.rows, asked.seeds
    if not rows or not seeds or len(set(rows)) < len(rows) or len(set(seeds)) < len(seeds):
        what = f"methods {list(asked.methods)}, modes {list(asked.modes)} and seeds {list(seeds)} make no comparison"
        raise ConfigError("COMPARE", what, fix="give at least one of each, and none twice")
    for text in asked.overrides:
        if (key := text.partition("=")[0].strip()) in OWN or key == "run":
            raise ConfigError("COMPARE", f"the override {key} is set by the comparison itself", fix="leave it out")
        if key.startswith("peft.methods") and "adapters" not in rows:
            what = f"the override {key} changes nothing, as no row takes the methods of the config"
            raise ConfigError("COMPARE", what, fix="leave it out, or have adapters among --modes")
    plans = [
        _plan(asked, row, f"{row}-seed{seed}", asked.out / "runs", seed, factors.get(row, 1.0))
        for row in rows
        for seed in seeds
    ]
    sections = [plan.settings.peft for plan in plans if plan.mode == "adapters"]
    if not all(peft.methods or peft.from_ for peft in sections):
        where = str(find_config(asked.config)[0])
        raise ConfigError("COMPARE", "peft.methods is empty", where=where, why="Mode adapters would be frozen")
    return plans


def _plan(
    asked: _Asked, row: str, name: str, folder: Path, seed: int, factor: float, extra: Sequence[str] = ()
) -> Plan:
    path, _ = find_config(asked.config)
    chosen = (f"peft.methods=[{row}]", "peft.mode=adapters") if row in asked.methods else (f"peft.mode={row}",)
    own = (*chosen, f"run.seed={seed}", f"run.name={name}", f"run.dir={_yaml(folder)}", *extra)
    texts = (*asked.overrides, *own)
    settings = load(path, texts, methods=signatures())
    if factor != 1:
        part = _swept_part(row)
        texts = (*texts, f"train.lr.{part}={getattr(settings.train.lr, part) * factor:.6g}")
        settings = load(path, texts, methods=signatures())
    return Plan(str(asked.config), row, as_trained(settings), texts)


def _yaml(path: Path) -> str:
    return json.dumps(str(path.absolute()), ensure_ascii=False)  # a JSON text is YAML, whatever it holds


# The learning rate of each row


def _swept_part(row: str) -> str:
    """Whose learning rate is tried: that of what a row trains in the backbone."""
    return "backbone" if row == "full" else "adapter"


def _swept(start: Processes, asked: _Asked, sweep: Sweep) -> dict[str, float]:
    """Row -> the factor with the best AP on what was held out; of a frozen backbone there is nothing to try."""
    if len(set(sweep.factors)) < 2 or min(sweep.factors) <= 0:
        what = f"the learning rates would be multiplied by {', '.join(f'{f:g}' for f in sweep.factors)}"
        raise ConfigError("SWEEP", what, fix="give two or more different numbers above 0")
    data = (f"data.train=[{_yaml(sweep.train)}]", f"data.val=[{_yaml(sweep.val)}]", "data.test=[]")
    length = (f"train.epochs={sweep.epochs}",) if sweep.epochs is not None else ()
    tried = [
        (factor, _plan(asked, row, f"{row}-x{factor:g}", asked.out / "sweep", asked.seeds[0], factor, (*data, *length)))
        for row in asked.rows
        if row != "frozen"
        for factor in sweep.factors
    ]
    _check_protocol([plan for _, plan in tried])
    _check_held_out(_plans(asked, {})[0].settings, sweep)
    results: list[dict[str, Any]] = []
    made = start.each([partial(_try, start, plan, f"[sweep {n}/{len(tried)}]")
                         for n, (_, plan) in enumerate(tried, 1)])  # fmt: skip
    for (factor, plan), converged in zip(tried, made, strict=True):
        found = read_config(plan.folder / "adapter")["val"] if converged else {"AP": None, "AP50": None}
        if converged and found["AP"] is None:
            what, why = "there is no box to find", "No learning rate can be chosen by it"
            raise ConfigError("SWEEP", what, where=str(sweep.val), why=why, fix="hold other images out")
        rate = getattr(plan.settings.train.lr, _swept_part(plan.mode))
        results.append({"mode": plan.mode, "factor": factor, "lr": rate, "AP": found["AP"], "AP50": found["AP50"]})
        write_whole(asked.out / "sweep.csv", csv_text(results))
    return {row: max((r for r in results if r["mode"] == row), key=_held_out_ap)["factor"] for row in
            dict.fromkeys(r["mode"] for r in results)}  # fmt: skip


def _held_out_ap(result: Mapping[str, Any]) -> float:
    """What diverged is below everything that did not."""
    return -1.0 if result["AP"] is None else float(result["AP"])


def _try(start: Processes, plan: Plan, mark: str) -> bool:
    """Make it and return whether it converged: a rate under which a training diverges found nothing, and is not taken
    unless all of them do.
    """
    note = plan.folder / DIVERGED
    if not note.exists():
        try:
            _make(start, plan, mark)
        except NumericalError as error:
            write_whole(note, f"{error}\n")
    return not note.exists()


def _check_held_out(settings: schema.Settings, sweep: Sweep) -> None:
    """No image may be in both files of a sweep, nor any of them among those that the table is scored on."""
    split = _split(settings)
    paths = {file: {image.path.resolve() for image in load_coco([file]).images} for file in (sweep.train, sweep.val)}
    classes = open_split(settings.data, "train", settings.data.classes).classes
    scored = {image.path.resolve() for image in open_split(settings.data, split, classes).images}
    both = paths[sweep.train] & paths[sweep.val]
    for file, shared, other in (
        (sweep.val, both, str(sweep.train)),
        (sweep.train, paths[sweep.train] & scored, f"data.{split}"),
        (sweep.val, paths[sweep.val] & scored, f"data.{split}"),
    ):
        if shared:
            what = f"{len(shared)} of its images are in {other} too, such as {min(shared)}"
            why, fix = "Rates chosen by them would flatter", "make both files from data.train by cvpeft data split"
            raise ConfigError("SWEEP", what, where=str(file), why=why, fix=fix)


def _notes(asked: _Asked, factors: Mapping[str, float], plans: Sequence[Plan]) -> list[str]:
    notes = [f"{asked.jobs} trainings at a time, which makes each of them slower."] if asked.jobs > 1 else []
    if sweep := asked.sweep:
        rates = {plan.mode: getattr(plan.settings.train.lr, _swept_part(plan.mode)) for plan in plans}
        chosen = ", ".join(f"{row} {rates[row]:g}" for row in factors)
        times = ", ".join(f"{factor:g}" for factor in sweep.factors)
        length = f" with train.epochs={sweep.epochs}" if sweep.epochs is not None else ""
        notes.append(
            f"Each row first tried {times} times its learning rate with one seed, trained{length} on "
            f"{sweep.train.name} and scored on {sweep.val.name} (sweep.csv); taken were: {chosen}."
        )
    return notes


def _split(settings: schema.Settings) -> str:
    """Where the figures come from."""
    for split in ("test", "val"):
        if getattr(settings.data, split):
            return split
    what = "the config names neither data.test nor data.val"
    raise ConfigError("COMPARE", what, why="There is nothing to compare on", fix="set data.val=FILE.json")


def _check_protocol(plans: Sequence[Plan]) -> None:
    """Runs may differ in mode, methods, seed and name alone; ConfigError names the first that does not."""
    for plan in plans:
        resolved = plan.folder / RESOLVED
        has_begun = (plan.folder / "last").exists() or is_finished(plan.folder)
        if has_begun and resolved.exists() and not same_run(resolved, plan.settings):
            raise _mixed(plan, "another config")
        if is_finished(plan.folder) and read_config(plan.folder / "adapter")["data"] != _digest(plan.settings.data):
            raise _mixed(plan, "other data: the json files have changed since")
    bases: dict[tuple[int, bool], set[str]] = {}
    for plan in plans:
        if plan.mode != "full" and is_finished(plan.folder):  # mode full keeps no base
            random = plan.settings.backbone.weights == "none"  # then each seed has its own
            whole = plan.settings.peft.scope == "detector" and plan.mode != "frozen"  # neck and head belong to it
            digest = read_config(plan.folder / "adapter")["base"]["sha256"]
            bases.setdefault((plan.settings.run.seed if random else 0, whole), set()).add(digest)
    if any(len(found) > 1 for found in bases.values()):
        raise _mixed(plans[0], "other base weights than the next ones")


def _digest(data: schema.Data) -> str:
    try:
        return data_digest(data)
    except OSError as error:
        raise DataError(
            "MISSING", f"the json file cannot be read ({error.strerror})", where=str(error.filename)
        ) from error


def _mixed(plan: Plan, what: str) -> ConfigError:
    why, fix = "Figures of two protocols do not belong into one table", "choose another --out"
    return ConfigError("COMPARE", f"the run was made with {what}", where=str(plan.folder), why=why, fix=fix)


# Running them


def _make_needs(start: Processes, settings: schema.Settings) -> None:
    """The runs that this config stands on, in processes of their own: they would count as the first mode's memory."""
    for need in settings.run.needs:
        base = run_folder(load(find_config(need)[0], methods=signatures()))
        if not is_finished(base):
            start.call("train", str(need), name=base.name)
        if not (base / "export" / "merged.safetensors").exists():
            start.call("export", str(base), "--format", "weights", name=base.name)
