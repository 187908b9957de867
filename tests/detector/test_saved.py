"""An adapter folder gives back the very detector, in another process too, or refuses in one sentence."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from cvpeft.config import schema
from cvpeft.config.load import dump
from cvpeft.detector import saved
from cvpeft.detector.adapt import adapt
from cvpeft.detector.build import build_detector
from cvpeft.detector.saved import describe, load_adapter, load_run, run_folder, save_adapter
from cvpeft.errors import CheckpointError, ConfigError, ResourceError
from cvpeft.peft.state import owned
from tests.helpers import CLASSES, settings

from .test_build import CONVNEXT, SWIN, VIT, photos


def method(name: str, **values: Any) -> dict[str, Any]:
    return {"methods": (schema.Method(name=name, settings=values),)}


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "lora-vit": (VIT, method("lora", rank=2), "faster_rcnn"),
    "lora-convnext": (CONVNEXT, method("lora", rank=2), "retinanet"),
    "vpt-vit": (VIT, method("vpt", tokens=2), "faster_rcnn"),
    "adapter-swin": (SWIN, method("adapter", width=4), "fcos"),
    "frozen": (CONVNEXT, {"mode": "frozen", "methods": ()}, "faster_rcnn"),
    "full": (CONVNEXT, {"mode": "full", "methods": ()}, "faster_rcnn"),
}


def made(folder: Path, case: str = "lora-convnext", weights: Path | str = "none", window: int = 0) -> tuple[Path, Any]:
    """A run folder as training leaves it, its tensors moved, and the model itself."""
    body, peft, head = CASES[case]
    s = settings(
        folder,
        backbone={"name": body, "weights": weights, "neck_width": 32, "window": window},
        detector={"head": head, "score_threshold": 0.0},
        peft=peft,
    )
    run = run_folder(s)
    run.mkdir(parents=True)
    (run / "config.resolved.yaml").write_text(dump(s))
    model = build_detector(s, CLASSES)
    sites = adapt(model, s.peft)
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in owned(model).values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.02)
    save_adapter(run / "adapter", model, describe(model, s, CLASSES, [x.path for x in sites]), "# a card\n")
    return run, model.eval()


FRESH = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from cvpeft.detector.saved import load_run
torch.set_num_threads(1)
images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
for run in sys.argv[1:]:
    with torch.no_grad():
        found = load_run(Path(run)).model(images)
    content = {f"{i}.{k}": t for i, one in enumerate(found) for k, t in one.items()}
    save_file(content, Path(run) / "found.safetensors")
"""


def test_another_process_finds_the_very_same_boxes(tmp_path: Path) -> None:
    """Bit for bit, every method and head in one process, since starting one takes most of the time."""
    torch.set_num_threads(1)
    runs = {case: made(tmp_path / case, case) for case in CASES}
    command = [sys.executable, "-c", FRESH, *(str(run) for run, _ in runs.values())]
    subprocess.run(command, check=True, capture_output=True)
    for case, (run, model) in runs.items():
        with torch.no_grad():
            wanted = model(photos())
        found = load_file(run / "found.safetensors")
        assert len(wanted[0]["boxes"]) > 0, case
        for i, one in enumerate(wanted):
            assert all(torch.equal(found[f"{i}.{k}"], t) for k, t in one.items()), case


