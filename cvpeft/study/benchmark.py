"""How fast a run is in every form that it can be used in, side by side on one machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import onnxruntime
import torch
from torch import Tensor

from cvpeft.detector.bank import AdapterBank
from cvpeft.detector.device import processor
from cvpeft.detector.saved import LoadedRun, load_run, name_of
from cvpeft.errors import ConfigError
from cvpeft.eval.timing import median_ms, side_by_side
from cvpeft.export.run import verification_inputs
from cvpeft.peft.state import disabled
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.study.timing import detector_calls

__all__ = ["Benchmark", "benchmark"]

T = TypeVar("T")


@dataclass(frozen=True)
class Benchmark:
    """Median milliseconds of one network input by name of the form; the first is what the others are compared with."""

    inputs: dict[str, float]
    switches: dict[str, float]  # of putting another adapter in, by name of the runtime
    about: str

    def table(self) -> str:
        """As Markdown, with ratios."""
        first, reference = next(iter(self.inputs.items()))
        lines = [self.about, "", f"| form | ms an input | of {first} |", "|---|--:|--:|"]
        lines += [f"| {name} | {ms:.1f} | {ms / reference:.2f} |" for name, ms in self.inputs.items()]
        if self.switches:
            each = ", ".join(f"{ms:.1f} ms in {name}" for name, ms in self.switches.items())
            lines += ["", f"Putting another adapter in: {each}."]
        return "\n".join(lines)


def benchmark(runs: Sequence[Path], *, rounds: int = 20) -> Benchmark:
    """Time the first run on one of its own images, on the CPU, one image at a time, all forms in turn.

    unmerged: as trained. merged: folded, where it can be. base: its methods switched off. Then every .onnx file in its
    export folder. runs: several of one base also give the time that exchanging their adapters takes, as do the adapter
    files of cities beside base.onnx.
    ConfigError: no run.
    """
    if not runs:
        raise ConfigError("BENCHMARK", "no run is named", fix="cvpeft benchmark runs/manhole_lora")
    loaded = load_run(runs[0])
    image = verification_inputs(loaded, 1)[0]
    times = side_by_side({**_torch_forms(loaded, image), **_onnx_forms(runs[0], image)}, rounds=rounds)
    return Benchmark(median_ms(times), _switches(runs, rounds), _about(loaded, rounds))


def _torch_forms(loaded: LoadedRun, image: Tensor) -> dict[str, Callable[[], object]]:
    calls = detector_calls(loaded.model, image)
    if loaded.meta["mode"] == "adapters":

        def base() -> None:
            with disabled(loaded.model), torch.no_grad():
                loaded.model(image[None])

        calls["base"] = base
    return calls


def _onnx_forms(run: Path, image: Tensor) -> dict[str, Callable[[], object]]:
    pixels, threads = image.numpy()[None], torch.get_num_threads()
    files = sorted((run / "export").glob("*.onnx"))
    return {f"ONNX Runtime, {file.name}": partial(Detector(file, threads=threads).raw, pixels) for file in files}


def _switches(runs: Sequence[Path], rounds: int) -> dict[str, float]:
    """Milliseconds of putting another adapter in; the base stays in memory, no input is computed."""
    calls: dict[str, Callable[[], object]] = {}
    if len(runs) > 1:
        bank = AdapterBank({str(run): run for run in runs})
        calls["torch"] = _in_turn(bank.use, bank.names[1:] + bank.names[:1])
    export = runs[0] / "export"
    if files := sorted((export / "cities").glob("*.onnx_adapter")):
        detector = Detector(export / "base.onnx")
        calls["ONNX Runtime"] = _in_turn(detector.use, [*files, None])  # None: the base file's own
    return median_ms(side_by_side(calls, rounds=rounds))


def _in_turn(use: Callable[[T], object], adapters: Sequence[T]) -> Callable[[], object]:
    """A call that puts the next of the adapters in, never the one that is there."""
    following = cycle(adapters)
    return lambda: use(next(following))


def _about(loaded: LoadedRun, rounds: int) -> str:
    height, width = loaded.settings.data.size
    threads = torch.get_num_threads()
    return (
        f"{name_of(loaded.folder)}: {loaded.settings.detector.head} on {loaded.settings.backbone.name}, "
        f"{height} x {width} px, float32, batch 1; median of {rounds} rounds; {processor()}, {threads} "
        f"threads, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    )
