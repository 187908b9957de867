from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import BypassError, Dense, adapters, canonical, output_width, plain, walk
from cvpeft.peft.inject import MethodSpec, freeze, inject, make_dense
from cvpeft.peft.state import owned
from cvpeft.types import Site

from .toy import REGISTRY, Block, Gain, model, sites


def test_canonical_paths_skip_what_wrappers_put_in() -> None:
    assert canonical("module._orig_mod.blocks.0.attn.base.qkv.base.weight") == "blocks.0.attn.qkv.weight"


def test_a_read_past_the_method_names_the_site() -> None:
    adapter = Gain(nn.Linear(2, 2), Site("blocks.3.attn.qkv", "attn.qkv", "BNC"))
    with pytest.raises(BypassError, match=r"gain at blocks\.3\.attn\.qkv has no 'weight'"):
        _ = adapter.weight
    assert not hasattr(adapter, "bias")
    assert copy.deepcopy(adapter).site == adapter.site


def test_owner_is_the_nearest_adapter_outside_of_its_base() -> None:
    net = model()
    inject(net, sites(), [MethodSpec("gain"), MethodSpec("shared", ("fc1",))], registry=REGISTRY)
    places = [p for p in walk(net) if p.path.startswith("0.fc1")]
    assert [(p.prefix, p.owner is not None, p.in_base) for p in places] == [
        ("0.fc1.shared", True, False),
        ("0.fc1.gain", True, False),
        ("0.fc1", False, True),
        ("0.fc1.shared.bank", True, False),
    ]
    assert [adapter.method for adapter in adapters(net)["0.fc1"]] == ["gain", "shared"]
    assert isinstance(plain(net[0].fc1), nn.Linear)


def test_output_width_is_that_of_the_last_linear_map() -> None:
    assert output_width(Block()) == 4
    with pytest.raises(AdapterError, match="no linear map"):
        output_width(nn.ReLU())


def test_dense_trains_a_copy_and_its_statistics() -> None:
    net, x = model(), torch.randn(16, 4)
    before = copy.deepcopy(net.state_dict())
    make_dense(net)
    net.train()
    optimizer = torch.optim.SGD(owned_parameters(net), lr=0.1)
    net(x).square().mean().backward()
    optimizer.step()
    bases = {f"{path}.{n}": t for path, (d,) in adapters(net).items() for n, t in d.base.state_dict().items()}
    assert all(torch.equal(t, before[key]) for key, t in bases.items())
    changed = net[0].norm.merged()
    assert not torch.equal(changed.running_mean, before["0.norm.running_mean"])
    assert not torch.equal(changed.weight, before["0.norm.weight"])
    leaf = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert [k for k in owned(net) if k.startswith("0.norm")] == [f"0.norm.dense.trained.{name}" for name in leaf]


def owned_parameters(net: nn.Module) -> list[nn.Parameter]:
    return [t for t in owned(net).values() if isinstance(t, nn.Parameter)]


def test_dense_of_some_tensors_shares_the_others_with_its_base() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    net[0] = Dense(net[0], Site("0", "dense", "BNC"), only=("bias",))
    freeze(net)
    assert list(owned(net)) == ["0.dense.trained.bias"]
    assert net[0].trained.weight is net[0].base.weight
    assert not net[0].base.weight.requires_grad
    assert net[0].trained.bias is not net[0].base.bias
    with pytest.raises(AdapterError, match="gamma"):
        Dense(nn.Linear(3, 3), Site("0", "dense", "BNC"), only=("gamma",))
