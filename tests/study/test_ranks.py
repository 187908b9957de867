"""The ranks that are suggested hold what was asked for, and a config with them is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cvpeft.cli import main
from cvpeft.config import schema
from cvpeft.config.load import load
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.detector.saved import load_run
from cvpeft.errors import ConfigError
from cvpeft.export.run import export_weights_run
from cvpeft.peft.adapter import adapters
from cvpeft.peft.inject import signatures
from cvpeft.peft.methods.lora import Lora
from cvpeft.study import ranks
from cvpeft.study.ranks import needed_ranks
from cvpeft.train.loop import train
from cvpeft.types import Site
from tests.helpers import ellipses, settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ellipses(folder, 4)
    method = schema.Method(name="lora", settings={"rank": 6})
    return train(settings(folder, peft={"methods": (method,)}, train={"epochs": 4}))


def test_each_place_gets_the_smallest_rank_that_holds_the_share(run: Path) -> None:
    found = needed_ranks(run, 0.8)
    net = load_run(run).model.backbone.body.net
    assert found.ranks.keys() == adapters(net).keys()
    assert min(found.ranks.values()) < 6
    for path, rank in found.ranks.items():
        (lora,) = adapters(net)[path]
        energy = torch.linalg.svdvals(lora.change.weight()).square()
        assert energy[:rank].sum() >= 0.8 * energy.sum()
        assert energy[: rank - 1].sum() < 0.8 * energy.sum()
    assert (
        found.after
        < found.before
        == sum(p.numel() for stack in adapters(net).values() for p in stack[0].change.parameters())
    )
    assert set(needed_ranks(run, 1.0).ranks.values()) <= set(range(1, 13))


def test_what_is_printed_is_a_config(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(run), "--ranks", "0.8"]) == 0
    text = capsys.readouterr().out
    file = tmp_path / "next.yaml"
    file.write_text(f"data: {{train: train.json}}\n{text}")
    (method,) = load(file, methods=signatures()).peft.methods
    ranks = {
        path: method.settings["patterns"].get(path, {}).get("rank", method.settings["rank"])
        for path in needed_ranks(run, 0.8).ranks
    }
    assert ranks == needed_ranks(run, 0.8).ranks


def test_a_config_of_them_stands_at_the_places_of_the_run(tmp_path: Path) -> None:
    """They need not be those that LoRA takes where none are named."""
    ellipses(tmp_path, 2)
    method = schema.Method(name="dora", targets=("stages.2.blocks.*.mlp.fc1",), settings={"rank": 2})
    one = settings(tmp_path, peft={"methods": (method,)}, train={"epochs": 1})
    found = needed_ranks(train(one))
    file = tmp_path / "next.yaml"
    file.write_text(found.yaml())
    model = build_detector(one, ("good", "broke"))
    sites = adapt(model, load(file, methods=signatures()).peft)
    assert [site.path for site in sites] == [f"stages.2.blocks.{n}.mlp.fc1" for n in range(6)]
    assert [len(adapters(model.backbone.body.net)[path][0].change.A) for path in found.ranks] == [*found.ranks.values()]


def test_the_places_of_a_whole_detector_are_printed_with_its_scope(run: Path, tmp_path: Path) -> None:
    """Below the backbone no path would be found."""
    base = {**load_run(run).settings.backbone.model_dump(), "weights": export_weights_run(run)}
    ellipses(tmp_path, 2)
    whole = settings(tmp_path, backbone=base, peft={"scope": "detector"}, train={"epochs": 1})
    made = train(whole)
    moved = Path(base["weights"]).rename(tmp_path / "moved.safetensors")
    text = needed_ranks(made, 0.995, [f"backbone.weights={moved}"]).yaml()
    moved.rename(base["weights"])
    assert text.startswith("# 99.5% of the change at each place: ")
    file = tmp_path / "next.yaml"
    file.write_text(f"backbone: {{weights: {base['weights']}}}\n{text}")
    peft = load(file, methods=signatures()).peft
    places = [site.path for site in adapt(build_detector(whole, ("good", "broke")), whole.peft)]
    assert [site.path for site in adapt(build_detector(whole, ("good", "broke")), peft)] == places


def test_a_change_that_is_small_beside_its_weight_has_the_rank_that_was_trained() -> None:
    base = nn.Linear(96, 96)
    lora = Lora(base, Site("fc", "mlp.fc1", "BNC"), rank=3)
    nn.init.normal_(lora.change.B, std=1e-6)
    change = ranks._change([lora])
    assert change is not None
    values = torch.linalg.svdvals(change)
    assert (ranks._rank(values, 1.0), ranks._full_rank(values)) == (3, 3)


def test_what_has_no_ranks_is_refused(tmp_path: Path) -> None:
    ellipses(tmp_path, 2)
    folder = train(settings(tmp_path, peft={"mode": "frozen", "methods": ()}, train={"epochs": 1}))
    with pytest.raises(ConfigError, match="no method in it changes a weight"):
        needed_ranks(folder)
    biases = (schema.Method(name="bitfit"),)
    shifted = train(settings(tmp_path, run={"name": "b"}, peft={"methods": biases}, train={"epochs": 1}))
    with pytest.raises(ConfigError, match="no method in it changes a weight"):
        needed_ranks(shifted)
    for keep in (0.0, 1.5):
        with pytest.raises(ConfigError, match="the share is"):
            needed_ranks(folder, keep)
