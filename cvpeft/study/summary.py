"""What a config trains: parameters by part, sizes of files, memory by estimate and by measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cvpeft.config import schema
from cvpeft.data.coco import load_coco
from cvpeft.detector.adapt import adapt, parts
from cvpeft.detector.build import build_detector
from cvpeft.detector.device import pick_device, pick_precision
from cvpeft.peft.adapter import Adapter, Dense, tensors, walk
from cvpeft.peft.state import owned
from cvpeft.study.measure import Measured, measure_training, without_weights
from cvpeft.train.muon import is_matrix

__all__ = ["Memory", "Part", "Summary", "summary"]

ORDER = ("adapter", "backbone", "neck", "head")


@dataclass(frozen=True)
class Part:
    """One row. parameters: trained ones (of the last row: frozen ones). size: bytes of its tensors in float32."""

    name: str
    parameters: int
    size: int


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds all the time, activations left out.

    weights: of everything, with the untrained originals of neck and head that training copies. average: the EMA.
    """

    weights: int
    gradients: int
    moments: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average


@dataclass(frozen=True)
class Summary:
    """Everything that `table` prints.

    parts: trained parts in order; frozen: what is left of the plain detector. backbone, everything: parameters of the
    plain backbone, and of the whole detector as it is adapted. sites: role -> how many were taken. classes_from: who
    says so.
    """

    settings: schema.Settings
    classes: tuple[str, ...]
    classes_from: str
    sites: Mapping[str, int]
    parts: tuple[Part, ...]
    frozen: Part
    backbone: int
    everything: int
    memory: Memory
    measured: Measured | None

    def table(self) -> str:
        """The summary as text, to be read in a terminal."""
        return "\n".join([*self._head(), "", *self._parameters(), "", *self._memory()])

    def _head(self) -> list[str]:
        s = self.settings
        height, width = s.data.size
        names = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
        taken = ", ".join(f"{role} {count}" for role, count in self.sites.items()) or "none"
        return [
            f"{s.run.name}: {s.detector.head} on {s.backbone.name}, {height} x {width} px, mode {s.peft.mode}",
            f"classes: {len(self.classes)} ({names}), {self.classes_from}",
            f"sites: {taken}",
        ]

    def _parameters(self) -> list[str]:
        trained = _sum("trained", self.parts)
        rows = [*self.parts, trained, self.frozen]
        head = ("part", "parameters", "% of backbone", "% of all", "file MiB")
        cells = [
            (p.name, f"{p.parameters:,}", _percent(p.parameters, self.backbone),
             _percent(p.parameters, self.everything), f"{p.size / 2**20:.2f}")
            for p in rows
        ]  # fmt: skip
        return [
            *_aligned([head, *cells]),
            "The adapter folder holds what is trained; what is frozen lies in one base file for all of them.",
        ]

    def _memory(self) -> list[str]:
        m, found, t = self.memory, self.measured, self.settings.train
        rows = [
            ("weights, and originals of what is trained as a copy", m.weights),
            ("gradients", m.gradients),
            ("moments of the optimizer", m.moments),
            ("moving average", m.average),
        ]
        lines = [("training memory", "MiB"), *((name, f"{size / 2**20:.1f}") for name, size in rows)]
        if found is None:
            lines.append(("sum, without activations (not measured)", f"{m.total / 2**20:.1f}"))
            return _aligned(lines)
        lines.append((f"activations of one batch of {t.batch}, {_precision(t)}", f"{found.activations:.1f}"))
        lines.append(("estimated sum", f"{m.total / 2**20 + found.activations:.1f}"))
        if found.before:
            lines.append(("Python and libraries, measured", f"{found.before:.1f}"))
        return [*_aligned(lines), f"measured peak of real training steps on {found.device}: {found.peak:.0f} MiB"]


