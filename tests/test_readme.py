"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cvpeft.peft import inject as room
from cvpeft.peft.inject import MethodSpec, freeze, inject, probe
from cvpeft.peft.merge import merge
from cvpeft.peft.state import disabled, load_owned, owned, save_owned
from tests.contracts import cases

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def scale() -> type:
    """The method of the README's section on methods of one's own, as the registry takes it from its file."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "(Adapter)" in block]
    module = ModuleType("cvpeft.peft.methods.scale")
    sys.modules[module.__name__] = module
    exec(compile(code, str(README), "exec"), vars(module))
    yield room._method_of(module)
    del sys.modules[module.__name__]


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov3", "convnext", "swin"])
def test_the_example_of_a_method_in_one_file_keeps_the_contracts(tmp_path: Path, scale: type, family: str) -> None:
    net, x = cases.base(family), cases.images(family)
    plain = cases.features(net, x)
    lora = MethodSpec("lora", settings={"rank": 2})
    inject(net, cases.sites(net), [lora, MethodSpec("scale")], registry={**room.methods(), "scale": scale})
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
