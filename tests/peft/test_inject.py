from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import adapters, walk
from cvpeft.peft.inject import MethodSpec, freeze, inject, make_dense, methods, probe, signatures
from cvpeft.peft.state import owned
from cvpeft.types import Site

from .toy import REGISTRY, Gain, Shared, model, sites


def attach(net: nn.Module, *specs: MethodSpec, places: list[Site] | None = None) -> list[Site]:
    return inject(net, places or sites(), specs, registry=REGISTRY)


def test_the_folder_is_the_registry_and_signatures_are_resolved() -> None:
    assert {"lora", "adapter", "vpt"} <= set(methods())
    lora = signatures()["lora"].parameters
    assert lora["rank"].annotation == int | None
    assert lora["dropout"].default == 0.0
    assert lora["patterns"].annotation == dict[str, dict[str, Any]]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in lora.values())
    assert not {"base", "site", "first", "last", "pair", "stack", "layer"} & {
        name for s in signatures().values() for name in s.parameters
    }


@pytest.mark.parametrize(
    ("targets", "taken"),
    [
        ((), ["0.fc1", "0.fc2", "1.fc1", "1.fc2"]),
        (("fc1",), ["0.fc1", "1.fc1"]),
        (("1.fc*",), ["1.fc1", "1.fc2"]),
        (("*.fc2", "0.fc1"), ["0.fc1", "0.fc2", "1.fc2"]),
    ],
)
def test_patterns_match_whole_segments_from_the_right(targets: tuple[str, ...], taken: list[str]) -> None:
    net = model()
    assert [site.path for site in attach(net, MethodSpec("gain", targets))] == taken
    assert list(adapters(net)) == taken


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MethodSpec("gian"), "no method 'gian' .did you mean 'gain'"),
        (MethodSpec("gain", settings={"strat": 1.0}), "no setting 'strat' .did you mean 'start'"),
        (MethodSpec("gain", ("fc3",)), "'fc3' matches no module .did you mean 'fc"),
        (MethodSpec("gain", ("c1",)), "'c1' matches no module.*choose among fc1, norm, fc2"),
        (MethodSpec("gain", ("*",)), "gain cannot take 0.norm, a BatchNorm1d; it takes Linear"),
        (MethodSpec("gain", settings={"patterns": {"fc9": {"start": 2.0}}}), "'fc9' matches no module"),
        (MethodSpec("gain", settings={"patterns": {"fc1": {"strat": 2.0}}}), "no setting 'strat'"),
    ],
)
def test_a_refusal_is_one_sentence_and_changes_nothing(spec: MethodSpec, message: str) -> None:
    net = model()
    with pytest.raises(AdapterError, match=message):
        attach(net, MethodSpec("shared"), spec)
    assert adapters(net) == {}


def test_default_roles_need_one_match_only() -> None:
    net = model()
    assert len(attach(net, MethodSpec("gain"), places=[Site("1.fc2", "fc2", "BNC")])) == 1
    with pytest.raises(AdapterError, match="gain stands at fc1, fc2; this model has none of them"):
        attach(model(), MethodSpec("gain"), places=[Site("1.norm", "norm", "BNC")])


def test_the_same_method_twice_at_one_site_is_refused() -> None:
    net = model()
    with pytest.raises(AdapterError, match=r"gain is attached twice at 0\.fc1"):
        attach(net, MethodSpec("gain"), MethodSpec("gain", ("fc1",)))
    attach(net, MethodSpec("gain", ("fc1",)))
    with pytest.raises(AdapterError, match="twice"):
        attach(net, MethodSpec("gain", ("fc1",)))
    attach(net, MethodSpec("shared", ("fc1",)))
    assert [adapter.method for adapter in adapters(net)["1.fc1"]] == ["gain", "shared"]


def test_a_module_at_two_places_is_refused() -> None:
    net = model()
    net[1] = net[0]
    with pytest.raises(AdapterError, match=r"one module at 2 places: 0\.fc1, 1\.fc1"):
        attach(net, MethodSpec("gain", ("0.fc1",)))
    with pytest.raises(AdapterError, match="one module at 2 places"):
        make_dense(net)
    assert adapters(net) == {}


def test_settings_differ_by_pattern_and_the_later_one_wins() -> None:
    net = model()
    patterns = {"fc*": {"start": 2.0}, "1.fc2": {"start": 3.0}}
    attach(net, MethodSpec("gain", settings={"start": 5.0, "patterns": patterns}))
    assert [stack[0].gain[0].item() for stack in adapters(net).values()] == [2.0, 2.0, 2.0, 3.0]


