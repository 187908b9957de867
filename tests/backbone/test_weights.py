"""Weights are those of the file, all of them, or there is an error: nothing is half loaded or left random."""

from __future__ import annotations

import hashlib
import pickle
import random
from pathlib import Path
from typing import Any

import huggingface_hub.errors as hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

from cvpeft.backbone import weights
from cvpeft.backbone.build import build_backbone
from cvpeft.backbone.weights import BODY, DETECTOR_FORMAT, base_licence, hub_file, read_weights
from cvpeft.errors import BackboneError

NAME = "vit_tiny_patch16_224"


def tensors(name: str = NAME, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {k: v.contiguous() for k, v in timm.create_model(name, **changes).state_dict().items()}


def written(folder: Path, content: dict[str, Tensor], name: str = "base.safetensors", **metadata: str) -> Path:
    save_file(content, folder / name, metadata or None)
    return folder / name


def timms_own(file: Path, **changes: Any) -> Any:
    overlay = {"file": str(file), "hf_hub_id": None}
    return timm.create_model("deit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **changes)


def test_the_real_file_loads_as_timm_itself_loads_it(deit_tiny_file: Path) -> None:
    body = build_backbone("deit_tiny_patch16_224", deit_tiny_file, (224, 224))
    reference = timms_own(deit_tiny_file)
    found = body.net.state_dict()
    assert all(torch.equal(found[k], v) for k, v in reference.state_dict().items() if not k.startswith("head."))
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        (mine,) = body.eval()(x)
        theirs = reference.eval().forward_features(x)[:, 1:]
    assert torch.allclose(mine.flatten(2).mT, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (416, 640)])
def test_position_embeddings_are_resampled_from_the_file(deit_tiny_file: Path, size: tuple[int, int]) -> None:
    body = build_backbone("deit_tiny_patch16_224", deit_tiny_file, size)
    reference = timms_own(deit_tiny_file, img_size=size)
    found, wanted = body.net.pos_embed, reference.pos_embed
    assert found.shape == (1, 1 + size[0] * size[1] // 256, 192)
    assert torch.equal(found, wanted)
    file = load_file(deit_tiny_file)["pos_embed"]
    assert torch.equal(found[:, 0], file[:, 0])
    assert not torch.allclose(found[0, 1:].mean(0), torch.zeros(192), atol=1e-3)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "convnextv2_atto", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3"]
)
def test_a_file_of_each_family_round_trips(tmp_path: Path, name: str) -> None:
    content = tensors(name)
    body = build_backbone(name, written(tmp_path, content), (64, 96))
    found = body.net.state_dict()
    assert found.keys() <= content.keys()
    moved = [k for k, v in found.items() if v.shape == content[k].shape and not torch.equal(v, content[k])]
    assert not moved


def test_patch_14_and_registers_resample_too(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    content = tensors(name)
    body = build_backbone(name, written(tmp_path, content), (64, 96))
    assert torch.equal(body.net.reg_token, content["reg_token"])
    assert body.net.pos_embed.shape[1] == 4 * 6 + (content["pos_embed"].shape[1] - 37 * 37)


def with_positions(folder: Path, grid: tuple[int, int], metadata: dict[str, str]) -> tuple[Path, Tensor]:
    """A ViT's file with position embeddings of another grid, and these."""
    positions = torch.randn(1, 1 + grid[0] * grid[1], 192, generator=torch.Generator().manual_seed(0))
    return written(folder, {**tensors(), "pos_embed": positions}, **metadata), positions


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (32, 192), (128, 128)])
@pytest.mark.parametrize("grid", [(4, 6), (2, 8)], ids=str)
def test_positions_of_a_grid_that_is_told_are_resampled_from_it_at_every_size(
    tmp_path: Path, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    file, positions = with_positions(tmp_path, grid, {"grid": str(list(grid))})
    found = build_backbone(NAME, file, size).net.pos_embed
    wanted = resample_abs_pos_embed(positions, [size[0] // 16, size[1] // 16], list(grid), num_prefix_tokens=1)
    assert torch.equal(found, wanted)


def test_a_base_of_rendered_scenes_without_a_grid_has_one_of_their_shape() -> None:
    file = weights.street_file(NAME)
    positions = read_weights(file).body["pos_embed"].float()
    for size in ((224, 288), (288, 224), (64, 96)):
        wanted = resample_abs_pos_embed(positions, [size[0] // 16, size[1] // 16], [14, 18], num_prefix_tokens=1)
        assert torch.equal(build_backbone(NAME, file, size).net.pos_embed, wanted), size


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 6), (64, 96)), ((4, 6), (64, 64)), ((2, 8), (32, 128)), ((3, 8), (64, 64))], ids=str
)
@pytest.mark.parametrize("told", [{}, {"grid": "[3, 3]"}, {"grid": "4"}, {"data": "{}"}], ids=str)
def test_positions_of_an_unknown_grid_are_refused(
    tmp_path: Path, grid: tuple[int, int], size: tuple[int, int], told: dict[str, str]
) -> None:
    file, _ = with_positions(tmp_path, grid, told)
    count, wanted = grid[0] * grid[1], rf"{size[0] // 16} x {size[1] // 16}"
    said = rf"E-WEIGHTS [^\n]*which grid its {count} position embeddings are of, for data\.size a grid of {wanted} is"
    with pytest.raises(BackboneError, match=said):
        build_backbone(NAME, file, size)


def test_a_square_grid_need_not_be_told(tmp_path: Path) -> None:
    file, positions = with_positions(tmp_path, (4, 4), {})
    for size in ((64, 64), (64, 96)):
        wanted = resample_abs_pos_embed(positions, [size[0] // 16, size[1] // 16], [4, 4], num_prefix_tokens=1)
        assert torch.equal(build_backbone(NAME, file, size).net.pos_embed, wanted)


FAMILIES = {  # of few parameters, with tables of relative positions
    "beit": ("beit_base_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)}),
}


def of_family(family: str, size: tuple[int, int]) -> Any:
    name, arguments = FAMILIES[family]
    net = timm.create_model(name, img_size=size, num_classes=0, **arguments)
    with torch.no_grad():
        for table in tables(net).values():
            table.normal_()  # they begin near 0
    return net


def tables(net: Any) -> dict[str, Tensor]:
    return {key: table for key, table in net.named_parameters() if key.endswith(".relative_position_bias_table")}


def loaded(family: str, file: Any, size: tuple[int, int], *, told: bool = True) -> dict[str, Tensor]:
    """The tables of a net for inputs of `size`, with the weights of another one."""
    net = of_family(family, size)
    metadata = weights.grid_entry(file) if told else {}
    weights.load_weights(net, file.state_dict(), source="base.safetensors", metadata=metadata)
    return tables(net)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (224, 224), (64, 128)], ids=str)
def test_tables_of_relative_positions_are_resampled_from_the_grid_that_is_told(size: tuple[int, int]) -> None:
    file, window = of_family("beit", (64, 96)), (size[0] // 16, size[1] // 16)
    for key, found in loaded("beit", file, size).items():
        assert torch.equal(found, resize_rel_pos_bias_table(tables(file)[key], window, found.shape, (4, 6)))


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 64)], ids=str)
def test_tables_of_an_unknown_grid_are_refused(size: tuple[int, int]) -> None:
    """Turned by 90 degrees they have as many rows, and were taken as they are."""
    wanted = rf"{size[0] // 16} x {size[1] // 16}"
    with pytest.raises(BackboneError, match=rf"E-WEIGHTS .*of a grid that it does not say, .* one of {wanted} is want"):
        loaded("beit", of_family("beit", (64, 96)), size, told=False)


