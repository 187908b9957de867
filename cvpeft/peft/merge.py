"""Fold Adapters into plain modules, on a copy: a merge that fails loses nothing."""

from __future__ import annotations

import copy

from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter

__all__ = ["merge", "unmergeable"]


def merge(model: nn.Module, *, partly: bool = False) -> nn.Module:
    """A copy of the model in which every Adapter is folded into a plain module; its keys are the plain model's.

    partly: leave those Adapters in place that cannot be folded.
    AdapterError: some cannot be folded, and partly is False.
    """
    merged = copy.deepcopy(model)
    left = _fold(merged)
    if left and not partly:
        names = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise AdapterError(
            "MERGE", f"cannot be folded into weights: {names}", why="they compute what no plain module computes"
        )
    if not left:
        for module in merged.modules():
            vars(module).pop("train", None)  # the lock of `freeze`: a plain model trains like any other
    return merged


def unmergeable(model: nn.Module) -> list[str]:
    """`method at path` of every Adapter that cannot be folded; empty: `merge` will do."""
    return _fold(copy.deepcopy(model))


def _fold(model: nn.Module) -> list[str]:
    """Fold what can be folded, in place and innermost first; return what is left."""
    held = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Adapter)
    ]
    left: list[str] = []
    for parent, name, adapter in reversed(held):
        result = None if isinstance(adapter.base, Adapter) else adapter.merged()
        if result is None:
            left.insert(0, f"{adapter.method} at {adapter.site.path}")
        else:
            setattr(parent, name, result)
    return left