def test_a_shared_module_is_owned_once_under_its_first_path() -> None:
    net = model()
    attach(net, MethodSpec("shared", settings={"start": 0.5}))
    freeze(net)
    assert list(owned(net)) == ["0.fc1.shared.bank.b"]
    assert net[0].fc1.bank is net[1].fc2.bank
    twin = copy.deepcopy(net)
    assert twin[0].fc1.bank is twin[1].fc2.bank


def test_a_method_may_be_a_list_of_others() -> None:
    def both(*, start: float = 4.0) -> list[MethodSpec]:
        return [MethodSpec("gain", ("fc1",), {"start": start}), MethodSpec("shared", ("fc2",))]

    net = model()
    taken = inject(net, sites(), [MethodSpec("both", settings={"start": 6.0})], registry={**REGISTRY, "both": both})
    assert [site.path for site in taken] == ["0.fc1", "1.fc1", "0.fc2", "1.fc2"]
    assert net[1].fc1.gain[0].item() == 6.0
    with pytest.raises(AdapterError, match="both has no setting 'stat'"):
        inject(net, sites(), [MethodSpec("both", settings={"stat": 1})], registry={**REGISTRY, "both": both})


def test_the_probe_names_adapters_that_are_never_called() -> None:
    net = model()
    attach(net, MethodSpec("gain"))
    with pytest.raises(AdapterError, match=r"2 Adapters are never called: gain at 1\.fc1, gain at 1\.fc2"):
        probe(net, lambda: net[0](torch.randn(2, 4)))
    net.train()
    statistics = net[0].norm.running_mean.clone()
    probe(net, lambda: net(torch.randn(2, 4)))
    assert net.training
    assert torch.equal(net[0].norm.running_mean, statistics)


def test_frozen_statistics_do_not_drift_whoever_calls_train() -> None:
    net, x = model(), torch.randn(8, 4)
    attach(net, MethodSpec("gain"))
    whole = nn.Sequential(net, nn.BatchNorm1d(4))
    freeze(net)
    before = net[0].norm.running_mean.clone()
    whole.train()(x)
    assert torch.equal(net[0].norm.running_mean, before)
    assert whole[1].num_batches_tracked == 1
    assert [p.path for p in walk(net) if p.module.training] == ["0.fc1", "0.fc2", "1.fc1", "1.fc2"]
    twin = copy.deepcopy(whole).train()
    assert not twin[0][0].norm.training
    assert twin[1].training


def test_make_dense_refuses_parameters_outside_of_leaves() -> None:
    net = model()
    net.register_parameter("gate", nn.Parameter(torch.zeros(1)))
    with pytest.raises(AdapterError, match="not a leaf"):
        make_dense(net)
    assert adapters(net) == {}


def test_methods_are_classes_of_their_own_file() -> None:
    assert {Gain.method, Shared.method} == {"gain", "shared"}
    assert all(method.method == name for name, method in methods().items() if isinstance(method, type))


def test_targets_of_a_list_of_methods_are_refused() -> None:
    net = model()
    registry = {**REGISTRY, "both": lambda: [MethodSpec("gain")]}
    with pytest.raises(AdapterError, match="both takes no targets") as refusal:
        inject(net, sites(), [MethodSpec("both", ("0.fc1",))], registry=registry)
    assert "\n" not in str(refusal.value)
    assert adapters(net) == {}


def test_patterns_hold_no_patterns() -> None:
    spec = MethodSpec("gain", settings={"patterns": {"fc1": {"patterns": {}}}})
    with pytest.raises(AdapterError, match="gain has no setting 'patterns'"):
        inject(model(), sites(), [spec], registry=REGISTRY)


@pytest.mark.parametrize("name", ["lora", "dora", "loha", "lokr", "vera", "fact", "adalora", "tcurlora", "lora_qkv"])
def test_a_rank_below_one_is_refused_by_every_method(name: str) -> None:
    net = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 12)})})
    path = "attn" if name == "lora_qkv" else "attn.qkv"
    spec = MethodSpec(name, (path,), {"rank": -1})
    with pytest.raises(AdapterError, match="rank -1"):
        inject(net, [Site(path, path, "BNC")], [spec])
