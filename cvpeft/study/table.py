"""Outcomes of many trainings -> one table as Markdown and CSV, a picture, and a sentence of advice."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cvpeft.config import schema
from cvpeft.eval.plots import trade_off
from cvpeft.files import write_whole
from cvpeft.study.outcome import PARTS, Outcome
from cvpeft.study.timing import Latency

__all__ = ["csv_text", "write_tables"]

Row = Mapping[str, Any]
FIGURES = ("AP", "AP50", "seconds", "step_seconds", "peak_memory_mib")
OTHERS = {"full": "full fine-tuning", "frozen": "a frozen backbone"}  # rows without an adapter
SURE = 0.95  # share of the redrawn image sets that an interval holds, and that a difference must show in


def write_tables(
    out: Path,
    outcomes: Sequence[Outcome],
    settings: schema.Settings,
    split: str,
    *,
    command: str,
    planned: int,
    notes: Sequence[str] = (),
    latencies: Mapping[str, Latency] | None = None,
) -> None:
    """Write out/table.md, table.csv, table.png (a row, a dot for each mode) and runs.csv.

    settings: of any of the runs, whose data and training are those of all. planned: how many runs there will be.
    notes: sentences that belong below the table. latencies: of each mode, once they are measured.
    """
    rows = _rows(outcomes)
    for row in rows:
        times = (latencies or {}).get(row["mode"])
        row |= {"ms": times["unmerged"] if times else None, "ms_merged": times["merged"] if times else None}
    write_whole(out / "table.csv", csv_text(rows))
    kept = [f.name for f in fields(Outcome) if f.name != "samples"]
    write_whole(out / "runs.csv", csv_text([{name: getattr(o, name) for name in kept} for o in outcomes]))
    write_whole(out / "table.png", trade_off([_dot(row) for row in rows], f"AP on data.{split}"))
    write_whole(
        out / "table.md", _markdown(rows, outcomes, [*_caption(outcomes, settings, split, planned), *notes], command)
    )


def _rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row for each mode: counts and sizes of its first run, means and deviations over its seeds."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.mode, []).append(outcome)
    rows = [_row(mine) for mine in groups.values()]
    full = next((row["AP"] for row in rows if row["mode"] == "full"), None)
    return [{**row, "AP_of_full": row["AP"] / full if full else None} for row in rows]


def _row(mine: Sequence[Outcome]) -> dict[str, Any]:
    first = mine[0]
    row: dict[str, Any] = {"mode": first.mode, "methods": first.methods}
    row["seeds"] = " ".join(str(outcome.seed) for outcome in mine)
    row |= {part: getattr(first, part) for part in PARTS} | {"file_mib": first.file_mib}
    for name in FIGURES:
        values = [getattr(outcome, name) for outcome in mine]
        row[name] = statistics.fmean(values)
        row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    low, high = np.nanquantile(_redrawn(mine), [(1 - SURE) / 2, (1 + SURE) / 2])
    # Mirrored about AP: interpolated AP is higher on redrawn images than on their own, so the draws lie above it, and
    # their own quantiles would hold the truth in three of four cases only.
    return {**row, "AP_low": max(0.0, 2 * row["AP"] - float(high)), "AP_high": min(1.0, 2 * row["AP"] - float(low))}


def _redrawn(mine: Sequence[Outcome]) -> np.ndarray:
    """(S,) mean AP over the seeds, which are redrawn as well, on each of the redrawn image sets; nan without a box.

    All rows are scored on the same draws of images, those with as many seeds on the same draws of seeds.
    """
    samples = np.array([outcome.samples[:, 0] for outcome in mine])  # (seeds, S)
    count, draws = samples.shape
    seeds = np.random.default_rng(0).integers(count, size=(count, draws))
    return np.asarray(samples[seeds, np.arange(draws)].mean(axis=0))


def csv_text(rows: Sequence[Row]) -> str:
    """Dicts with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _dot(row: Row) -> tuple[str, int, float, float]:
    """Label, trained parameters, AP and its deviation, 0 where there is one seed."""
    return _label(row), sum(row[part] for part in PARTS), row["AP"], row["AP_sd"] or 0.0


COLUMNS: Sequence[tuple[str, Callable[[Row], str]]] = (
    ("mode", lambda r: _label(r)),
    ("seeds", lambda r: r["seeds"]),
    *((part, lambda r, part=part: f"{r[part]:,}") for part in PARTS),
    ("file MiB", lambda r: f"{r['file_mib']:.2f}"),
    ("AP", lambda r: _spread(r, "AP", 3)),
    ("95 % interval", lambda r: f"{r['AP_low']:.3f} to {r['AP_high']:.3f}"),
    ("% of full", lambda r: "" if r["AP_of_full"] is None else f"{100 * r['AP_of_full']:.0f}"),
    ("AP50", lambda r: _spread(r, "AP50", 3)),
    ("seconds", lambda r: _spread(r, "seconds", 0)),
    ("s a step", lambda r: f"{r['step_seconds']:.2f}"),
    ("peak MiB", lambda r: _spread(r, "peak_memory_mib", 0)),
    ("ms", lambda r: "" if r["ms"] is None else f"{r['ms']:.0f}"),
    ("ms merged", lambda r: "" if r["ms_merged"] is None else f"{r['ms_merged']:.0f}"),
)


