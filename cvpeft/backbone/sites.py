"""timm model -> its sites: every leaf with parameters, and the compounds attn, mlp and block.

A role is what a module is, whatever the family calls it: inside a block the path below the block ("attn.qkv",
"mlp.fc1", "conv_dw", "norm1"; both halves of a gated mlp are "mlp.fc1"), outside of blocks "patch_embed", "stem",
"downsample", "norm". The blocks of a ResNet or ConvNeXt that makes the patches are part of the patch embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cvpeft.backbone.window import window_side
from cvpeft.errors import BackboneError
from cvpeft.types import Layout, Site

__all__ = ["sites"]

COMPOUNDS = {"attn", "mlp", "block"}
CLASSIFIER = {"head", "head_dist", "fc_norm", "attn_pool"}  # a detector does not use them
IN_BLOCK = re.compile(r"(?!patch_embed\.)(?:.*\.)?blocks\.\d+(?:\.(?P<role>.+))?")
BELOW_BLOCK = re.compile(r"(.*blocks\.\d+)\..+")
GATED = {  # an mlp with a gate: timm's SwiGLU, ViTamin's GeGLU
    "mlp.fc1_g": "mlp.fc1", "mlp.fc1_x": "mlp.fc1", "mlp.w0": "mlp.fc1", "mlp.w1": "mlp.fc1", "mlp.w2": "mlp.fc2",
}  # fmt: skip
OUTSIDE = re.compile(r"(?:.*?\.)??(?P<role>patch_embed|stem|downsample)\..+")  # the outermost of them


def sites(net: nn.Module) -> list[Site]:
    """The places where a method may stand, in model order; paths relative to `net`.

    BackboneError: a family that is not known here.
    """
    make = _family(net)
    modules = dict(net.named_modules())
    return [
        make(modules, path, role)
        for path, module in modules.items()
        if path.partition(".")[0] not in CLASSIFIER
        and ((role := _role(path, module)) in COMPOUNDS or _is_weighted_leaf(module))
    ]


def _role(path: str, module: nn.Module) -> str:
    if inside := IN_BLOCK.fullmatch(path):
        return GATED.get(inside["role"], inside["role"]) or "block"
    if outside := OUTSIDE.fullmatch(path):
        return outside["role"] if isinstance(module, nn.Linear | nn.Conv2d) else f"{outside['role']}.norm"
    return path


def _is_weighted_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and next(module.parameters(), None) is not None


def _family(net: nn.Module) -> Callable[[dict[str, nn.Module], str, str], Site]:
    if isinstance(net, VisionTransformer | Eva | Beit):
        return _plain
    if isinstance(net, ConvNeXt):
        return _convnext
    if isinstance(net, SwinTransformer | SwinTransformerV2):
        return _swin
    raise BackboneError(
        "SITES",
        f"no sites are known in a {type(net).__name__}",
        why="adapters would have to guess the order of its axes",
        fix="choose a ViT, DINOv3/EVA, BEiT, ConvNeXt or Swin model, or peft.mode=full or frozen",
    )


def _plain(modules: dict[str, nn.Module], path: str, role: str) -> Site:
    net = modules[""]
    in_embedding = role == "patch_embed" or (role == "patch_embed.norm" and path != role)
    layout: Layout = "NCHW" if in_embedding else "BNC"
    prefix = int(net.num_prefix_tokens) if layout == "BNC" else 0  # type: ignore[arg-type]
    side = window_side(modules[inside[1]]) if (inside := BELOW_BLOCK.match(path)) else 0
    grid = (side, side) if side else modules["patch_embed"].grid_size
    return Site(path, role, layout, grid, _heads(modules, path), prefix)  # type: ignore[arg-type]


def _convnext(modules: dict[str, nn.Module], path: str, role: str) -> Site:
    """Maps are channels first; the blocks' norm and mlp see channels last where they are made of Linear."""
    block = path.removesuffix(f".{role}")
    last = role.partition(".")[0] in {"norm", "mlp"} and isinstance(modules.get(f"{block}.mlp.fc1"), nn.Linear)
    return Site(path, role, "NHWC" if last else "NCHW")


def _swin(modules: dict[str, nn.Module], path: str, role: str) -> Site:
    """Blocks see channels-last maps, attention the tokens of one window, the mlp and its norm all tokens in a row."""
    if not (inside := IN_BLOCK.fullmatch(path)):
        return Site(path, role, "NCHW" if role == "patch_embed" else "NHWC")
    part = role.partition(".")[0]
    block = modules[path.removesuffix(f".{inside['role']}")]
    grid = block.window_size if part == "attn" else block.input_resolution
    layout: Layout = "BNC" if part in {"attn", "mlp", "norm2"} else "NHWC"
    return Site(path, role, layout, tuple(grid), _heads(modules, path))  # type: ignore[arg-type]


def _heads(modules: dict[str, nn.Module], path: str) -> int:
    """Heads of the attention that the module is or lies in."""
    before, found, _ = f"{path}.".rpartition(".attn.")
    return int(modules[f"{before}.attn"].num_heads) if found else 0  # type: ignore[arg-type]
