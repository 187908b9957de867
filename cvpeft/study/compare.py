"""Adapters, full and frozen from one config: one training for each mode and seed, one table at the end.

Every training is a process of its own, so that its peak memory is its own. What is finished is not trained again, and
what was interrupted goes on: the same command always completes the same table.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import safe_open

from cvpeft.config import schema
from cvpeft.config.load import dump, load
from cvpeft.config.shipped import find_config
from cvpeft.detector.saved import RESOLVED, WEIGHTS, read_config, run_folder
from cvpeft.errors import CheckpointError, ConfigError, CvpeftError, DataError, NumericalError, ResourceError
from cvpeft.files import write_whole
from cvpeft.peft.inject import signatures
from cvpeft.train.folder import data_digest, is_finished
from cvpeft.train.loop import Interrupted

__all__ = ["Outcome", "compare"]

PROGRAM = (sys.executable, "-m", "cvpeft.cli")
PARTS = ("adapter", "backbone", "neck", "head")
OWN = ("run.name", "run.seed", "run.dir", "peft.mode")  # settings that tell the runs apart
KINDS: Mapping[int, type[CvpeftError]] = {
    kind.exit_code: kind for kind in (ConfigError, CheckpointError, ResourceError, NumericalError)
}


@dataclass(frozen=True)
class Outcome:
    """What one training took and reached.

    adapter, backbone, neck, head: trained parameters. file_mib: of the adapter's safetensors. seconds: of training, the
    evaluations left out. peak_memory_mib: of the process, or of the GPU. epoch: the one that val chose; 0 without val.
    """

    mode: str
    seed: int
    adapter: int
    backbone: int
    neck: int
    head: int
    file_mib: float
    AP: float
    AP50: float
    seconds: float
    peak_memory_mib: float
    epoch: int


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
    """Train what is missing and write out/table.md, table.csv (a row for each mode), runs.csv; returns out/table.md.

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
        outcomes.append(_outcome(plan, split))
        _write_tables(out, outcomes, plans, command, split)
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


# Reading them


def _outcome(plan: Plan, split: str) -> Outcome:
    folder = plan.folder
    meta = read_config(folder / "adapter")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [record for record in records if "seconds" in record]
    figures = folder / "eval" / "test" / "metrics.json"
    stats = json.loads(figures.read_text(encoding="utf-8"))["coco"] if split == "test" else meta.get("val")
    if not training or not stats or stats["AP"] is None:
        what = "the run has no figures: it logged no epoch, or there is no box to find"
        raise CheckpointError("FIGURES", what, where=str(folder), fix=f"look at its metrics.jsonl and at data.{split}")
    return Outcome(
        mode=plan.mode,
        seed=plan.settings.run.seed,
        **_parameters(folder / "adapter" / WEIGHTS, meta["tensors"], meta.get("untrained", ())),
        file_mib=(folder / "adapter" / WEIGHTS).stat().st_size / 2**20,
        AP=stats["AP"],
        AP50=stats["AP50"],
        seconds=training[-1]["seconds"],
        peak_memory_mib=max(record["peak_memory_mb"] for record in training),
        epoch=meta.get("val", {}).get("epoch", 0),
    )


def _parameters(file: Path, tensors: Mapping[str, Sequence[str]], untrained: Collection[str]) -> dict[str, int]:
    """Part -> number of trained parameters in the adapter file, by its header alone."""
    with safe_open(file, framework="np") as source:
        slices = {key: source.get_slice(key) for keys in tensors.values() for key in keys if key not in untrained}
    sizes = {key: _count(s.get_shape()) for key, s in slices.items() if s.get_dtype().startswith("F")}
    return {part: sum(sizes.get(key, 0) for key in tensors.get(part, ())) for part in PARTS}


def _count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


# The tables


def _write_tables(out: Path, outcomes: Sequence[Outcome], plans: Sequence[Plan], command: str, split: str) -> None:
    rows = _rows(outcomes, plans)
    write_whole(out / "table.csv", _csv(rows))
    write_whole(out / "runs.csv", _csv([{f.name: getattr(o, f.name) for f in fields(o)} for o in outcomes]))
    write_whole(out / "table.md", _markdown(rows, outcomes, plans, command, split))


