"""Hostile adapter folders: lying headers, disguised pickles, descriptions of the wrong kind; one clear error each."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from cvpeft.detector.saved import load_adapter, read_config
from cvpeft.errors import CheckpointError
from cvpeft.peft.state import fingerprint, owned, save_owned
from tests.peft.toy import model as toy

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CLASSES = ("good", "broke")


def adapter(folder: Path) -> nn.Module:
    """A folder that is all right, and the model that it is of."""
    model = toy()
    save_owned(folder / WEIGHTS, model, {"format": "cvpeft-adapter"})
    (folder / CONFIG).write_text(json.dumps(described(model)))
    return model


def described(model: nn.Module, **changes: Any) -> dict[str, Any]:
    base = {"name": "toy", "weights": "none", "sha256": fingerprint(model)}
    meta = {"classes": list(CLASSES), "base": base, "mode": "full", "preprocessing": {}, "thresholds": {"good": 0.5}}
    return {key: value for key, value in {**meta, **changes}.items() if value is not ...}


def refused(folder: Path, model: nn.Module) -> str:
    """What is told; the model is as it was before."""
    before = {key: tensor.clone() for key, tensor in owned(model).items()}
    with pytest.raises(CheckpointError) as told:
        load_adapter(folder, model, CLASSES)
    assert all((tensor == before[key]).all() for key, tensor in owned(model).items())
    assert "\n" not in str(told.value)
    return str(told.value)


def test_the_folder_itself_is_all_right(tmp_path: Path) -> None:
    load_adapter(tmp_path, adapter(tmp_path), CLASSES)


# Tensors


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"0.fc1.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


TENSORS: dict[str, bytes | Callable[[bytes], bytes]] = {
    "empty": b"",
    "short": b"\x01\x02",
    "text": b"no tensors here, only words\n" * 10,
    "random": np.random.default_rng(0).bytes(10_000),
    "pickle": pickle.dumps({"0.fc1.weight": list(range(100))}),
    "torch_zip": b"PK\x03\x04" + bytes(1000),
    "header_2_to_64": header({}, length=2**64 - 1),
    "header_8_gb": header({}, length=8 * 2**30),
    "header_100_mb": header({}, bytes(1000), length=100 * 2**20),
    "header_no_json": header(b"{half"),
    "header_list": header([1, 2]),
    "header_deep": header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "header_not_utf8": header(b'{"\xff": 1}'),
    "header_zeros": header(bytes(100)),
    "twice": header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "offsets_beyond": header(one(offsets=(0, 2**40)), bytes(8)),
    "offsets_turned": header(one(offsets=(8, 0)), bytes(8)),
    "offsets_negative": header(one(offsets=(-8, 0)), bytes(8)),
    "offsets_text": header(one(offsets="0-8"), bytes(8)),
    "offsets_overlap": header({**one(), "1.fc1.weight": one()["0.fc1.weight"]}, bytes(8)),
    "offsets_gap": header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [4, 5]}}, bytes(5)),
    "shape_huge": header(one(shape=(2**40, 2**40)), bytes(8)),
    "shape_wraps": header(one(shape=(2**32, 2**32, 2)), bytes(8)),
    "shape_negative": header(one(shape=(-2,)), bytes(8)),
    "shape_text": header(one(shape="two"), bytes(8)),
    "dtype_unknown": header(one("X99"), bytes(8)),
    "dtype_f4": header(one("F4", (16,)), bytes(8)),
    "dtype_f8": header(one("F8_E4M3", (8,)), bytes(8)),
    "dtype_complex": header(one("C64", (1,)), bytes(8)),
    "metadata_number": header({"__metadata__": {"sha256": 5}, **one()}, bytes(8)),
    "metadata_list": header({"__metadata__": [1], **one()}, bytes(8)),
    "no_checksum": header(one(), bytes(8)),
    "tail": lambda data: data + bytes(100),
    "cut": lambda data: data[:-10],
    "flipped": flipped,
    "name_changed": lambda data: data.replace(b"0.fc1.weight", b"0.fcX.weight"),
    "name_traversal": lambda data: data.replace(b"0.fc1.weight", b"../../weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    model, change = adapter(tmp_path), TENSORS[name]
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(change if isinstance(change, bytes) else change(whole))
    told = refused(tmp_path, model)
    assert told.startswith("E-FILE")
    assert WEIGHTS in told


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.symlink_to("/dev/zero"), lambda file: None])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    model = adapter(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    make(tmp_path / WEIGHTS)
    assert refused(tmp_path, model).startswith("E-FILE")
    (tmp_path / CONFIG).unlink()
    make(tmp_path / CONFIG)
    assert refused(tmp_path, model).startswith("E-ADAPTER")


# The description


RAW = {
    "empty": b"",
    "half": b'{"classes": ["good"',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "list": b"[1, 2]",
    "number": b"5",
    "text": b'"classes base mode preprocessing"',
    "null": b"null",
    "digits": b'{"classes": ' + b"9" * 10_000 + b"}",
    "pickle": pickle.dumps({"classes": []}),
}
NAMES = {"name": "toy", "weights": "none", "sha256": "00"}
WRONG: dict[str, dict[str, Any]] = {
    **{f"no_{key}": {key: ...} for key in ("classes", "base", "mode", "preprocessing")},
    "classes_number": {"classes": 5},
    "classes_text": {"classes": "good"},
    "classes_null": {"classes": None},
    "classes_mixed": {"classes": ["good", 5]},
    "classes_empty": {"classes": []},
    "classes_nested": {"classes": [["good"]]},
    "base_text": {"base": "name weights sha256"},
    "base_list": {"base": ["name", "weights", "sha256"]},
    "base_null": {"base": None},
    "base_short": {"base": {"name": "toy"}},
    "sha_number": {"base": {**NAMES, "sha256": 5}},
    "sha_null": {"base": {**NAMES, "sha256": None}},
    "weights_list": {"base": {**NAMES, "weights": ["../../etc/passwd"]}},
    "mode_list": {"mode": []},
    "preprocessing_text": {"preprocessing": "letterbox"},
    "thresholds_list": {"thresholds": [0.5]},
    "thresholds_text": {"thresholds": {"good": "high"}},
    "thresholds_nan": {"thresholds": {"good": float("nan")}},
    "thresholds_beyond": {"thresholds": {"good": 1e9}},
}


@pytest.mark.parametrize("name", RAW)
def test_a_description_that_is_no_json_is_refused(tmp_path: Path, name: str) -> None:
    model = adapter(tmp_path)
    (tmp_path / CONFIG).write_bytes(RAW[name])
    assert "E-ADAPTER" in refused(tmp_path, model)


@pytest.mark.parametrize("name", WRONG)
def test_a_description_of_the_wrong_kind_is_refused(tmp_path: Path, name: str) -> None:
    model = adapter(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(described(model, **WRONG[name])))
    told = refused(tmp_path, model)
    assert told.startswith("E-ADAPTER")
    assert CONFIG in told
    with pytest.raises(CheckpointError):
        read_config(tmp_path)


def test_a_base_named_by_a_path_is_only_told(tmp_path: Path) -> None:
    """Names in the description lead to no file."""
    model = adapter(tmp_path)
    base = {"name": "../../../etc/passwd", "weights": "/etc/passwd", "sha256": "0" * 64}
    (tmp_path / CONFIG).write_text(json.dumps(described(model, base=base)))
    assert refused(tmp_path, model).startswith("E-BASE")
