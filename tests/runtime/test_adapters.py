"""Adapter files that somebody has changed, their json with them: refused in one sentence, or read as they stand."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import AdapterFormat, OrtValue

from cvpeft.errors import DataError
from cvpeft.runtime.adapters import read_adapter

SHAPES = {f"blocks.{i}.attn.qkv.lora.A": (8, 16) for i in range(4)}


def test_mutated_adapters_end_in_a_sentence(tmp_path: Path) -> None:
    whole, rng, told = tmp_path / "whole.onnx_adapter", random.Random(0), list[str]()
    content = AdapterFormat()
    content.set_parameters(
        {
            name: OrtValue.ortvalue_from_numpy(np.random.default_rng(0).random(shape, np.float32))
            for name, shape in SHAPES.items()
        }
    )
    content.export_adapter(str(whole))
    for _ in range(300):
        data = bytearray(whole.read_bytes())
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data))]
        for _ in range(rng.choice([1, 2, 8]) if data else 0):
            data[rng.randrange(min(len(data), rng.choice([64, 400, len(data)])))] = rng.randrange(256)
        file = tmp_path / "changed.onnx_adapter"
        file.write_bytes(data)
        base = {"base_sha256": "x", "classes": ["a"]}
        about = {**base, "adapter_sha256": hashlib.sha256(data).hexdigest(), "score_thresholds": {"a": 0.5}}
        file.with_suffix(".json").write_text(json.dumps(about))
        try:
            read_adapter(file, base=base, shapes=SHAPES)
        except DataError as error:
            told.append(str(error))
    assert len(told) > 150
    assert not [text for text in told if "\n" in text or "onnxruntime_src" in text]


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_told(path: str) -> None:
    with pytest.raises(DataError, match=r"E-ADAPTER . - no adapter file is named\."):
        read_adapter(Path(path), base={"classes": ["a"]}, shapes={})
