"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cvpeft.config.load import load
from cvpeft.errors import ConfigError
from cvpeft.peft import inject as room
from cvpeft.peft.inject import MethodSpec, freeze, inject, probe
from cvpeft.peft.merge import merge
from cvpeft.peft.state import disabled, load_owned, owned, save_owned
from tests.contracts import cases

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.mark.parametrize(
    ("readme", "words"),
    [
        ("README.md", r"on all linears of the backbone from block\s+(\d+) on.*?(\d+) epochs over 390 photographs"),
        ("README.zh.md", r"骨干自第 (\d+) 块起.*?390 张巴西公路照片上训练 (\d+) 轮"),
    ],
)
def test_the_figures_on_photographs_are_those_of_the_config_as_it_stands(readme: str, words: str) -> None:
    settings = load(ROOT / "configs/potholes_lora.yaml", methods=room.signatures())
    (lora,) = settings.peft.methods
    (first,) = {found[1] for target in lora.targets if (found := re.match(r"blocks\.\[(\d)-9\]", target))}
    found = re.search(words, (ROOT / readme).read_text("utf-8"), re.DOTALL)
    assert found is not None
    assert found.groups() == (first, str(settings.train.epochs))


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The method of the README's section on methods of one's own, dropped as a file into a folder of methods."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "(Adapter)" in block]
    folder = tmp_path_factory.mktemp("methods")
    (folder / "scale.py").write_text(code, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.folder, "__path__", [*room.folder.__path__, str(folder)])
        room.methods.cache_clear()
        yield "scale"
    room.methods.cache_clear()
    sys.modules.pop("cvpeft.peft.methods.scale", None)


def test_the_file_alone_makes_it_a_method_of_configs(tmp_path: Path, scale: str) -> None:
    assert scale in room.methods()
    file = tmp_path / "one.yaml"
    file.write_text("data: {train: train.json}\npeft: {methods: [{scale: {start: 1.5, targets: [mlp.fc2]}}]}\n")
    (method,) = load(file, methods=room.signatures()).peft.methods
    assert (method.name, method.targets, method.settings) == ("scale", ("mlp.fc2",), {"start": 1.5})
    file.write_text("data: {train: train.json}\npeft: {methods: [{scale: {strat: 1.5}}]}\n")
    with pytest.raises(ConfigError, match=r"strat.*did you mean .*start"):
        load(file, methods=room.signatures())


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov3", "convnext", "swin"])
def test_the_example_of_a_method_in_one_file_keeps_the_contracts(tmp_path: Path, scale: str, family: str) -> None:
    net, x = cases.base(family), cases.images(family)
    plain = cases.features(net, x)
    lora = MethodSpec("lora", settings={"rank": 2})
    inject(net, cases.sites(net), [lora, MethodSpec(scale)])
    freeze(net)
    probe(net, lambda: cases.features(net, x))
    assert torch.equal(cases.features(net, x), plain)
    with torch.no_grad():
        for tensor in owned(net).values():
            tensor.add_(torch.randn_like(tensor), alpha=0.2)
    moved = cases.features(net, x)
    assert not torch.allclose(moved, plain)
    assert torch.allclose(cases.features(merge(net), x), moved, atol=1e-4)
    save_owned(tmp_path / "a.safetensors", net)
    load_owned(tmp_path / "a.safetensors", net)
    with disabled(net):
        assert torch.equal(cases.features(net, x), plain)
