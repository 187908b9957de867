"""A run's proven ONNX file -> the same detector in 8-bit integers, kept only if its AP holds and measured beside it.

With onnx.py the only file that imports onnx and its relatives. Two forms are made, scored and timed:
static: Conv, MatMul and Gemm; the ranges of their activations were measured on training images, once.
dynamic: MatMul and Gemm; the ranges are measured in every call, over all images of its batch, so `Detector` feeds one.
Weights have a scale per output channel in both. Float stay the products of two activations (attention), the predictors,
whose rounding would move boxes, and all that comes after them: decoding, NMS, pooling.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from cvpeft import __version__
from cvpeft.data.coco import CocoData
from cvpeft.data.loader import eval_loader
from cvpeft.data.splits import open_split
from cvpeft.detector.device import processor
from cvpeft.detector.saved import LoadedRun, load_run
from cvpeft.errors import ConfigError, DataError, ParityError
from cvpeft.eval.timing import median_ms, side_by_side
from cvpeft.export.run import export_onnx_run, one_form, said_of, verification_inputs
from cvpeft.export.score import onnx_ap, proof_data, spread
from cvpeft.files import replacing, sync, unwritable
from cvpeft.runtime.onnx_detector import Detector

__all__ = ["Scored", "best_form", "decoding_apart", "make_forms", "quantize_run"]

NAME = "model_int8.onnx"
FLOAT = "fp32"
LINEAR = ("MatMul", "Gemm")
WEIGHTED = ("Conv", *LINEAR)
CHOOSING = ("TopK", "GatherElements", "NonMaxSuppression")  # where features end and a choice of boxes begins
ROUNDS = 11
# Activations are uint8, weights int8 of 7 bits. Without VNNI the sum of two 8-bit products is held in 16 bits, where it
# is cut off without a word; with it 7 bits cost next to nothing, and the file gives the same boxes on both processors.
COMMON = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}


@dataclass(frozen=True)
class Scored:
    """What one file does on the images that it was scored on; ms: median of one network input on this machine."""

    AP: float
    AP50: float
    ms: float
    bytes: int


def quantize_run(run: Path, *, overrides: Sequence[str] = ()) -> Path:
    """Write run/export/model_int8.onnx and parity_int8.json from the run's proven model.onnx; returns the file's path.

    model.onnx is exported first where it is absent or not of this run and these settings as they are now. Of the forms
    whose AP on val (else test) is at most `export.int8_max_ap_drop` below that of model.onnx, the fastest here
    is kept.
    ParityError, and an older pair stays untouched, where no form is. ConfigError: another form of file is asked for, or
    there is neither val nor test.
    """
    loaded = load_run(run, overrides)
    one_form(loaded, NAME)
    split, data = _held_out(loaded)
    source = _proven(loaded, overrides)
    data = spread(data, loaded.settings.export.ap_images or len(data.images))
    count, inputs = calibration_inputs(loaded)
    with TemporaryDirectory() as folder:
        files = {FLOAT: source, **make_forms(source, Path(folder), inputs)}
        forms = _measured(loaded, files, data)
        where = f"{len(data.images)} images of {split}"
        kept = best_form(forms, loaded.settings.export.int8_max_ap_drop, where)
        static = kept == "static"  # the other one is not calibrated
        about = {
            "precision": f"int8 {kept}",
            "fp32_AP": forms[FLOAT].AP,
            "int8_AP": forms[kept].AP,
            "scored_on": where,
            "fp32_sha256": _sha256(source.read_bytes()),
            "calibration_images": count if static else 0,
            "calibration_sha256": _sha256(inputs.tobytes()) if static else None,
        }
        return _keep(files[kept], run / "export", about, forms)


# Which images


def calibration_inputs(loaded: LoadedRun) -> tuple[int, np.ndarray]:
    """How many training images calibrate, and their network inputs (N, 3, H, W) uint8, as evaluation sees them."""
    d = loaded.settings.data
    data = spread(open_split(d, "train", loaded.classes), loaded.settings.export.int8_images)
    batches = eval_loader(data, d.size, batch=1, workers=0, canvas=d.canvas)
    return len(data.images), np.concatenate([batch.images.numpy() for batch in batches])


def _held_out(loaded: LoadedRun) -> tuple[str, CocoData]:
    """What the forms are scored on; ConfigError where that would be train, of which some images calibrate."""
    split, data = proof_data(loaded)
    if split == "train":
        what, why = "the config names neither val nor test", "INT8 would be scored on images that it was fitted to"
        raise ConfigError("SPLIT", what, where=str(loaded.folder), why=why, fix="give data.val=FILE.json")
    return split, data


def _proven(loaded: LoadedRun, overrides: Sequence[str]) -> Path:
    """The run's model.onnx, exported where there is none that was proven and says what it would say now."""
    file = loaded.folder / "export" / "model.onnx"
    try:
        proof = json.loads(file.with_name("parity.json").read_text(encoding="utf-8"))
        said = Detector(file).metadata
    except (OSError, ValueError, DataError):
        return export_onnx_run(loaded.folder, overrides=overrides)
    same = proof.get("model_sha256") == _sha256(file.read_bytes()) and said == said_of(loaded)
    return file if same else export_onnx_run(loaded.folder, overrides=overrides)