def _label(row: Row) -> str:
    return str(row["mode"] if row["methods"] in {"", row["mode"]} else f"{row['mode']} ({row['methods']})")


def _spread(row: Row, name: str, digits: int) -> str:
    sd = row[f"{name}_sd"]
    return f"{row[name]:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def _markdown(rows: Sequence[Row], outcomes: Sequence[Outcome], caption: Sequence[str], command: str) -> str:
    cells = [[title for title, _ in COLUMNS], *([text(row) for _, text in COLUMNS] for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|---|---|" + "--:|" * (len(COLUMNS) - 2))
    header = [f"    {command}", "", *_machines(outcomes), f"Date: {datetime.now(UTC):%Y-%m-%d}.", ""]
    return "\n".join([*header, *lines, "", *caption, *_advice(rows, outcomes), ""])


def _caption(outcomes: Sequence[Outcome], settings: schema.Settings, split: str, planned: int) -> list[str]:
    files = ", ".join(file.name for file in getattr(settings.data, split))
    where = f"AP and AP50 on data.{split} ({files})"
    if split == "val" and settings.train.eval_every >= settings.train.epochs:
        where += ", scored once, after the last epoch"
    elif split == "val":
        epochs = ", ".join(f"{o.name} {o.epoch}" for o in outcomes)
        where += f". The same images chose the epoch ({epochs}), which flatters all modes a little"
    lines = [
        f"{where}.",
        f"95 % interval: the bootstrap's, over {len(outcomes[0].samples)} draws of as many images and seeds, "
        "some twice.",
        "Parameters are the trained ones, by part; the file holds all of them.",
        "Seconds of training, evaluations left out; peak memory of the training process, or of the GPU.",
        "ms of one network input: in torch, float32, on this machine's CPU, all rows in turn.",
    ]
    if len({outcome.seed for outcome in outcomes}) > 1:
        lines.append("Mean ± standard deviation over the seeds.")
    if len(outcomes) < planned:
        lines.append(f"**Not complete: {len(outcomes)} of {planned} runs are done.**")
    return lines


def _machines(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for the machine; a warning where the runs had several, as times and memory cannot be compared then."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.machine:
            found.setdefault(outcome.machine, []).append(outcome.name)
    lines = [
        f"Machine: {text}." + (f" ({', '.join(names)})" if len(found) > 1 else "") for text, names in found.items()
    ]
    return lines + ["**Not one machine: seconds and memory cannot be compared.**"] * (len(found) > 1)


def _advice(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[str]:
    """Which row to take on these data: the smallest file among those that are not surely worse than the best one."""
    taken = [row for row in rows if row["adapter"]]
    if not taken or len(rows) < 2:
        return []
    samples = {row["mode"]: _redrawn([o for o in outcomes if o.mode == row["mode"]]) for row in rows}
    best = max(taken, key=lambda row: row["AP"])
    equal = [row for row in taken if _share(samples[best["mode"]], samples[row["mode"]]) < SURE]
    chosen = min(equal, key=lambda row: row["file_mib"])
    others = {name: row for row in rows if (name := row["mode"]) in OTHERS}
    above = {name: _share(samples[chosen["mode"]], samples[name]) for name in others}
    told = f"{_label(chosen)}: AP {_spread(chosen, 'AP', 3)} from {sum(chosen[part] for part in PARTS):,} parameters"
    if "frozen" in above and above["frozen"] < SURE:
        frozen = _spread(others["frozen"], "AP", 3)
        text = f"These images do not tell whether any row is better than a frozen backbone (AP {frozen}). {told}"
    elif "full" in others and _share(samples["full"], samples[best["mode"]]) >= SURE:
        full = _spread(others["full"], "AP", 3)
        text = f"On these images full fine-tuning is better than every row with an adapter (AP {full}). {told}"
    else:
        text = f"On these images take {told}"
    if chosen is not best:
        text += f"; {_label(best)} reaches {_spread(best, 'AP', 3)}, which these images cannot tell apart"
    text += "".join(f"; better than {OTHERS[name]} in {share:.0%} of the draws" for name, share in above.items())
    few = len(chosen["seeds"].split()) < 3
    return ["", f"{text}." + " Fewer than three seeds: another seed may turn this round." * few]


def _share(one: np.ndarray, other: np.ndarray) -> float:
    """Of the draws (S,) that hold a box, the part in which `one` is above `other`."""
    drawn = ~np.isnan(one)
    return float(np.mean(one[drawn] > other[drawn]))
