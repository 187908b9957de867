"""Feature pyramids: FPN for hierarchical backbones, ViTDet's simple feature pyramid for plain ones.

Both give maps of equal width at strides 4, 8, 16 and 32 (of a patch-16 backbone), finest first.
Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

__all__ = ["FPN", "SimpleFeaturePyramid", "at_levels", "build_pyramid"]

OF_LEVEL = re.compile(r"(.*\b(?:norms|inner_blocks|layer_blocks|levels)\.)(\d+)(\..+)")


def build_pyramid(channels: Sequence[int], width: int, *, levels: int = 4) -> nn.Module:
    """The neck for maps of `channels`: one map means a plain backbone, several a hierarchical one.

    levels: how many of the four levels are made, counted from the coarsest; 3 leaves out stride 4.
    """
    if len(channels) == 1:
        return SimpleFeaturePyramid(channels[0], width, levels)
    return FPN(channels[-levels:], width)


def at_levels(tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a pyramid under the keys of one with more or fewer levels, which are `own`.

    Levels are numbered from the finest and made from the coarsest on: the same maps have other numbers. Those that the
    other pyramid does not have are left out.
    """
    shift = _levels(own) - _levels(tensors)
    moved: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        part = OF_LEVEL.fullmatch(key)
        if part is None:
            moved[key] = tensor
        elif (level := int(part[2]) + shift) >= 0:
            moved[f"{part[1]}{level}{part[3]}"] = tensor
    return moved


def _levels(keys: Iterable[str]) -> int:
    return 1 + max((int(part[2]) for key in keys if (part := OF_LEVEL.fullmatch(key))), default=-1)


def _norm(channels: int) -> nn.Module:
    # Group norm: batches are too small for batch statistics, and it needs no permute as a channel LayerNorm does.
    return nn.GroupNorm(math.gcd(16, channels), channels)


class FPN(nn.Module):
    """Feature pyramid network (Lin et al. 2017) over maps that are normalised first.

    Swin and ConvNeXt stages leave their residual sum unnormalised: without a norm the deep levels drown the fine ones.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) for c in channels)
        self.fpn = FeaturePyramidNetwork(list(channels), width, norm_layer=_norm)

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        maps = maps[-len(self.norms) :]
        levels = (norm(m) for norm, m in zip(self.norms, maps, strict=True))
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(levels)))  # (B, width, H/s, W/s)


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's pyramid from the last map alone (Li et al. 2022, Exploring Plain Vision Transformer Backbones).

    The map at the patch stride is scaled by 4, 2, 1 and 1/2; each level ends in a 1x1 and a 3x3 convolution.
    """

    def __init__(self, channels: int, width: int, levels: int = 4) -> None:
        super().__init__()
        self.out_channels = width
        half, quarter = channels // 2, channels // 4
        up4 = [
            nn.ConvTranspose2d(channels, half, 2, 2),
            _norm(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        ]
        scales = [
            (nn.Sequential(*up4), quarter),
            (nn.ConvTranspose2d(channels, half, 2, 2), half),
            (nn.Identity(), channels),
            (nn.MaxPool2d(2, 2), channels),
        ]
        self.levels = nn.ModuleList(nn.Sequential(scale, *_smooth(c, width)) for scale, c in scales[-levels:])

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        (x,) = maps  # (B, C, H/16, W/16)
        return OrderedDict((str(i), level(x)) for i, level in enumerate(self.levels))  # (B, width, H/s, W/s)


def _smooth(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 1, bias=False),
        _norm(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        _norm(width),
    ]
