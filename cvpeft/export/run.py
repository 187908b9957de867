"""A trained run -> a file for deployment: merged on a copy, proven on real images, or nothing at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from cvpeft.backbone.build import Backbone
from cvpeft.backbone.weights import DETECTOR_FORMAT, base_licence, grid_entry
from cvpeft.data.coco import CocoData
from cvpeft.data.loader import eval_loader
from cvpeft.detector.saved import LoadedRun, load_run, name_of
from cvpeft.errors import ConfigError
from cvpeft.eval.report import thresholds
from cvpeft.export.graph import inference_graph
from cvpeft.export.onnx import Form, described
from cvpeft.export.score import proof_data, same_ap, spread
from cvpeft.export.verify import Tolerance, export_verified
from cvpeft.files import replacing, unwritable, write_whole
from cvpeft.peft.foreign import to_hf
from cvpeft.peft.merge import merge, unmergeable

__all__ = [
    "about_run", "adapter_sha256", "ap_entry", "export_hf_run", "export_onnx_run", "export_weights_run", "one_form",
    "said_of", "verification_inputs", "write_weights",
]  # fmt: skip


def export_onnx_run(run: Path, *, overrides: Sequence[str] = ()) -> Path:
    """Write run/export/model.onnx and parity.json, other forms beside them; returns the model's path.

    export.takes, weights, nms and free_size choose the form; those that are not the default stand in the file's name.
    What can be folded into the weights is folded; the metadata says which methods stay in the graph. ParityError, and
    no file, where torch unmerged, torch merged and ONNX Runtime differ on images of val (else of test or train), or
    where the AP of the last two does. Scoring that AP takes as long as two evaluations of `export.ap_images` images.
    """
    loaded = load_run(run, overrides)
    e = loaded.settings.export
    plain = merge(loaded.model, partly=True).eval()
    form = _form(loaded)
    return export_verified(
        loaded.model,
        plain,
        run / "export",
        verification_inputs(loaded, e.verify_images),
        classes=loaded.classes,
        score_thresholds=thresholds(loaded.meta),
        metadata=_metadata(loaded, form, plain),
        form=form,
        opset=e.opset,
        tolerance=Tolerance(score=e.score_tolerance, iou=e.iou_tolerance, threshold=e.verify_score),
        more=lambda path: ap_entry(loaded, plain, path),
    )


def said_of(loaded: LoadedRun) -> dict[str, Any]:
    """The metadata that model.onnx of the run as it is now has, as it is read back."""
    plain, form = merge(loaded.model, partly=True).eval(), _form(loaded)
    entries = described(
        inference_graph(plain),
        loaded.classes,
        thresholds(loaded.meta),
        loaded.settings.export.opset,
        _metadata(loaded, form, plain),
    )
    return dict(json.loads(json.dumps(entries)))


def one_form(loaded: LoadedRun, file: str) -> None:
    """ConfigError where the settings ask for another form than the one that `file` has."""
    form = _form(loaded)
    asked = [f"export.{f.name}" for f in fields(Form) if getattr(form, f.name) != f.default]
    if asked:
        what = f"{' and '.join(asked)} would change nothing: {file} has one form"
        usual = " ".join(
            f"export.{f.name}={str(f.default).lower()}" for f in fields(Form) if f"export.{f.name}" in asked
        )
        raise ConfigError("FORM", what, where=str(loaded.folder), fix=f"set {usual}, or write model.onnx")


def _form(loaded: LoadedRun) -> Form:
    e = loaded.settings.export
    return Form(e.takes, e.weights, e.nms, e.free_size)


def _metadata(loaded: LoadedRun, form: Form, plain: nn.Module) -> dict[str, Any]:
    """What the file says of the run and of what was folded. plain: the run's detector, merged as far as it can be."""
    left = unmergeable(loaded.model)
    methods = sorted({name.split(" at ")[0] for name in left})
    fixed = _fixed_size(loaded, form, plain, left)
    detector = loaded.settings.detector.model_dump(mode="json")  # proposals, say, are seen in no other entry
    return about_run(loaded) | {"merged": not left, "methods_in_graph": methods, "detector": detector, **fixed}


