"""From a file to settings: values, paths, defaults, and every fault with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpeft.config import Settings, dump, load
from cvpeft.config.schema import Method, Peft
from cvpeft.errors import ConfigError
from cvpeft.peft.inject import signatures

from .conftest import GOOD

LORA = "peft: {methods: lora}\n"


def _faults(path: Path, *overrides: str, methods=None) -> list[str]:
    """The lines of the error, each without the final stop."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, methods=methods)
    return [line.removesuffix(".") for line in str(caught.value).splitlines()]


def test_good_file_gives_typed_settings(write, methods):
    settings = load(write(GOOD), methods=methods)
    assert settings.train.lr.adapter == 5e-3
    assert settings.train.lr.backbone == 1e-4
    assert settings.data.size == (320, 480)
    assert settings.data.augment == ({"HorizontalFlip": {"p": 0.5}}, "RandomRain")
    assert settings.data.render
    assert settings.data.render.val == 50
    assert settings.detector.anchor_sizes == (16.0, 32.5, 64.0)
    assert settings.peft.methods == (
        Method(name="lora", targets=("attn.qkv",), settings={"rank": 8, "alpha": 16.0}),
        Method(name="vpt"),
    )
    assert isinstance(settings.peft.methods[0].settings["alpha"], float)


def test_paths_are_absolute(write, folder):
    settings = load(write(GOOD, "configs/x.yaml"))
    assert settings.run.needs == (folder / "configs/base.yaml",)
    assert settings.run.dir == folder / "runs"
    assert settings.data.root == folder / "data"
    assert settings.data.train == (folder / "data/a.json", folder / "data/b.json")
    assert settings.data.val == (folder / "data/val.json",)
    assert settings.backbone.weights == folder / "weights/vit.safetensors"


def test_defaults_that_follow_from_the_file(write, folder):
    settings = load(write(LORA + "data: {train: t.json}", "configs/my run.yaml"))
    assert settings.run.name == "my_run"
    assert settings.data.root == folder / "configs"
    assert settings.data.train == (folder / "configs/t.json",)


