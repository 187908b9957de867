"""The trainable table: counts that add up, sizes that the saved files have, memory that was really taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from cvpeft.config.load import load
from cvpeft.config.schema import Settings
from cvpeft.data.loader import Batch
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.detector.saved import describe, save_adapter
from cvpeft.errors import AdapterError, DataError, ResourceError
from cvpeft.peft.inject import signatures
from cvpeft.study.measure import measure_training, saved_bytes
from cvpeft.study.summary import Summary, summary
from tests.study.sets import config


def settings(folder: Path, *overrides: str) -> Settings:
    return load(config(folder), overrides, methods=signatures())


def parts(found: Summary) -> dict[str, int]:
    return {part.name: part.parameters for part in found.parts}


@pytest.mark.parametrize("mode", ["adapters", "frozen", "full"])
def test_parts_are_what_the_optimizer_gets_and_the_file_holds(tmp_path: Path, mode: str) -> None:
    s = settings(tmp_path, f"peft.mode={mode}")
    found = summary(s, measure=False)
    model = build_detector(s, found.classes)
    sites = adapt(model, s.peft)
    assert sum(part.parameters for part in found.parts) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    save_adapter(tmp_path / "adapter", model, describe(model, s, found.classes, [site.path for site in sites]), "")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    with safe_open(file, "pt") as source:
        tensors = sum(source.get_tensor(key).numel() * 4 for key in source.keys())  # noqa: SIM118
    assert sum(part.size for part in found.parts) == tensors
    assert 0 < file.stat().st_size - tensors < 60_000  # the header


def test_modes_differ_where_they_should(tmp_path: Path) -> None:
    adapters, full, frozen = (
        summary(settings(tmp_path, f"peft.mode={mode}"), measure=False) for mode in ("adapters", "full", "frozen")
    )
    rest = parts(frozen)
    assert list(rest) == ["neck", "head"]
    assert parts(full) == {"backbone": full.backbone, **rest}
    assert parts(adapters) == {"adapter: lora": parts(adapters)["adapter: lora"], **rest}
    assert 0 < parts(adapters)["adapter: lora"] < adapters.backbone / 20
    assert (adapters.frozen.parameters, full.frozen.parameters) == (adapters.backbone, 0)
    assert adapters.everything == full.everything + parts(adapters)["adapter: lora"]
    assert not frozen.sites
    assert sum(adapters.sites.values()) > 10


@pytest.mark.parametrize("method", ["partial", "norm", "bitfit", "lora"])
def test_what_is_trained_as_a_copy_is_counted_once(tmp_path: Path, method: str) -> None:
    """Of a plain detector's parameters each is trained or frozen; only what a method adds comes on top."""
    found = summary(settings(tmp_path, f"peft.methods=[{method}]"), measure=False)
    plain = summary(settings(tmp_path, "peft.mode=full"), measure=False).everything
    trained = parts(found)[f"adapter: {method}"]
    added = 0 if method in ("partial", "norm") else trained
    assert found.everything == plain + added
    assert found.frozen.parameters == found.backbone - (trained - added)


def test_every_method_has_its_row(tmp_path: Path) -> None:
    s = settings(tmp_path, "peft.methods=[{lora: {rank: 2}}, {adapter: {}}]")
    found = parts(summary(s, measure=False))
    assert set(found) == {"adapter: lora", "adapter: adapter", "neck", "head"}
    assert min(found.values()) > 0


def test_memory_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    s = settings(tmp_path, "peft.mode=full")
    memory = summary(s, measure=False).memory
    trained = sum(parts(summary(s, measure=False)).values())
    assert (memory.gradients, memory.moments, memory.average) == (4 * trained, 8 * trained, 4 * trained)
    assert 4 * trained <= memory.weights < 4.1 * trained
    wide = summary(settings(tmp_path, "train.precision=bf16"), measure=False)
    narrow = summary(settings(tmp_path, "train.precision=bf16", "train.frozen_dtype=compute"), measure=False)
    saved = wide.memory.weights - narrow.memory.weights
    assert 0.9 * 2 * wide.backbone < saved < 2 * wide.backbone  # all but norms and scales, at half the bytes


def test_muon_holds_one_moment_of_a_matrix(tmp_path: Path) -> None:
    adamw = summary(settings(tmp_path, "peft.mode=full"), measure=False).memory
    muon = summary(settings(tmp_path, "peft.mode=full", "train.optimizer=muon"), measure=False).memory
    assert 0.5 * adamw.moments < muon.moments < 0.6 * adamw.moments
    assert (muon.weights, muon.gradients, muon.average) == (adamw.weights, adamw.gradients, adamw.average)


def test_classes_come_from_the_config_the_json_or_nowhere(tmp_path: Path) -> None:
    assert summary(settings(tmp_path), measure=False).classes == ("good", "broke", "lose")
    named = summary(settings(tmp_path, "data.classes=[good, broke, lose, cracked]"), measure=False)
    assert (len(named.classes), named.classes_from) == (4, "from data.classes")
    absent = summary(settings(tmp_path, "data.train=[later.json]"), measure=False)
    assert len(absent.classes) == 1
    assert "assumed" in absent.table()
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError):
        summary(settings(tmp_path, "data.train=[bad.json]"), measure=False)


def test_no_weights_file_is_needed(tmp_path: Path) -> None:
    assert summary(settings(tmp_path, "backbone.weights=later.safetensors"), measure=False).backbone > 0


def test_a_config_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no_such_place"):
        summary(settings(tmp_path, "peft.methods=[{lora: {targets: [no_such_place]}}]"), measure=False)


def test_saved_bytes_counts_what_backward_needs() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(100))

        def forward(self, images: torch.Tensor, _: object) -> dict[str, torch.Tensor]:
            x = images * self.weight  # keeps images and weight
            return {"one": (x * x[:]).sum(), "two": x.sigmoid().sum()}  # keeps x (once, not three times), its sigmoid

    batch = Batch(torch.ones(100), [], [], [])
    assert saved_bytes(Product(), batch, precision="fp32") == 3 * 400


def test_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    s = settings(tmp_path)
    found = measure_training(s, ("good",))
    assert found.device == "cpu"
    assert 100 < found.before < found.peak
    assert found.activations > 0.1
    table = summary(s, measure=False).table()
    assert "not measured" in table


def test_a_step_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"exit code 1: .*no_such_place"):
        measure_training(settings(tmp_path, "peft.methods=[{lora: {targets: [no_such_place]}}]"), ("good",))


def test_table(tmp_path: Path) -> None:
    found = summary(settings(tmp_path), measure=False)
    table = found.table()
    assert table.splitlines()[0] == "tiny: faster_rcnn on convnext_atto, 64 x 96 px, mode adapters"
    assert "classes: 3 (good, broke, lose), from train.json" in table
    for part in found.parts:
        assert any(line.startswith(part.name) and f"{part.parameters:,}" in line for line in table.splitlines())
    assert max(map(len, table.splitlines())) <= 120
