"""Base weights: made once, in float16, without class predictors, and taken up by another config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cvpeft.backbone import weights
from cvpeft.cli import main
from cvpeft.config.load import dump
from cvpeft.detector.build import PREDICTORS, build_detector
from cvpeft.errors import BackboneError, ConfigError, DataError
from cvpeft.study.pretrain import pretrain
from tests.helpers import CLASSES, ellipses, settings

FULL = {"mode": "full", "methods": ()}


def config(folder: Path, **sections: dict[str, object]) -> Path:
    file = folder / "pretrain.yaml"
    file.write_text(dump(settings(folder, **{"peft": FULL, "train": {"epochs": 1}, **sections})))
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    ellipses(folder, 6)
    out = folder / "weights" / "street_convnext_atto.safetensors"
    assert main(["pretrain", str(config(folder)), "--crop-epochs", "1", "--out", str(out)]) == 0
    return out


def test_the_file_says_what_it_is_and_holds_no_class(made: Path) -> None:
    with safe_open(str(made), "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
        assert not [key for key in file.keys() if key.startswith(PREDICTORS)]  # noqa: SIM118
        facts = file.metadata()
    assert facts["format"] == weights.DETECTOR_FORMAT
    assert facts["backbone"] == "convnext_atto"
    assert "classes" not in facts
    assert (facts["steps"], facts["crop_epochs"]) == ("3", "1")


def test_street_takes_backbone_neck_and_trunk_from_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHIPPED", made.parent)
    model = build_detector(settings(made.parents[1], backbone={"weights": "street"}), CLASSES).state_dict()
    with safe_open(str(made), "pt") as file:
        for key in file.keys():  # noqa: SIM118
            assert torch.equal(model[key], file.get_tensor(key).float()), key
    with pytest.raises(BackboneError, match=r"no street weights for 'convnext_tiny'.*one of convnext_atto"):
        weights.street_file("convnext_tiny")


def test_the_same_command_makes_nothing_twice(made: Path) -> None:
    folder = made.parents[1]
    again = folder / "again.safetensors"
    times = {f: f.stat().st_mtime_ns for f in (folder / "runs").rglob("*.safetensors")}
    pretrain(folder / "pretrain.yaml", again, crop_epochs=1)
    one, other = load_file(made), load_file(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert times == {f: f.stat().st_mtime_ns for f in (folder / "runs").rglob("*.safetensors")}


def test_minutes_cut_the_epochs_of_both_parts_once_and_for_all(tmp_path: Path, capsys) -> None:
    ellipses(tmp_path, 6)
    file = config(tmp_path, train={"epochs": 50})
    pretrain(file, tmp_path / "a.safetensors", crop_epochs=50, minutes=0.02)
    crop_epochs, epochs = map(int, re.findall(r"--crop-epochs (\d+) train\.epochs=(\d+)", capsys.readouterr().out)[0])
    assert crop_epochs < 25
    assert epochs < 25
    pretrain(file, tmp_path / "b.safetensors", crop_epochs=50, minutes=0.02)
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as made:
        assert (made.metadata()["steps"], made.metadata()["crop_epochs"]) == (str(3 * epochs), str(crop_epochs))

    with pytest.raises(ConfigError, match=r"fitted\.json - it was made with other settings"):
        pretrain(file, tmp_path / "c.safetensors", crop_epochs=50, minutes=9)


def test_crops_may_be_left_out_and_the_grid_of_a_vit_is_told(tmp_path: Path) -> None:
    ellipses(tmp_path, 2)
    file = config(tmp_path, backbone={"name": "vit_tiny_patch16_224"})
    pretrain(file, tmp_path / "a.safetensors", crop_epochs=0)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as made:
        assert made.metadata()["crop_epochs"] == "0"
        assert made.metadata()["grid"] == "[4, 6]"


def test_a_rendered_yard_teaches_parts_and_hands_its_pyramid_on(tmp_path: Path, caplog) -> None:
    render = {"city": "yard", "train": 3, "size": (128, 160), "parts": True}
    data = {"render": render, "train": (tmp_path / "yard" / "train.json",)}
    file = config(tmp_path, data=data, train={"epochs": 1, "optimizer": "muon"})
    with caplog.at_level("INFO"):
        pretrain(file, tmp_path / "a.safetensors", crop_epochs=1)
    assert "tensors of neck and head taken over" in caplog.text
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as made:
        assert (made.metadata()["parts"], made.metadata()["optimizer"]) == ("True", "muon")
    crops = load_file(tmp_path / "runs" / "tiny_crops" / "backbone.safetensors")
    assert {key.split(".")[1] for key in crops} == {"body", "neck"}


def test_a_file_that_is_there_is_not_lost(made: Path) -> None:
    before = made.read_bytes()
    with pytest.raises(DataError, match="the file is there"):
        pretrain(made.parents[1] / "pretrain.yaml", made)
    assert made.read_bytes() == before


def test_crops_with_formulas_are_of_another_recipe(tmp_path: Path) -> None:
    ellipses(tmp_path, 2)
    pretrain(config(tmp_path), tmp_path / "a.safetensors", crop_epochs=1, formulas=2)
    with pytest.raises(ConfigError, match=r"tiny_crops.*made with other settings or data"):
        pretrain(config(tmp_path), tmp_path / "b.safetensors", crop_epochs=1)


def test_parts_of_another_recipe_are_not_mixed_in(made: Path) -> None:
    folder, out = made.parents[1], made.with_name("other.safetensors")
    with pytest.raises(ConfigError, match=r"tiny_crops.*made with other settings or data"):
        pretrain(folder / "pretrain.yaml", out, crop_epochs=2)
    with pytest.raises(ConfigError, match=r"tiny_crops.*made with other settings or data"):
        pretrain(folder / "pretrain.yaml", out, crop_epochs=1, crop_lr=1e-3)
    with pytest.raises(ConfigError, match=r"tiny_crops.*made with other settings or data"):
        pretrain(folder / "pretrain.yaml", out, crop_epochs=1, overrides=["train.optimizer=muon"])
    with pytest.raises(ConfigError, match=r"runs/tiny - it was made with other settings or data"):
        pretrain(folder / "pretrain.yaml", out, crop_epochs=1, overrides=["train.epochs=2"])
    assert not out.exists()


@pytest.mark.parametrize("sections", [{"peft": {"mode": "frozen", "methods": ()}}, {"backbone": {"weights": "timm"}}])
def test_a_base_is_trained_whole_and_from_nothing(tmp_path: Path, sections: dict[str, dict[str, object]]) -> None:
    ellipses(tmp_path, 2)
    with pytest.raises(ConfigError, match="set full and none"):
        pretrain(config(tmp_path, **sections), tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "wrong", [{"crop_lr": -1.0}, {"crop_lr": float("nan")}, {"formulas": -2}, {"crop_epochs": -1}, {"minutes": 0.0}]
)
def test_numbers_without_a_meaning_are_refused_before_anything_is_made(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"E-PRETRAIN --{next(iter(wrong)).replace('_', '-')} is "):
        pretrain(config(tmp_path), tmp_path / "a.safetensors", **wrong)
    assert not (tmp_path / "a.safetensors").exists()
