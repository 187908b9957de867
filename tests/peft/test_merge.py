from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import adapters
from cvpeft.peft.inject import MethodSpec, freeze, inject, make_dense, methods
from cvpeft.peft.merge import merge, unmergeable

from .toy import REGISTRY, model, sites

ALL = {**REGISTRY, "lora": methods()["lora"]}


def adapted(*specs: MethodSpec) -> nn.Sequential:
    net = model()
    inject(net, sites(), specs, registry=ALL)
    freeze(net)
    for stack in adapters(net).values():
        for parameter in (p for a in stack for p in a.parameters() if p.requires_grad):
            nn.init.normal_(parameter)
    return net


def test_a_refused_merge_names_the_sites_and_loses_nothing() -> None:
    net = adapted(MethodSpec("lora", ("fc1",)), MethodSpec("gain", ("fc2",)))
    before = copy.deepcopy(net.state_dict())
    assert unmergeable(net) == ["gain at 0.fc2", "gain at 1.fc2"]
    with pytest.raises(AdapterError, match=r"gain at 0\.fc2, gain at 1\.fc2"):
        merge(net)
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


def test_partly_folds_what_lies_inside_of_what_stays() -> None:
    net, x = adapted(MethodSpec("lora", ("fc1",)), MethodSpec("gain", ("fc1",))), torch.randn(5, 4)
    assert unmergeable(net) == ["gain at 0.fc1", "gain at 1.fc1"]
    partly = merge(net, partly=True)
    assert [a.method for stack in adapters(partly).values() for a in stack] == ["gain", "gain"]
    assert torch.allclose(partly(x), net(x), atol=1e-5)


def test_what_lies_outside_of_what_stays_is_not_folded() -> None:
    net = adapted(MethodSpec("gain", ("fc1",)), MethodSpec("lora", ("fc1",)))
    assert len(unmergeable(net)) == 4
    assert len(adapters(merge(net, partly=True))["0.fc1"]) == 2


def test_a_dense_folds_into_its_trained_copy() -> None:
    net, x = model(), torch.randn(5, 4)
    keys = list(net.state_dict())
    make_dense(net)
    nn.init.normal_(net[1].fc2.trained.weight)
    merged = merge(net)
    assert list(merged.state_dict()) == keys
    assert torch.equal(merged(x), net(x))


def test_a_bfloat16_base_is_merged_before_it_is_rounded() -> None:
    net = adapted(MethodSpec("lora", ("fc1",)))
    base = net[0].fc1.base
    base.weight.data = base.weight.data.bfloat16()
    change = net[0].fc1.scale * net[0].fc1.change.weight()
    expected = (base.weight.double() + change).bfloat16()
    assert torch.equal(merge(net)[0].fc1.weight, expected)
