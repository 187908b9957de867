"""Device and number type: chosen by what the hardware has."""

from __future__ import annotations

import logging

import pytest
import torch

from cvpeft.detector.device import has_fast_bf16, pick_device, pick_precision
from cvpeft.errors import ConfigError

CPU = torch.device("cpu")


def cpu_with(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(features, True)})


def test_the_gpu_is_taken_where_there_is_one() -> None:
    assert pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"finds no GPU.*train.device=auto"):
            pick_device("cuda")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_takes_bf16_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    cpu_with(monkeypatch, feature)
    assert pick_precision("auto", CPU) == "bf16"
    assert pick_precision("fp32", CPU) == "fp32"


def test_a_plain_processor_trains_in_float32(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu_with(monkeypatch, "avx512_f", "avx512_vnni")  # wide registers alone do not multiply bf16
    with caplog.at_level(logging.WARNING):
        assert pick_precision("auto", CPU) == "fp32"
        assert not caplog.records
        assert pick_precision("bf16", CPU) == "bf16"
    assert "computes bf16 in software, many times slower: set train.precision=auto" in caplog.text


def test_this_machine_answers() -> None:
    assert isinstance(has_fast_bf16(CPU), bool)