def test_home_folder_and_words_that_are_no_paths(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert load(write(LORA + "data: {root: ~/d}")).data.root == Path("/home/someone/d")
    for word in ("timm", "street", "none"):
        assert load(write(LORA + f"backbone: {{weights: {word}}}")).backbone.weights == word


def test_yaml_1_2_scalars(write):
    text = LORA + "data: {classes: [off, NO, 12:30, '5', 2020-01-01, y]}\ntrain: {weight_decay: 1e-4, epochs: 010}\n"
    settings = load(write(text))
    assert settings.data.classes == ("off", "NO", "12:30", "5", "2020-01-01", "y")
    assert settings.train.weight_decay == 1e-4
    assert settings.train.epochs == 10


def test_all_faults_at_once_each_with_its_line(write, methods):
    text = """\
train:
  lr: {adapter: fast}
  epochs: 12.0
  epochs: 3
  precision: fp16
  ema: 1
  clip: .inf
  flip: true
peft:
  methods:
    - lora: {rank: x, alpa: 3}
    - lorra
    - 7
    - pattern
batch: 3
eval:
data:
  size: [416]
  augment: [3]
  render: {size: [1, 2, 3]}
  classes: [a, a]
  workers: !!python/object:os.system x
detector: {anchor_sizes: [64, 32]}
run: {name: ../up}
"""
    head, *lines = _faults(write(text), "train.epoch=3", methods=methods)
    assert head == "E-CONFIG x.yaml - 23 faults"
    assert lines == [
        "x.yaml:2: train.lr.adapter is 'fast', expected a number above 0",
        "x.yaml:3: train.epochs is 12.0, expected a whole number above 0",
        "x.yaml:4: key 'epochs' stands twice, first in x.yaml:3",
        "x.yaml:5: train.precision is 'fp16', expected one of auto, bf16, fp32 (did you mean 'bf16'?)",
        "x.yaml:6: train.ema is 1, expected a number from 0 to below 1",
        "x.yaml:7: train.clip is inf, expected a number of at least 0",
        "x.yaml:8: unknown key 'train.flip' (did you mean 'train.clip'?)",
        "x.yaml:11: peft.methods.0.lora.rank is 'x', expected a whole number",
        "x.yaml:11: unknown key 'peft.methods.0.lora.alpa' (did you mean 'peft.methods.0.lora.alpha'?)",
        "x.yaml:12: unknown method 'lorra' in peft.methods.1 (did you mean 'lora'?)",
        "x.yaml:13: peft.methods.2 is 7, expected a method such as 'lora' or 'lora: {rank: 8}'",
        "x.yaml:14: peft.methods.3.pattern.ranks is missing, expected a mapping of keys",
        "x.yaml:15: unknown key 'batch' (did you mean 'train.batch' or 'eval.batch'?)",
        "x.yaml:16: eval is empty, expected a mapping of keys",
        "x.yaml:18: data.size.1 is missing, expected a whole number above 0",
        "x.yaml:19: data.augment is [3], expected text or a list, each text or a mapping of keys",
        "x.yaml:20: data.render.city is missing, expected text",
        "x.yaml:20: data.render.size is [1, 2, 3], expected a list of 2, each a whole number above 0",
        "x.yaml:21: data.classes is ['a', 'a'], expected distinct names, none of them empty",
        "x.yaml:22: tag '!!python/object:os.system' is refused; a config holds plain values only",
        "x.yaml:23: detector.anchor_sizes is [64, 32], expected sizes that rise from level to level",
        "x.yaml:24: run.name is '../up', expected letters, digits, '_', '-' and '.', the first neither '-' nor '.'",
        "command line: train.epoch=3: unknown key 'train.epoch' (did you mean 'train.epochs'?)",
    ]


def test_one_fault_is_one_sentence(write):
    assert _faults(write(LORA + "peft2: 1")) == [
        "E-CONFIG x.yaml:2 - unknown key 'peft2' (did you mean 'peft'?)",
    ]


def test_key_with_dots_is_told_to_nest(write):
    assert "written with dots; nest it below 'train:'" in _faults(write(LORA + "train.epochs: 3"))[0]


@pytest.mark.parametrize(
    ("peft", "what"),
    [
        ("{}", "peft.methods is empty, and mode 'adapters' needs at least one"),
        ("{methods: []}", "peft.methods is empty"),
        ("{mode: full, methods: [lora]}", "expected no methods in mode full"),
        ("{methods: {lora: {rank: 8}}}", "expected a list, each a method such as"),
        ("{methods: [{lora: 3}]}", "peft.methods.0.lora is 3, expected a mapping of the method's settings"),
        ("{methods: [{lora: {}, vpt: {}}]}", "expected a method such as"),
        ("{methods: [{lora: {targets: [3]}}]}", "peft.methods.0.lora.targets.0 is 3, expected text"),
    ],
)
def test_mode_and_methods_agree(write, peft, what):
    [line] = _faults(write(f"peft: {peft}"))
    assert "x.yaml:1" in line
    assert what in line


def test_method_settings_get_the_types_of_the_signature(write, methods):
    path = write("""\
peft:
  methods:
    - vpt: {blocks: [0, 3]}
    - pattern: {ranks: {fc1: 4}, where: mlp}
    - lora:
""")
    first, second, third = load(path, methods=methods).peft.methods
    assert first.settings == {"blocks": (0, 3)}
    assert second.settings == {"ranks": {"fc1": 4}, "where": ("mlp",)}
    assert third == Method(name="lora")
    wrong = _faults(path, "peft.methods.vpt.blocks=[a]", "peft.methods.pattern.ranks={fc1: 0.5}", methods=methods)
    assert wrong[1].endswith("peft.methods.0.vpt.blocks.0 is 'a', expected a whole number")
    assert wrong[2].endswith("peft.methods.1.pattern.ranks is {'fc1': 0.5}, expected a mapping of keys")


@pytest.mark.parametrize(
    ("special", "what"),
    [
        ("{rank: '8'}", "patterns.attn.qkv.rank is '8', expected a whole number"),
        ("{rank: 8.5}", "patterns.attn.qkv.rank is 8.5, expected a whole number"),
        ("{preset: huge}", "patterns.attn.qkv.preset is 'huge', expected one of default, large, small, ultra_small"),
        ("{scaling: foo}", "patterns.attn.qkv.scaling is 'foo', expected one of rank, rank_stabilized"),
        ("{qkv: vvv}", "patterns.attn.qkv.qkv is 'vvv', expected one of fused, q, k, v"),
        ("{rnk: 3}", "unknown key 'peft.methods.0.lora.patterns.attn.qkv.rnk' (did you mean"),
        ("{patterns: {}}", "unknown key 'peft.methods.0.lora.patterns.attn.qkv.patterns'"),
        ("{targets: [a]}", "unknown key 'peft.methods.0.lora.patterns.attn.qkv.targets'"),
    ],
)
def test_settings_of_a_pattern_are_checked_like_the_others(write, special, what):
    text = "peft:\n  methods:\n    - lora:\n        patterns:\n          attn.qkv: "
    [line] = _faults(write(text + special), methods=signatures())
    assert line.startswith("E-CONFIG x.yaml:5 - ")
    assert what in line
    [method] = load(write(text + "{alpha: 3}"), methods=signatures()).peft.methods
    assert repr(method.settings) == "{'patterns': {'attn.qkv': {'alpha': 3.0}}}"


def test_settings_that_could_do_nothing_are_refused(write):
    for text, what in (
        ("train: {early_stop: 2}", "early_stop 0, as data.val is empty"),
        (
            "backbone: {global_blocks: [3]}",
            "backbone.global_blocks is [3], expected no blocks, as backbone.window is 0",
        ),
        ("detector: {head: fcos, aspect_ratios: [1]}", "detector.aspect_ratios is [1], expected [0.5, 1.0, 2.0]"),
    ):
        [line] = _faults(write(LORA + text))
        assert line.startswith("E-CONFIG x.yaml:2 - ")
        assert what in line
    good = (
        "data: {val: v.json}\ntrain: {early_stop: 2}\nbackbone: {window: 2, global_blocks: [3]}\ndetector: {head: fcos}"
    )
    found = load(write(LORA + good))
    assert load(write(dump(found))) == found


def test_without_signatures_methods_are_taken_as_they_stand(write):
    [method] = load(write("peft: {methods: [{any: {thing: [1, off]}}]}")).peft.methods
    assert method == Method(name="any", settings={"thing": [1, "off"]})


def test_dump_reads_back_equal_from_another_place(write, methods, monkeypatch):
    settings = load(write(GOOD, "configs/x.yaml"), methods=methods)
    copy = write(dump(settings), "elsewhere/config.resolved.yaml").absolute()
    monkeypatch.chdir(copy.parent)
    assert load(copy, methods=methods) == settings


ODD = [
    "? unknown",
    "x\x85y",
    "\u2028",
    "? ",
    "%a",
    "`",
    "- a",
    "'",
    '"',
    "\\",
    "off",
    "5e-3",
    "12:30",
    "null",
    " a: b #c",
    "é道路",
    "<<",
    "=",
    "2020-01-01",
    "-",
    "a\nb\t",
    "x" * 300,
]


@pytest.mark.parametrize("text", ODD)
def test_dump_keeps_odd_texts(write, text):
    settings = load(write(LORA))
    odd = settings.model_copy(update={"data": settings.data.model_copy(update={"classes": (text,)})})
    assert load(write(dump(odd))) == odd


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text(st.characters(codec="utf-8")) | st.sampled_from(ODD), max_size=3))
def test_what_is_dumped_is_read_back(tmp_path_factory, texts):
    found = Settings.model_validate({"data": {"augment": tuple({text: {text: text}} for text in texts)}})
    found = found.model_copy(update={"peft": Peft(mode="full")})
    file = tmp_path_factory.mktemp("dump") / "x.yaml"
    try:
        file.write_text(dump(found), encoding="utf-8", newline="")
        again = load(file)
    except ConfigError:  # characters that no config may hold
        assert not all(text.isprintable() for text in texts)
    else:
        assert again.data.augment == found.data.augment


def test_dump_of_a_file_named_by_a_detour_reads_back_equal(write, folder):
    write(LORA, "configs/x.yaml")
    settings = load(Path("configs/../configs/x.yaml"))
    assert settings.data.root == folder / "configs"
    assert load(write(dump(settings))) == settings


def test_settings_are_frozen(write):
    settings = load(write(LORA))
    assert isinstance(settings, Settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.train.epochs = 3
