"""timm name -> feature maps of known stride.

Backbones are plain timm models called through `forward_intermediates`: module paths and keys stay timm's own.
Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.backbone.any_size import fixed_because, least_size, resize
from cvpeft.backbone.weights import hub_file, load_weights, read_weights
from cvpeft.backbone.window import last_of_each_quarter, window_blocks
from cvpeft.errors import BackboneError

__all__ = ["Backbone", "build_backbone"]

log = logging.getLogger(__name__)
STEP = 32  # both sides of an input are multiples of it, so that every pyramid level has an exact stride
LEVELS = (4, 8, 16, 32)  # strides of a hierarchical model
PATCHES = (8, 16)  # of a plain ViT, for which the same holds
LAYER_SCALES = ("gamma", "gamma_1", "gamma_2")  # timm's names of these parameters
KNOWN = "choose a ViT, DINOv3, ConvNeXt or Swin model"


class Backbone(nn.Module):
    """A timm model that gives its maps: the last one of a plain ViT, strides 4 to 32 of a hierarchical model.

    net: the timm model, untouched. size: (height, width) of its input. channels, strides: of the maps, finest first.
    plain: whether the maps come from a plain ViT. mean, std: of the pretraining, in 0..1 units.
    """

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        info: list[dict[str, Any]] = list(net.feature_info)  # type: ignore[arg-type]
        self.net, self.size = net, size
        self.plain = len({i["reduction"] for i in info}) == 1
        self.indices = [len(info) - 1] if self.plain else [n for n, i in enumerate(info) if i["reduction"] in LEVELS]
        self.channels = tuple(info[i]["num_chs"] for i in self.indices)
        self.mean: tuple[float, ...] = net.pretrained_cfg["mean"]  # type: ignore[index,assignment]
        self.std: tuple[float, ...] = net.pretrained_cfg["std"]  # type: ignore[index,assignment]
        patch = info[-1]["reduction"]
        # A patch of 14 gives strides of 3.5 and 7, which anchors and RoI pooling round away: the image is resampled to
        # the size at which the same grid has a stride of 16.
        self.resample = None if not self.plain or patch in PATCHES else _patched(size, patch)
        self.strides = (
            (16 if self.resample else patch,) if self.plain else tuple(info[i]["reduction"] for i in self.indices)
        )

    @property
    def fixed_because(self) -> str:
        """Why inputs have to be of `size`; empty where `any_size` lets it take other multiples of 32."""
        if self.resample:
            return "its images are resampled to one size, as its patches are no 8 or 16 pixels"
        return fixed_because(self.net)

    @property
    def least_size(self) -> tuple[int, int]:
        """The smallest (height, width) of those that `any_size` lets it take."""
        height, width = least_size(self.net)
        return max(STEP, height), max(STEP, width)

    def resized(self, size: tuple[int, int]) -> Backbone:
        """A copy that timm has made for another (height, width)."""
        other = copy.deepcopy(self)
        resize(other.net, size)
        other.size = size
        return other

    def forward(self, x: Tensor) -> list[Tensor]:  # (B, 3, H, W), normalised
        if self.resample:
            x = F.interpolate(x, self.resample, mode="bilinear", align_corners=False)
        maps: list[Tensor] = self.net.forward_intermediates(  # type: ignore[operator]
            x, indices=self.indices, norm=True, intermediates_only=True, output_fmt="NCHW"
        )
        return maps  # (B, C, H/s, W/s) each


def build_backbone(
    name: str,
    weights: Literal["timm", "none"] | Path,
    size: tuple[int, int],
    *,
    window: int = 0,
    global_blocks: Sequence[int] = (),
    drop_path: float = 0.0,
) -> Backbone:
    """A timm model by name, with its pretrained weights or, where 'none' is written, random ones.

    size: (height, width) of the input in pixels, multiples of 32.
    window: side in tokens of ViTDet's attention windows, 0 for none; plain ViTs only.
    BackboneError: unknown or unfit model, a size that does not fit, weights that cannot be had.
    """
    _check_size(size)
    _check_name(name)
    with _suiting(name, size):
        body = Backbone(_create(name, size, drop_path), size)
    net = body.net
    if weights == "none":
        _open_layer_scale(net)
    else:
        file = hub_file(name) if weights == "timm" else Path(weights)
        found = read_weights(file)
        left = load_weights(net, found.body, source=str(file), metadata=found.metadata)
        log.info(
            "%s: weights from %s%s", name, file, f", {len(left)} tensors unused ({', '.join(left[:3])})" if left else ""
        )
    if window:
        if not body.plain:
            raise BackboneError(
                "WINDOW", f"'{name}' is no plain ViT", why="backbone.window is for those", fix="set backbone.window=0"
            )
        grid = (size[0] // body.strides[0], size[1] // body.strides[0])
        window_blocks(net, grid, window, global_blocks or last_of_each_quarter(len(net.blocks)))  # type: ignore[arg-type]
    with _suiting(name, size):
        _check_maps(body, name)
    return body


def _check_name(name: str) -> None:
    known = timm.list_models()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, known, 3, 0.5)
    elif "." in name and name not in (tagged := timm.list_pretrained(f"{name.partition('.')[0]}.*")):
        near = difflib.get_close_matches(name, tagged, 3, 0) or [name.partition(".")[0]]
    else:
        return
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them all"
    what = f"timm {timm.__version__} knows no model '{name}'"
    raise BackboneError("BACKBONE", what, fix=f"set backbone.name ({hint})")


def _create(name: str, size: tuple[int, int], drop_path: float) -> nn.Module:
    common: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if drop_path:  # not every model takes it
        common["drop_path_rate"] = drop_path
    net: Any = timm.create_model(name, **common)
    if not hasattr(net, "forward_intermediates"):
        raise BackboneError("BACKBONE", f"'{name}' gives no intermediate maps", fix=KNOWN)
    if hasattr(net, "patch_embed"):  # position embeddings and attention masks are made for one size
        patch = net.feature_info[-1]["reduction"] if hasattr(net, "blocks") else 16
        net = timm.create_model(name, img_size=size if patch in PATCHES else _patched(size, patch), **common)
    return net


@contextmanager
def _suiting(name: str, size: tuple[int, int]) -> Iterator[None]:
    """timm has a thousand models; what one of them raises at this size is told as one sentence."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as e:
        found = f"{type(e).__name__}: {e}".splitlines()[0]
        what = f"'{name}' cannot be used at {size[0]} x {size[1]} ({found})"
        raise BackboneError("BACKBONE", what, fix=f"{KNOWN}, or another data.size") from e


