"""Adapters, full and frozen from one config: one training for each mode and seed, one table at the end.

Every training is a process of its own, so that its peak memory is its own. What is finished is not trained again, and
what was interrupted goes on: the same command always completes the same table.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvpeft.config import schema
from cvpeft.config.load import dump, load
from cvpeft.config.shipped import find_config
from cvpeft.detector.saved import RESOLVED, read_config, run_folder
from cvpeft.errors import CheckpointError, ConfigError, CvpeftError, DataError, NumericalError, ResourceError
from cvpeft.peft.inject import signatures
from cvpeft.study.outcome import Outcome, read_outcome
from cvpeft.study.table import write_tables
from cvpeft.train.folder import data_digest, is_finished
from cvpeft.train.loop import Interrupted

__all__ = ["compare"]

PROGRAM = (sys.executable, "-m", "cvpeft.cli")
OWN = ("run.name", "run.seed", "run.dir", "peft.mode")  # settings that tell the runs apart
KINDS: Mapping[int, type[CvpeftError]] = {
    kind.exit_code: kind for kind in (ConfigError, CheckpointError, ResourceError, NumericalError)
}


@dataclass(frozen=True)
class Plan:
    """One training that belongs to the comparison."""

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
) -> Path:
    """Train what is missing and write out/table.md, .png, .csv (a row for each mode) and runs.csv; returns table.md.

    The runs lie in out/runs/MODE-seedN, or METHOD-seedN. overrides: `key=value` for all of them alike. AP is that of
    data.test where there is one, else of data.val. The table is written anew after each run.
    methods: names of methods, each of which is compared alone at its defaults, in place of what the config names.
    ConfigError: nothing to compare, or a run in `out` has another config or other data than these.
    Interrupted: a signal came; the run at hand has saved its state. Other errors are those of a training that failed.
    """
    plans = _plans(config, modes, methods, seeds, overrides, out)
    split = _split(plans[0].settings)
    command = _told(config, modes, methods, seeds, overrides, out)
    _check_protocol(plans)
    _make_needs(plans[0].settings)
    outcomes: list[Outcome] = []
    for number, plan in enumerate(plans, 1):
        print(f"[{number}/{len(plans)}] {plan.settings.run.name}", file=sys.stderr)
        if not is_finished(plan.folder):
            _call("train", str(config), *plan.overrides, name=plan.settings.run.name)
        if split == "test" and not (plan.folder / "eval" / "test" / "metrics.json").exists():
            _call("eval", str(plan.folder), "--split", "test", name=plan.settings.run.name)
        _check_protocol(plans)
        outcomes.append(read_outcome(plan.folder, plan.mode, plan.settings, split))
        write_tables(out, outcomes, plans[0].settings, split, command=command, planned=len(plans))
    return out / "table.md"


# Which trainings


def _plans(
    config: Path,
    modes: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str],
    out: Path,
) -> list[Plan]:
    """Method by method and mode by mode; all configs are read before the first training begins."""
    rows = [*methods, *modes]
    if not rows or not seeds or len(set(rows)) < len(rows) or len(set(seeds)) < len(seeds):
        what = f"methods {list(methods)}, modes {list(modes)} and seeds {list(seeds)} make no comparison"
        raise ConfigError("COMPARE", what, fix="give at least one of each, and none twice")
    for text in overrides:
        if (key := text.partition("=")[0].strip()) in OWN or key == "run":
            raise ConfigError("COMPARE", f"the override {key} is set by the comparison itself", fix="leave it out")
    path, _ = find_config(config)
    plans = []
    for row in rows:
        for seed in seeds:
            chosen = (f"peft.methods=[{row}]", "peft.mode=adapters") if row in methods else (f"peft.mode={row}",)
            own = (*chosen, f"run.seed={seed}", f"run.name={row}-seed{seed}", f"run.dir={_yaml(out)}")
            settings = load(path, [*overrides, *own], methods=signatures())
            plans.append(Plan(row, settings, (*overrides, *own)))
    if not all(plan.settings.peft.methods for plan in plans if plan.mode == "adapters"):
        raise ConfigError("COMPARE", "peft.methods is empty", where=str(path), why="Mode adapters would be frozen")
    return plans


def _yaml(out: Path) -> str:
    return json.dumps(str(out.absolute() / "runs"), ensure_ascii=False)  # a JSON text is YAML, whatever it holds


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
        has_begun = (plan.folder / "last").exists() and resolved.exists()
        if has_begun and resolved.read_text(encoding="utf-8") != dump(plan.settings):
            raise _mixed(plan, "another config")
        if is_finished(plan.folder) and read_config(plan.folder / "adapter")["data"] != _digest(plan.settings.data):
            raise _mixed(plan, "other data: the json files have changed since")
    bases: dict[int, set[str]] = {}
    for plan in plans:
        if plan.mode != "full" and is_finished(plan.folder):  # mode full keeps no base
            random = plan.settings.backbone.weights == "none"  # then each seed has its own
            digest = read_config(plan.folder / "adapter")["base"]["sha256"]
            bases.setdefault(plan.settings.run.seed if random else 0, set()).add(digest)
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


def _make_needs(settings: schema.Settings) -> None:
    """The runs that this config stands on, in processes of their own: they would count as the first mode's memory."""
    for need in settings.run.needs:
        base = run_folder(load(find_config(need)[0], methods=signatures()))
        if not is_finished(base):
            _call("train", str(need), name=base.name)
        if not (base / "export" / "merged.safetensors").exists():
            _call("export", str(base), "--format", "weights", name=base.name)


def _call(*arguments: str, name: str) -> None:
    """Run a command of ours in a fresh process, all its output on stderr; its error becomes one of the same kind."""
    command = [*PROGRAM, *arguments]
    with subprocess.Popen(command, stdout=2, start_new_session=True) as child, _forwarded(child):  # noqa: S603
        code = child.wait()
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise Interrupted(code - 128, Path(name))
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        why = "Mostly memory did not suffice" if code == -signal.SIGKILL else "What it said stands above"
        kind = ResourceError if code < 0 else KINDS.get(code, CvpeftError)
        raise kind("RUN", f"`cvpeft {arguments[0]}` of {name} ended with {how}", why=why, fix="mend it; then the same")


@contextmanager
def _forwarded(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals go on to the child, which saves its state; it has a session of its own, so none reaches it twice."""

    def forward(signum: int, _: object) -> None:
        child.send_signal(signum)

    before: dict[int, Any] = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _told(
    config: Path,
    modes: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str],
    out: Path,
) -> str:
    """The command that makes this table."""
    parts = ["cvpeft", "compare", str(config), *(("--methods", *methods) if methods else ()), "--modes", *modes]
    parts += ["--seeds", *map(str, seeds), "--out", str(out)]
    for text in overrides:
        parts += ["--set", text]
    return shlex.join(parts)
