from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cvpeft.train.muon import Muon, is_matrix, orthogonal


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 32), True),
        ((16, 16), True),
        ((15, 64), False),  # a predictor, or a factor of a low rank
        ((64, 8), False),
        ((32, 4, 3, 3), True),  # 36 inputs
        ((32, 1, 7, 7), False),  # depthwise
        ((1, 50, 32), False),  # prompts, positions
        ((64,), False),
        ((), False),
    ],
)
def test_a_matrix_maps_many_channels_to_many(shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(torch.zeros(shape)) is expected


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (96, 24)])
def test_orthogonal_keeps_the_directions_and_levels_their_lengths(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    lengths = torch.logspace(-1, 0.5, len(v))
    found = u.T @ orthogonal(u @ torch.diag(lengths) @ v) @ v.T
    assert ((found.diagonal() > 0.6) & (found.diagonal() < 1.3)).all()
    assert (found - torch.diag(found.diagonal())).abs().max() < 0.05  # bf16 has 8 binary digits


def test_no_gradient_in_no_direction_moves_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(20, 30)), torch.zeros(20, 30))


def test_a_step_is_the_formula_s() -> None:
    torch.manual_seed(0)
    weight, gradients = nn.Parameter(torch.randn(20, 80)), [torch.randn(20, 80) for _ in range(3)]
    rate, decay = 0.1, 0.5
    expected, momentum = weight.detach().clone(), torch.zeros(20, 80)
    optimizer = Muon([{"params": [weight], "lr": rate, "weight_decay": decay}])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient)
        momentum = 0.95 * momentum + gradient
        expected = (1 - rate * decay) * expected - 0.2 * rate * 80**0.5 * orthogonal(gradient + 0.95 * momentum)
    assert torch.allclose(weight, expected, atol=1e-5)


def test_a_step_is_as_long_as_one_of_adamw() -> None:
    """Root mean square of about 0.2 times the rate, whatever the shape."""
    torch.manual_seed(0)
    for shape in ((64, 64), (32, 256), (256, 32), (48, 16, 3, 3)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        Muon([{"params": [weight], "lr": 1.0, "weight_decay": 0.0}]).step()
        assert 0.15 < weight.detach().square().mean().sqrt() < 0.25, shape


def test_a_convolution_steps_as_its_matrix_in_any_memory_order() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(16, 8, 3, 3), torch.randn(16, 8, 3, 3)

    def stepped(weight: nn.Parameter, grad: Tensor) -> Tensor:
        weight.grad = grad
        Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.1}]).step()
        return weight.detach().reshape(16, 72)

    as_matrix = stepped(nn.Parameter(start.reshape(16, 72).clone()), gradient.reshape(16, 72))
    last = torch.channels_last
    as_kernel = stepped(nn.Parameter(start.contiguous(memory_format=last)), gradient.contiguous(memory_format=last))
    assert torch.allclose(as_kernel, as_matrix, atol=1e-6)


def test_everything_else_steps_as_in_adamw() -> None:
    def trained(kind: type[torch.optim.Optimizer]) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 15), nn.Linear(15, 2))  # too narrow for a matrix
        optimizer = kind([{"params": [*model.parameters()], "lr": 0.01, "weight_decay": 0.1}])  # type: ignore[call-arg]
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 20)).square().sum().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(trained(torch.optim.AdamW), trained(Muon), strict=True))


def test_what_has_no_gradient_stays() -> None:
    weight = nn.Parameter(torch.ones(20, 20))
    Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]).step()
    assert torch.equal(weight, torch.ones(20, 20))
