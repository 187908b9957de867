"""Small members of the backbone families, with every kind of layer of the real ones: what an export is tried on."""

from __future__ import annotations

from typing import Any

import timm
import torch

from cvpeft.backbone.build import Backbone

SWIN: dict[str, Any] = {"depths": (2, 2, 2, 2), "embed_dim": 16, "num_heads": (1, 2, 2, 4), "window_size": 3}
VIT: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "init_values": 1.0}
CONVNEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16), "ls_init_value": 1.0}
BODIES = {  # name of the family -> timm's name, arguments, input size
    "vit": ("vit_tiny_patch16_224", VIT, (96, 128)),
    "dinov3": ("vit_small_patch16_dinov3", VIT, (96, 128)),
    "convnext": ("convnext_atto", CONVNEXT, (96, 128)),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, (128, 160)),
}


def body(family: str, **changes: Any) -> Backbone:
    """In eval mode; no two tensors are equal, and tables of relative positions, which begin near 0, have an effect."""
    name, arguments, size = BODIES[family]
    sized = {} if family == "convnext" else {"img_size": size}
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, **sized, **(arguments | changes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return Backbone(net, size).eval()
