"""Methods of which no other library is at hand, against their formulas written out once more."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import GroupNormAct, StdConv2dSame
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import adapters
from cvpeft.peft.inject import MethodSpec, inject, methods, probe
from cvpeft.peft.merge import merge
from cvpeft.peft.state import owned
from cvpeft.types import Site
from tests.contracts.cases import base, sites

LINEARS = [nn.Linear(6, 9) for _ in range(5)]
PLACES = [(m, Site(f"blocks.{i}.fc", "mlp.fc1", "BNC")) for i, m in enumerate(LINEARS)]


def built(name: str, places: list[tuple[nn.Module, Site]], **settings: object) -> list:
    torch.manual_seed(0)
    return methods()[name].build(copy.deepcopy(places), **settings)  # type: ignore[union-attr]


@pytest.mark.parametrize("layers", [1, 2, 4, 5])
def test_tcurlora_is_the_inverse_transform_of_c_u_r(layers: int) -> None:
    found = built("tcurlora", PLACES[:layers], rank=3)
    stack = found[0].stack
    nn.init.normal_(stack.core)
    slices = torch.fft.rfft(torch.stack([m.weight for m in LINEARS[:layers]]), dim=0)
    kept = torch.view_as_complex(stack.left)  # (F, O, R): columns of the slices themselves
    assert all(any(torch.allclose(kept[..., i], slices[..., j]) for j in range(6)) for i in range(3))
    core, right = torch.view_as_complex(stack.core), torch.view_as_complex(stack.right)
    expected = torch.fft.irfft(kept @ core @ right, n=layers, dim=0)
    for adapter, change in zip(found, expected, strict=True):
        assert torch.allclose(adapter.change(), change, atol=1e-5)
    assert len({id(adapter.stack) for adapter in found}) == 1


def test_tcurlora_keeps_the_rows_and_columns_that_are_longest_over_all_frequencies() -> None:
    """Those of negative frequency count too, though no core stands there: twice each but the first and the middle."""
    torch.manual_seed(3)
    for layers in (PLACES, [(nn.Linear(40, 30), site) for _, site in PLACES]):
        stack = built("tcurlora", layers, rank=3)[0].stack
        slices = torch.fft.fft(torch.stack([m.weight for m, _ in layers]), dim=0)  # (L, O, I)
        squares = slices.abs().square()
        columns, rows = (squares.sum((0, axis)).topk(3).indices.sort().values for axis in (1, 2))
        half = slices[: len(stack.left)]
        assert torch.allclose(torch.view_as_complex(stack.left), half[:, :, columns], atol=1e-6)
        assert torch.allclose(torch.view_as_complex(stack.right), half[:, rows], atol=1e-6)


def test_weights_of_one_shape_and_role_share_a_core() -> None:
    net = base("deit")
    inject(net, sites(net), [MethodSpec("tcurlora", settings={"rank": 2})])
    stacks = {a.stack for stack in adapters(net).values() for a in stack}  # type: ignore[attr-defined]
    assert len(stacks) == 4  # qkv, proj, fc1, fc2, each of two blocks
    assert {stack.core.shape[0] for stack in stacks} == {2}


def test_fact_cuts_weights_into_blocks_of_one_width() -> None:
    tall, wide = nn.Linear(4, 12), nn.Linear(8, 4)
    found = built("fact", [(tall, PLACES[0][1]), (wide, PLACES[1][1])], rank=3, scale=0.5)
    pair = found[0].pair
    assert found[1].pair is pair
    nn.init.normal_(pair.V)
    for adapter, (rows, columns) in zip(found, ((3, 1), (1, 2)), strict=True):
        change = adapter.change()
        for r in range(rows):
            for c in range(columns):
                block = change[4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
                assert torch.allclose(block, 0.5 * pair.U @ adapter.core[r, c] @ pair.V, atol=1e-6)
    with pytest.raises(AdapterError, match="cannot be cut into squares"):
        built("fact", [(nn.Linear(4, 6), PLACES[0][1])])


def test_repadapter_works_in_groups_and_before_the_module() -> None:
    (found,) = built("repadapter", PLACES[:1], width=4, scale=0.5)
    for parameter in (found.A, found.B, found.a, found.b):
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 6)
    low = (x @ found.A.T + found.a).chunk(2, -1)
    change = torch.cat([part @ B.T for part, B in zip(low, found.B, strict=True)], -1) + found.b
    assert torch.allclose(found(x), found.base(x + 0.5 * change), atol=1e-5)
    with pytest.raises(AdapterError, match="a convolution of"):
        built("repadapter", [(nn.Conv2d(6, 6, 3), Site("c", "downsample", "NCHW"))])


def test_prefixes_have_a_softmax_of_their_own() -> None:
    net = base("deit")
    inject(net, sites(net), [MethodSpec("prefix", settings={"tokens": 3})])
    adapter = net.blocks[0].attn
    with torch.no_grad():
        adapter.gate.fill_(0.7)
        x = torch.randn(2, 17, 32)
        attention = adapter.base
        q = attention.qkv(x)[..., :32].unflatten(-1, (2, 16)).transpose(1, 2)
        keys, values = (t.expand(2, -1, -1, -1) for t in (adapter.keys, adapter.values))
        seen = torch.tensor(0.7).tanh() * F.scaled_dot_product_attention(q, keys, values)
        expected = attention(x) + F.linear(seen.transpose(1, 2).flatten(2), attention.proj.weight)
        assert torch.allclose(adapter(x), expected, atol=1e-5)


def test_fact_leaves_out_by_default_what_is_cut_into_no_squares() -> None:
    net = nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 8), nn.Linear(8, 4))
    places = [Site(str(i), "mlp.fc1", "BNC") for i in range(3)]
    with pytest.raises(AdapterError, match="fact cannot take 1, a 8 x 12 weight"):
        inject(net, places, [MethodSpec("fact", ("mlp.fc1",))])
    assert [site.path for site in inject(net, places, [MethodSpec("fact")])] == ["0", "2"]


@pytest.mark.parametrize("specs", [("lora_qkv", "prefix"), ("prefix", "lora_qkv"), ("lora_qkv", "adapter", "prefix")])
def test_prefixes_beside_lora_qkv_are_refused(specs: tuple[str, ...]) -> None:
    """Their queries would be those of the base, before merging and not after it."""
    net = base("deit")
    targets = {"adapter": ("attn",)}
    with pytest.raises(AdapterError, match=r"(with lora_qkv|upon prefix) at blocks\.0\.attn\. .*use lora at attn\.qkv"):
        inject(net, sites(net), [MethodSpec(name, targets.get(name, ())) for name in specs])
    assert not adapters(net)


def test_partial_takes_the_last_blocks_and_what_follows() -> None:
    for family, first, after in (("deit", "blocks.1.", "norm"), ("convnext", "stages.3.blocks.0.", "")):
        net = base(family)
        taken = inject(net, sites(net), [MethodSpec("partial")])
        assert all(site.path.startswith(first) or site.path == after for site in taken)
        assert {site.role for site in taken} >= {"mlp.fc1", "mlp.fc2"}
    with pytest.raises(AdapterError, match="the last 3 of 2 blocks"):
        inject(base("deit"), sites(base("deit")), [MethodSpec("partial", settings={"blocks": 3})])


def test_partial_counts_no_blocks_of_a_neck() -> None:
    """FPN's are called inner_blocks and layer_blocks; a head may hold some of any name."""
    net = nn.ModuleDict({"body": base("deit"), "neck": FeaturePyramidNetwork([8, 8], 8), "head": base("deit")})
    inside = [replace(site, path=f"body.{site.path}") for site in sites(net["body"])]
    outside = [
        Site(path, path.partition(".")[0], "NCHW")
        for path, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not path.startswith("body")
    ]
    taken = inject(net, [*inside, *outside], [MethodSpec("partial")])
    assert taken
    assert all(site.path.startswith("body.blocks.1.") or site.path == "body.norm" for site in taken)


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        (MethodSpec("partial", ("mlp.fc1",), {"blocks": 1}), "targets"),
        (MethodSpec("partial", settings={"blocks": 1, "patterns": {"mlp.fc1": {"blocks": 2}}}), "patterns"),
    ],
)
def test_blocks_beside_named_places_are_refused(spec: MethodSpec, place: str) -> None:
    net = base("deit")
    with pytest.raises(AdapterError, match=rf"E-SETTING partial has {place} and 'blocks'\. .*leave out {place}"):
        inject(net, sites(net), [spec])


