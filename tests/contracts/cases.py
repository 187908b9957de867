"""The matrix of the contract tests: every method and its variants x tiny members of every backbone family."""

from __future__ import annotations

import copy
import functools

import timm
import torch
from torch import Tensor, nn

from cvpeft.backbone.sites import sites
from cvpeft.peft.adapter import adapters
from cvpeft.peft.inject import MethodSpec, freeze, inject, methods
from cvpeft.peft.state import owned

# LayerScale is 1: at the 1e-5 of a fresh model no adapter has a visible effect, and every test would pass.
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "vit": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    "deit": ("deit_tiny_patch16_224", VIT),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 56, "init_values": 1.0}),
    "dinov3": ("vit_small_plus_patch16_dinov3", {**VIT, "init_values": 1.0}),  # its mlp has a gate
    "convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16), "ls_init_value": 1.0}),
    "convnext_conv": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16), "ls_init_value": 1.0}),
    "convnextv2": ("convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16)}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2), "img_size": 56}),
}
# Their attention reads qkv.weight and never calls qkv.
READERS: dict[str, tuple[str, dict[str, object]]] = {
    "beit": ("beit_base_patch16_224", {**VIT, "init_values": 1.0}),
    "eva02": ("eva02_tiny_patch14_224", {**VIT, "img_size": 56}),
    "swinv2": ("swinv2_tiny_window8_256", {"depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2), "img_size": 64}),
}
PLAIN = {"vit", "deit", "dinov2", "dinov3"}
CONVNEXT = {"convnext", "convnext_conv", "convnextv2"}

VARIANTS: dict[str, MethodSpec] = {
    **{name: MethodSpec(name) for name in methods()},
    "lora-qv": MethodSpec("lora", settings={"qkv": "qv", "rank": 2}),
    "lora-conv": MethodSpec("lora", ("conv_dw", "downsample", "stem"), {"rank": 3}),
    "lora-patch": MethodSpec("lora", ("patch_embed",)),
    "adapter-houlsby": MethodSpec("adapter", settings={"place": "houlsby", "width": 8, "activation": "gelu"}),
    "adapter-parallel": MethodSpec("adapter", settings={"place": "parallel"}),
    "vpt-shallow": MethodSpec("vpt", settings={"depth": "shallow", "tokens": 3}),
    "lokr-whole": MethodSpec("lokr", settings={"rank": 9, "alpha": 20.0, "factor": 4, "whole": True}),
    "ia3-queries": MethodSpec("ia3", settings={"queries": True}),
    "lora-pissa": MethodSpec("lora", settings={"init": "pissa", "rank": 4}),
    "lora-olora": MethodSpec("lora", settings={"init": "olora", "rank": 4}),
    "lora-gated": MethodSpec("lora", settings={"gated": True, "scaling": "rank_stabilized", "alpha": 4.0}),
    "loha": MethodSpec("loha", settings={"alpha": 0.5}),  # what 0.2 moves is large enough so
    "vera": MethodSpec("vera", settings={"rank": 4}),
    "fact": MethodSpec("fact", settings={"rank": 4}),
    "tcurlora": MethodSpec("tcurlora", settings={"rank": 4}),
}
NOT_FOLDED = {"adapter", "vpt", "prefix", "mona", "convpass", "unipelt"}
# Whose changes can be summed; the others say so.
SUMMED = {
    "lora", "lora-qv", "lora-conv", "lora-patch", "lora_qkv", "adalora", "tcurlora", "ssf", "ia3", "ia3-queries",
    "bitfit", "norm", "partial",
}  # fmt: skip

REFUSED = {
    *((variant, family) for variant in ("vpt", "vpt-shallow") for family in FAMILIES.keys() - PLAIN),
    *((variant, family) for variant in ("prefix", "unipelt", "lora_qkv") for family in CONVNEXT),
    *(("lora-conv", family) for family in FAMILIES.keys() - CONVNEXT),
    *(("lora-patch", family) for family in CONVNEXT),
}
TAKEN = sorted((v, f) for v in VARIANTS for f in FAMILIES if (v, f) not in REFUSED)
TAKEN += [("lora_qkv", family) for family in READERS]


@functools.cache
def _base(family: str) -> nn.Module:
    name, arguments = {**FAMILIES, **READERS}[family]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = timm.create_model(name, num_classes=0, **arguments).eval()
    for key, parameter in net.named_parameters():
        if family == "swinv2" and ".norm" in key and key.endswith("weight"):
            nn.init.ones_(parameter)  # the norms after its blocks begin at 0, which would hide every change
    return net


def base(family: str) -> nn.Module:
    return copy.deepcopy(_base(family))


def adapted(variant: str, family: str, seed: int = 0) -> nn.Module:
    """A frozen base with one method; `seed` draws the method's own tensors."""
    torch.manual_seed(seed)
    net = base(family)
    inject(net, sites(net), [VARIANTS[variant]])
    freeze(net)
    return net


def trained(variant: str, family: str) -> nn.Module:
    """As if trained: every owned tensor is moved, so that nothing is an identity."""
    net = adapted(variant, family)
    with torch.no_grad():
        for tensor in owned(net).values():
            tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return net


def images(family: str, dtype: torch.dtype = torch.float32) -> Tensor:
    side = int({**FAMILIES, **READERS}[family][1].get("img_size", 64))  # type: ignore[call-overload]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2)).to(dtype)


def features(net: nn.Module, x: Tensor) -> Tensor:
    """The last map, called as the detector calls it."""
    last: list[Tensor] = net.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)  # type: ignore[operator]
    return last[-1]


def count(net: nn.Module) -> int:
    return sum(len(stack) for stack in adapters(net).values())
