"""Malformed and hostile .onnx files: each a function that writes one, with the code and a word of what is told."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.test_onnx_detector import METADATA, SIZE, model_file

K = 3
GOOD: dict[str, Any] = {
    "boxes": [[1, 2, 30, 40], [0, 0, 0, 0], [0, 0, 0, 0]],
    "scores": [0.9, 0, 0],
    "labels": [1, 0, 0],
}


@dataclass(frozen=True)
class Case:
    """make writes the file; code and word stand in the one error that it must give."""

    make: Callable[[Path], Any]
    code: str
    word: str


def whole() -> onnx.ModelProto:
    """A model that is all right."""
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(model_file(Path(folder) / "model.onnx", METADATA, **GOOD))


def changed(change: Callable[[onnx.ModelProto], Any]) -> Callable[[Path], Any]:
    def make(file: Path) -> None:
        model = whole()
        change(model)
        file.write_bytes(model.SerializeToString())

    return make


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(data)


def cut(part: float) -> Callable[[Path], Any]:
    def make(file: Path) -> None:
        data = whole().SerializeToString()
        file.write_bytes(data[: max(1, int(part * len(data)))])

    return make


# Tensors in other files


def outside(place: str = "../../../../../../etc/passwd", **more: str) -> TensorProto:
    tensor = TensorProto(name="all_boxes", data_type=TensorProto.FLOAT, dims=[1, K, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": place, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def initializer(tensor: TensorProto) -> Callable[[onnx.ModelProto], Any]:
    """Put the tensor into the place of the one of its name."""

    def change(model: onnx.ModelProto) -> None:
        rest = [one for one in model.graph.initializer if one.name != tensor.name]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*rest, tensor])

    return change


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["unused"], value=tensor)


def in_branch(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([constant(outside())], "branch", [], [helper.make_tensor_value_info("unused", 1, None)])
    model.graph.node.append(helper.make_node("If", ["zero"], ["o"], then_branch=graph, else_branch=graph))


def in_function(model: onnx.ModelProto) -> None:
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "f", [], ["unused"], [constant(outside())], opset))


def in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(values=outside(), dims=[9])


def in_list(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["zero"], ["o"])
    node.attribute.add(name="t", type=onnx.AttributeProto.TENSORS).tensors.append(outside())
    model.graph.node.append(node)


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(outside())


EXTERNAL = {
    "up": changed(initializer(outside())),
    "absolute": changed(initializer(outside("/etc/passwd"))),
    "beside": changed(initializer(outside("side.bin"))),
    "device": changed(initializer(outside("/dev/zero", length=str(2**40)))),
    "url": changed(initializer(outside("http://localhost/weights"))),
    "nameless": changed(initializer(outside(""))),
    "constant": changed(lambda model: model.graph.node.append(constant(outside()))),
    "branch": changed(in_branch),
    "function": changed(in_function),
    "sparse": changed(in_sparse),
    "list": changed(in_list),
    "training": changed(in_training),
}


# Tensors and graphs that are not what they say


def tensor(dims: list[int], raw: bytes = b"1234") -> Callable[[Path], Any]:
    one = TensorProto(name="all_boxes", data_type=TensorProto.FLOAT, raw_data=raw)
    one.dims.extend(dims)
    return changed(initializer(one))


def bomb(op: str, *inputs: str) -> Callable[[Path], Any]:
    """A graph that asks for 40 GB when it runs, and depends on the image, so that nothing of it is known before."""

    def change(model: onnx.ModelProto) -> None:
        shape = numpy_helper.from_array(np.array([1, 1, 100_000, 1000], np.int64), "large")
        model.graph.initializer.append(shape)
        nodes = [
            helper.make_node("Shape", ["images"], ["s"]),
            helper.make_node("Mul", ["s", "large"], ["s2"]),
            helper.make_node(op, [*inputs, "s2"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
            helper.make_node("Add", ["sum", "boxes_"], ["boxes"]),
        ]
        for node in model.graph.node:
            node.output[:] = ["boxes_" if name == "boxes" else name for name in node.output]
        model.graph.node.extend(nodes)

    return changed(change)


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["p"], ["q"]))
    model.graph.node.append(helper.make_node("Identity", ["q"], ["p"]))


def varint(number: int) -> bytes:
    head = b""
    while number > 127:
        head += bytes([number & 127 | 128])
        number >>= 7
    return head + bytes([number])


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def overflowing() -> bytes:
    """A tensor in another file; the tags that say so have a 33rd bit, which ONNX Runtime cuts off."""
    over = 1 << 29
    place = field(1, b"location") + field(2, b"side.bin")
    head = TensorProto(name="all_boxes", data_type=TensorProto.FLOAT, dims=[1, K, 4]).SerializeToString()
    side = head + field(13 | over, place) + varint((14 | over) << 3) + b"\1"
    model = whole()
    model.graph.initializer.remove(next(one for one in model.graph.initializer if one.name == "all_boxes"))
    return model.SerializeToString() + field(7, field(5, side))  # repeated fields of one message are put together


def nested(depth: int) -> bytes:
    """Graphs in graphs, as the bytes of the nested fields: ModelProto.graph, node, attribute, g, node..."""
    inner = b""
    for _ in range(depth):
        inner = field(1, field(5, field(6, inner)))
    return field(7, inner)


def sparse_file(file: Path) -> None:
    with file.open("wb") as out:
        out.truncate(3 * 2**30)


def retyped(kind: int | None = None, shape: list[Any] | None = None, name: str | None = None) -> Callable[[Path], Any]:
    """Another input; the graph behind it is made of the outputs alone, which keeps it right for any input."""

    def change(model: onnx.ModelProto) -> None:
        free_of_input(model)
        info = helper.make_tensor_value_info(name or "images", kind or 1, shape or ["batch", 3, *SIZE])
        del model.graph.input[:]
        model.graph.input.append(info)

    return changed(change)


def free_of_input(model: onnx.ModelProto, **values: np.ndarray) -> None:
    """The outputs are constants, whatever is fed. values: in place of the good ones."""
    given = {
        "boxes": np.array([GOOD["boxes"]], np.float32), "scores": np.array([GOOD["scores"]], np.float32),
        "labels": np.array([GOOD["labels"]], np.int64), "num": np.array([1], np.int64), **values,
    }  # fmt: skip
    del model.graph.node[:], model.graph.initializer[:], model.graph.output[:]
    for name, value in given.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.initializer.append(numpy_helper.from_array(value, f"c_{name}"))
        model.graph.node.append(helper.make_node("Identity", [f"c_{name}"], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, kind, list(value.shape)))


def gives(**values: Any) -> Callable[[Path], Any]:
    return changed(lambda model: free_of_input(model, **{key: np.asarray(value) for key, value in values.items()}))


def boxes(*first: float) -> np.ndarray:
    return np.array([[first, *GOOD["boxes"][1:]]], np.float32)


def output_named(model: onnx.ModelProto, name: str) -> None:
    free_of_input(model)
    model.graph.node[0].output[0] = model.graph.output[0].name = name


def opset(version: int) -> Callable[[onnx.ModelProto], Any]:
    return lambda model: setattr(model.opset_import[0], "version", version)


def node(op: str, domain: str = "") -> Callable[[onnx.ModelProto], Any]:
    return lambda model: model.graph.node.append(helper.make_node(op, ["zero"], ["o"], domain=domain))


# What a file says of itself


def says(**values: Any) -> Callable[[Path], Any]:
    """Metadata with other values; `None` takes a key out."""
    kept = {key: value for key, value in {**METADATA, **values}.items() if value is not None}
    return lambda file: model_file(file, kept, **GOOD)


def text(key: str, value: str) -> Callable[[Path], Any]:
    """A raw text for one key."""

    def change(model: onnx.ModelProto) -> None:
        for prop in model.metadata_props:
            if prop.key == key:
                prop.value = value

    return changed(change)


WRONG: list[Any] = [3.5, "text", [1, "x"], {"a": 1}, True, [[[]]]]
METADATA_CASES = {
    **{f"lacks_{key}": Case(says(**{key: None}), "MODEL", f"lacks {key}") for key in METADATA},
    **{
        f"{key}_is_{number}": Case(says(**{key: value}), "MODEL", key)
        for key in METADATA
        for number, value in enumerate(WRONG)
    },
    "no_json": Case(text("classes", "{half"), "MODEL", "not JSON"),
    "deep": Case(text("classes", "[" * 100_000), "MODEL", "not JSON"),
    "nested": Case(text("classes", "[" * 500 + "]" * 500), "MODEL", "not a list of names"),
    "digits": Case(text("pad_value", "9" * 10_000), "MODEL", "not JSON"),
    "long": Case(text("classes", json.dumps("x" * 30_000_000)), "MODEL", "characters"),
    "many_lists": Case(text("classes", "[" + "[]," * 5_000_000 + "[]]"), "MODEL", "characters"),
    "nan_threshold": Case(says(score_thresholds={"good": float("nan"), "井盖": 0.2}), "MODEL", "0..1"),
    "infinite_threshold": Case(says(score_thresholds={"good": float("-inf"), "井盖": 0.2}), "MODEL", "0..1"),
    "threshold_of_two": Case(says(score_thresholds={"good": 2, "井盖": 0.2}), "MODEL", "0..1"),
    "twice": Case(says(classes=["good", "good"]), "MODEL", "twice"),
    "control": Case(says(classes=["good\x1b[2J", "井盖"]), "MODEL", "not a list of names"),
    "surrogate": Case(text("classes", '["good", "\\ud800"]'), "MODEL", "not a list of names"),
    "long_name": Case(says(classes=["good", "x" * 10_000]), "MODEL", "not a list of names"),
    "blank": Case(says(classes=["good", " "]), "MODEL", "not a list of names"),
    "fractions": Case(says(input_size=[96.0, 128.0]), "MODEL", "input_size"),
    "negative_size": Case(says(input_size=[-96, 128]), "MODEL", "input_size"),
    "canvas_bomb": Case(says(canvas=[10**6, 10**6]), "MODEL", "canvas"),
    "canvas_small": Case(says(canvas=[10, 10]), "MODEL", "canvas"),
    "canvas_of_one": Case(says(canvas=[1000]), "MODEL", "canvas"),
}

FILES = {
    "empty": Case(content(b""), "MODEL", "is empty"),
    "one_byte": Case(content(b"\x08"), "MODEL", "damaged"),
    "zeros": Case(content(bytes(1000)), "MODEL", "cannot read"),
    "ones": Case(content(b"\xff" * 1000), "MODEL", "damaged"),
    "text": Case(content(b"this is no model\n" * 20), "MODEL", ""),
    "html": Case(content(b"<!DOCTYPE html><html><body>404</body></html>"), "MODEL", ""),
    "gzip": Case(content(gzip.compress(bytes(1000))), "MODEL", ""),
    "pickle": Case(content(pickle.dumps({"model": list(range(100))})), "MODEL", ""),
    "lfs": Case(content(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "MODEL", ""),
    **{f"random_{n}": Case(content(np.random.default_rng(n).bytes(n)), "MODEL", "") for n in (10, 1000, 100_000)},
    **{f"cut_{part}": Case(cut(part), "MODEL", "") for part in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)},
    "claims_2_gb": Case(content(b"\x3a\xff\xff\xff\xff\x07" + bytes(100)), "MODEL", "damaged"),
    "tag_overflows": Case(content(overflowing()), "MODEL", "damaged"),
    "claims_2_to_63": Case(content(b"\x3a" + b"\xff" * 8 + b"\x7f" + bytes(100)), "MODEL", "damaged"),
    "endless_number": Case(content(b"\x08" + b"\x80" * 1000), "MODEL", "damaged"),
    "group": Case(content(b"\x0b" * 1000), "MODEL", "damaged"),
    "million_fields": Case(content(b"\x08\x01" * 1_100_000), "MODEL", "damaged"),
    "three_gb": Case(sparse_file, "MODEL", "2 GB"),
    "nested": Case(content(nested(3000)), "MODEL", "cannot read"),
    "folder": Case(lambda file: file.mkdir(), "MODEL", "folder"),
    "pipe": Case(os.mkfifo, "MODEL", "pipe"),
    "device": Case(lambda file: file.symlink_to("/dev/zero"), "MODEL", "device"),
    "circle": Case(lambda file: file.symlink_to(file.name), "MODEL", "no such file"),
    "dangling": Case(lambda file: file.symlink_to("absent.onnx"), "MODEL", "no such file"),
    **{f"external_{name}": Case(make, "EXTERNAL", "other files") for name, make in EXTERNAL.items()},
    "dims_huge": Case(tensor([2**40, 1]), "MODEL", "cannot read"),
    "dims_wrap": Case(tensor([2**32, 2**32]), "MODEL", "cannot read"),
    "dims_most": Case(tensor([2**63 - 1]), "MODEL", "cannot read"),
    "dims_negative": Case(tensor([-1, K, 4]), "MODEL", "cannot read"),
    "dims_short_data": Case(tensor([1, K, 4]), "MODEL", "cannot read"),
    "dims_no_data": Case(tensor([1, K, 4], b""), "MODEL", "cannot read"),
    "type_unknown": Case(changed(lambda m: setattr(m.graph.initializer[0], "data_type", 77)), "MODEL", "cannot read"),
    "bomb_expand": Case(bomb("Expand", "white"), "MEMORY", "more memory"),
    "bomb_fill": Case(bomb("ConstantOfShape"), "MEMORY", "more memory"),
    "cycle": Case(changed(cycle), "MODEL", "cannot read"),
    "foreign_op": Case(changed(node("Run", "com.evil")), "MODEL", "cannot read"),
    "unknown_op": Case(changed(node("Eval")), "MODEL", "cannot read"),
    "opset_9999": Case(changed(opset(9999)), "MODEL", "cannot read"),
    "ir_999": Case(changed(lambda model: setattr(model, "ir_version", 999)), "MODEL", "cannot read"),
    "no_graph": Case(changed(lambda model: model.ClearField("graph")), "MODEL", ""),
    "no_input": Case(changed(lambda m: (free_of_input(m), m.graph.input.pop())), "MODEL", "inputs are none"),
    "input_name": Case(retyped(name="pixels"), "MODEL", "inputs are pixels"),
    "input_type": Case(retyped(TensorProto.UINT8), "MODEL", "inputs are images tensor(uint8)"),
    "input_rank": Case(retyped(shape=[3, *SIZE]), "MODEL", "shape"),
    "input_dynamic": Case(retyped(shape=["b", "c", "h", "w"]), "MODEL", "shape"),
    "input_batch": Case(retyped(shape=[8, 3, *SIZE]), "MODEL", "exactly 8"),
    "input_huge": Case(
        lambda file: (retyped(shape=["b", 3, 2**20, 2**20])(file), resized(file, [2**20, 2**20])), "MODEL", "at most"
    ),
    "output_name": Case(changed(lambda model: output_named(model, "dets")), "MODEL", "outputs are dets"),
    "output_nan_box": Case(gives(boxes=boxes(float("nan"), 0, 1, 1)), "OUTPUT", "not finite"),
    "output_inf_box": Case(gives(boxes=boxes(0, 0, float("inf"), 1)), "OUTPUT", "not finite"),
    "output_turned_box": Case(gives(boxes=boxes(30, 0, 10, 9)), "OUTPUT", "negative side"),
    "output_nan_score": Case(gives(scores=np.array([[np.nan, 0, 0]], np.float32)), "OUTPUT", "not finite"),
    "output_label_high": Case(gives(labels=np.array([[3, 0, 0]])), "OUTPUT", "labels beyond"),
    "output_label_negative": Case(gives(labels=np.array([[-1, 0, 0]])), "OUTPUT", "labels beyond"),
    "output_label_most": Case(gives(labels=np.array([[2**63 - 1, 0, 0]])), "OUTPUT", "labels beyond"),
    "output_label_float": Case(gives(labels=np.array([[1.5, 0, 0]], np.float32)), "OUTPUT", "float32"),
    "output_score_int": Case(gives(scores=np.array([[1, 0, 0]])), "OUTPUT", "int64"),
    "output_text": Case(gives(scores=np.array([["a", "b", "c"]], object)), "OUTPUT", "object"),
    "output_rows": Case(gives(scores=np.zeros((1, K + 1), np.float32)), "OUTPUT", "gives boxes (1, 3, 4)"),
    "output_sides": Case(gives(boxes=np.zeros((1, K, 5), np.float32)), "OUTPUT", "(1, 3, 5)"),
    "output_flat": Case(gives(scores=np.zeros(K, np.float32)), "OUTPUT", "scores (3,)"),
    "output_batch": Case(gives(**{k: np.repeat(np.array([GOOD[k]], t), 2, 0) for k, t in
        (("boxes", np.float32), ("scores", np.float32), ("labels", np.int64))}), "OUTPUT", "(2, 3, 4)"),
    "output_num_high": Case(gives(num=np.array([K + 1])), "OUTPUT", "rows"),
    "output_num_negative": Case(gives(num=np.array([-1])), "OUTPUT", "rows"),
    "output_num_many": Case(gives(num=np.array([1, 1])), "OUTPUT", "rows"),
}  # fmt: skip


def resized(file: Path, size: list[int]) -> None:
    model = onnx.load(file)
    for prop in model.metadata_props:
        if prop.key == "input_size":
            prop.value = json.dumps(size)
    onnx.save(model, file)


MODELS = {f"{name}.onnx": case for name, case in FILES.items()}
MODELS |= {f"metadata_{name}.onnx": case for name, case in METADATA_CASES.items()}
