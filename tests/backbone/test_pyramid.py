from __future__ import annotations

import pytest
import torch

from cvpeft.backbone.pyramid import FPN, SimpleFeaturePyramid, build_pyramid


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("width", [16, 20, 128])
def test_both_pyramids_give_the_same_levels(levels: int, width: int) -> None:
    plain = build_pyramid((48,), width, levels=levels)
    stages = build_pyramid((8, 16, 24, 32), width, levels=levels)
    assert isinstance(plain, SimpleFeaturePyramid)
    assert isinstance(stages, FPN)
    h, w = 64, 96
    one = plain([torch.randn(2, 48, h // 16, w // 16)])
    other = stages([torch.randn(2, c, h // s, w // s) for c, s in zip((8, 16, 24, 32), (4, 8, 16, 32), strict=True)])
    wanted = [(2, width, h // s, w // s) for s in (4, 8, 16, 32)[-levels:]]
    assert [tuple(m.shape) for m in one.values()] == wanted
    assert [tuple(m.shape) for m in other.values()] == wanted
    assert list(one) == list(other) == [str(i) for i in range(levels)]
    assert plain.out_channels == stages.out_channels == width


@pytest.mark.parametrize("channels", [(48,), (8, 16, 24, 32)])
@pytest.mark.parametrize("levels", [3, 4])
def test_every_parameter_is_used(channels: tuple[int, ...], levels: int) -> None:
    neck = build_pyramid(channels, 16, levels=levels)
    sides = (4,) if len(channels) == 1 else (16, 8, 4, 2)
    maps = neck([torch.randn(1, c, s, s) for c, s in zip(channels, sides, strict=True)])
    sum(m.square().sum() for m in maps.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())


def test_a_loud_stage_does_not_drown_the_others() -> None:
    """Stages of Swin and ConvNeXt differ by orders of magnitude; the pyramid is the same whatever their scale."""
    torch.manual_seed(0)
    neck = build_pyramid((8, 16), 16, levels=2).eval()
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)]
    quiet, loud = neck(maps), neck([maps[0], maps[1] * 1000])
    assert all(torch.allclose(quiet[k], loud[k], atol=1e-3) for k in quiet)
