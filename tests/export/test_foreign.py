"""HF peft takes up what was trained here, on the same timm model, and computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.export.run import export_hf_run
from cvpeft.peft.foreign import to_hf
from cvpeft.peft.inject import MethodSpec, freeze, inject
from cvpeft.train.loop import train
from tests.contracts.cases import REFUSED, adapted, base, features, images, sites, trained
from tests.helpers import ellipses, settings

VARIANTS = ("lora", "lora-qv", "lora-pissa", "lora-gated", "dora", "loha", "lokr", "vera", "ia3", "norm")
PAIRS = [
    (variant, family)
    for variant in VARIANTS
    for family in ("deit", "dinov3", "convnext", "convnext_conv", "swin")
    if (variant, family) not in REFUSED and not (variant == "vera" and family == "convnext_conv")  # Linear only there
]


def taken_up(net: nn.Module, plain: nn.Module, folder: Path) -> nn.Module:
    config, tensors = to_hf(net)
    save_file({key: t.detach().contiguous() for key, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return peft.PeftModel.from_pretrained(plain, folder).base_model.model


@pytest.mark.parametrize(("variant", "family"), PAIRS)
def test_the_outsider_computes_the_same(variant: str, family: str, tmp_path: Path) -> None:
    net, x = trained(variant, family), images(family)
    theirs = taken_up(net, base(family), tmp_path)
    with torch.no_grad():
        expected = features(net, x)
        assert (features(theirs.eval(), x) - expected).abs().max() < 1e-5
        assert (features(base(family), x) - expected).abs().max() > 1e-3


def test_ranks_may_differ_from_site_to_site(tmp_path: Path) -> None:
    net, x = base("deit"), images("deit")
    inject(
        net, sites(net), [MethodSpec("lora", settings={"rank": 2, "patterns": {"mlp.fc1": {"rank": 5, "alpha": 3.0}}})]
    )
    freeze(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
        assert (features(taken_up(net, base("deit"), tmp_path), x) - features(net, x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([MethodSpec("mona")], "no such method as mona"),
        ([MethodSpec("lora", ("mlp.fc1",)), MethodSpec("ia3", ("mlp.fc2",))], "one kind in a folder"),
        ([MethodSpec("lora", ("mlp.fc1",)), MethodSpec("loha", ("mlp.fc1",))], "lora and loha stand together"),
        ([], "holds no method"),
    ],
)
def test_what_it_does_not_have_is_refused(specs: list[MethodSpec], message: str) -> None:
    net = base("deit")
    inject(net, sites(net), specs)
    with pytest.raises(AdapterError, match=message):
        to_hf(net)


def test_a_depthwise_change_has_no_counterpart() -> None:
    with pytest.raises(AdapterError, match="no such method as lora"):
        to_hf(adapted("lora-conv", "convnext"))


def test_a_run_is_written_as_a_folder(tmp_path: Path) -> None:
    ellipses(tmp_path, 4)
    train(settings(tmp_path))
    file = export_hf_run(tmp_path / "runs" / "tiny")
    config = json.loads((file.parent / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4.0)
    assert config["base_model_name_or_path"] == "timm/convnext_atto"
    assert all(path.startswith("stages\\.") for path in config["target_modules"].split("|"))
