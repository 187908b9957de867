"""One base, many adapters: each in use gives what its own run gives, and a mix is the sum of what they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cvpeft.config import schema
from cvpeft.detector.bank import AdapterBank
from cvpeft.detector.saved import load_run
from cvpeft.errors import CheckpointError, ConfigError
from cvpeft.peft.adapter import Adapter, walk
from cvpeft.peft.merge import merge
from cvpeft.peft.state import disabled, owned
from cvpeft.train.loop import train
from tests.detector.test_saved import made
from tests.helpers import SIZE, ellipses, settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three cities on one random base, the last of them with another rank."""
    folder = tmp_path_factory.mktemp("bank")
    found = {}
    for seed, city in enumerate(("berlin", "lyon", "oslo")):
        (folder / city).mkdir()
        ellipses(folder / city, 4, seed=seed)
        rank = {"methods": (schema.Method(name="lora", settings={"rank": 3 if city == "oslo" else 2}),)}
        train(settings(folder / city, run={"name": city}, peft=rank))
        found[city] = folder / city / "runs" / city
    return found


def features(model: nn.Module) -> Tensor:
    x = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return next(iter(model.backbone(x).values()))  # type: ignore[operator,union-attr]


def two(runs: dict[str, Path]) -> AdapterBank:
    return AdapterBank({name: runs[name] for name in ("berlin", "lyon")})


def test_each_adapter_gives_what_its_own_run_gives(runs: dict[str, Path]) -> None:
    bank = two(runs)
    assert (bank.names, bank.current) == (("berlin", "lyon"), "berlin")
    for name in ("lyon", "berlin"):
        bank.use(name)
        assert torch.equal(features(bank.model), features(load_run(runs[name]).model))
        assert bank.current == name
    with disabled(bank.model):
        base = features(bank.model)
    assert not torch.equal(base, features(bank.model))


def test_an_exchange_copies_what_the_adapter_owns_and_touches_nothing_else(runs: dict[str, Path]) -> None:
    bank = two(runs)
    tensors = bank.model.state_dict(keep_vars=True)
    before = {key: (tensor.data_ptr(), tensor._version, tensor.clone()) for key, tensor in tensors.items()}
    bank.use("lyon")
    after = bank.model.state_dict(keep_vars=True)
    assert all(after[key] is tensor and tensor.data_ptr() == before[key][0] for key, tensor in tensors.items())
    written = {id(tensor) for key, tensor in tensors.items() if tensor._version > before[key][1]}
    assert written == {id(tensor) for tensor in owned(bank.model).values()}
    assert sum(t.numel() for t in tensors.values() if id(t) not in written) > 3e6  # convnext_atto
    assert all(torch.equal(t, before[key][2]) for key, t in tensors.items() if id(t) not in written)


def test_a_mix_of_one_is_that_one(runs: dict[str, Path]) -> None:
    bank = two(runs)
    for how in ("linear", "svd"):
        bank.mix({"lyon": 1.0}, how)
        assert torch.allclose(features(bank.model), features(load_run(runs["lyon"]).model), atol=1e-4)
        assert bank.current == ""


def changes(model: nn.Module) -> dict[str, Tensor]:
    """What each LoRA adds to its weight."""
    places = [p for p in walk(model) if isinstance(p.module, Adapter) and p.module.method == "lora"]
    return {p.path: merge_of(p.module) - p.module.base.get_parameter("weight") for p in places}


def merge_of(adapter: Adapter) -> Tensor:
    return merge(nn.Sequential(adapter))[0].weight.detach()  # type: ignore[return-value]


def test_svd_sums_the_changes_as_far_as_the_rank_allows(runs: dict[str, Path]) -> None:
    bank = two(runs)
    found = {name: changes(load_run(runs[name]).model) for name in bank.names}
    bank.mix({"berlin": 0.7, "lyon": 0.3})
    for path, change in changes(bank.model).items():
        exact = (0.7 * found["berlin"][path] + 0.3 * found["lyon"][path]).flatten(1)
        u, s, v = torch.linalg.svd(exact, full_matrices=False)
        best = u[:, :2] * s[:2] @ v[:2]  # the nearest of rank 2
        assert torch.allclose(change.flatten(1), best, atol=1e-6), path
        assert s[2] > 0, path  # so that something is cut


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [((), ConfigError, "no run"), (("berlin", "oslo"), CheckpointError, "methods differ")],
)
def test_what_does_not_fit_is_refused(
    runs: dict[str, Path], names: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AdapterBank({name: runs[name] for name in names})


def test_an_unknown_name_is_refused_and_changes_nothing(runs: dict[str, Path]) -> None:
    bank = two(runs)
    before = features(bank.model)
    for wrong in (lambda: bank.use("rome"), lambda: bank.mix({"rome": 1.0}), lambda: bank.mix({})):
        with pytest.raises(ConfigError):
            wrong()
    assert torch.equal(features(bank.model), before)


def test_a_base_with_other_windows_is_another_one(tmp_path: Path) -> None:
    """Its tensors are the same, and what it computes of them is not."""
    (one, model), (other, windowed) = (made(tmp_path / str(side), "lora-vit", window=side) for side in (0, 2))
    assert not torch.equal(features(model), features(windowed))
    with pytest.raises(CheckpointError, match="windows differ"):
        AdapterBank({"one": one, "other": other})
    file = other / "adapter" / "adapter_config.json"
    about = json.loads(file.read_text())
    del about["windows"]  # as older versions wrote it
    file.write_text(json.dumps(about))
    assert AdapterBank({"one": one, "other": other}).names == ("one", "other")
