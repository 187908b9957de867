"""What every method promises on every backbone family that it takes; no method is named in a test."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from cvpeft.backbone.sites import sites
from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Dense, adapters, walk
from cvpeft.peft.inject import MethodSpec, freeze, inject, methods, probe
from cvpeft.peft.merge import merge, unmergeable
from cvpeft.peft.state import disabled, fingerprint, load_owned, lr_factors, owned, save_owned, undecayed
from cvpeft.train.optim import param_groups

from .cases import (
    FAMILIES,
    NOT_FOLDED,
    REFUSED,
    SUMMED,
    TAKEN,
    VARIANTS,
    adapted,
    base,
    features,
    images,
    trained,
)

every = pytest.mark.parametrize(("variant", "family"), TAKEN)
ONE = {variant: (variant, family) for variant, family in TAKEN}
once = pytest.mark.parametrize(("variant", "family"), ONE.values())


def method_of(variant: str) -> str:
    return VARIANTS[variant].name


def names_of(variant: str) -> str:
    """A pattern for the names of the method, or of those that it is made of."""
    method = methods()[method_of(variant)]
    return method_of(variant) if isinstance(method, type) else "|".join(spec.name for spec in method())


def test_the_matrix_names_every_method() -> None:
    assert {spec.name for spec in VARIANTS.values()} == set(methods())
    assert set(methods()) >= NOT_FOLDED


@every
def test_identity_at_start_where_claimed(variant: str, family: str) -> None:
    net, x = adapted(variant, family), images(family)
    claims = {type(adapter).identity_at_init for stack in adapters(net).values() for adapter in stack}
    with torch.no_grad():
        same = torch.equal(features(net, x), features(base(family), x))
    assert claims == {same}


@every
def test_the_probe_reaches_every_adapter_and_changes_nothing(variant: str, family: str) -> None:
    net, x = trained(variant, family).train(), images(family)
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    probe(net, lambda: features(net, x))
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())
    assert modes == [m.training for m in net.modules()]
    assert not any(m._forward_pre_hooks for m in net.modules())


@every
def test_gradients_exactly_on_what_is_owned(variant: str, family: str) -> None:
    net = trained(variant, family).train()
    mine = {id(tensor) for tensor in owned(net).values()}
    out = features(net, images(family))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == (id(parameter) in mine), name
        if id(parameter) in mine:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@every
def test_training_has_an_effect(variant: str, family: str) -> None:
    x = images(family)
    with torch.no_grad():
        difference = features(trained(variant, family), x) - features(base(family), x)
    assert difference.abs().max() > 1e-3


@every
def test_disabled_gives_the_base_back_bit_for_bit(variant: str, family: str) -> None:
    plain_net, net, x = base(family), trained(variant, family), images(family)
    with torch.no_grad():
        adapted_out = features(net, x)
        with disabled(net):
            assert list(net.state_dict()) == list(plain_net.state_dict())
            assert torch.equal(features(net, x), features(plain_net, x))
        assert torch.equal(features(net, x), adapted_out)


@every
def test_the_base_is_never_written(variant: str, family: str) -> None:
    net, plain_net = adapted(variant, family).train(), base(family)
    before = fingerprint(net)
    assert before == fingerprint(plain_net.requires_grad_(False))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        features(net, images(family)).square().mean().backward()
        optimizer.step()
    assert fingerprint(net) == before


@once
def test_without_a_gradient_weight_decay_moves_nothing(variant: str, family: str) -> None:
    """Left out are copies of pretrained weights, which are pulled to zero as in full fine-tuning."""
    net, x = adapted(variant, family), images(family)
    if any(isinstance(adapter, Dense) for stack in adapters(net).values() for adapter in stack):
        return
    with torch.no_grad():
        before = features(net, x)
    mine = {key: tensor for key, tensor in owned(net).items() if isinstance(tensor, nn.Parameter)}
    groups = param_groups(mine, lambda _: "adapter", {"adapter": 0.1}, 0.5, undecayed(net), lr_factors(net))
    optimizer = torch.optim.AdamW(groups)
    for tensor in mine.values():
        tensor.grad = torch.zeros_like(tensor)
    for _ in range(3):
        optimizer.step()
    with torch.no_grad():
        assert torch.allclose(features(net, x), before, atol=1e-6)


@every
def test_a_saved_method_loads_into_a_fresh_model(variant: str, family: str, tmp_path: Path) -> None:
    net, fresh, x = trained(variant, family), adapted(variant, family, seed=7), images(family)
    save_owned(tmp_path / "a.safetensors", net, {"note": "one"})
    assert load_owned(tmp_path / "a.safetensors", fresh) == {"note": "one"}
    with torch.no_grad():
        assert torch.equal(features(fresh, x), features(net, x))


@every
def test_merge_is_exact_or_refused_in_one_sentence(variant: str, family: str) -> None:
    net, plain_net, x = trained(variant, family), base(family), images(family)
    before = copy.deepcopy(net.state_dict())
    if method_of(variant) in NOT_FOLDED:
        left = {name.partition(" at ")[0] for name in unmergeable(net)}
        assert left == {a.method for stack in adapters(net).values() for a in stack} & NOT_FOLDED
        with pytest.raises(AdapterError, match=f"({names_of(variant)}) at ") as refusal:
            merge(net)
        assert "\n" not in str(refusal.value)
    else:
        assert unmergeable(net) == []
        merged = merge(net)
        assert list(merged.state_dict()) == list(plain_net.state_dict())
        plain_net.load_state_dict(merged.state_dict())
        with torch.no_grad():
            assert (features(merged, x) - features(net, x)).abs().max() <= 1e-5
            assert torch.equal(features(merged, x), features(plain_net, x))
        assert merged.train().training
        assert all(module.training for module in merged.modules())
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


@every
def test_only_what_is_owned_leaves_eval_mode(variant: str, family: str) -> None:
    net = adapted(variant, family)
    nn.Sequential(net).train()
    assert all(place.module.training == (place.owner is not None) for place in walk(net))
    nn.Sequential(net).eval()
    assert not any(module.training for module in net.modules())


@every
def test_a_deep_copy_stands_alone(variant: str, family: str) -> None:
    net, x = trained(variant, family), images(family)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        before = features(net, x)
        assert torch.equal(features(twin, x), before)
        for tensor in owned(twin).values():
            tensor.add_(1.0)
        twin.train()
        assert torch.equal(features(net, x), before)
    assert not any(module.training for module in net.modules())
    assert all(place.module.training == (place.owner is not None) for place in walk(twin))


@every
def test_bfloat16_with_and_without_autocast(variant: str, family: str) -> None:
    net, exact = trained(variant, family), features(trained(variant, family), images(family)).detach()
    mine = {id(tensor) for tensor in owned(net).values()}

    def hold_base_in_bfloat16(smallest: int) -> None:
        for tensor in (*net.parameters(), *(net.buffers() if smallest == 0 else ())):
            if id(tensor) not in mine and tensor.ndim >= smallest and tensor.is_floating_point():
                tensor.data = tensor.data.bfloat16()

    hold_base_in_bfloat16(smallest=2)  # matrices only, as in training
    with torch.autocast("cpu", torch.bfloat16):
        out = features(net, images(family))
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters() if id(p) in mine)
    assert (out - exact).abs().mean() < 0.1 * exact.abs().mean()

    hold_base_in_bfloat16(smallest=0)
    with torch.no_grad():
        out = features(net, images(family, torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(("variant", "family"), sorted(REFUSED))
def test_what_a_method_cannot_take_is_refused_in_one_sentence(variant: str, family: str) -> None:
    net = base(family)
    with pytest.raises(AdapterError, match=names_of(variant)) as refusal:
        inject(net, sites(net), [VARIANTS[variant]])
    assert "\n" not in str(refusal.value)
    assert adapters(net) == {}


class Features(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return features(self.net, x)


@pytest.mark.parametrize(("variant", "family"), [(v, f) for v, f in TAKEN if f in {"deit", "dinov3", "convnext"}])
def test_torch_export_traces_the_same_function(variant: str, family: str) -> None:
    """In double precision, where nothing hides in rounding: in float32 a graph and its model may sum differently."""
    net, x = Features(trained(variant, family)).eval().double(), images(family).double()
    program = torch.export.export(net, (x,), strict=False)
    with torch.no_grad():
        assert torch.allclose(program.module()(x), net(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 64}),
        ("vit_small_patch16_dinov3_qkvb", {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 64}),
        ("eva02_tiny_patch14_224", {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 56}),
        ("swinv2_tiny_window8_256", {"depths": (1,), "embed_dim": 16, "num_heads": (2,), "img_size": 64}),
    ],
)
def test_attention_that_reads_qkv_weight_is_refused(name: str, arguments: dict[str, object]) -> None:
    """These models never call `attn.qkv`: a method there would report parameters and train nothing."""
    net = timm.create_model(name, num_classes=0, **arguments)
    inject(net, sites(net), [VARIANTS["lora"]])
    x = torch.randn(1, 3, arguments["img_size"], arguments["img_size"])  # type: ignore[call-overload]
    with pytest.raises(AdapterError, match=r"attn\.qkv"):
        probe(net, lambda: net(x))


def test_a_list_of_methods_is_one_model() -> None:
    """Three methods in one model, one of them around modules that the other changes."""
    net, x = base("dinov3"), images("dinov3")
    with torch.no_grad():
        before = features(net, x)
    specs = [VARIANTS[name] for name in ("lora", "adapter-houlsby", "vpt")]
    taken = inject(net, sites(net), specs)
    freeze(net)
    probe(net, lambda: features(net, x))
    assert len(taken) == sum(map(len, adapters(net).values())) == 2 * (5 + 2 + 1)  # the mlp has a gate
    assert all({"lora", "adapter", "vpt"} & set(key.split(".")) for key in owned(net))
    partly = merge(net, partly=True)
    assert {a.method for stack in adapters(partly).values() for a in stack} == {"adapter", "vpt"}
    with torch.no_grad():
        assert torch.allclose(features(partly, x), features(net, x), atol=1e-5)
        with disabled(net):
            assert torch.equal(features(net, x), before)
        with disabled(net, only=lambda adapter: adapter.method == "vpt"):
            assert torch.equal(features(net, x), before)  # lora and adapter are identities so far


@pytest.mark.parametrize("other", ["bitfit", "partial", "ssf", "repadapter"])
@pytest.mark.parametrize("family", ["deit", "swin"])
@pytest.mark.parametrize("prefix_first", [False, True])
def test_prefixes_beside_what_changes_proj_fold_in_part(other: str, family: str, prefix_first: bool) -> None:
    specs = [MethodSpec(other, ("attn.proj",)), MethodSpec("prefix")]
    torch.manual_seed(0)
    net, x = base(family), images(family)
    inject(net, sites(net), specs[::-1] if prefix_first else specs)
    freeze(net)
    with torch.no_grad():
        for tensor in owned(net).values():
            tensor.add_(torch.randn_like(tensor), alpha=0.2)
        partly = merge(net, partly=True)
        assert {a.method for stack in adapters(partly).values() for a in stack} == {"prefix"}
        assert torch.allclose(features(partly, x), features(net, x), atol=1e-5)


def test_families_are_what_they_say() -> None:
    assert {site.layout for site in sites(base("convnext")) if site.role == "mlp"} == {"NHWC"}
    assert {site.layout for site in sites(base("convnext_conv")) if site.role == "mlp"} == {"NCHW"}
    prefix = {f: next(s.prefix_tokens for s in sites(base(f)) if s.role == "block") for f in FAMILIES}
    assert prefix == dict.fromkeys(FAMILIES, 0) | {"deit": 1, "dinov2": 5, "dinov3": 5}


def mixed(net: nn.Module, states: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, torch.Tensor]:
    """Every Adapter's own part of the states, mixed by what it changes."""
    found: dict[str, torch.Tensor] = {}
    for place in walk(net):
        prefix = f"{place.prefix}."
        own = [{k.removeprefix(prefix): t for k, t in s.items() if k.startswith(prefix)} for s in states]
        if place.module is place.owner and own[0]:
            found |= {prefix + key: t for key, t in place.owner.mixed(own, weights).items()}
    return found


@once
def test_a_mix_sums_what_is_changed_or_is_refused(variant: str, family: str) -> None:
    net = adapted(variant, family)
    start = {key: t.detach().clone() for key, t in owned(net).items()}
    moved = {
        key: t + 0.2 * torch.randn_like(t) if isinstance(owned(net)[key], nn.Parameter) else t
        for key, t in start.items()
    }
    if variant not in SUMMED:
        with pytest.raises(AdapterError, match=r"E-MIX .*Fix: mix linearly"):
            mixed(net, [moved, start], [0.3, 0.7])
        return
    results = []
    for state in (mixed(net, [moved, start], [0.3, 0.7]), moved):
        with torch.no_grad():
            for key, tensor in owned(net).items():
                tensor.copy_(state[key])
        results.append(merge(net).state_dict())
    plain = base(family).state_dict()
    for key, one in results[0].items():
        assert torch.allclose(one, 0.3 * results[1][key] + 0.7 * plain[key], atol=1e-5), key
