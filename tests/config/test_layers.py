"""extends and overrides: what is merged, what is replaced, and whose paths are whose."""

from __future__ import annotations

import pytest

from cvpeft.config import load
from cvpeft.config.schema import Method
from cvpeft.errors import ConfigError

BASE = """\
run: {needs: first.yaml}
data: {train: a.json, size: [320, 480]}
backbone: {weights: w.safetensors}
peft: {methods: [lora: {rank: 8}, vpt: {}]}
train: {epochs: 5, lr: {neck: 1e-4}}
""".replace("[lora: {rank: 8}, vpt: {}]", "[{lora: {rank: 8}}, vpt]")


def _refused(path, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_extends_merges_mappings_and_replaces_lists(write, folder):
    write(BASE, "base/b.yaml")
    child = write("extends: base/b.yaml\ntrain: {lr: {head: 2e-3}}\npeft: {methods: [vpt]}\nrun: {needs: []}\n")
    settings = load(child)
    assert settings.train.lr.neck == 1e-4
    assert settings.train.lr.head == 2e-3
    assert settings.train.epochs == 5
    assert settings.peft.methods == (Method(name="vpt"),)
    assert settings.run.needs == ()


def test_paths_belong_to_the_file_that_names_them(write, folder):
    write(BASE, "base/b.yaml")
    settings = load(write("extends: base/b.yaml", "x.yaml"))
    assert settings.run.needs == (folder / "base/first.yaml",)
    assert settings.backbone.weights == folder / "base/w.safetensors"
    assert settings.data.train == (folder / "a.json",), "data.root is the main file's folder"
    assert settings.run.name == "x"


def test_override_paths_belong_to_the_working_folder(write, folder):
    path = write(BASE, "configs/b.yaml")
    settings = load(path, ["backbone.weights=w2.safetensors", "data.root=photos", "run.dir=out", "data.val=v.json"])
    assert settings.backbone.weights == folder / "w2.safetensors"
    assert settings.data.train == (folder / "photos/a.json",)
    assert settings.data.val == (folder / "photos/v.json",)
    assert settings.run.dir == folder / "out"


def test_chain_of_files(write):
    write("extends: c.yaml\ntrain: {batch: 2, epochs: 2}", "b.yaml")
    write("train: {batch: 3, epochs: 3, accumulate: 3}\npeft: {methods: lora}", "c.yaml")
    train = load(write("extends: b.yaml\ntrain: {batch: 1}")).train
    assert (train.batch, train.epochs, train.accumulate) == (1, 2, 3)


def test_faults_name_the_file_where_the_value_stands(write):
    write(BASE + "eval: {btch: 3}\n", "base/b.yaml")
    message = _refused(write("extends: base/b.yaml\n\ntrain: {lr: {neck: x}}"))
    assert "base/b.yaml:6: unknown key 'eval.btch' (did you mean 'eval.batch'?)." in message
    assert "x.yaml:3: train.lr.neck is 'x', expected a number above 0." in message


def test_extends_that_leads_nowhere(write):
    write("extends: x.yaml", "back.yaml")
    assert "leads back to a file that extends this one" in _refused(write("extends: back.yaml"))
    message = _refused(write("a: 1\nextends: bck.yaml"))
    assert message.startswith("E-CONFIG x.yaml:2 - ")
    assert "does not exist (did you mean 'back.yaml'?)" in message
    assert "expected the path of one YAML file" in _refused(write("extends: [a, b]"))
    for index in range(9):
        write(f"extends: f{index + 1}.yaml", f"f{index}.yaml")
    assert "more than 8 files" in _refused(write("extends: f0.yaml"))


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.lr.adapter=5e-3", "train", "lr.adapter", 5e-3),
        ("data.size=[416,640]", "data", "size", (416, 640)),
        ("data.size.0=416", "data", "size", (416, 480)),
        ("data.classes=off", "data", "classes", ("off",)),
        ("train={epochs: 9, lr: {head: 1}}", "train", "lr.neck", 1e-4),
        ("data.render.city=b", "data", "render.city", "b"),
        ("run.name=a=b", "run", "name", None),
    ],
)
def test_override_sets_one_value(write, override, section, key, value):
    path = write(BASE)
    if value is None:
        assert "run.name is 'a=b'" in _refused(path, override)
        return
    found = getattr(load(path, [override]), section)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_override_of_methods(write):
    path = write(BASE)

    def methods(*overrides):
        return load(path, overrides).peft.methods

    assert methods("peft.methods.0.lora.rank=4")[0].settings == {"rank": 4}
    assert methods("peft.methods.lora.alpha=4")[0].settings == {"rank": 8, "alpha": 4}
    assert methods("peft.methods.vpt.targets=block")[1] == Method(name="vpt", targets=("block",))
    assert methods("peft.methods.1=adapter")[1] == Method(name="adapter")
    assert methods("peft.methods=lora", "peft.methods.lora.rank=2") == (Method(name="lora", settings={"rank": 2}),)