def _open_layer_scale(net: nn.Module) -> None:
    """LayerScale begins at 1e-6 in ConvNeXt, which suits hundreds of epochs: in a few, random blocks never wake up."""
    with torch.no_grad():
        for module in net.modules():
            for name in LAYER_SCALES:
                if isinstance(scale := getattr(module, name, None), nn.Parameter):
                    scale.fill_(1.0)


def _check_maps(body: Backbone, name: str) -> None:
    """One forward pass: the maps must be those that pyramid, anchors and RoI pooling count on."""
    if not body.plain and body.strides != LEVELS:
        raise BackboneError(
            "BACKBONE",
            f"a backbone with maps of stride {list(body.strides)}",
            why=f"{list(LEVELS)} are needed",
            fix=KNOWN,
        )
    mode = body.training
    with torch.no_grad():
        maps = body.eval()(torch.zeros(1, 3, *body.size))
    body.train(mode)
    found = [tuple(m.shape[1:]) for m in maps]
    wanted = [(c, body.size[0] // s, body.size[1] // s) for c, s in zip(body.channels, body.strides, strict=True)]
    if found != wanted:
        raise BackboneError("BACKBONE", f"the maps are {found}, {wanted} were expected", fix=KNOWN)


def _check_size(size: tuple[int, int]) -> None:
    if any(side % STEP or side < STEP for side in size):
        near = [max(STEP, round(side / STEP) * STEP) for side in size]
        raise BackboneError(
            "SIZE",
            f"data.size is {list(size)}",
            why=f"both sides must be multiples of {STEP}, or pyramid levels lose their stride",
            fix=f"set data.size={near}",
        )


def _patched(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """The size at which a backbone of this patch has the token grid that patch 16 has at `size`."""
    return size[0] // 16 * patch, size[1] // 16 * patch
