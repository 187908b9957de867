"""A detector -> one ONNX file that says itself how it is to be fed. With quantize.py the only file that imports onnx.

The file's contract: input `images` (batch, 3, H, W) float32, or (batch, H, W, 3) uint8, RGB, 0..255, letterboxed; the
number of images is free, H and W are fixed. Outputs `boxes` (batch, K, 4) float32 xyxy in pixels of the input, `scores`
(batch, K) float32 falling, `labels` (batch, K) int64 1..number of classes, `num` (batch,) int64; rows from `num` on are
zeros.
Metadata: what `contract` returns.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxscript.ir
import torch
from onnxscript import opset18
from torch import Tensor, nn
from torch.func import functional_call

from cvpeft import __version__
from cvpeft.backbone.any_size import any_size
from cvpeft.errors import ConfigError, ParityError
from cvpeft.export.graph import Detected, InferenceGraph, inference_graph
from cvpeft.export.graph.ops import DROPPED
from cvpeft.files import replacing

__all__ = ["STEP", "Form", "contract", "described", "export_onnx", "halved"]

STEP = 32  # sides of an input of free size are multiples of it, so that every map has its exact stride
LEAST_HALVED = 256  # numbers; smaller tensors are not worth a Cast
EXAMPLE_BATCH = 2  # the exporter takes a batch of 1 for a constant


@dataclass(frozen=True)
class Form:
    """What a file takes, holds and gives.

    takes: "float32" (batch, 3, H, W) or "uint8" (batch, H, W, 3), as decoders give them. weights: "fp32", or "fp16":
    rounded (see `halved`) and held in half the size, computed in float32 all the same. nms: False leaves out the
    last NMS, for programs with their own: all candidates, K of them. (Faster R-CNN's RPN keeps its NMS.) free_size:
    inputs of every height and width that are multiples of STEP; only where the backbone can (`fixed_because`).
    """

    takes: Literal["float32", "uint8"] = "float32"
    weights: Literal["fp32", "fp16"] = "fp32"
    nms: bool = True
    free_size: bool = False

    @property
    def suffix(self) -> str:
        """What a file name says of it."""
        words = {"uint8": self.takes == "uint8", "fp16": self.weights == "fp16", "raw": not self.nms}
        return "".join(f"_{word}" for word, said in {**words, "any_size": self.free_size}.items() if said)


def export_onnx(
    detector: nn.Module,
    path: Path,
    *,
    classes: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    score_thresholds: Mapping[str, float] | None = None,
    opset: int = 18,
    exchangeable: Mapping[str, Tensor] | None = None,
    form: Form = Form(),
) -> Path:
    """Write the detector (in eval mode, on the CPU, float32) to `path`, which changes only when the new file is whole.

    score_thresholds: class name -> score from which a box counts; goes into the metadata, the outputs keep all boxes.
    metadata: more entries for the file, each a value that JSON can hold; they win over those of `contract`.
    exchangeable: name -> tensor of the detector; these become named inputs, whose defaults are their present values.
    Raises ParityError if the graph cannot take any number of images, ConfigError if the opset cannot be written,
    ResourceError if the file cannot be.
    """
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise _no_opset(opset, f"onnx {onnx.__version__} ends at {newest}", newest)
    detector = halved(detector) if form.weights == "fp16" else detector
    graph = inference_graph(detector, takes_bytes=form.takes == "uint8", suppresses=form.nms, free_size=form.free_size)
    entries = described(graph, classes, score_thresholds or {}, opset, metadata or {})
    free = any_size(detector) if form.free_size else nullcontext()
    with free, replacing(path, "the model") as part:
        _write(graph, part, entries, opset, exchangeable or {}, halved=form.weights == "fp16")
        onnx.checker.check_model(part, full_check=True)
    return path


def described(
    graph: InferenceGraph,
    classes: Sequence[str],
    score_thresholds: Mapping[str, float],
    opset: int,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """All metadata of a file; see `export_onnx`."""
    return {**contract(graph, classes, score_thresholds), "opset": opset, **metadata}


def contract(graph: InferenceGraph, classes: Sequence[str], score_thresholds: Mapping[str, float]) -> dict[str, Any]:
    """What a program must know to feed the file and to read its outputs."""
    least = getattr(getattr(graph.backbone, "body", None), "least_size", (STEP, STEP))
    side = f"free, multiples of {STEP}" if graph.free_size else "fixed"
    return {
        "cvpeft_version": __version__,
        "task": "detect",
        "classes": list(classes),
        "first_label": 1,
        "input_size": list(graph.size),
        "input_layout": "NHWC" if graph.takes_bytes else "NCHW",
        "input_dtype": "uint8" if graph.takes_bytes else "float32",
        "input_range": [0, 255],
        "color_order": "RGB",
        "resize": "letterbox",
        "pad_value": 114,
        "mean": _decimals(graph.mean),
        "std": _decimals(graph.std),
        "normalisation": "inside the graph: (images / 255 - mean) / std",
        "box_format": "xyxy, pixels of the input",
        "score_threshold": graph.score_threshold,
        "score_thresholds": {name: float(score_thresholds.get(name, graph.score_threshold)) for name in classes},
        "nms": {"inside": graph.suppresses, "iou": graph.nms_iou, "per_class": True, "max_detections": graph.limit},
        "dynamic_axes": {"batch": "free", "height": side, "width": side},
        "free_size": {"multiple_of": STEP, "least": list(least)} if graph.free_size else None,
    }


def _decimals(x: Tensor) -> list[float]:
    return [round(value, 6) for value in x.flatten().tolist()]  # 0.485, not 0.48500001430511475


def _write(
    graph: InferenceGraph,
    path: Path,
    entries: Mapping[str, Any],
    opset: int,
    exchangeable: Mapping[str, Tensor],
    *,
    halved: bool,
) -> None:
    images = torch.zeros(EXAMPLE_BATCH, 3, *graph.size, device=graph.mean.device)
    if graph.takes_bytes:
        images = images.permute(0, 2, 3, 1).to(torch.uint8)
    free = _free_axes(graph)
    given: tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]] = (graph, (images,), (free,))
    whole, inputs, shapes = _exchanging(graph, images, free, exchangeable) if exchangeable else given
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            whole,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=["images", *exchangeable],
            output_names=list(Detected._fields),
            dynamic_shapes=shapes,
            custom_translation_table={torch.ops.cvpeft.nms_mask.default: _nms_mask},
        )
    assert program is not None
    written = program.model.opset_imports[""]
    if written != opset:  # the exporter tells it in its log alone, and the metadata would be wrong
        raise _no_opset(opset, f"the exporter left the graph at {written}", written)
    shape = program.model.graph.inputs[0].shape
    assert shape is not None
    if isinstance(shape[0], int):
        what = f"the graph takes exactly {shape[0]} images: a module of the detector reads their number as a constant"
        raise ParityError("BATCH", what, fix="use x.shape[0] in the module's forward, not len(x) or int(...)")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter notes its stack traces there, with the paths of this machine
        node.doc_string = None
    if halved:
        _halve(program.model.graph)
    for value in program.model.graph.inputs[1:]:  # an input with an initializer of its name may be left out
        value.const_value = onnxscript.ir.tensor(exchangeable[str(value.name)].detach().numpy(), name=value.name)
        program.model.graph.initializers[str(value.name)] = value
    program.model.metadata_props.update({key: json.dumps(value, ensure_ascii=False) for key, value in entries.items()})
    program.save(str(path), external_data=False)


def _no_opset(opset: int, because: str, other: int) -> ConfigError:
    what = f"opset {opset} cannot be written: {because}"
    return ConfigError("OPSET", what, why="No model was written", fix=f"set export.opset={other}")


def halved(detector: nn.Module) -> nn.Module:
    """A copy whose large parameters are rounded to what float16 can hold; those beyond its range stay as they are."""
    copied = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in copied.parameters():
            rounded = parameter.half().float()
            if parameter.numel() >= LEAST_HALVED and bool(rounded.isfinite().all()):
                parameter.copy_(rounded)
    return copied


def _halve(graph: Any) -> None:
    """Hold as float16 what loses nothing by it, which is what `halved` has rounded and no anchors.

    Each has a Cast before its uses, which a runtime folds when it opens the file.
    """
    for name, value in list(graph.initializers.items()):
        numbers = value.const_value.numpy()
        if numbers.dtype != "float32" or numbers.size < LEAST_HALVED:
            continue
        with np.errstate(over="ignore"):
            rounded = numbers.astype("float16")
        if (rounded.astype("float32") != numbers).any():
            continue
        half = onnxscript.ir.tensor(rounded, name=f"{name}_fp16")
        stored = onnxscript.ir.Value(name=half.name, const_value=half)
        attributes = [onnxscript.ir.AttrInt64("to", onnxscript.ir.DataType.FLOAT)]
        cast = onnxscript.ir.Node("", "Cast", [stored], attributes=attributes)
        cast.outputs[0].name = name
        cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
        onnxscript.ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


class _Exchanging(nn.Module):
    """A graph whose named tensors are handed in. As inputs they keep their names, and nothing is folded into them."""

    def __init__(self, graph: InferenceGraph, places: Sequence[str]) -> None:
        super().__init__()
        self.inner, self.places = graph, places  # a GraphModule has a `graph` of its own

    def forward(self, images: Tensor, tensors: Sequence[Tensor]) -> Detected:
        found: Detected = functional_call(self.inner, dict(zip(self.places, tensors, strict=True)), (images,))
        return found


def _free_axes(graph: InferenceGraph) -> dict[int, Any]:
    """Which axes of the images are free, for the exporter."""
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    if graph.free_size:
        height, width = (1, 2) if graph.takes_bytes else (2, 3)
        free[height], free[width] = STEP * torch.export.Dim("rows"), STEP * torch.export.Dim("columns")
    return free


def _exchanging(
    graph: InferenceGraph, images: Tensor, free: Mapping[int, Any], exchangeable: Mapping[str, Tensor]
) -> tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    """Module, example inputs and dynamic shapes for the exporter."""
    named = [*graph.named_parameters(), *graph.named_buffers()]
    places = {id(tensor): name for name, tensor in named}
    values = [tensor.detach().clone() for tensor in exchangeable.values()]
    shapes: tuple[Any, ...] = (free, [{} for _ in values])
    return _Exchanging(graph, [places[id(tensor)] for tensor in exchangeable.values()]), (images, values), shapes


def _nms_mask(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """The operator cvpeft::nms_mask in ONNX; its arguments have to have the same names."""
    op: Any = opset18  # the operators used here mean the same in every later opset
    everything = op.Constant(value_int=2**31 - 1)
    kept = op.NonMaxSuppression(boxes, scores, everything, iou_threshold, DROPPED)  # (kept, 3): group, class, box
    nothing = op.ConstantOfShape(
        op.Shape(scores), value=onnx.helper.make_tensor("no", onnx.TensorProto.BOOL, [1], [False])
    )
    yes = op.Expand(
        op.Constant(value=onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [1], [True])), op.Shape(kept, end=1)
    )
    return op.ScatterND(nothing, kept, yes)