# How a file is quantised


def make_forms(source: Path, folder: Path, inputs: np.ndarray) -> dict[str, Path]:
    """Form -> file in `folder`, of those for which the source has operators. inputs: (N, 3, H, W) for calibration.

    ResourceError: one of them cannot be written.
    """
    try:
        return _forms(source, folder, inputs)
    except OSError as error:
        fix = "make room, or name another folder in TMPDIR"
        raise unwritable(error, folder, "the INT8 forms", fix=fix) from error


def _forms(source: Path, folder: Path, inputs: np.ndarray) -> dict[str, Path]:
    plain = folder / "plain.onnx"
    files = {}
    with _quiet():
        # Constants are folded and shapes written down, without which no weight is found behind its transposition;
        # symbolic shape inference, which adds nothing here, fails on graphs with a free batch axis.
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        trunk = decoding_apart(onnx.load(plain))
        if trunk:
            files["static"] = _static(plain, folder / "static.onnx", trunk, inputs)
        if linear := [node for node in trunk if node.op_type in LINEAR]:
            files["dynamic"] = _dynamic(plain, folder / "dynamic.onnx", linear)
    entries = _entries(source)
    for file in files.values():  # the quantiser leaves a mark of its own, which is not JSON
        _describe(file, file, entries)
    return files


