from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from cvpeft.backbone.sites import sites
from cvpeft.errors import BackboneError
from cvpeft.types import Site

VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": (64, 96)}
CONV = {"depths": (1, 1, 1, 1), "dims": (10, 14, 18, 22)}
MODELS = {
    "vit_tiny_patch16_224": VIT,
    "vit_small_patch14_reg4_dinov2": {**VIT, "img_size": (56, 84)},
    "vit_small_patch16_dinov3": VIT,
    "vit_small_plus_patch16_dinov3": VIT,
    "eva02_tiny_patch14_224": {**VIT, "img_size": (56, 84)},
    "beit_base_patch16_224": VIT,
    "convnext_atto": CONV,
    "convnext_tiny": CONV,
    "convnextv2_atto": CONV,
    "swin_tiny_patch4_window7_224": {"depths": (1, 2), "embed_dim": 12, "num_heads": (2, 3), "img_size": (56, 112)},
    "swinv2_tiny_window8_256": {"depths": (1, 1), "embed_dim": 12, "num_heads": (2, 3), "img_size": (64, 128)},
}
PLAIN_ROLES = ["attn", "attn.proj", "attn.qkv", "block", "mlp", "mlp.fc1", "mlp.fc2", "norm1", "norm2", "patch_embed"]


def build(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=0, **MODELS[name]).eval()


def inputs(net: nn.Module, name: str) -> dict[str, Tensor]:
    """Path -> what the module is given."""
    seen: dict[str, Tensor] = {}
    for path, module in net.named_modules():
        module.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, args[0]))
    height, width = MODELS[name].get("img_size", (64, 96))
    net.forward_intermediates(torch.randn(2, 3, height, width), intermediates_only=True, norm=True)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_layouts_grids_and_prefixes_are_what_the_modules_are_given(name: str) -> None:
    net = build(name)
    seen = inputs(net, name)
    for site in sites(net):
        if site.path not in seen or "cpb_mlp" in site.path:  # a weight that is read and a table of positions
            continue
        x, module = seen[site.path], net.get_submodule(site.path)
        assert x.ndim == (3 if site.layout == "BNC" else 4), site
        if isinstance(module, nn.Linear | nn.Conv2d):
            channels = module.weight.shape[1] * getattr(module, "groups", 1)
            assert x.shape[1 if site.layout == "NCHW" else -1] == channels, site
        if site.grid and site.layout == "BNC":
            assert x.shape[1] == site.prefix_tokens + math.prod(site.grid), site
        if site.grid and site.layout == "NHWC":
            assert tuple(x.shape[1:3]) == site.grid, site


def roles(found: list[Site]) -> set[str]:
    return {site.role for site in found}


@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_with_parameters_has_one_site_and_the_classifier_none(name: str) -> None:
    net = build(name)
    found = sites(net)
    paths = [site.path for site in found]
    assert len(set(paths)) == len(paths)
    assert not any(path.startswith(("head", "fc_norm")) for path in paths)
    leaves = {p for p, m in net.named_modules() if not list(m.children()) and list(m.parameters())}
    assert {p for p in leaves if not p.startswith(("head", "fc_norm"))} <= set(paths)
    assert {"block", "mlp", "mlp.fc1", "mlp.fc2"} <= roles(found)


def test_roles_of_the_families() -> None:
    assert set(PLAIN_ROLES) <= roles(sites(build("vit_tiny_patch16_224")))
    convnext = roles(sites(build("convnext_tiny")))
    assert {"conv_dw", "norm", "stem", "stem.norm", "downsample", "downsample.norm"} <= convnext
    assert "attn" not in convnext
    assert {"downsample", "downsample.norm", "attn.qkv"} <= roles(sites(build("swin_tiny_patch4_window7_224")))


@pytest.mark.parametrize(
    ("name", "depth"), [("vit_small_r26_s32_224", 2), ("vit_tiny_r_s16_p8_224", 2), ("vitamin_small_224", 1)]
)
def test_what_a_convolutional_patch_embedding_holds_is_no_block_and_sees_maps(name: str, depth: int) -> None:
    """Its blocks and norms are those of a ResNet or a ConvNeXt, and their axes too."""
    net = timm.create_model(name, num_classes=0, depth=depth, num_heads=2, img_size=(64, 96)).eval()
    found, seen = sites(net), dict[str, Tensor]()
    for path, module in net.named_modules():
        module.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, args[0]))
    net.forward_intermediates(torch.randn(1, 3, 64, 96), intermediates_only=True)
    inside = [site for site in found if site.path.startswith("patch_embed.backbone.")]
    assert inside
    assert all(site.layout == "NCHW" and seen[site.path].ndim == 4 for site in inside)
    assert roles(inside) <= {"patch_embed", "patch_embed.norm"}
    assert [site.path for site in found if site.role == "block"] == [f"blocks.{i}" for i in range(depth)]


@pytest.mark.parametrize(
    ("name", "inner", "outer"),
    [("vit_small_plus_patch16_dinov3", ["fc1_g", "fc1_x"], "fc2"), ("vitamin_small_224", ["w0", "w1"], "w2")],
)
def test_both_halves_of_a_gated_mlp_are_its_first_layer(name: str, inner: list[str], outer: str) -> None:
    net = timm.create_model(name, num_classes=0, depth=1, num_heads=2, img_size=(64, 96))
    found = {role: [s.path for s in sites(net) if s.role == role] for role in ("mlp.fc1", "mlp.fc2")}
    assert found == {"mlp.fc1": [f"blocks.0.mlp.{half}" for half in inner], "mlp.fc2": [f"blocks.0.mlp.{outer}"]}


def test_heads_belong_to_attention() -> None:
    heads = {site.path: site.heads for site in sites(build("swin_tiny_patch4_window7_224"))}
    assert heads["layers.0.blocks.0.attn"] == heads["layers.0.blocks.0.attn.qkv"] == 2
    assert heads["layers.1.blocks.1.attn.proj"] == 3
    assert heads["layers.1.blocks.0.mlp.fc1"] == heads["layers.1.blocks.0"] == heads["norm"] == 0


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(BackboneError, match="no sites are known in a ResNet"):
        sites(timm.create_model("resnet18"))
