"""A backbone that is let take every size gives what the model does that timm builds for each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch

from cvpeft.backbone.any_size import any_size, fixed_because, least_size, resize
from tests.backbone.small import body

SIZES = {
    "swin": ((128, 160), (160, 128), (192, 352), (256, 256)),
    "dinov3": ((96, 128), (32, 256), (160, 96), (224, 224)),
}


@pytest.mark.parametrize("family", SIZES)
@torch.no_grad()
def test_every_size_gives_the_maps_that_timm_gives_when_built_for_it(family: str) -> None:
    made = body(family)
    assert made.fixed_because == ""
    for size in SIZES[family]:
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with any_size(made):
            found = made(x)
        for one, other in zip(found, made.resized(size)(x), strict=True):
            assert one.std() > 0.1
            assert torch.equal(one, other)


@pytest.mark.parametrize("settings", [{"rope_rotate_half": False}, {"rope_grid_indexing": "xy"}])
@torch.no_grad()
def test_other_layouts_of_the_rotary_table(settings: dict[str, Any]) -> None:
    made = body("dinov3", **settings)
    x = torch.randn(1, 3, 64, 160)
    with any_size(made):
        (found,) = made(x)
    assert torch.equal(found, made.resized((64, 160))(x)[0])


@pytest.mark.parametrize("family", SIZES)
def test_afterwards_the_model_is_timms_again(family: str) -> None:
    made = body(family)
    before = {name: dict(vars(module)) for name, module in made.named_modules()}
    with pytest.raises(ZeroDivisionError), any_size(made):
        raise ZeroDivisionError
    assert {name: dict(vars(module)) for name, module in made.named_modules()} == before


def test_windows_that_timm_has_shrunk_keep_one_size() -> None:
    net = body("swin").net
    assert least_size(net) == (128, 128)
    small = copy.deepcopy(net)
    resize(small, (96, 160))
    assert "trained at 128 x 128 or more" in fixed_because(small)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", "absolute position embeddings"),
        ("eva02_tiny_patch14_224", "absolute position embeddings"),
        ("swinv2_tiny_window8_256", "position embeddings are made for one size"),
        ("vit_base_patch16_rope_mixed_224.naver_in1k", "position embeddings are made for one size"),
        ("convnext_atto", ""),
    ],
)
def test_of_others_the_reason_is_told(name: str, reason: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    assert reason in fixed_because(net)
    assert bool(fixed_because(net)) == bool(reason)
