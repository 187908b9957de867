"""Every family gives maps of exact stride at any size; what cannot be used is told in one sentence."""

from __future__ import annotations

import pytest
import timm
import torch

from cvpeft.backbone.build import Backbone, build_backbone
from cvpeft.errors import BackboneError

HIERARCHICAL = (4, 8, 16, 32)
FAMILIES = {  # name -> strides, prefix tokens
    "vit_tiny_patch16_224": (16,),
    "deit_tiny_patch16_224": (16,),
    "vit_small_patch16_dinov3": (16,),
    "vit_small_patch14_reg4_dinov2": (16,),  # resampled from 14
    "convnext_atto": HIERARCHICAL,
    "convnextv2_atto": HIERARCHICAL,
    "swin_tiny_patch4_window7_224": HIERARCHICAL,
    "resnet18": HIERARCHICAL,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_maps_have_the_promised_shapes(name: str, size: tuple[int, int]) -> None:
    body = build_backbone(name, "none", size)
    assert body.strides == FAMILIES[name]
    assert body.plain == (len(body.strides) == 1)
    maps = body(torch.rand(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, size[0] // s, size[1] // s) for c, s in zip(body.channels, body.strides, strict=True)
    ]
    assert len(body.mean) == len(body.std) == 3
    assert body.training


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "convnext_atto"])
def test_every_pixel_counts(name: str) -> None:
    """At both ends of the image the nearest cell of the finest map moves most: nothing is shifted or cut off."""
    torch.manual_seed(0)
    body = build_backbone(name, "none", (64, 96)).eval()
    x = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        before = body(x)[0]
        for row, column in ((0, 0), (63, 95), (0, 95), (63, 0)):
            moved = x.clone()
            moved[:, :, row, column] = 50.0
            change = (body(moved)[0] - before).abs().sum((0, 1))
            cell = divmod(int(change.argmax()), change.shape[1])
            assert cell == (row * change.shape[0] // 64, column * change.shape[1] // 96)


def test_the_wrong_family_member_is_named_with_near_ones() -> None:
    with pytest.raises(BackboneError, match=r"knows no model 'convnext_ato'.*did you mean .*convnext_atto") as caught:
        build_backbone("convnext_ato", "none", (64, 64))
    assert caught.value.exit_code == 2
    with pytest.raises(BackboneError, match=r"timm\.list_models"):
        build_backbone("../../etc/passwd", "none", (64, 64))
    with pytest.raises(BackboneError, match="knows no model 'hf-hub:"):
        build_backbone("hf-hub:someone/something", "none", (64, 64))


def test_an_unknown_tag_is_named_with_near_ones() -> None:
    with pytest.raises(BackboneError, match=r"did you mean .*vit_tiny_patch16_224\.augreg_in21k"):
        build_backbone("vit_tiny_patch16_224.augreg_in22k", "none", (64, 64))
    build_backbone("vit_tiny_patch16_224.augreg_in21k", "none", (32, 32))


@pytest.mark.parametrize(
    ("size", "near"),
    [((416, 650), "[416, 640]"), ((10, 40), "[32, 32]"), ((0, 64), "[32, 64]"), ((-32, 64), "[32, 64]")],
)
def test_a_size_that_loses_strides_is_refused_with_the_nearest(size: tuple[int, int], near: str) -> None:
    with pytest.raises(BackboneError) as caught:
        build_backbone("convnext_atto", "none", size)
    assert f"data.size is {list(size)}" in str(caught.value)
    assert f"set data.size={near}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("visformer_tiny", r"maps of stride \[8, 16, 32\].*\[4, 8, 16, 32\] are needed"),
        ("samvit_base_patch16", r"the maps are \[\(256, 2, 3\)\], \[\(768, 2, 3\)\] were expected"),
        ("mvitv2_tiny", "'mvitv2_tiny' cannot be used at 32 x 48"),
        ("tiny_vit_5m_224", r"cannot be used at 32 x 48 \(TypeError: .*img_size"),
        ("resnet18_unknown", "knows no model"),
    ],
)
def test_models_that_do_not_suit_are_one_sentence(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvpeft.backbone.build.STEP", 16)  # a quicker forward pass
    with pytest.raises(BackboneError, match=said):
        build_backbone(name, "none", (32, 48))


def test_stochastic_depth_reaches_the_model_and_models_without_it_say_so() -> None:
    rates = [m.drop_prob for m in build_backbone("convnext_atto", "none", (32, 32), drop_path=0.3).modules()
             if isinstance(m, timm.layers.DropPath)]  # fmt: skip
    assert max(rates) == pytest.approx(0.3)
    with pytest.raises(BackboneError, match="drop_path_rate"):
        build_backbone("dla34", "none", (64, 64), drop_path=0.3)


def test_windows_are_for_plain_vits() -> None:
    with pytest.raises(BackboneError, match=r"'convnext_atto' is no plain ViT.*set backbone.window=0"):
        build_backbone("convnext_atto", "none", (64, 64), window=2)


def test_the_model_stays_timms_own() -> None:
    body = build_backbone("vit_tiny_patch16_224", "none", (64, 96))
    assert isinstance(body, Backbone)
    wanted = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict().keys()
    assert body.net.state_dict().keys() == wanted
