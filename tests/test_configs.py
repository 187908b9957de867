"""The configs that ship: each opens with the command that runs it, and its detector can be built and adapted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvpeft.config.load import load
from cvpeft.config.shipped import shipped_configs
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.peft.inject import signatures

CONFIGS = shipped_configs()


def test_they_are_those_of_the_checkout() -> None:
    folder = Path(__file__).parents[1] / "configs"
    assert set(CONFIGS) == {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_with_its_command(name: str) -> None:
    first = CONFIGS[name].read_text("utf-8").splitlines()[0]
    compares = name.endswith("_methods.yaml")
    command = "pretrain" if name.startswith("pretrain_") else "compare" if compares else "train"
    assert first.startswith(f"# cvpeft {command} configs/{name}")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_detector_of_a_config_stands(name: str) -> None:
    """With random weights where those of the config are not at hand: from the hub, or a file that does not ship."""
    settings = load(CONFIGS[name], methods=signatures())
    if settings.backbone.weights != "street":
        settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"weights": "none"})})
    model = build_detector(settings, ("good", "broke"))
    sites = adapt(model, settings.peft)
    assert bool(sites) == (settings.peft.mode == "adapters")