def _fixed_size(loaded: LoadedRun, form: Form, plain: nn.Module, left: Sequence[str]) -> dict[str, str]:
    """Why the file takes one size of input, for its metadata; ConfigError where any was asked for and cannot be.

    left: the methods that could not be folded into `plain`; those on tokens may count on their grid.
    """
    body: Backbone = plain.backbone.body  # type: ignore[union-attr,assignment]
    tokens = left and hasattr(body.net, "patch_embed")
    reason = f"{left[0]} stays in the graph, made for one grid of tokens" if tokens else body.fixed_because
    if not form.free_size:
        return {"size_fixed_because": reason or "export.free_size was not asked for"}
    if reason:
        what = f"{loaded.settings.backbone.name} takes inputs of one size: {reason}"
        fix = "set export.free_size=false, or take a ConvNeXt, a DINOv3 ViT or a Swin"
        raise ConfigError("SIZE", what, where=str(loaded.folder), fix=fix)
    return {}


def about_run(loaded: LoadedRun) -> dict[str, Any]:
    """What an exported file says of the run that it comes from."""
    meta = loaded.meta
    own = loaded.settings.export.licence or "not stated (export.licence)"
    return {
        "run": name_of(loaded.folder),
        "base_model": meta["base"]["name"],
        "base_sha256": meta["base"]["sha256"],
        "adapter_sha256": adapter_sha256(loaded.folder),
        "data_sha256": meta["data"],
        "canvas": loaded.settings.data.canvas,
        "licence": {"base_weights": _base_licence(loaded), "model": own},
    }


def _base_licence(loaded: LoadedRun) -> str:
    return base_licence(loaded.settings.backbone.name, loaded.settings.backbone.weights)


def ap_entry(loaded: LoadedRun, plain: nn.Module, path: Path, *, adapter: Path | None = None) -> dict[str, Any]:
    """The entry "ap" of a proof, if it is wanted: see `same_ap`. plain: the run's detector."""
    count = loaded.settings.export.ap_images
    if not count:
        return {}
    split, data = proof_data(loaded)
    return {"ap": same_ap(plain, path, split, spread(data, count), loaded.settings, adapter=adapter)}


def verification_inputs(loaded: LoadedRun, count: int) -> list[Tensor]:
    """Network inputs (3, H, W) uint8 of val, else test, else train; those with objects come first."""
    data, (_, records) = loaded.settings.data, proof_data(loaded)
    chosen = sorted(records.images, key=lambda image: len(image.boxes) == 0)[:count]
    subset = CocoData(tuple(chosen), records.classes, ())
    inputs = eval_loader(subset, data.size, batch=1, workers=0, canvas=data.canvas)
    return [batch.images[0] for batch in islice(inputs, count)]


def export_weights_run(run: Path, *, overrides: Sequence[str] = ()) -> Path:
    """Write run/export/merged.safetensors: the whole detector in plain keys, without a trace of the methods.

    It loads without cvpeft (timm's and torchvision's names) and serves as `backbone.weights` of another config.
    AdapterError where a method cannot be merged.
    """
    loaded = load_run(run, overrides)
    target = run / "export" / "merged.safetensors"
    plain: nn.Module = merge(loaded.model)
    metadata = {
        "format": DETECTOR_FORMAT,
        "backbone": loaded.settings.backbone.name,
        "classes": "\n".join(loaded.classes),
        "detector": json.dumps(loaded.meta["detector"]),
        "licence": loaded.settings.export.licence or _base_licence(loaded),
        **grid_entry(plain.backbone.body.net),  # type: ignore[union-attr,arg-type]
    }
    write_weights(target, plain.state_dict(), metadata)
    return target


def export_hf_run(run: Path, *, overrides: Sequence[str] = ()) -> Path:
    """Write run/export/peft, a folder that HF peft takes up on the same timm model; returns its tensors' file.

    What was trained in neck and head is not among them: HF peft adapts the backbone alone.
    AdapterError where the methods are not one that HF peft has.
    """
    loaded = load_run(run, overrides)
    config, tensors = to_hf(loaded.model.backbone.body.net)  # type: ignore[union-attr,arg-type]
    folder = run / "export" / "peft"
    about = {"base_model_name_or_path": f"timm/{loaded.settings.backbone.name}"}
    write_weights(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_whole(folder / "adapter_config.json", json.dumps(config | about, indent=1), "the adapter")
    return folder / "adapter_model.safetensors"


def write_weights(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all; ResourceError where it cannot be written."""
    try:
        with replacing(file, "the weights") as part:
            save_file({key: t.detach().contiguous() for key, t in tensors.items()}, part, dict(metadata))
    except SafetensorError as error:  # what it makes of a full disk
        raise unwritable(error, file, "the weights") from error


def adapter_sha256(run: Path) -> str:
    """Of the tensors that a run trained: tells whether an exported file is still of them."""
    with (run / "adapter" / "adapter_model.safetensors").open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
