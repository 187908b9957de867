"""The exported graph of a merged run is the plain model's, node by node: nothing of a method is left in it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import pytest
import torch
from torch import Tensor, nn

from cvpeft.config import schema
from cvpeft.detector.adapt import adapt
from cvpeft.export.onnx import export_onnx
from cvpeft.peft.merge import merge, unmergeable
from cvpeft.peft.state import owned
from tests.backbone.small import BODIES
from tests.export.stand_in import CLASSES, on_small_backbone

FOLDED = {
    "lora": {"rank": 2}, "dora": {"rank": 2}, "loha": {"rank": 2}, "lokr": {}, "vera": {"rank": 4}, "fact": {"rank": 4},
    "tcurlora": {"rank": 4}, "ia3": {}, "ssf": {}, "bitfit": {}, "norm": {}, "partial": {}, "repadapter": {},
}  # fmt: skip


def moved(tensors: Iterable[Tensor]) -> None:
    """As if trained: no change is nothing, and no two tensors are equal, which the exporter would hold once."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)


def merged(backbone: str, method: str) -> nn.Module:
    model = on_small_backbone(backbone)
    moved(model.parameters())
    adapt(model, schema.Peft(methods=(schema.Method(name=method, settings=FOLDED[method]),)))
    moved(owned(model).values())
    assert not unmergeable(model)
    return merge(model).eval()


def graph_of(model: nn.Module, folder: Path) -> onnx.GraphProto:
    return onnx.load(export_onnx(model, folder / "model.onnx", classes=CLASSES)).graph


@cache
def plain_graph(backbone: str) -> onnx.GraphProto:
    model = on_small_backbone(backbone)
    moved(model.parameters())
    with TemporaryDirectory() as folder:
        return graph_of(model, Path(folder))


def constants(graph: onnx.GraphProto) -> list[tuple[int, tuple[int, ...]]]:
    return sorted((tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer)


def check(backbone: str, method: str, folder: Path) -> None:
    wanted, found = plain_graph(backbone), graph_of(merged(backbone, method), folder)
    assert [node.op_type for node in found.node] == [node.op_type for node in wanted.node]
    assert constants(found) == constants(wanted)
    assert {node.domain for node in found.node} == {""}


def test_a_merged_lora_leaves_no_node(tmp_path: Path) -> None:
    check("vit", "lora", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "method"), list(product(BODIES, FOLDED)))
def test_a_merged_method_leaves_no_node(backbone: str, method: str, tmp_path: Path) -> None:
    check(backbone, method, tmp_path)