def test_a_loaded_run_is_ready_to_detect(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    loaded = load_run(run)
    assert loaded.classes == CLASSES
    assert not any(m.training for m in loaded.model.modules())
    assert {t.dtype for t in loaded.model.parameters()} == {torch.float32}
    assert loaded.settings == load_run(run, ["eval.batch=2", "eval.batch=4"]).settings
    assert loaded.meta["preprocessing"]["size"] == [64, 96]
    assert len(loaded.meta["sites"]) == len(set(loaded.meta["sites"])) > 0


def test_the_folder_holds_no_tensor_of_the_base_and_all_of_neck_and_head(tmp_path: Path) -> None:
    run, model = made(tmp_path)
    content = load_file(run / "adapter" / saved.WEIGHTS)
    meta = json.loads((run / "adapter" / saved.CONFIG).read_text())
    assert content.keys() == owned(model).keys() == {k for keys in meta["tensors"].values() for k in keys}
    assert set(meta["tensors"]) == {"adapter", "neck", "head"}
    assert any("cls_logits" in k for k in meta["tensors"]["head"])
    plain = {id(p) for p in model.backbone.body.parameters() if not p.requires_grad}
    assert not plain & {id(t) for t in owned(model).values()}


def base_file(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model(CONVNEXT).state_dict(), folder / "base.safetensors")
    return folder / "base.safetensors"


def test_another_base_is_refused_and_named(tmp_path: Path) -> None:
    file = base_file(tmp_path)
    run, _ = made(tmp_path, weights=file)
    load_run(run)
    base_file(tmp_path, seed=1)
    said = (
        r"E-BASE .*made for base weights \w{12} \(convnext_atto\), these are \w{12}\..*nonsense.*\(base.safetensors\)"
    )
    with pytest.raises(CheckpointError, match=said) as caught:
        load_run(run)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("size", [[96, 64], [64, 128]])
def test_another_size_under_position_embeddings_is_named(tmp_path: Path, size: list[int]) -> None:
    file = tmp_path / "base.safetensors"
    save_file(timm.create_model(VIT, num_classes=0).state_dict(), file)
    for number, weights in enumerate((file, "none")):
        run, _ = made(tmp_path / str(number), "lora-vit", weights)
        said = rf"E-SIZE .* - made at data.size \[64, 96\], which is \{size} now\. .*set data.size=\[64, 96\]"
        with pytest.raises(CheckpointError, match=said):
            load_run(run, [f"data.size={size}"])


def test_a_convnext_is_loaded_at_another_size(tmp_path: Path) -> None:
    run, _ = made(tmp_path, weights=base_file(tmp_path))
    assert load_run(run, ["data.size=[96, 64]"]).settings.data.size == (96, 64)


def test_a_base_that_moved_is_found_by_an_override(tmp_path: Path) -> None:
    file = base_file(tmp_path)
    run, _ = made(tmp_path, weights=file)
    elsewhere = file.rename(tmp_path / "moved.safetensors")
    load_run(run, [f"backbone.weights={elsewhere}"])


def test_other_classes_are_refused(tmp_path: Path) -> None:
    run, model = made(tmp_path)
    for classes in (("broke", "good"), ("good",)):
        with pytest.raises(CheckpointError, match=r"E-CLASSES .*made for the classes \['good', 'broke'\], not \["):
            load_adapter(run / "adapter", model, classes)


def edit_tensors(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As an owner of the file would, checksum and all."""
    loaded = load_run(run)
    content = owned(loaded.model)
    change(content)
    from cvpeft.peft.state import _digest

    tensors = {k: t.detach().contiguous() for k, t in content.items()}
    notes = {"format": "cvpeft-adapter"}
    save_file(tensors, run / "adapter" / saved.WEIGHTS, {**notes, "sha256": _digest(tensors, notes)})


def test_missing_and_foreign_tensors_are_named(tmp_path: Path) -> None:
    run, model = made(tmp_path)
    keys = sorted(owned(model))
    edit_tensors(run, lambda content: [content.pop(k) for k in keys[:7]])
    with pytest.raises(CheckpointError, match="E-KEYS") as caught:
        load_run(run)
    text = str(caught.value)
    assert all(f"missing {k}" in text for k in keys[:5])
    assert keys[5] not in text
    assert "and 2 more" in text


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    run, model = made(tmp_path)
    key = next(k for k in owned(model) if ".lora." in k)
    edit_tensors(run, lambda content: content.update({key: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=rf"{key} is \(3,\) float32, the model has"):
        load_run(run)


def test_a_config_that_was_edited_does_not_fit_its_adapter(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    with pytest.raises(CheckpointError, match="E-KEYS"):
        load_run(run, ["peft.methods.lora.rank=3"])
    with pytest.raises(CheckpointError, match=r"E-KEYS .*not in the model .*\.lora\."):
        load_run(run, ["peft.mode=frozen"])


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_damaged_adapter_is_never_loaded(tmp_path: Path, count: int) -> None:
    run, model = made(tmp_path, "frozen")
    file = run / "adapter" / saved.WEIGHTS
    whole = file.read_bytes()
    before = {k: t.detach().clone() for k, t in owned(model).items()}
    rng = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(count):
        at = rng.randrange(header if rng.random() < 0.5 else len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        content = rng.choice(
            [whole[:at], flipped, flipped, whole[:at] + b"x" + whole[at:], whole[:at] + whole[at + 1 :]]
        )
        file.write_bytes(content)
        if content != whole:
            with pytest.raises(CheckpointError, match=r"\AE-(FILE|KEYS) [^\n]*\Z"):
                load_adapter(run / "adapter", model, CLASSES)
        assert all(torch.equal(t, before[k]) for k, t in owned(model).items())


DAMAGED = ["", "{", "[]", "null", "7", "{}", '"text"', '{"classes": 1, "mode": 1, "preprocessing": 1, "base": []}',
           '{"classes": [], "mode": "x", "preprocessing": {}, "base": {"name": "x"}}', "[" * 2000]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_description_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / saved.CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match="E-ADAPTER") as caught:
        saved.read_config(tmp_path)
    assert caught.value.exit_code == 3
    (tmp_path / saved.CONFIG).write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="E-ADAPTER"):
        saved.read_config(tmp_path)


def test_folders_that_are_no_run_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.resolved.yaml.*runs/"):
        load_run(tmp_path)
    run, _ = made(tmp_path)
    (run / "adapter" / saved.CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_config.json.*finished run"):
        load_run(run)
    (run / "config.resolved.yaml").write_text("run: [")
    with pytest.raises(ConfigError):
        load_run(run)


def test_an_adapter_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    run, model = made(tmp_path)
    meta = json.loads((run / "adapter" / saved.CONFIG).read_text())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="the adapter cannot be written") as caught:
        save_adapter(tmp_path / "file", model, meta, "card")
    assert caught.value.exit_code == 4
