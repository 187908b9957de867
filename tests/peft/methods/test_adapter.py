from __future__ import annotations

import pytest
import torch
from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.peft.methods.adapter import Bottleneck
from cvpeft.types import Layout, Site


def mlp(layout: Layout = "BNC") -> nn.Module:
    if layout == "NCHW":
        return nn.Sequential(nn.Conv2d(4, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1))
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def drawn(base: nn.Module, layout: Layout = "BNC", **settings: object) -> Bottleneck:
    torch.manual_seed(0)
    adapter = Bottleneck(base, Site("blocks.0.mlp", "mlp", layout), width=3, **settings)  # type: ignore[arg-type]
    for tensor in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
        nn.init.normal_(tensor)
    return adapter


def test_sequential_is_the_formula() -> None:
    base, x = mlp(), torch.randn(2, 5, 4)
    a, h = drawn(base, activation="gelu"), base(x)
    narrow = nn.functional.gelu(h @ a.down.weight.T + a.down.bias)
    assert torch.allclose(a(x), h + narrow @ a.up.weight.T + a.up.bias, atol=1e-6)


def test_parallel_is_the_formula_of_adaptformer() -> None:
    base, x = mlp(), torch.randn(2, 5, 4)
    a = drawn(base, place="parallel")
    narrow = (x @ a.down.weight.T + a.down.bias).relu()
    assert torch.allclose(a(x), base(x) + 0.1 * (narrow @ a.up.weight.T + a.up.bias), atol=1e-6)
    assert drawn(base, place="parallel", scale=0.5).scale == 0.5


def test_channels_first_is_the_same_function() -> None:
    first, last = mlp("NCHW"), mlp()
    for i in (0, 2):
        last[i].weight.data, last[i].bias.data = first[i].weight.data.flatten(1), first[i].bias.data
    a, b = drawn(first, "NCHW"), drawn(last, "NHWC")
    b.load_state_dict({key: t.view_as(b.state_dict()[key]) for key, t in a.state_dict().items()})
    x = torch.randn(2, 4, 3, 5)
    assert torch.allclose(a(x), b(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-6)


def test_the_place_chooses_the_roles() -> None:
    assert Bottleneck.roles({}) == ("mlp",)
    assert Bottleneck.roles({"place": "parallel"}) == ("mlp",)
    assert Bottleneck.roles({"place": "houlsby"}) == ("attn", "mlp")


def test_keyword_arguments_pass_through() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, rope: torch.Tensor | None = None) -> torch.Tensor:
            return self.proj(x if rope is None else x * rope)

    base, x = Attention(), torch.randn(2, 5, 4)
    fresh = Bottleneck(base, Site("blocks.0.attn", "attn", "BNC"))
    assert torch.equal(fresh(x, rope=torch.tensor(3.0)), base(3 * x))


@pytest.mark.parametrize(
    ("role", "settings", "message"),
    [
        ("mlp.fc1", {}, "whose role is mlp.fc1"),
        ("mlp", {"width": 0}, "width 0"),
        ("mlp", {"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_what_an_adapter_cannot_take(role: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        Bottleneck(mlp(), Site("x", role, "BNC"), **settings)  # type: ignore[arg-type]
