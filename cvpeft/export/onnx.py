"""A detector -> one ONNX file that says itself how it is to be fed. With quantize.py the only file that imports onnx.

The file's contract: input `images` (batch, 3, H, W) float32, RGB, 0..255, letterboxed; the number of images is free,
H and W are fixed. Outputs `boxes` (batch, K, 4) float32 xyxy in pixels of the input, `scores` (batch, K) float32
falling, `labels` (batch, K) int64 1..number of classes, `num` (batch,) int64; rows from `num` on are zeros.
Metadata: what `contract` returns.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset18
from torch import Tensor, nn

from cvpeft import __version__
from cvpeft.errors import ParityError
from cvpeft.export.graph import Detected, InferenceGraph, inference_graph
from cvpeft.export.graph.ops import DROPPED
from cvpeft.files import replacing

__all__ = ["contract", "export_onnx"]

LARGEST_FILE = 2**31 - 1  # bytes; a protobuf message cannot be larger
EXAMPLE_BATCH = 2  # the exporter takes a batch of 1 for a constant


def export_onnx(
    detector: nn.Module,
    path: Path,
    *,
    classes: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    score_thresholds: Mapping[str, float] | None = None,
    opset: int = 18,
) -> Path:
    """Write the detector (in eval mode, on the CPU, float32) to `path`, which changes only when the new file is whole.

    score_thresholds: class name -> score from which a box counts; goes into the metadata, the outputs keep all boxes.
    metadata: more entries for the file, each a value that JSON can hold; they win over those of `contract`.
    Raises ParityError if the graph cannot take any number of images, ResourceError if the file cannot be written.
    """
    graph = inference_graph(detector)
    entries = {**contract(graph, classes, score_thresholds or {}), "opset": opset, **(metadata or {})}
    with replacing(path, "the model") as part:
        _write(graph, part, entries, opset)
        onnx.checker.check_model(part, full_check=True)
    return path


def contract(graph: InferenceGraph, classes: Sequence[str], score_thresholds: Mapping[str, float]) -> dict[str, Any]:
    """What a program must know to feed the file and to read its outputs."""
    return {
        "cvpeft_version": __version__,
        "task": "detect",
        "classes": list(classes),
        "first_label": 1,
        "input_size": list(graph.size),
        "input_layout": "NCHW",
        "input_dtype": "float32",
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
        "nms": {"inside": True, "iou": graph.nms_iou, "per_class": True, "max_detections": graph.limit},
        "dynamic_axes": {"batch": "free", "height": "fixed", "width": "fixed"},
    }


def _decimals(x: Tensor) -> list[float]:
    return [round(value, 6) for value in x.flatten().tolist()]  # 0.485, not 0.48500001430511475


def _write(graph: InferenceGraph, path: Path, entries: Mapping[str, Any], opset: int) -> None:
    images = torch.zeros(EXAMPLE_BATCH, 3, *graph.size, device=graph.mean.device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=["images"],
            output_names=list(Detected._fields),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table={torch.ops.cvpeft.nms_mask.default: _nms_mask},
        )
    assert program is not None
    shape = program.model.graph.inputs[0].shape
    assert shape is not None
    if isinstance(shape[0], int):
        what = f"the graph takes exactly {shape[0]} images: a module of the detector reads their number as a constant"
        raise ParityError("BATCH", what, fix="use x.shape[0] in the module's forward, not len(x) or int(...)")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter notes its stack traces there, with the paths of this machine
        node.doc_string = None
    program.model.metadata_props.update({key: json.dumps(value, ensure_ascii=False) for key, value in entries.items()})
    program.save(str(path), external_data=False)


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