def test_plain_mode_in_a_later_layer_clears_the_methods(write):
    path = write(BASE)
    for mode in ("full", "frozen"):
        assert load(path, [f"peft.mode={mode}"]).peft.methods == ()
        assert load(write(f"extends: x.yaml\npeft: {{mode: {mode}}}", "y.yaml")).peft.methods == ()
    assert "no methods in mode full" in _refused(path, "peft={mode: full, methods: lora}")
    assert "there is no 'lora' in peft.methods" in _refused(path, "peft.mode=full", "peft.methods.lora.rank=3")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("train..epochs=3", "expected key=value"),
        (".".join("a" * 500) + "=3", "expected key=value"),
        ("train.epochs=[", "not YAML"),
        ("train.epochs=", "train.epochs is empty, expected a whole number above 0"),
        ("train.epochs=-1", "train.epochs is -1, expected a whole number above 0"),
        ("train.epochs.deep=1", "train.epochs is {'deep': 1}, expected a whole number above 0"),
        ("train.epochs=!!python/name:os.system", "is refused"),
        ("extends=y.yaml", "unknown key 'extends'"),
        ("data.size.2=3", "there is no entry '2' in a list of 2, counted from 0"),
        ("data.size." + "9" * 5000 + "=3", "in a list of 2"),
        ("peft.methods.lroa.rank=3", "there is no 'lroa' in peft.methods (did you mean 'lora'?)"),
        ("peft.methods.0.rank=3", "expected a method such as 'lora'"),
        ("train.\udcff=3", "a lone surrogate"),
    ],
)
def test_faulty_override_is_told_with_its_text(write, override, what):
    message = _refused(write(BASE), override)
    assert message.startswith("E-CONFIG command line: " + override[:60])
    assert what in message


def test_method_that_stands_twice_needs_its_index(write):
    path = write("peft: {methods: [lora, lora]}")
    assert "more than once in peft.methods" in _refused(path, "peft.methods.lora.rank=3")
    assert load(path, ["peft.methods.1.lora.rank=3"]).peft.methods[1].settings == {"rank": 3}


@pytest.mark.parametrize("change", ["peft.mode=full", "peft.mode=frozen", "peft.methods=[lora]"])
def test_a_folder_to_start_from_does_not_outlive_its_methods(write, change):
    path = write("peft: {from: hf}")
    assert load(path, [change]).peft.from_ is None
    key, value = change.removeprefix("peft.").split("=")
    above = write(f"extends: x.yaml\npeft: {{{key}: {value}}}", "y.yaml")
    assert load(above).peft.from_ is None


def test_a_folder_that_is_named_with_its_methods_stays(write, folder):
    path = write("peft: {from: hf, methods: [lora: {rank: 2}]}")
    assert load(path, ["peft.methods.lora.rank=4"]).peft.from_ == folder / "hf"
    above = write("extends: x.yaml\npeft: {from: other, methods: [lora]}", "y.yaml")
    assert load(above).peft.from_ == folder / "other"
