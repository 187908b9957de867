"""The model card of an adapter folder: what it is, what it was made from, what it reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvpeft.config import schema

__all__ = ["model_card"]


def model_card(meta: Mapping[str, Any], settings: schema.Settings, epochs: int) -> str:
    """Markdown from the content of adapter_config.json; figures stand there only if they were measured.

    epochs: after which the adapter was taken, of those in the settings.
    """
    base, methods = meta["base"], meta["methods"]
    how = ", ".join(f"{m['name']} {m['settings'] or ''}".strip() for m in methods) or f"mode {meta['mode']}"
    lines = [
        f"# {settings.run.name}",
        "",
        f"A {settings.detector.head} detector on {base['name']} for the classes {', '.join(meta['classes'])}.",
        "",
        f"- Adapted by: {how}, at {len(meta['sites'])} sites",
        f"- Base weights: {base['weights']}, sha256 of its frozen tensors {base['sha256'][:16]}",
        f"- Input: {' x '.join(map(str, meta['preprocessing']['size']))} pixels (height x width), letterboxed",
        f"- Training data: {', '.join(f.name for f in settings.data.train)}, sha256 {meta['data'][:16]}",
        f"- Seed {settings.run.seed}, {epochs} of {settings.train.epochs} epochs, cvpeft {meta['cvpeft']}",
        "",
    ]
    if val := meta.get("val"):
        once = settings.train.eval_every >= settings.train.epochs
        told = "scored once, after the last epoch" if once else f"which chose the epoch, {val['epoch']}"
        lines += [
            f"On {', '.join(f.name for f in settings.data.val)} ({told}): "
            f"AP {_figure(val['AP'])}, AP50 {_figure(val['AP50'])}.",
            "",
        ]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "none, as there is no box to find" if value is None else f"{value:.3f}"
