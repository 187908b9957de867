from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cvpeft.config import schema
from cvpeft.detector.adapt import adapt, parts
from cvpeft.detector.build import build_detector
from cvpeft.peft.state import lr_factors, owned, undecayed
from cvpeft.train.optim import EMA, param_groups, warmup_cosine
from tests.helpers import settings

LR = {"adapter": 2e-3, "backbone": 1e-4, "neck": 3e-3, "head": 4e-3}


def test_each_part_has_its_rate_and_vectors_are_not_decayed() -> None:
    tensors = {
        "adapter.down": nn.Parameter(torch.zeros(2, 3)),
        "adapter.scale": nn.Parameter(torch.zeros(3)),
        "neck.conv": nn.Parameter(torch.zeros(2, 2, 1, 1)),
        "neck.bias": nn.Parameter(torch.zeros(2)),
        "head.fc": nn.Parameter(torch.zeros(2, 2)),
    }
    groups = param_groups(tensors, lambda key: key.partition(".")[0], LR, 0.05)
    found = {(g["part"], g["weight_decay"]): (g["lr"], g["full_lr"], [p.ndim for p in g["params"]]) for g in groups}
    assert found == {
        ("adapter", 0.05): (2e-3, 2e-3, [2]),
        ("adapter", 0.0): (2e-3, 2e-3, [1]),
        ("neck", 0.05): (3e-3, 3e-3, [4]),
        ("neck", 0.0): (3e-3, 3e-3, [1]),
        ("head", 0.05): (4e-3, 4e-3, [2]),
    }


def test_mode_full_gives_the_backbone_its_own_rate() -> None:
    tensors = {"w": nn.Parameter(torch.zeros(2, 2))}
    (group,) = param_groups(tensors, {"w": "backbone"}.__getitem__, LR, 0.0)
    assert (group["part"], group["lr"]) == ("backbone", 1e-4)


def test_lora_plus_multiplies_the_rate_of_b_alone(tmp_path) -> None:
    peft = {"methods": (schema.Method(name="lora", settings={"rank": 2, "b_lr_ratio": 16.0}),)}
    s = settings(tmp_path, peft=peft)
    model = build_detector(s, ("a",))
    adapt(model, s.peft)
    factors = lr_factors(model)
    assert {key.rpartition(".")[2] for key in factors} == {"B"}
    parameters = {key: p for key, p in owned(model).items() if isinstance(p, nn.Parameter)}
    groups = param_groups(parameters, parts(model, "adapters").__getitem__, LR, 0.05, frozenset(), factors)
    name = {id(p): key for key, p in parameters.items()}
    for group in groups:
        for p in group["params"]:
            expected = LR[group["part"]] * (16 if name[id(p)] in factors else 1)
            assert group["lr"] == group["full_lr"] == expected, name[id(p)]
    assert sum(group["factor"] == 16 for group in groups) == 1


def test_prompts_are_not_decayed(tmp_path) -> None:
    peft = {"methods": (schema.Method(name="vpt"), schema.Method(name="lora", settings={"rank": 2}))}
    s = settings(tmp_path, backbone={"name": "vit_tiny_patch16_224"}, peft=peft)
    model = build_detector(s, ("a",))
    adapt(model, s.peft)
    left = undecayed(model)
    assert len(left) == 12
    assert left < owned(model).keys()
    assert all(key.endswith(".vpt.prompts") for key in left)
    parameters = {key: p for key, p in owned(model).items() if isinstance(p, nn.Parameter)}
    groups = param_groups(parameters, parts(model, "adapters").__getitem__, LR, 0.05, left)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    names = {key for key, p in parameters.items() if id(p) in decayed}
    assert not names & left
    assert any(".lora." in key for key in names)
    assert all(parameters[key].ndim > 1 for key in names)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("vit_tiny_patch16_224", {"cls_token", "pos_embed"}),
        ("swin_tiny_patch4_window7_224", {"relative_position_bias_table"}),
        ("convnext_atto", set()),
    ],
)
def test_full_fine_tuning_does_not_decay_tokens_and_positions(name: str, kept: set[str], tmp_path) -> None:
    s = settings(tmp_path, backbone={"name": name}, peft={"mode": "full", "methods": ()})
    model = build_detector(s, ("a",))
    adapt(model, s.peft)
    left = undecayed(model)
    assert {key.rpartition(".")[2] for key in left} == kept
    assert left <= owned(model).keys()


def test_the_rate_rises_and_falls_as_a_cosine() -> None:
    factor = warmup_cosine(total=110, warmup=10 / 110)
    assert [factor(i) for i in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(0.5)
    assert factor(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < factor(109) < 0.001


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_every_step_of_every_schedule_moves_the_weights(warmup: float) -> None:
    for total in (1, 2, 7):
        values = [warmup_cosine(total, warmup)(i) for i in range(total)]
        assert all(0 < v <= 1 for v in values)


def test_the_average_by_hand() -> None:
    weight, counter = torch.tensor([1.0]), torch.tensor(3)
    ema = EMA({"w": weight, "n": counter}, decay=0.5)
    expected = 1.0
    for step in range(1, 13):
        weight.fill_(float(step))
        counter.add_(1)
        ema.update({"w": weight, "n": counter})
        decay = min(0.5, step / (10 + step))  # it reaches 0.5 at step 10
        expected = decay * expected + (1 - decay) * step
        assert ema.average["w"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.average["n"].item() == 15
    assert ema.steps == 12


def test_without_decay_the_average_is_the_weights_themselves() -> None:
    weight = torch.rand(5)
    ema = EMA({"w": weight}, decay=0.0)
    weight.mul_(1.7)
    ema.update({"w": weight})
    assert torch.equal(ema.average["w"], weight)


def test_the_weights_come_back_whatever_happens_while_the_average_is_in() -> None:
    weight = nn.Parameter(torch.ones(2))
    ema = EMA({"w": weight}, decay=0.9)
    with torch.no_grad():
        weight.fill_(5.0)

    def stop_inside() -> None:
        with ema.swapped_in({"w": weight}):
            assert weight.tolist() == [1.0, 1.0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_inside()
    assert weight.tolist() == [5.0, 5.0]
