"""LoRA in one product: the values and gradients of the sum, and only where it may stand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cvpeft.peft.methods import lora as room
from cvpeft.peft.methods.lora import Lora
from cvpeft.peft.one_product import _OneProduct, pays
from cvpeft.types import Site

FC = Site("fc", "mlp.fc1", "BNC")


def made(bias: bool = True, **settings: object) -> Lora:
    torch.manual_seed(0)
    lora = Lora(nn.Linear(6, 10, bias=bias).requires_grad_(False), FC, rank=3, **settings)  # type: ignore[arg-type]
    nn.init.normal_(lora.change.B, std=0.3)
    return lora.train()


def gradients(lora: Lora, x: Tensor) -> list[Tensor]:
    y = lora(x)
    wanted = (x, lora.change.A, lora.change.B)
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), wanted)]


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_sum(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lora, x = made(bias), torch.randn(2, 20, 6, requires_grad=True)
    assert pays(lora.base, x)
    found = gradients(lora, x)
    monkeypatch.setattr(room, "pays", lambda *_: False)
    for one, other in zip(found, gradients(lora, x), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_right_in_double_precision(bias: bool) -> None:
    torch.manual_seed(0)
    x, A, B = (torch.randn(n, dtype=torch.double, requires_grad=True) for n in ((2, 4, 6), (3, 6), (5, 3)))
    W, b = torch.randn(5, 6, dtype=torch.double), torch.randn(5, dtype=torch.double) if bias else None
    call = lambda x, A, B: _OneProduct.apply(x, W, b, A, B, 1.7)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, A, B))
    assert torch.autograd.gradgradcheck(call, (x, A, B))


def test_it_begins_at_the_base_bit_for_bit() -> None:
    lora, x = made(), torch.randn(2, 20, 6)
    nn.init.zeros_(lora.change.B)
    assert pays(lora.base, x)
    assert torch.equal(lora(x), lora.base(x))


@pytest.mark.parametrize("case", ["autocast", "bf16", "few rows", "trained", "dropout", "gated", "pissa"])
def test_elsewhere_the_sum_is_computed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"dropout": {"dropout": 0.1}, "gated": {"gated": True}, "pissa": {"init": "pissa"}}.get(case, {})
    lora, x = made(**settings), torch.randn(2, 20, 6)
    monkeypatch.setattr(room, "one_product", lambda *_: pytest.fail("one product"))
    if case == "bf16":
        lora.base.to(torch.bfloat16)
        x = x.bfloat16()
    elif case == "few rows":
        x = x[:, :2]
    elif case == "trained":
        lora.base.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert lora(x).shape == (*x.shape[:-1], 10)


def test_evaluation_computes_what_training_does_bit_for_bit() -> None:
    lora, x = made(), torch.randn(2, 20, 6)
    trained = lora(x).detach()
    with torch.inference_mode():
        assert torch.equal(lora.eval()(x), trained)


def test_dropout_stands_in_the_way_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lora, x = made(dropout=0.5), torch.randn(2, 20, 6)
    monkeypatch.setattr(room, "one_product", lambda *_: torch.tensor(7.0))
    assert lora(x).ndim == 3
    assert lora.eval()(x) == 7.0


def convolution(**settings: object) -> Lora:
    torch.manual_seed(0)
    base = nn.Conv2d(4, 6, 3, stride=2, padding=1).requires_grad_(False)
    lora = Lora(base, Site("neck", "neck", "BCHW"), rank=2, **settings)  # type: ignore[arg-type]
    nn.init.normal_(lora.change.B, std=0.3)
    return lora.eval()


def test_a_convolution_is_evaluated_with_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    lora, x = convolution(), torch.randn(2, 4, 9, 7)
    with torch.inference_mode():
        found = lora(x)
        assert (found - lora.merged()(x)).abs().max() < 1e-6
    monkeypatch.setattr(room, "one_convolution", lambda *_: pytest.fail("one convolution"))
    assert torch.allclose(lora(x), found, rtol=1e-5, atol=1e-5)  # with gradients: the sum
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(lora(x).float(), found, atol=0.1)


def test_a_traced_graph_holds_the_sum() -> None:
    lora, x = made(), torch.randn(2, 20, 6)
    graph = torch.export.export(copy.deepcopy(lora), (x,)).graph_module
    assert "OneProduct" not in graph.code
    assert graph.code.count("aten.linear.default(") == 3
