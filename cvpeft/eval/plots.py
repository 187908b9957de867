"""The pictures of a report, drawn from its dict alone, so that metrics.json suffices to draw them again.

matplotlib's objects without pyplot: no global state, no window, safe inside a training run.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

__all__ = ["confusion", "precision_recall", "trade_off"]

# Okabe and Ito's colours, told apart by colour-blind readers too; then the same with other strokes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STROKES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D")
INK, PALE = "#333333", "#DDDDDD"
# Class names are often Chinese, which matplotlib's own font lacks.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "Microsoft YaHei", "PingFang SC", "WenQuanYi Micro Hei")
NAMED_AT_DOT = 4  # dots beyond which names would lie upon one another: methods differ little in what they train
READABLE = 20  # classes beyond which counts in a confusion matrix are too small to read


def precision_recall(report: Mapping[str, Any]) -> bytes:
    """PNG of precision against recall for each class, with a dot where its F1 is best."""
    with mpl.rc_context(_style()):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        strokes = cycle((colour, stroke) for stroke in STROKES for colour in COLOURS)
        curves: list[Line2D] = []
        for (name, row), (colour, stroke) in zip(report["per_class"].items(), strokes, strict=False):
            curve = report["pr_curve"]["precision"][name]
            if curve is not None:
                label = f"{_plain(name)}  {row['AP50']:.3f}"
                curves.append(_curve(axes, report["pr_curve"]["recall"], curve, label, colour, stroke))
                _best_point(axes, row["best_f1"], colour)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
        axes.set_title(f"Precision and recall at IoU {report['iou']}; dots: best F1", loc="left")
        axes.grid(color=PALE, linewidth=0.6)
        if curves:  # named, as matplotlib's own list leaves out what begins with "_"
            axes.legend(
                handles=curves, title="class, AP50", alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5),
                frameon=False,
            )  # fmt: skip
        return _png(figure)


def confusion(report: Mapping[str, Any]) -> bytes:
    """PNG of the confusion matrix: counts, coloured by share of the row; false alarms by share of the column."""
    labels = [_plain(name) for name in report["confusion"]["labels"][:-1]]
    counts = np.array(report["confusion"]["counts"])  # (K+1, K+1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    share[-1] = counts[-1] / np.maximum(counts.sum(axis=0), 1)
    side = min(2.6 + 0.62 * len(counts), 14)
    with mpl.rc_context(_style()):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(counts)), [*labels, "missed"], rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(counts)), [*labels, "false alarm"])
        axes.set(xlabel="detected as", ylabel="truth")
        axes.set_title(f"Confusion at IoU {report['iou']}", loc="left")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if len(counts) <= READABLE:
            _numbers(axes, counts, share)
        return _png(figure)


def trade_off(dots: Sequence[tuple[str, int, float, float]], title: str) -> bytes:
    """PNG of AP against trained parameters; each dot is (label, parameters, AP, deviation over seeds)."""
    with mpl.rc_context(_style()):
        crowded = len(dots) > NAMED_AT_DOT
        figure = Figure(figsize=(7.6 if crowded else 6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for (label, parameters, ap, deviation), (marker, colour) in zip(
            dots, cycle(product(MARKERS, COLOURS)), strict=False
        ):
            name, up = _plain(label), deviation or None
            axes.errorbar(parameters, ap, yerr=up, fmt=marker, color=colour, capsize=3, markersize=6, label=name)
            if not crowded:
                axes.annotate(name, (parameters, ap), xytext=(7, 4), textcoords="offset points", color=colour)
        axes.set(xscale="log", xlabel="trained parameters", ylabel="AP")
        counts = [max(1, parameters) for _, parameters, _, _ in dots]
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(counts) < 100 * min(counts) else (1,)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.margins(x=0.25)
        axes.set_title(f"{title}; bars: deviation over seeds", loc="left")
        axes.grid(color=PALE, linewidth=0.6)
        if crowded:
            figure.legend(loc="outside right upper", frameon=False)
        return _png(figure)


def _style() -> dict[Any, Any]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return {
        "font.family": [name for name in FONTS if name in installed] or ["sans-serif"],
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }


def _plain(name: str) -> str:
    """A dollar sign would start a formula."""
    return name.replace("$", r"\$")


def _curve(axes: Axes, recall: list[float], precision: list[float], label: str, colour: str, stroke: str) -> Line2D:
    """Recall levels that are never reached have precision 0 by definition; the line ends before them."""
    reached = [(r, p) for r, p in zip(recall, precision, strict=True) if p > 0]
    xy = zip(*reached, strict=True) if reached else ([], [])
    (line,) = axes.plot(*xy, stroke, color=colour, linewidth=1.6, label=label)
    return line


def _best_point(axes: Axes, best: Mapping[str, float] | None, colour: str) -> None:
    if best is not None:
        axes.plot(best["recall"], best["precision"], "o", color=colour, markersize=5, markeredgecolor="white")


def _numbers(axes: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, count, ha="center", va="center", color="white" if share[row, column] > 0.55 else INK)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the picture shows boxes in their place
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return buffer.getvalue()