def summary(settings: schema.Settings, *, measure: bool = True) -> Summary:
    """Build the detector with random weights and count; no data set and no weights file are needed.

    measure: also run a few training steps on random images, which takes some seconds.
    AdapterError, BackboneError: as in training. DataError: the train json is there and wrong.
    """
    classes, classes_from = _classes(settings.data)
    model = build_detector(without_weights(settings), classes)
    plain = {key: p.numel() for key, p in model.named_parameters()}
    backbone = sum(count for key, count in plain.items() if key.startswith("backbone.body."))
    sites = adapt(model, settings.peft)
    parts = _parts(model, settings.peft.mode)
    trained = sum(p.parameters for p in parts)
    inserted = _inserted(model, settings.peft.mode)
    frozen = sum(plain.values()) - (trained - inserted)
    return Summary(
        settings,
        classes,
        classes_from,
        Counter(site.role for site in sites),
        parts,
        Part("frozen", frozen, 4 * frozen),
        backbone,
        sum(plain.values()) + inserted,
        _memory(model, settings.train),
        measure_training(settings, classes) if measure else None,
    )


def _classes(data: schema.Data) -> tuple[tuple[str, ...], str]:
    if data.classes:
        return data.classes, "from data.classes"
    if data.train and all(Path(file).is_file() for file in data.train):
        return load_coco(data.train).classes, f"from {data.train[0].name}"
    return ("object",), "assumed, as neither data.classes nor the train json is there"


def _parts(model: nn.Module, mode: str) -> tuple[Part, ...]:
    """Trained parts; each method is one of its own."""
    part, owner = parts(model, mode), _owners(model)
    groups: dict[str, list[Tensor]] = {}
    for key, tensor in owned(model).items():
        name = part[key]
        groups.setdefault(f"adapter: {owner[id(tensor)].method}" if name == "adapter" else name, []).append(tensor)
    order = sorted(groups, key=lambda name: ORDER.index(name.split(":")[0]))
    return tuple(
        Part(name, sum(t.numel() for t in groups[name] if t.requires_grad), _bytes(groups[name])) for name in order
    )


def _inserted(model: nn.Module, mode: str) -> int:
    """Parameters that the plain detector does not have; what is trained as a copy (partial, norm) has its original."""
    part, owner = parts(model, mode), _owners(model)
    return sum(
        tensor.numel()
        for key, tensor in owned(model).items()
        if tensor.requires_grad and part[key] == "adapter" and not isinstance(owner[id(tensor)], Dense)
    )


def _owners(model: nn.Module) -> dict[int, Adapter]:
    """id of a tensor -> the Adapter that owns it."""
    return {id(t): place.owner for place in walk(model) if place.owner for _, t in tensors(place.module)}


def _memory(model: nn.Module, train: schema.Train) -> Memory:
    mine = owned(model)
    trained = [t for t in mine.values() if t.requires_grad]
    count, muon = sum(t.numel() for t in trained), train.optimizer == "muon"
    moments = sum(t.numel() * (1 if muon and is_matrix(t) else 2) for t in trained)
    everything = {id(t): t for t in (*model.parameters(), *model.buffers())}
    weights = _bytes(everything.values())
    if train.frozen_dtype == "compute" and _precision(train) == "bf16":
        weights -= _halved(model, {id(t) for t in mine.values()})
    return Memory(weights, 4 * count, 4 * moments, _bytes(mine.values()))


def _precision(train: schema.Train) -> str:
    return pick_precision(train.precision, pick_device(train.device))


def _halved(model: nn.Module, mine: set[int]) -> int:
    """Bytes that are saved where frozen matrices are held in bf16."""
    body: nn.Module = model.backbone.body  # type: ignore[union-attr,assignment]
    frozen = {
        id(t): t.numel() * 2
        for module in body.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for t in module.parameters(recurse=False)
        if id(t) not in mine
    }
    return sum(frozen.values())


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in values)


def _sum(name: str, parts: Sequence[Part]) -> Part:
    return Part(name, sum(p.parameters for p in parts), sum(p.size for p in parts))


def _percent(count: int, whole: int) -> str:
    return f"{100 * count / whole:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first one to the left, numbers to the right; a line under the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
