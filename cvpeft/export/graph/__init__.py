"""Inference graphs that ONNX can express, one for each torchvision head."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet

from cvpeft.export.graph.base import Detected, InferenceGraph
from cvpeft.export.graph.faster_rcnn import FasterRCNNGraph
from cvpeft.export.graph.one_stage import FCOSGraph, RetinaNetGraph

__all__ = ["Detected", "InferenceGraph", "inference_graph"]

GRAPHS: dict[type[nn.Module], type[InferenceGraph]] = {
    FasterRCNN: FasterRCNNGraph,
    RetinaNet: RetinaNetGraph,
    FCOS: FCOSGraph,
}


def inference_graph(detector: nn.Module, **form: bool) -> InferenceGraph:
    """The graph of a detector in eval mode; it shares the detector's modules. form: see `InferenceGraph`.

    detector: a torchvision FasterRCNN, RetinaNet or FCOS whose `.transform` only normalises and batches, and has the
    attributes mean, std (3, 1, 1) and size (height, width).
    """
    for kind, graph in GRAPHS.items():
        if isinstance(detector, kind):
            return graph(detector, **form)
    raise TypeError(
        f"no inference graph for a {type(detector).__name__}; known: {', '.join(k.__name__ for k in GRAPHS)}"
    )
