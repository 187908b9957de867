"""Exports of whole runs, where the run itself does not matter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cvpeft.errors import ResourceError
from cvpeft.export import run


def loaded(width):
    settings = SimpleNamespace(backbone=SimpleNamespace(name="some_net"), export=SimpleNamespace(licence="CC0"))
    return SimpleNamespace(model=nn.Linear(width, width), settings=settings, classes=("good",), meta={"detector": {}})


def test_a_disk_that_is_full_keeps_the_old_weights_and_is_one_sentence(small_disk, monkeypatch):
    monkeypatch.setattr(run, "load_run", lambda *_: loaded(3))
    file = run.export_weights_run(small_disk)
    before = load_file(file)
    monkeypatch.setattr(run, "load_run", lambda *_: loaded(1000))
    with pytest.raises(ResourceError, match=r"E-DISK .*merged\.safetensors - the weights cannot be written"):
        run.export_weights_run(small_disk)
    assert [p.name for p in file.parent.iterdir()] == ["merged.safetensors"]
    assert torch.equal(load_file(file)["weight"], before["weight"])