def test_bitfit_leaves_out_what_has_no_bias() -> None:
    net = base("dinov3")
    taken = {site.path for site in inject(net, sites(net), [MethodSpec("bitfit")])}
    assert "blocks.0.attn.qkv" not in taken
    assert {"blocks.0.attn.proj", "blocks.0.norm1", "blocks.1.mlp.fc2", "patch_embed.proj"} <= taken
    with pytest.raises(AdapterError, match="has no bias"):
        inject(base("dinov3"), sites(base("dinov3")), [MethodSpec("bitfit", ("attn.qkv",))])


def test_unipelt_is_three_methods_of_which_lora_and_adapter_are_gated() -> None:
    net = base("deit")
    inject(net, sites(net), [MethodSpec("unipelt", settings={"rank": 3})])
    found = {a.method: a for stack in adapters(net).values() for a in stack}
    assert set(found) == {"lora", "prefix", "adapter"}
    assert all(found[name].gate.sigmoid() == 0.5 for name in ("lora", "adapter"))  # type: ignore[union-attr]
    assert found["lora"].change.B.shape == (2, 32, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["bitfit", "norm"], "norm at .* stands upon bitfit"),
        (["lora", "dora"], "dora at .* stands upon lora"),
    ],
)
def test_what_copies_or_multiplies_must_come_first(specs: list[str], message: str) -> None:
    net = base("deit")
    with pytest.raises(AdapterError, match=message):
        inject(net, sites(net), [MethodSpec(name) for name in specs])
    assert adapters(net) == {}


