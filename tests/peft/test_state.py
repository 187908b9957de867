from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cvpeft.errors import CheckpointError, ResourceError
from cvpeft.peft.inject import MethodSpec, freeze, inject, make_dense
from cvpeft.peft.state import disabled, fingerprint, load_owned, owned, save_owned

from .toy import REGISTRY, model, sites


def adapted(*methods: str, seed: int = 0) -> nn.Sequential:
    net = model(seed)
    inject(net, sites(), [MethodSpec(name) for name in methods], registry=REGISTRY)
    freeze(net)
    return net


class Wrapped(nn.Module):
    """Named as torch.compile and DistributedDataParallel name their child."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = net


def test_keys_are_the_same_behind_wrappers() -> None:
    net = adapted("gain", "shared")
    assert list(owned(net)) == list(owned(Wrapped(net)))
    assert list(owned(net))[:2] == ["0.fc1.gain.gain", "0.fc1.shared.bank.b"]


def test_mode_full_owns_what_wants_a_gradient_and_the_buffers_beside_it() -> None:
    net = model()
    net[0].requires_grad_(False)
    make_dense(net[0])
    keys = owned(net)
    assert "1.norm.running_mean" in keys
    assert "1.fc1.weight" in keys
    assert "0.fc1.dense.trained.weight" in keys
    assert not any(key.startswith("0.") and "dense" not in key for key in keys)


def test_the_fingerprint_knows_the_base_and_nothing_else() -> None:
    reference = fingerprint(model().requires_grad_(False))
    assert fingerprint(adapted("gain", "shared")) == reference
    assert fingerprint(adapted("gain", seed=1)) != reference
    net = adapted("gain")
    net[0].norm.running_mean[0] += 1e-3
    assert fingerprint(net) != reference
    one, other = model(), model()
    nn.init.ones_(other[0].fc1.weight)
    for net in (one, other):
        make_dense(net[0])  # a head that is trained anyway
        freeze(net)
    assert fingerprint(one) == fingerprint(other)


def test_the_round_trip_keeps_metadata_and_bits(tmp_path: Path) -> None:
    net, file = adapted("gain"), tmp_path / "a.safetensors"
    for tensor in owned(net).values():
        nn.init.normal_(tensor)
    save_owned(file, net, {"classes": "good, broke"})
    save_owned(file, net, {"classes": "good, broke"})  # takes the old file's place
    fresh = adapted("gain")
    assert load_owned(file, fresh) == {"classes": "good, broke"}
    assert all(torch.equal(t, owned(net)[key]) for key, t in owned(fresh).items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_foreign_keys_and_shapes_are_named_and_nothing_is_copied(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_owned(file, adapted("gain"))
    net = adapted("gain", "shared")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=r"missing 0\.fc1\.shared\.bank\.b"):
        load_owned(file, net)
    with pytest.raises(
        CheckpointError, match=r"missing 0\.fc1\.shared\.bank\.b; not in the model 0\.fc1\.gain\.gain; "
    ):
        load_owned(file, adapted("shared"))
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())
    other = adapted("gain")
    other[0].fc1.gain = nn.Parameter(torch.ones(5))
    with pytest.raises(CheckpointError, match=r"0\.fc1\.gain\.gain is \(6,\) float32, the model has \(5,\) float32"):
        load_owned(file, other)


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    file, net = tmp_path / "a.safetensors", adapted("gain")
    save_owned(file, net, {"note": "x"})
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]):
            file.write_bytes(content)
            with pytest.raises(CheckpointError):
                load_owned(file, net)
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        load_owned(tmp_path / "gone.safetensors", net)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="checksum"):
        load_owned(foreign, net)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, net = tmp_path / "a.safetensors", adapted("gain")
    save_owned(file, net, {"n": "1"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        save_owned(file, net, {"n": "2"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    with safe_open(file, framework="pt") as stored:
        assert stored.metadata()["n"] == "1"


def test_disabled_takes_stacks_apart_and_restores_them_after_an_error() -> None:
    net, x = adapted("gain", "shared"), torch.randn(3, 4)
    nn.init.constant_(net[0].fc1.bank["b"], 0.7)
    for stack in (net[0].fc1, net[1].fc2):
        nn.init.constant_(stack.base.gain, 1.3)
    full = net(x)

    def fail() -> None:
        with disabled(net):
            assert torch.equal(net(x), model()(x))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(net(x), full)
    with disabled(net, only=lambda a: a.method == "gain"):
        without_inner = net(x)
    with disabled(net, only=lambda a: a.method == "shared"):
        without_outer = net(x)
    assert torch.equal(net(x), full)
    assert len({tuple(t.flatten().tolist()) for t in (full, without_inner, without_outer, model()(x))}) == 4
