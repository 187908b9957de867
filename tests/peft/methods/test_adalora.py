"""The budget of AdaLoRA against HF peft's, step by step; its penalty; what training remembers."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import by_class
from cvpeft.peft.inject import MethodSpec, freeze, inject
from cvpeft.peft.methods.adalora import AdaLora
from cvpeft.peft.state import owned, remembered
from cvpeft.types import Site

SETTINGS = {"rank": 4, "target": 2, "alpha": 4.0, "warmup": 0.1, "settle": 0.2, "every": 2}
STEPS = 30  # warmup 3, settle 6
PLACES = [Site(name, "mlp.fc1", "BNC") for name in ("one", "two", "three")]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x)))


def pair() -> tuple[list[AdaLora], list[dict[str, Tensor]], peft.AdaLoraModel]:
    """Ours, and the same tensors of theirs by our names."""
    torch.manual_seed(0)
    net, other = Net(), Net()
    inject(net, PLACES, [MethodSpec("adalora", settings=SETTINGS)])
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=4, tinit=3, tfinal=6, deltaT=2, total_step=STEPS,
        target_modules=["one", "two", "three"],
    )  # fmt: skip
    theirs = peft.get_peft_model(other, config).base_model
    layers = [getattr(theirs.model, site.path) for site in PLACES]
    names = {"P": "lora_B", "values": "lora_E", "Q": "lora_A"}
    tensors = [{mine: getattr(layer, name)["default"] for mine, name in names.items()} for layer in layers]
    return by_class(net)[AdaLora], tensors, theirs  # type: ignore[return-value]


def test_the_same_triplets_are_cut_at_the_same_steps() -> None:
    ours, tensors, theirs = pair()
    seen = set()
    for step in range(STEPS):
        for adapter, layer in zip(ours, tensors, strict=True):
            for name, other in layer.items():
                mine = adapter.get_parameter(name)
                mine.data.add_(0.1 * torch.randn_like(mine))  # as if a step were taken; what was cut may come back
                mine.grad = torch.randn_like(mine)
                other.data.copy_(mine.data.view_as(other))
                other.grad = mine.grad.view_as(other)
        AdaLora.after_step(ours, step, STEPS)
        theirs.update_and_allocate(step)
        for adapter, layer in zip(ours, tensors, strict=True):
            assert torch.equal(adapter.values == 0, layer["values"].flatten() == 0), step
        left = sum(int((adapter.values != 0).sum()) for adapter in ours)
        seen.add(left)
        assert left == 12 if step <= 3 else left <= 12
    assert left == 6  # two a place
    assert len(seen) > 3
    assert len({int(adapter.kept.sum()) for adapter in ours}) > 1  # places differ in what they keep


def test_importance_is_the_outsiders() -> None:
    ours, tensors, theirs = pair()
    for _ in range(5):
        for adapter, layer in zip(ours, tensors, strict=True):
            for name, other in layer.items():
                mine = adapter.get_parameter(name)
                mine.data.normal_()
                other.data.copy_(mine.data.view_as(other))
                mine.grad = torch.randn_like(mine)
                other.grad = mine.grad.view_as(other)
            adapter._observe()
        theirs.rankallocator.update_ipt(theirs.model)
    score = theirs.rankallocator._element_score
    for adapter, site in zip(ours, PLACES, strict=True):
        a, b, e = (score(f"{site.path}.lora_{name}.default") for name in "ABE")
        assert torch.allclose(adapter.importance(), e.flatten() + a.mean(1) + b.mean(0), rtol=1e-4)


def test_the_penalty_is_none_for_orthonormal_factors_alone() -> None:
    ours, tensors, _ = pair()
    with torch.no_grad():
        for adapter, layer in zip(ours, tensors, strict=True):
            layer["P"].copy_(adapter.P), layer["Q"].copy_(adapter.Q)
        grams = [g for t in tensors for g in (t["P"].T @ t["P"], t["Q"] @ t["Q"].T)]
        expected = 0.1 * sum(torch.norm(g - torch.eye(4), p="fro") for g in grams) / 6
    found = AdaLora.penalty(ours)
    assert found is not None
    assert torch.allclose(found, expected)
    found.backward()
    assert ours[0].P.grad is not None
    for adapter in ours:
        adapter.P.data, adapter.Q.data = torch.eye(len(adapter.P), 4), torch.eye(4, adapter.Q.shape[1])
    assert AdaLora.penalty(ours) == 0


def test_what_training_remembers_is_no_part_of_the_adapter() -> None:
    net = Net()
    inject(net, PLACES, [MethodSpec("adalora", settings=SETTINGS)])
    freeze(net)
    assert sorted(owned(net)) == sorted(f"{s.path}.adalora.{n}" for s in PLACES for n in ("P", "Q", "values"))
    assert "one.adalora.sensitivity_P" in remembered(net)
    assert len(remembered(net)) == 3 * 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 13}, "target 13 of rank 12"),
        ({"settle": 0.0}, "settle 0"),
        ({"warmup": 0.8}, "warmup 0.8, settle 0.3"),
        ({"rank": 0}, "rank 0"),
    ],
)
def test_settings_that_choose_nothing_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        AdaLora(nn.Linear(4, 4), PLACES[0], **settings)  # type: ignore[arg-type]


def test_places_under_other_settings_follow_them() -> None:
    torch.manual_seed(0)
    net = Net()
    special = {"one": {"orthogonality": 0.0}, "three": {"warmup": 0.5}}
    inject(net, PLACES, [MethodSpec("adalora", settings={**SETTINGS, "patterns": special})])
    one, two, three = ours = by_class(net)[AdaLora]
    strays = [AdaLora.penalty([adapter]) for adapter in ours]
    assert strays[0] == 0
    assert torch.isclose(AdaLora.penalty(ours), sum(strays) / 3)
    for adapter in ours:
        for parameter in (adapter.P, adapter.Q, adapter.values):
            parameter.grad = torch.randn_like(parameter)
    for step in range(15):
        AdaLora.after_step(ours, step, STEPS)
    assert three.kept.all()  # its warm-up lasts 15 steps
    assert not (one.kept.all() and two.kept.all())
