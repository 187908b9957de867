"""Where a detector runs, and in which number type it trains fastest there."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import torch
from torch import Tensor, nn

from cvpeft.errors import ConfigError

__all__ = ["depthwise_in_single", "has_fast_bf16", "pick_device", "pick_precision", "processor"]

log = logging.getLogger(__name__)
BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # x86 tiles, x86 vectors, ARM; any of them multiplies bf16 in hardware


def pick_device(wish: str) -> torch.device:
    """auto: the GPU where there is one. ConfigError: one is asked for and there is none."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigError("DEVICE", "train.device is cuda, and torch finds no GPU", fix="set train.device=auto")
    return torch.device(wish if wish != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def pick_precision(wish: str, device: torch.device) -> str:
    """auto: "bf16" where the device has instructions for it, else "fp32".

    A processor without them converts each number in software, which costs ten times the time and more: a wish for bf16
    is granted there, with a warning.
    """
    if wish == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if wish == "bf16" and not has_fast_bf16(device):
        log.warning("this %s computes bf16 in software, many times slower: set train.precision=auto", device.type)
    return wish


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BF16)


def processor() -> str:
    """Name and number of cores of the CPU, as the system tells them."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def depthwise_in_single(model: nn.Module) -> None:
    """Let depthwise convolutions whose weights are trained leave autocast, in place.

    In bf16 their gradient takes a CPU two to three times as long as in float32, and little is multiplied there.
    """
    for module in model.modules():
        depthwise = type(module) is nn.Conv2d and module.groups == module.in_channels > 1
        if depthwise and module.weight.requires_grad:
            module.__class__ = _SingleConv2d


class _SingleConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
