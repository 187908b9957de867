"""One base file for the edge box, and a small adapter file for each city that it may be sent to.

base.onnx holds the frozen weights; what a run has trained are named inputs of it, with the base run's own values as
defaults. A city is a .onnx_adapter with other values, which ONNX Runtime puts in at each call; so exchanging cities
loads nothing anew, and a city that comes later needs nothing but its own file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import onnxruntime
from torch import Tensor, nn

from cvpeft.detector.bank import AdapterBank
from cvpeft.detector.saved import LoadedRun, load_run, name_of
from cvpeft.errors import ConfigError, DataError
from cvpeft.eval.report import thresholds
from cvpeft.eval.timing import median_ms, side_by_side
from cvpeft.export.graph import inference_graph
from cvpeft.export.onnx import contract, export_onnx
from cvpeft.export.run import about_run, ap_entry, one_form, verification_inputs
from cvpeft.export.verify import Tolerance, agreed, enough, predict_onnx, predict_torch
from cvpeft.files import replacing, sync, write_whole
from cvpeft.peft.merge import merge
from cvpeft.peft.state import owned
from cvpeft.runtime.adapters import FITTING
from cvpeft.runtime.onnx_detector import Detector

__all__ = ["export_cities", "switch_ms"]

ROUNDS = 20
KIND = ("methods", "detector", "windows")  # of adapter_config.json: what the graph was made of


def export_cities(base: Path, cities: Sequence[Path], *, overrides: Sequence[str] = ()) -> list[Path]:
    """Write base/export/base.onnx, unless it is there, and cities/NAME.onnx_adapter with NAME.json for every run.

    base: the run whose values are the defaults. cities: runs on the same base with the same methods and classes.
    Every adapter is proven equal to its own run, merged, on images of that run, in its AP too, see `export.ap_images`.
    Returns base.onnx and the adapters. ConfigError, CheckpointError: runs that do not belong together, a base.onnx of
    another base or of other settings, or another form of file is asked for. ParityError, and the files at hand are not
    written: boxes or AP differ.
    """
    names = [name_of(city) for city in cities]
    if len(set(names)) < len(names) or not names:
        raise ConfigError("CITIES", f"the runs are named {', '.join(names) or 'not at all'}", fix="name each run once")
    loaded = load_run(base, overrides)
    one_form(loaded, "base.onnx")
    bank = AdapterBank({str(run): run for run in dict.fromkeys([base, *cities])}, overrides)
    file = base / "export" / "base.onnx"
    tensors = exchangeable(bank.model)
    if file.exists():
        _check_fits(file, loaded, bank.model, tensors)
    else:
        _write_base(file, loaded, bank.model, tensors)
    said = Detector(file).metadata
    return [file, *(_write_city(file, said, bank, city, overrides) for city in cities)]


def switch_ms(base: Path, adapters: Sequence[Path]) -> float:
    """Median milliseconds that a running detector takes to read, check and put in another of the adapters."""
    detector, names = Detector(base), cycle(adapters)
    return median_ms(side_by_side({"switch": lambda: detector.use(next(names))}, rounds=ROUNDS))["switch"]


def exchangeable(model: nn.Module) -> dict[str, Tensor]:
    """Canonical key -> what a run has trained; counters, which no forward pass reads, left out."""
    return {key: tensor for key, tensor in owned(model).items() if tensor.is_floating_point()}


def _write_base(file: Path, loaded: LoadedRun, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    images = verification_inputs(loaded, loaded.settings.export.verify_images)
    kind = {key: loaded.meta[key] for key in KIND if key in loaded.meta}
    metadata = about_run(loaded) | kind | {"merged": False, "exchangeable": _shapes(tensors)}
    with replacing(file, "the base") as part:
        export_onnx(
            model, part, classes=loaded.classes, metadata=metadata, score_thresholds=thresholds(loaded.meta),
            opset=loaded.settings.export.opset, exchangeable=tensors,
        )  # fmt: skip
        _prove("base.onnx", part, loaded, images)


def _check_fits(file: Path, loaded: LoadedRun, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """That the file is of this base and finds what the run as it is now does, its adapter aside."""
    found, said = Detector(file).metadata, contract(inference_graph(model), loaded.classes, {})
    wanted = {
        "base_sha256": loaded.meta["base"]["sha256"],
        "exchangeable": _shapes(tensors),
        "canvas": loaded.settings.data.canvas,
        **{key: said[key] for key in ("classes", "input_size", "mean", "std", "score_threshold", "nms")},
        **{key: loaded.meta.get(key) for key in KIND if key in found},  # files of an older version lack it
    }
    wanted = json.loads(json.dumps(wanted))
    if differing := [key for key, value in wanted.items() if found.get(key) != value]:
        what = f"its {' and '.join(differing)} are not those of the run"
        why = "The cities that were exported with it need it as it is"
        raise ConfigError(
            "BASE",
            what,
            where=str(file),
            why=why,
            fix="move it away, or name the run that it came from, with the same settings",
        )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


def _write_city(file: Path, said: Mapping[str, Any], bank: AdapterBank, city: Path, overrides: Sequence[str]) -> Path:
    """The adapter and its json, both or none. said: metadata of the base file."""
    loaded = load_run(city, overrides)
    bank.use(str(city))
    name = name_of(city)
    target = file.parent / "cities" / f"{name}.onnx_adapter"
    images = verification_inputs(loaded, loaded.settings.export.verify_images)
    with replacing(target, "the adapter") as part, replacing(target.with_suffix(".json"), "the adapter") as note:
        _save_tensors(part, exchangeable(bank.model))
        about = {
            "city": name,
            "base_sha256": loaded.meta["base"]["sha256"],
            "adapter_sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
            **{key: said[key] for key in FITTING if key in said},
            "score_thresholds": thresholds(loaded.meta),
        }
        # The detector looks for a json of the adapter's own name; while both are parts, that name is the part's.
        beside = part.with_suffix(".json")
        try:
            write_whole(beside, json.dumps(about))
            about |= _prove(name, file, loaded, images, adapter=part)
        finally:
            beside.unlink(missing_ok=True)
        note.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        sync(note)
    return target


def _save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    content = onnxruntime.AdapterFormat()
    values = {key: onnxruntime.OrtValue.ortvalue_from_numpy(t.detach().numpy()) for key, t in tensors.items()}
    content.set_parameters(values)
    try:
        content.export_adapter(str(file))
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise DataError("ADAPTER", f"ONNX Runtime cannot write it ({error})", where=str(file)) from error


def _prove(
    who: str, file: Path, loaded: LoadedRun, images: Sequence[Tensor], *, adapter: Path | None = None
) -> dict[str, Any]:
    """That the file, with the adapter in it, gives the boxes and the AP of the run's own merged model; ParityError if
    not. Returns entries of the adapter's json."""
    e = loaded.settings.export
    tolerance = Tolerance(score=e.score_tolerance, iou=e.iou_tolerance, threshold=e.verify_score)
    plain = merge(loaded.model, partly=True).eval()
    reference = predict_torch(plain, images)
    found = predict_onnx(file, images, adapter=adapter)
    agreement = agreed(who, reference, found, enough(reference, tolerance), tolerance)
    return {"parity": asdict(agreement), **ap_entry(loaded, plain, file, adapter=adapter)}
