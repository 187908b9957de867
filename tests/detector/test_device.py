"""Device and number type: chosen by what the hardware has."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from cvpeft.detector.device import depthwise_in_single, has_fast_bf16, pick_device, pick_precision
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


def test_depthwise_convolutions_that_are_trained_leave_autocast_and_stay_what_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))
    model[1].weight.requires_grad = False
    plain = copy.deepcopy(model)
    depthwise_in_single(model)
    x = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert [layer(x).dtype for layer in model] == [torch.float32, torch.bfloat16, torch.bfloat16]
        model[0](x.bfloat16()).sum().backward()
    plain[0](x.bfloat16().float()).sum().backward()
    assert torch.equal(model[0].weight.grad, plain[0].weight.grad)
    assert model.state_dict().keys() == plain.state_dict().keys()
    again = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(again(x), model(x))