def test_windows_as_large_as_a_small_map_fit_the_size_that_they_were_trained_at() -> None:
    file = of_family("swin", (96, 160))
    for key, found in loaded("swin", file, (96, 160)).items():
        assert torch.equal(found, tables(file)[key])
    for size in ((160, 96), (224, 224)):
        wanted = rf"{size[0] // 4} x {size[1] // 4}"
        with pytest.raises(
            BackboneError, match=rf"of a grid of 24 x 40, for data\.size one of {wanted} is .*data\.size"
        ):
            loaded("swin", file, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_of_square_windows_need_no_grid(family: str) -> None:
    file = of_family(family, (224, 224))
    for key, found in loaded(family, file, (224, 224), told=False).items():
        assert torch.equal(found, tables(file)[key])
    assert loaded(family, file, (64, 96), told=False)


def test_a_model_with_tables_and_without_patches_is_loaded_as_timm_does() -> None:
    net, file = (timm.create_model("gcvit_xxtiny", num_classes=classes) for classes in (0, 1000))
    assert weights.grid_entry(net) == {}
    weights.load_weights(net, file.state_dict(), source="base.safetensors")
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, file.state_dict()[key])


def test_half_precision_files_are_held_in_float32(tmp_path: Path) -> None:
    content = {k: v.half() for k, v in tensors("convnext_atto").items()}
    body = build_backbone("convnext_atto", written(tmp_path, content), (32, 32))
    assert {p.dtype for p in body.parameters()} == {torch.float32}
    assert torch.equal(body.net.stem[0].weight, content["stem.0.weight"].float())


