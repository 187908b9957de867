"""HF peft takes up what was trained here, on the same timm model, and computes the same; and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cvpeft.config import schema
from cvpeft.config.describe import keys
from cvpeft.config.load import dump, load
from cvpeft.detector.saved import load_run
from cvpeft.errors import AdapterError, CheckpointError, ConfigError, CvpeftError
from cvpeft.export.run import export_hf_run
from cvpeft.peft.foreign import methods_of, start_from_hf, to_hf
from cvpeft.peft.inject import MethodSpec, freeze, inject, signatures
from cvpeft.peft.state import owned
from cvpeft.train.loop import train
from tests.contracts.cases import REFUSED, adapted, base, features, images, sites, trained
from tests.helpers import ellipses, settings

VARIANTS = (
    "lora",
    "lora-qv",
    "lora-pissa",
    "lora-gated",
    "dora",
    "loha",
    "lokr",
    "vera",
    "ia3",
    "norm",
    "lokr-whole",
    "adalora",
)
PAIRS = [
    (variant, family)
    for variant in VARIANTS
    for family in ("deit", "dinov3", "convnext", "convnext_conv", "swin")
    if (variant, family) not in REFUSED and not (variant == "vera" and family == "convnext_conv")  # Linear only there
]

# A scale, gate or value that HF peft has no place for is multiplied into float32 tensors, which rounds them.
ROUNDED = {"lokr", "lora-gated", "adalora"}

# Places with other settings have a random pair of their own.
VERA_IN_GROUPS = MethodSpec("vera", settings={"rank": 4, "patterns": {"mlp.fc2": {"start": 0.5}}})


def taken_up(net: nn.Module, plain: nn.Module, folder: Path) -> nn.Module:
    config, tensors = to_hf(net)
    save_file({key: t.detach().contiguous() for key, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return peft.PeftModel.from_pretrained(plain, folder).base_model.model


@pytest.mark.parametrize(("variant", "family"), PAIRS)
def test_the_outsider_computes_the_same(variant: str, family: str, tmp_path: Path) -> None:
    """In float64: in float32 the order of the products alone moves features by 1e-5 on some processors."""
    net, x = trained(variant, family), images(family, torch.float64)
    theirs = taken_up(net, base(family), tmp_path)
    with torch.no_grad():
        expected = features(net.double(), x)
        bound = 1e-5 if variant in ROUNDED else 1e-12
        assert (features(theirs.eval().double(), x) - expected).abs().max() < bound
        assert (features(base(family).double(), x) - expected).abs().max() > 1e-3


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
        ([VERA_IN_GROUPS], r"mlp\.fc2 does not share base_model\.vera_A with blocks\.0\.attn\.qkv.*ONNX, or merged"),
        (
            [MethodSpec("vera", ("mlp.fc1",)), MethodSpec("vera", ("mlp.fc2",))],
            r"fc2 does not share base_model\.vera_A",
        ),
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


@pytest.mark.parametrize("name", ["lora", "dora", "loha", "lokr", "vera", "ia3", "adalora"])
@pytest.mark.parametrize("role", ["conv_dw", "downsample", "mlp.fc1", "mlp.fc2"])
def test_what_is_written_at_a_convolution_is_loaded_or_else_refused(name: str, role: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = base("convnext_conv"), images("convnext_conv")
    inject(net, sites(net), [MethodSpec(name, (role,), {} if name == "ia3" else {"rank": 2})])
    freeze(net)
    with torch.no_grad():
        for tensor in owned(net).values():
            tensor.add_(torch.randn_like(tensor), alpha=0.2)
    if name == "vera" or (role == "conv_dw" and name in ("lora", "dora", "adalora")):
        with pytest.raises(AdapterError, match=f"no such method as {name} at stages") as refusal:
            to_hf(net)
        assert "\n" not in str(refusal.value)
        return
    with torch.no_grad():
        theirs = taken_up(net, base("convnext_conv"), tmp_path).eval()
        assert torch.allclose(features(theirs, x), features(net, x), rtol=1e-4, atol=1e-4)


def test_a_run_is_written_as_a_folder(tmp_path: Path) -> None:
    ellipses(tmp_path, 4)
    train(settings(tmp_path))
    file = export_hf_run(tmp_path / "runs" / "tiny")
    config = json.loads((file.parent / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4.0)
    assert config["base_model_name_or_path"] == "timm/convnext_atto"
    assert all(path.startswith("stages\\.") for path in config["target_modules"].split("|"))


# The way back


TARGETS = r".*\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
THEIRS = {
    "lora": (peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS), {"rank": 4, "alpha": 6.0}),
    "rslora": (
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=TARGETS),
        {"rank": 4, "alpha": 6.0, "scaling": "rank_stabilized"},
    ),
    "dora": (peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=TARGETS), {"rank": 4, "alpha": 6.0}),
    "loha": (peft.LoHaConfig(r=3, alpha=6, target_modules=TARGETS), {"rank": 3, "alpha": 6.0}),
    "lokr": (peft.LoKrConfig(r=2, alpha=3, target_modules=TARGETS), {"rank": 2, "alpha": 3.0}),
    "lokr-whole": (
        peft.LoKrConfig(r=9, alpha=3, decompose_factor=4, target_modules=TARGETS),
        {"rank": 9, "alpha": 3.0, "factor": 4, "whole": True},
    ),
    "lokr-both": (
        peft.LoKrConfig(r=2, alpha=3, decompose_both=True, decompose_factor=8, target_modules=TARGETS),
        {"rank": 2, "alpha": 3.0, "factor": 8, "whole": True},
    ),
    "vera": (peft.VeraConfig(r=4, target_modules=TARGETS), {"rank": 4}),
    "ia3": (
        peft.IA3Config(target_modules=r".*\.(attn\.qkv|mlp\.fc2)", feedforward_modules=r".*\.mlp\.fc2"),
        {"queries": True},
    ),
    "norm": (peft.LNTuningConfig(target_modules=r".*\.norm[12]|norm"), {}),
    "adalora": (
        peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=9, target_modules=TARGETS),
        {"rank": 4, "alpha": 6.0},
    ),
}


METHOD = {"rslora": "lora", "lokr-whole": "lokr", "lokr-both": "lokr"}


def saved(name: str, folder: Path) -> nn.Module:
    """An outsider's model whose every trained tensor has moved, saved by the outsider's own command."""
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base("deit"), THEIRS[name][0])
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs.base_model.model.eval()


def ours(name: str) -> nn.Module:
    net = base("deit")
    targets = ("norm1", "norm2", "norm") if name == "norm" else ()
    inject(net, sites(net), [MethodSpec(METHOD.get(name, name), targets, THEIRS[name][1])])
    freeze(net)
    return net


@pytest.mark.parametrize("name", THEIRS)
def test_what_the_outsider_saved_is_taken_up(name: str, tmp_path: Path) -> None:
    theirs, net, x = saved(name, tmp_path), ours(name), images("deit")
    start_from_hf(net, tmp_path)
    with torch.no_grad():
        assert (features(net, x) - features(theirs, x)).abs().max() < 1e-5
        assert (features(net, x) - features(base("deit"), x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", THEIRS)
def test_method_places_and_ranks_follow_from_the_folder(name: str, tmp_path: Path) -> None:
    theirs, net, x = saved(name, tmp_path), base("deit"), images("deit")
    (spec,) = methods_of(tmp_path)
    assert spec.name == METHOD.get(name, name)
    inject(net, sites(net), [spec])
    freeze(net)
    start_from_hf(net, tmp_path)
    with torch.no_grad():
        assert (features(net, x) - features(theirs, x)).abs().max() < 1e-5
        assert (features(net, x) - features(base("deit"), x)).abs().max() > 1e-3


CONV = r"stages\.\d\.(blocks\.0\.(conv_dw|mlp\.fc[12])|downsample\.1)"
AT_CONV = {
    "lokr": peft.LoKrConfig(r=1, alpha=3, decompose_both=True, use_effective_conv2d=True, target_modules=CONV),
    "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=CONV),
    "lora": peft.LoraConfig(r=2, lora_alpha=3, target_modules=r"stages\.\d\.(blocks\.0\.mlp\.fc[12]|downsample\.1)"),
    "adalora": peft.AdaLoraConfig(
        init_r=2, lora_alpha=3, total_step=9, target_modules=r"stages\.\d\.(blocks\.0\.mlp\.fc[12]|downsample\.1)"
    ),
    "ia3": peft.IA3Config(target_modules=r"stages\.\d\.blocks\.0\.(conv_dw|mlp\.fc2)", feedforward_modules=["mlp.fc2"]),
}


@pytest.mark.parametrize("name", AT_CONV)
def test_convolutions_are_taken_up_from_the_folder_alone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, net = peft.get_peft_model(base("convnext_conv"), AT_CONV[name]), base("convnext_conv")
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    inject(net, sites(net), methods_of(tmp_path))
    freeze(net)
    start_from_hf(net, tmp_path)
    x = images("convnext_conv")
    with torch.no_grad():
        reference = features(theirs.base_model.model.eval(), x)
        assert (features(net, x) - reference).abs().max() < 1e-5
        assert (features(base("convnext_conv"), x) - reference).abs().max() > 1e-3


def test_triplets_that_the_outsider_has_cut_are_left_out(tmp_path: Path) -> None:
    """Two of four at one place and none at another: the scale stays that of the four."""
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=9, target_modules=TARGETS)
    theirs = peft.get_peft_model(base("deit"), config)
    masks = {"blocks.0.attn.qkv": [True, False, False, True], "blocks.1.mlp.fc1": [False] * 4}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for path, mask in masks.items():
            place = theirs.base_model.model.get_submodule(path)
            place.lora_E["default"] *= torch.tensor(mask)[:, None]
    theirs.peft_config["default"].rank_pattern = {f"{path}.lora_E.default": mask for path, mask in masks.items()}
    x = images("deit")
    with torch.no_grad():
        wanted = features(theirs.base_model.model.eval(), x)
    theirs.save_pretrained(tmp_path)
    (spec,) = methods_of(tmp_path)
    assert (spec.settings["rank"], spec.settings["alpha"]) == (4, 6.0)
    assert spec.settings["patterns"] == {
        "blocks.0.attn.qkv": {"rank": 2, "target": 2, "alpha": 3.0},
        "blocks.1.mlp.fc1": {"rank": 1, "target": 1, "alpha": 1.5},
    }
    net = base("deit")
    inject(net, sites(net), [spec])
    start_from_hf(net, tmp_path)
    with torch.no_grad():
        assert (features(net, x) - wanted).abs().max() < 1e-5
        assert (features(net, x) - features(base("deit"), x)).abs().max() > 1e-3
        (again := tmp_path / "again").mkdir()
        assert (features(taken_up(net, base("deit"), again), x) - wanted).abs().max() < 1e-5


def test_scales_that_the_outsider_cannot_tell_apart_are_refused() -> None:
    net = base("deit")
    settings = {"rank": 4, "patterns": {"blocks.1.mlp.fc1": {"alpha": 5.0}}}
    inject(net, sites(net), [MethodSpec("adalora", settings=settings)])
    with pytest.raises(AdapterError, match=r"alpha / rank is 1.25 at blocks.1.mlp.fc1 and 2 elsewhere"):
        to_hf(net)


def test_ranks_and_scales_of_single_places_follow_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    patterns = {"rank_pattern": {"mlp.fc1": 5, "^blocks.1.attn.qkv$": 2}, "alpha_pattern": {"blocks.1.mlp.fc1": 7}}
    theirs = peft.get_peft_model(base("deit"), peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **patterns))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    (spec,) = methods_of(tmp_path)
    assert (spec.settings["rank"], spec.settings["alpha"]) == (4, 6.0)
    assert spec.settings["patterns"] == {
        "blocks.0.mlp.fc1": {"rank": 5, "alpha": 6},
        "blocks.1.mlp.fc1": {"rank": 5, "alpha": 7},
        "blocks.1.attn.qkv": {"rank": 2, "alpha": 6},
    }
    net, x = base("deit"), images("deit")
    inject(net, sites(net), [spec])
    start_from_hf(net, tmp_path)
    with torch.no_grad():
        assert (features(net, x) - features(theirs.base_model.model.eval(), x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "OFT"}, "it holds OFT at 8 places, which no method here takes up"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\], expected text"),
        ({"r": "4"}, "r at blocks.0.attn.proj is '4', expected a number above 0"),
        ({"r": True}, "r at blocks.0.attn.proj is True"),
        ({"r": 2.5}, "rank at blocks.0.attn.proj is 2.5, expected a whole number"),
        ({"rank_pattern": {"(a+)+$": 3}}, r"rank_pattern has '\(a\+\)\+\$', a pattern and no path"),
        ({"alpha_pattern": [3]}, r"alpha_pattern is \[3\], expected an object"),
        ({"use_dora": "yes"}, "use_dora is 'yes', expected true or false"),
        ({"use_qalora": True}, "use_qalora is True, which is not understood"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4', a start that changes the base"),
        ({"lora_dropout": 2}, "lora_dropout is 2, expected"),
        ({"decompose_factor": 0}, "decompose_factor is 0, expected"),
    ],
)
def test_what_a_config_says_otherwise_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    saved("lora", tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        methods_of(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"r": 1, "r": 2}', '{"r": NaN}', '{"a": ' + "[" * 5000 + "]" * 5000 + "}", " " * 2**21]
)
def test_a_hostile_config_ends_in_one_sentence(text: str, tmp_path: Path) -> None:
    saved("lora", tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="no folder of HF peft"):
        methods_of(tmp_path)


def test_heads_saved_beside_the_method_are_refused(tmp_path: Path) -> None:
    saved("lora", tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.head.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"'base_model\.model\.head\.weight' belongs to no method"):
        methods_of(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MethodSpec("lora", settings={"rank": 8}), r"is \(4, 32\), here \(8, 32\).*leave peft\.methods out"),
        (MethodSpec("lora", settings={"rank": 4}), r"alpha at blocks\.0\.attn\.qkv is 6, here 8"),
        (MethodSpec("lora", ("mlp.fc1",), {"rank": 4, "alpha": 6.0}), "tensors are in one of the two alone"),
        (MethodSpec("dora", settings={"rank": 4}), "it holds LORA, the config's methods are LORA with use_dora"),
        (MethodSpec("loha", settings={"rank": 4}), "it holds LORA, the config's methods are LOHA"),
        (MethodSpec("lora", settings={"rank": 4, "alpha": 6.0, "gated": True}), "made of several"),
        (MethodSpec("mona"), "no such method as mona"),
        (VERA_IN_GROUPS, r"mlp\.fc2 does not share base_model\.vera_A"),
    ],
)
def test_another_method_is_refused_and_nothing_changed(spec: MethodSpec, message: str, tmp_path: Path) -> None:
    saved("lora", tmp_path)
    net = base("deit")
    inject(net, sites(net), [spec])
    before = {key: t.clone() for key, t in net.state_dict().items()}
    with pytest.raises(CvpeftError, match=message):
        start_from_hf(net, tmp_path)
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_none_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
        save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        start_from_hf(ours("lora"), tmp_path)


def test_a_run_starts_from_the_folder_of_another(tmp_path: Path) -> None:
    ellipses(tmp_path, 4)
    train(settings(tmp_path))
    folder = export_hf_run(tmp_path / "runs" / "tiny").parent
    still = schema.LearningRates(adapter=1e-30)
    peft_section = {"methods": (schema.Method(name="lora", settings={"rank": 2}),), "from": folder}
    again = settings(tmp_path, run={"name": "again"}, peft=peft_section, train={"epochs": 1, "lr": still, "ema": 0.0})
    train(again)
    one, other = (owned(load_run(tmp_path / "runs" / name).model) for name in ("tiny", "again"))
    moved = [key for key in one if ".lora." in key and not torch.equal(one[key], other[key])]
    assert moved == []
    assert load(tmp_path / "runs" / "again" / "config.resolved.yaml", methods=signatures()).peft.from_ == folder


def test_a_run_without_methods_takes_those_of_the_folder(tmp_path: Path) -> None:
    ellipses(tmp_path, 4)
    train(settings(tmp_path))
    folder = export_hf_run(tmp_path / "runs" / "tiny").parent
    still = schema.LearningRates(adapter=1e-30)
    again = settings(
        tmp_path,
        run={"name": "again"},
        peft={"methods": (), "from": folder},
        train={"epochs": 1, "lr": still, "ema": 0.0},
    )
    train(again)
    one, other = (load_run(tmp_path / "runs" / name) for name in ("tiny", "again"))
    before, after = owned(one.model), owned(other.model)
    assert before.keys() == after.keys()
    assert [key for key in before if ".lora." in key and not torch.equal(before[key], after[key])] == []
    assert [(m.name, m.settings) for m in other.settings.peft.methods] == [("lora", {"rank": 2, "alpha": 4.0})]


def test_a_config_names_the_folder_relative_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("data: {train: t.json}\npeft: {from: hf/covers, methods: [lora]}\n")
    found = load(file, methods=signatures())
    assert found.peft.from_ == tmp_path / "hf" / "covers"
    (tmp_path / "again.yaml").write_text(dump(found))
    assert load(tmp_path / "again.yaml", methods=signatures()) == found
    assert "peft.from" in [key for key, *_ in keys()]
    file.write_text("data: {train: t.json}\npeft: {from: hf}\n")
    assert load(file, methods=signatures()).peft.methods == ()
    file.write_text("data: {train: t.json}\npeft: {mode: full, from: hf}\n")
    with pytest.raises(ConfigError, match=r"peft\.from is 'hf', expected no folder to start from where no methods are"):
        load(file)
    file.write_text("data: {train: t.json}\npeft: {form: hf, methods: [lora]}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'peft\.from'"):
        load(file)