@pytest.mark.parametrize("specs", [["lora", "lora_qkv"], ["lora_qkv", "lora"]])
def test_two_methods_at_one_weight_are_told_by_the_probe(specs: list[str]) -> None:
    """In weight space the module is not called: what stands at it would be passed by, or hide the weight."""
    net = base("deit")
    inject(net, sites(net), [MethodSpec(name) for name in specs])
    with pytest.raises(AdapterError, match=r"lora_qkv at blocks\.0\.attn .* lora stands"):
        probe(net, lambda: net(torch.zeros(1, 3, 64, 64)))


@pytest.mark.parametrize("name", ["lora", "dora", "loha", "lokr", "lora_qkv"])
@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"alpha": -2.0}])
def test_a_change_that_would_be_none_is_refused(name: str, settings: dict[str, float]) -> None:
    net = base("deit")
    with pytest.raises(AdapterError, match="Nothing would be trained"):
        inject(net, sites(net), [MethodSpec(name, settings=settings)])


@pytest.mark.parametrize(
    ("name", "settings"),
    [("vera", {"start": 0.0}), *((name, {"scale": 0.0}) for name in ("fact", "repadapter", "convpass", "adapter"))],
)
def test_a_scale_of_nothing_is_refused(name: str, settings: dict[str, float]) -> None:
    net = base("deit")
    with pytest.raises(AdapterError, match="Nothing would be trained"):
        inject(net, sites(net), [MethodSpec(name, settings=settings)])


def stem() -> nn.Sequential:
    """As the ResNet of a hybrid ViT begins, and a plain convolution with its norm."""
    torch.manual_seed(0)
    own = (StdConv2dSame(3, 8, 3, bias=True), GroupNormAct(8, 4))
    return nn.Sequential(*own, nn.Conv2d(8, 8, 3, groups=2), nn.GroupNorm(2, 8)).eval()


STEM = [Site(str(i), "stem", "NCHW") for i in range(4)]


def test_ssf_leaves_out_what_no_scale_folds_into() -> None:
    net, x = stem(), torch.randn(2, 3, 9, 9)
    assert [site.path for site in inject(net, STEM, [MethodSpec("ssf")])] == ["2", "3"]
    with torch.no_grad():
        for tensor in owned(net).values():
            tensor.add_(torch.randn_like(tensor))
        assert torch.allclose(net(x), merge(net)(x), atol=1e-5)


@pytest.mark.parametrize(("name", "place"), [("ssf", "0"), ("ssf", "1"), ("ia3", "0")])
def test_a_scale_that_would_not_fold_is_refused(name: str, place: str) -> None:
    with pytest.raises(AdapterError, match=rf"{name} cannot take {place}, a \w+ with a forward of its own\. Its scale"):
        inject(stem(), STEM, [MethodSpec(name, (place,))])