def test_a_tensor_that_is_missing_is_an_error(tmp_path: Path) -> None:
    content = tensors()
    for key in ("blocks.3.attn.qkv.weight", "norm.bias"):
        content.pop(key)
    said = r"2 tensors of the model are not in the file, first blocks.3.attn.qkv.weight, norm.bias\. They would stay"
    with pytest.raises(BackboneError, match=said):
        build_backbone(NAME, written(tmp_path, content), (64, 64))


def test_the_file_of_another_model_is_an_error(tmp_path: Path) -> None:
    file = written(tmp_path, tensors("convnext_atto"))
    for name in ("convnext_femto", NAME, "swin_tiny_patch4_window7_224", "resnet18"):
        with pytest.raises(BackboneError, match=r"E-WEIGHTS .*base.safetensors - .*set backbone.name"):
            build_backbone(name, file, (64, 64))


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    content = tensors()
    content["blocks.0.mlp.fc1.weight"] = torch.zeros(7, 7)
    with pytest.raises(BackboneError, match=r"do not fit the model \(.*blocks.0.mlp.fc1.weight.*7, 7"):
        build_backbone(NAME, written(tmp_path, content), (64, 64))


def test_what_is_not_used_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="cvpeft")
    build_backbone("convnext_atto", written(tmp_path, {**tensors("convnext_atto"), "extra": torch.zeros(1)}), (32, 32))
    assert "1 tensors unused (extra)" in caplog.text


@pytest.mark.parametrize(
    ("name", "deeper"),
    [
        ("convnext_atto", {"depths": (2, 2, 8, 2)}),
        ("swin_tiny_patch4_window7_224", {"depths": (2, 2, 8, 2)}),
        (NAME, {"depth": 14}),
    ],
    ids=str,
)
def test_the_file_of_a_deeper_model_is_an_error(tmp_path: Path, name: str, deeper: dict[str, Any]) -> None:
    """Its first blocks were taken, though what follows was trained on what all of them give."""
    with pytest.raises(BackboneError, match=r"E-WEIGHTS .*base.safetensors - .*set backbone.name"):
        build_backbone(name, written(tmp_path, tensors(name, **deeper)), (64, 96))


