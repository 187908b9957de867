"""Exports of whole runs, where the run itself does not matter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from cvpeft.backbone.build import build_backbone
from cvpeft.errors import ResourceError
from cvpeft.export import run
from tests.detector.test_build import VIT
from tests.detector.test_saved import made


def loaded(width):
    settings = SimpleNamespace(backbone=SimpleNamespace(name="some_net"), export=SimpleNamespace(licence="CC0"))
    model = nn.Linear(width, width)
    model.backbone = SimpleNamespace(body=SimpleNamespace(net=nn.Identity()))
    return SimpleNamespace(model=model, settings=settings, classes=("good",), meta={"detector": {}})


def test_a_disk_that_is_full_keeps_the_old_weights_and_is_one_sentence(small_disk, monkeypatch):
    monkeypatch.setattr(run, "load_run", lambda *_: loaded(3))
    file = run.export_weights_run(small_disk)
    before = load_file(file)
    monkeypatch.setattr(run, "load_run", lambda *_: loaded(1000))
    with pytest.raises(ResourceError, match=r"E-DISK .*merged\.safetensors - the weights cannot be written"):
        run.export_weights_run(small_disk)
    assert [p.name for p in file.parent.iterdir()] == ["merged.safetensors"]
    assert torch.equal(load_file(file)["weight"], before["weight"])


def test_merged_weights_of_a_vit_are_a_base_at_every_size(tmp_path):
    folder, model = made(tmp_path, "lora-vit")
    file, positions = run.export_weights_run(folder), model.backbone.body.net.pos_embed
    for size in ((64, 96), (96, 64), (64, 128)):
        wanted = resample_abs_pos_embed(positions, [size[0] // 16, size[1] // 16], [4, 6], num_prefix_tokens=1)
        assert torch.equal(build_backbone(VIT, file, size).net.pos_embed, wanted)
