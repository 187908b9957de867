"""What methods do with the channels of a module's output, whatever the order of its axes."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.types import Layout, Site

__all__ = ["add_bias", "along_channels", "check_scalable", "output_channels", "scalable", "scale_output"]


def along_channels(vector: Tensor, y: Tensor, base: nn.Module, layout: Layout) -> Tensor:
    """(C,) in the type of `y`, shaped so that it meets the channels of `y`, the output of `base` at this layout."""
    first = isinstance(base, nn.Conv2d) or (layout == "NCHW" and not isinstance(base, nn.Linear))
    vector = vector.to(y.dtype)
    return vector[:, None, None] if first and y.ndim == 4 else vector


def output_channels(base: nn.Module) -> int:
    """Channels that a Linear, a convolution or a norm puts out."""
    return int(base.get_parameter("weight").shape[0])


def scalable(module: nn.Module) -> bool:
    """Whether weight and bias scale the output of a Linear, a convolution or a norm: not where a convolution
    standardises its weight first, nor where a norm holds the activation after it.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        return type(module).forward in {nn.Linear.forward, nn.Conv2d.forward}
    return isinstance(getattr(module, "act", nn.Identity()), nn.Identity)


def check_scalable(method: str, module: nn.Module, site: Site) -> None:
    """AdapterError where the output's scale could not be folded into the module's tensors."""
    if not scalable(module):
        what = f"{method} cannot take {site.path}, a {type(module).__name__} with a forward of its own"
        raise AdapterError(method.upper(), what, why="its scale would not fold", fix="leave it out of targets")


def add_bias(module: nn.Module, shift: Tensor) -> nn.Module:
    """A copy of a module that has a bias, with `shift` (C,) added to it."""
    module = copy.deepcopy(module)
    bias = module.get_parameter("bias")
    bias.data = (bias.double() + shift.double()).to(bias.dtype)
    return module


def scale_output(module: nn.Module, scale: Tensor) -> nn.Module:
    """A copy of a Linear, a convolution or a norm whose output channels are multiplied by `scale` (C,)."""
    module = copy.deepcopy(module)
    for _, tensor in module.named_parameters(recurse=False):
        factor = scale.detach().double().view(-1, *[1] * (tensor.ndim - 1))
        tensor.data = (tensor.double() * factor).to(tensor.dtype)
    return module