def decoding_apart(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes with weights in backbone, neck and heads, without the predictors: those that lead to another one.

    A path ends where boxes are chosen, so what leads from the predictors of an RPN to the box head does not count.
    """
    constant = {tensor.name for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    weighted = [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in constant]
    ends, found, seen = {node.output[0] for node in weighted}, set[str](), set[str]()
    back = [node.input[0] for node in weighted]  # tensors, from every weight towards the image
    while back:
        name = back.pop()
        if name in ends:
            found.add(name)
        elif name not in seen and name in made_by and made_by[name].op_type not in CHOOSING:
            seen.add(name)
            back += made_by[name].input
    return [node for node in weighted if node.output[0] in found]


def _static(source: Path, target: Path, nodes: Sequence[onnx.NodeProto], inputs: np.ndarray) -> Path:
    quantize_static(
        source,
        target,
        _Reader(inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(WEIGHTED),
        nodes_to_quantize=[node.name for node in nodes],
        activation_type=QuantType.QUInt8,
        # A product of matrices has a kernel that gives floats; its bias and what follows then need no rounding.
        extra_options={"OpTypesToExcludeOutputQuantization": list(LINEAR)},
        **COMMON,
    )
    return target


def _dynamic(source: Path, target: Path, nodes: Sequence[onnx.NodeProto]) -> Path:
    # the quantiser makes a MatMul of every Gemm before it looks at the names
    names = [node.name + ("_MatMul" if node.op_type == "Gemm" else "") for node in nodes]
    quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], nodes_to_quantize=names, **COMMON)
    return target


class _Reader(CalibrationDataReader):
    """Feeds inputs (N, 3, H, W) one by one."""

    def __init__(self, inputs: np.ndarray) -> None:
        self.rest = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.rest, None)
        return None if image is None else {"images": image[None].astype(np.float32)}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger, of steps that are taken here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


# Which form is kept


def _measured(loaded: LoadedRun, files: Mapping[str, Path], data: CocoData) -> dict[str, Scored]:
    """AP of every file, and its time, measured in turn on one input."""
    d = loaded.settings.data
    # One image at a time, as `Detector` will feed the dynamic form, whose ranges span a batch
    scores = {form: onnx_ap(file, data, d.size, d.canvas, batch=1)["coco"] for form, file in files.items()}
    if scores[FLOAT]["AP"] is None:
        what = f"none of {len(data.images)} images holds a box, so what INT8 costs cannot be told"
        raise ParityError("INT8", what, why="No model was written", fix="give data.val=FILE.json with boxes")
    pixels = verification_inputs(loaded, 1)[0].numpy()[None]
    threads = torch.get_num_threads()
    calls = {form: partial(Detector(file, threads=threads).raw, pixels) for form, file in files.items()}
    ms = median_ms(side_by_side(calls, rounds=ROUNDS))
    return {
        form: Scored(scores[form]["AP"], scores[form]["AP50"], ms[form], file.stat().st_size)
        for form, file in files.items()
    }


def best_form(forms: Mapping[str, Scored], allowed: float, where: str) -> str:
    """The fastest of those that lose at most `allowed` AP; ParityError with all figures where none does.

    forms: by name, FLOAT among them. where: what they were scored on, in words.
    """
    reference = forms[FLOAT].AP
    passing = [form for form, f in forms.items() if form != FLOAT and reference - f.AP <= allowed]
    if passing:
        return min(passing, key=lambda form: forms[form].ms)
    told = [
        f"{form} {f.AP:.4f} ({f.AP - reference:+.4f}, {forms[FLOAT].ms / f.ms:.2f} x as fast)"
        for form, f in forms.items()
        if form != FLOAT
    ]
    what = f"on {where} AP falls from {reference:.4f} to {' and '.join(told)} in INT8, where {allowed:g} may be lost"
    fix = "deploy model.onnx, calibrate on more (export.int8_images) or allow more (export.int8_max_ap_drop)"
    raise ParityError("INT8", what, why="No INT8 model was written", fix=fix)


def _keep(file: Path, folder: Path, about: Mapping[str, Any], forms: Mapping[str, Scored]) -> Path:
    """Put the file, its description completed, and its figures in place."""
    target = folder / NAME
    with replacing(folder / "parity_int8.json", "the figures") as note, replacing(target, "the model") as part:
        _describe(file, part, _entries(file) | {key: json.dumps(value) for key, value in about.items()})
        onnx.checker.check_model(part, full_check=True)
        figures = {
            **about,
            "forms": {name: asdict(form) for name, form in forms.items()},
            "timed": f"median of {ROUNDS} rounds in turn, batch 1, {processor()}, {torch.get_num_threads()} threads",
            "model_sha256": _sha256(part.read_bytes()),
            "versions": {"cvpeft": __version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        }
        note.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        sync(note)  # see export_verified
    return target


def _describe(file: Path, target: Path, entries: Mapping[str, str]) -> None:
    """Write a file to `target`, its metadata replaced."""
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(entries))
    onnx.save(model, target)


def _entries(file: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