def _rows(outcomes: Sequence[Outcome], plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """One row for each mode: counts and sizes of its first run, means and deviations over its seeds."""
    rows = []
    for mode in dict.fromkeys(outcome.mode for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.mode == mode]
        first = mine[0]
        methods = next(plan.settings.peft.methods for plan in plans if plan.mode == mode)
        row: dict[str, Any] = {"mode": mode, "methods": " ".join(method.name for method in methods)}
        row["seeds"] = " ".join(str(outcome.seed) for outcome in mine)
        row |= {part: getattr(first, part) for part in PARTS} | {"file_mib": first.file_mib}
        for name in ("AP", "AP50", "seconds", "peak_memory_mib"):
            values = [getattr(outcome, name) for outcome in mine]
            row[name] = statistics.fmean(values)
            row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


COLUMNS: Sequence[tuple[str, Callable[[Mapping[str, Any]], str]]] = (
    ("mode", lambda r: r["mode"] if r["methods"] in {"", r["mode"]} else f"{r['mode']} ({r['methods']})"),
    ("seeds", lambda r: r["seeds"]),
    ("adapter", lambda r: f"{r['adapter']:,}"),
    ("backbone", lambda r: f"{r['backbone']:,}"),
    ("neck", lambda r: f"{r['neck']:,}"),
    ("head", lambda r: f"{r['head']:,}"),
    ("file MiB", lambda r: f"{r['file_mib']:.2f}"),
    ("AP", lambda r: _spread(r, "AP", 3)),
    ("AP50", lambda r: _spread(r, "AP50", 3)),
    ("seconds", lambda r: _spread(r, "seconds", 0)),
    ("peak MiB", lambda r: _spread(r, "peak_memory_mib", 0)),
)


def _spread(row: Mapping[str, Any], name: str, digits: int) -> str:
    sd = row[f"{name}_sd"]
    return f"{row[name]:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def _markdown(
    rows: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome], plans: Sequence[Plan], command: str, split: str
) -> str:
    cells = [[title for title, _ in COLUMNS], *([text(row) for _, text in COLUMNS] for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|---|---|" + "--:|" * (len(COLUMNS) - 2))
    header = [f"    {command}", "", *_machines(plans), f"Date: {datetime.now(UTC):%Y-%m-%d}.", ""]
    caption = _caption(outcomes, plans, split)
    return "\n".join([*header, *lines, "", *caption, ""])


def _caption(outcomes: Sequence[Outcome], plans: Sequence[Plan], split: str) -> list[str]:
    settings = plans[0].settings
    files = ", ".join(file.name for file in getattr(settings.data, split))
    where = f"AP and AP50 on data.{split} ({files})"
    if split == "val" and settings.train.eval_every >= settings.train.epochs:
        where += ", scored once, after the last epoch"
    elif split == "val":
        epochs = ", ".join(f"{o.mode}-seed{o.seed} {o.epoch}" for o in outcomes)
        where += f". The same images chose the epoch ({epochs}), which flatters all modes a little"
    lines = [
        f"{where}.",
        "Parameters are the trained ones, by part; the file holds all of them.",
        "Seconds of training, evaluations left out; peak memory of the training process, or of the GPU.",
    ]
    if len({outcome.seed for outcome in outcomes}) > 1:
        lines.append("Mean ± standard deviation over the seeds.")
    if len(outcomes) < len(plans):
        lines.append(f"**Not complete: {len(outcomes)} of {len(plans)} runs are done.**")
    return lines


def _machines(plans: Sequence[Plan]) -> list[str]:
    """One line for the machine; a warning where the runs had several, as times and memory cannot be compared then."""
    found: dict[str, list[str]] = {}
    for plan in plans:
        if (file := plan.folder / "env.json").exists():
            env = json.loads(file.read_text(encoding="utf-8"))
            text = f"{env['processor']}, {env['threads']} threads, device {env['device']}, "
            text += f"{env['precision']}, Python {env['python']}, "
            text += f"torch {env['versions']['torch']}, cvpeft {env['versions']['cvpeft']}"
            found.setdefault(text, []).append(plan.settings.run.name)
    lines = [
        f"Machine: {text}." + (f" ({', '.join(names)})" if len(found) > 1 else "") for text, names in found.items()
    ]
    return lines + ["**Not one machine: seconds and memory cannot be compared.**"] * (len(found) > 1)


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