class Canary:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".npz", ""])
def test_pickles_are_not_opened(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"weights{ending}"
    file.write_bytes(pickle.dumps(Canary()))
    with pytest.raises(BackboneError, match=rf"'{ending}' is not read\. Pickled files can run code.*safetensors"):
        read_weights(file)
    with pytest.raises(BackboneError, match="not a whole safetensors file"):
        read_weights(file.rename(tmp_path / "renamed.safetensors"))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such file"):
        read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(BackboneError, match="no such file"):
        read_weights(tmp_path / "folder.safetensors")


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    content = save({"a": torch.rand(20), "b": torch.rand(3, 3)})
    rng = random.Random(0)
    file = tmp_path / "damaged.safetensors"
    for _ in range(200):
        at = rng.randrange(len(content))
        file.write_bytes(rng.choice([content[:at], content[:8] + b"\xff" + content[8:], b"\xff" * 8 + content, b""]))
        with pytest.raises(BackboneError, match="not a whole safetensors file"):
            read_weights(file)


def test_a_detector_file_is_taken_apart(tmp_path: Path) -> None:
    content = {f"{BODY}{k}": v for k, v in tensors("convnext_atto").items()} | {"backbone.neck.x": torch.ones(2)}
    found = read_weights(written(tmp_path, content, format=DETECTOR_FORMAT, classes="a\nb"))
    assert found.metadata["classes"] == "a\nb"
    assert list(found.rest) == ["backbone.neck.x"]
    assert "stem.0.weight" in found.body
    plain = read_weights(written(tmp_path, content))
    assert not plain.rest
    assert "backbone.neck.x" in plain.body


HTTP = hub.HTTPError("no route to host")
UNREACHABLE = [
    hub.LocalEntryNotFoundError("cannot find the file\nand more"), hub.OfflineModeIsEnabled("offline"), OSError("dns"),
    TimeoutError("slow"), HTTP, hub.XetDownloadError("broken"), ValueError("odd"),
]  # fmt: skip


@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda e: type(e).__name__)
def test_a_hub_that_cannot_be_reached_is_one_sentence_and_nothing_random(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file, options))
        raise error

    monkeypatch.setattr(weights, "hf_hub_download", download)
    with pytest.raises(BackboneError) as caught:
        build_backbone("deit_tiny_patch16_224", "timm", (64, 64))
    text = str(caught.value)
    assert "the weights of 'deit_tiny_patch16_224' are not in the hub's cache and cannot be had from the hub" in text
    assert str(error).splitlines()[0] in text
    assert "set backbone.weights=FILE" in text
    assert "\n" not in text
    assert asked[0][2] == {"local_files_only": True}
    assert len(asked) == 2


def test_the_cache_is_asked_before_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, tensors("convnext_atto"))

    def download(repo: str, name: str, *, local_files_only: bool = False) -> str:
        assert local_files_only
        return str(file)

    monkeypatch.setattr(weights, "hf_hub_download", download)
    assert hub_file("convnext_atto") == file
    body = build_backbone("convnext_atto", "timm", (32, 32))
    assert torch.equal(body.net.stem[0].weight, load_file(file)["stem.0.weight"])


def test_a_model_without_published_weights_is_an_error() -> None:
    with pytest.raises(BackboneError, match=r"no hub weights for 'vit_base_patch32_plus_256'.*file, or to none"):
        hub_file("vit_base_patch32_plus_256")


SHIPPED = sorted(weights.SHIPPED.glob("street_*.safetensors"))


def test_base_weights_ship() -> None:
    assert [file.stem for file in SHIPPED] == ["street_convnext_atto", "street_vit_tiny_patch16_224"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_weights_are_small_and_those_of_their_card(file: Path) -> None:
    assert file.stat().st_size <= 16 * 2**20
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    facts = read_weights(file).metadata
    for name in ("renderer", "seed", "steps", "crops", "crop_epochs", "crop_accuracy"):
        assert facts[name] in card, name


def test_a_backbone_without_street_weights_is_told_which_have_some() -> None:
    with pytest.raises(BackboneError, match=r"no street weights for 'convnext_tiny'.*one of convnext_atto, vit_tiny"):
        weights.street_file("convnext_tiny")


def test_the_licence_of_base_weights_is_told_with_its_source(tmp_path: Path) -> None:
    assert base_licence("vit_small_patch16_dinov3", "timm") == "dinov3-license (by timm's vit_small_patch16_dinov3)"
    assert base_licence("convnext_atto", "street") == "Apache-2.0 (ships with cvpeft)"
    assert base_licence("convnext_atto", "none") == "none: trained from random weights"
    for metadata, wanted in (
        ({}, "unknown (own.safetensors does not say)"),
        ({"license": "mit"}, "mit (by own.safetensors)"),
    ):
        save_file({"x": torch.zeros(1)}, tmp_path / "own.safetensors", metadata)
        assert base_licence("convnext_atto", tmp_path / "own.safetensors") == wanted
