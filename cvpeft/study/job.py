"""What each command does from end to end: find the config, call the rooms in order, tell the user what lies where."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cvpeft.config import schema
from cvpeft.config.load import load
from cvpeft.config.shipped import find_config
from cvpeft.detector.adapt import as_trained
from cvpeft.detector.device import processor
from cvpeft.detector.saved import RESOLVED, run_folder
from cvpeft.errors import ConfigError, visible
from cvpeft.eval.detect import detect_images
from cvpeft.eval.evaluate import evaluate_run
from cvpeft.export.cities import export_cities, switch_ms
from cvpeft.export.quantize import quantize_run
from cvpeft.export.run import export_hf_run, export_onnx_run, export_weights_run
from cvpeft.peft.inject import signatures
from cvpeft.runtime.search import tell
from cvpeft.study.summary import summary
from cvpeft.train.folder import is_finished, same_run
from cvpeft.train.loop import train

__all__ = ["eval_job", "export_job", "predict_job", "read_settings", "summary_job", "train_job"]

log = logging.getLogger(__name__)
READ = ("data", "backbone", "detector", "eval", "export")  # sections that matter to a run that is trained
TOLD = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def read_settings(config: Path, overrides: Sequence[str] = ()) -> schema.Settings:
    """The checked settings of a config, which may be one that ships with the package."""
    path, note = find_config(config)
    if note:
        print(note, file=sys.stderr)
    return load(path, overrides, methods=signatures())


def train_job(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Make the runs that the config needs, train, score the test data if there is any; returns the run folder."""
    settings = read_settings(config, overrides)
    for need in settings.run.needs:
        _make(need)
    folder = run_folder(settings)
    if not _lacks_only_the_test(settings):
        train(settings)
    if settings.data.test:
        _tell(evaluate_run(folder, split="test"))
    elif settings.data.val:
        figures = folder / "eval" / "val"
        _tell(figures if (figures / "metrics.json").exists() else evaluate_run(folder, split="val"))
    print(f"adapter: {folder / 'adapter'}\nnext:    cvpeft export {_short(folder)}")
    return folder


def _lacks_only_the_test(settings: schema.Settings) -> bool:
    """Whether this very run is trained and was stopped before its test data were scored."""
    folder = run_folder(settings)
    unscored = bool(settings.data.test) and not (folder / "eval" / "test" / "metrics.json").exists()
    return unscored and is_finished(folder) and same_run(folder / RESOLVED, as_trained(settings))


def _make(config: Path) -> None:
    """Train a needed run and write its merged weights, whatever of this is not there yet."""
    settings = read_settings(config)
    folder = run_folder(settings)
    if not is_finished(folder):
        print(f"first, the run that this one stands on: {settings.run.name}", file=sys.stderr)
        train_job(config)
    if not (folder / "export" / "merged.safetensors").exists():
        export_weights_run(folder)


def eval_job(
    source: Path, split: str, files: Sequence[Path], overrides: Sequence[str], *, review: bool = False
) -> Path:
    """Score a run, named by its folder or by its config; returns the folder with the figures."""
    run = _run_of(source, overrides)
    folder = evaluate_run(run, split=split, files=files, overrides=overrides, reviewed=review)
    _tell(folder)
    if review:
        print(f"where the run and the labels disagree: {_short(folder / 'review.html')}")
    return folder


def _run_of(source: Path, overrides: Sequence[str]) -> Path:
    """The run that a command names by its folder, or by its config and the overrides that it was trained with."""
    if source.is_dir():
        return source
    settings = read_settings(source, overrides)
    folder = run_folder(settings)
    if not is_finished(folder):
        raise ConfigError("RUN", f"no finished run at {folder}", where=str(source), fix=f"cvpeft train {source}")
    own = load(folder / RESOLVED, overrides, methods=signatures())
    if changed := [name for name in READ if getattr(settings, name) != getattr(own, name)]:
        what = f"{' and '.join(changed)} not as when the run was trained. The run's own settings are taken"
        log.warning("W-CONFIG %s - %s. Fix: give what shall differ as key=value", source, what)
    return folder


def export_job(run: Path, form: str, overrides: Sequence[str]) -> Path:
    """Export a run and say what was proven; returns the file. form: onnx, int8, weights or peft."""
    write, tell = EXPORTS[form]
    file = write(_run_of(run, overrides), overrides=overrides)
    tell(file)
    print(f"written: {file} ({file.stat().st_size / 2**20:.1f} MiB)")
    return file


def cities_job(base: Path, cities: Sequence[Path], overrides: Sequence[str]) -> list[Path]:
    """Write one base file and an adapter file for each city, and say what was proven."""
    file, *adapters = export_cities(_run_of(base, overrides), cities, overrides=overrides)
    print(f"base: {file} ({file.stat().st_size / 2**20:.1f} MiB)")
    for adapter in adapters:
        parity = json.loads(adapter.with_suffix(".json").read_text(encoding="utf-8"))["parity"]
        share = adapter.stat().st_size / file.stat().st_size
        print(
            f"{adapter}: {adapter.stat().st_size / 2**20:.2f} MiB, {share:.1%} of the base; {parity['boxes']} boxes in "
            f"{parity['images']} images, IoU >= {parity['min_iou']:.6f}, scores within "
            f"{parity['max_score_difference']:.1e} of the merged run"
        )
    print(f"putting another city in takes a running detector {switch_ms(file, adapters):.1f} ms ({processor()})")
    return [file, *adapters]


def _tell_parity(file: Path) -> None:
    proof = json.loads(file.with_name(file.name.replace("model", "parity")).with_suffix(".json").read_text())
    parity, merging, ap = proof["unmerged_onnx"], proof["unmerged_merged"], proof.get("ap")
    print(
        f"merging moves pyramid features by {merging['max_feature_difference']:.1e} at most, "
        f"of values up to {merging['max_feature']:.1f}; "
        f"float32 alone rounds them by {merging['max_rounding']:.1e}, in float64 merging moves them by "
        f"{merging['max_double_difference']:.1e}"
    )
    print(
        f"ONNX Runtime gives the boxes of torch: {parity['boxes']} boxes of score >= {proof['threshold']:.2f} "
        f"in {parity['images']} images, "
        f"IoU >= {parity['min_iou']:.6f}, scores within {parity['max_score_difference']:.1e}"
    )
    if ap:
        print(f"AP on {ap['images']} images of {ap['split']}: ONNX {_number(ap['onnx'])}, torch {_number(ap['torch'])}")


def _tell_int8(file: Path) -> None:
    """Every form that was tried, the kept one marked."""
    proof = json.loads(file.with_name("parity_int8.json").read_text())
    forms, kept = proof["forms"], proof["precision"].removeprefix("int8 ")
    print(f"AP on {proof['scored_on']}; {proof['timed']}\n")
    print(f"{'form':14} {'AP':>6} {'AP50':>6} {'ms':>8} {'speed':>6} {'MiB':>6}")
    for name, f in forms.items():
        speed, mark = forms["fp32"]["ms"] / f["ms"], "  kept" if name == kept else ""
        print(f"{name:14} {f['AP']:6.4f} {f['AP50']:6.4f} {f['ms']:8.1f} {speed:5.2f}x {f['bytes'] / 2**20:6.1f}{mark}")
    if forms[kept]["ms"] >= forms["fp32"]["ms"]:
        print("INT8 is not faster on this processor: measure it where it will run, or deploy model.onnx")


def _silent(_: Path) -> None:
    """Nothing more to say than where the file lies."""


EXPORTS: dict[str, tuple[Callable[..., Path], Callable[[Path], None]]] = {
    "onnx": (export_onnx_run, _tell_parity),
    "int8": (quantize_run, _tell_int8),
    "weights": (export_weights_run, _silent),
    "peft": (export_hf_run, _silent),
}


def predict_job(
    source: Path,
    images: Sequence[str],
    out: Path,
    score: float | None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> int:
    """Detect on photos; 2 where some of them could not be read, after all the others were done.

    options: canvas, one_name, batch and every of `detect_images`.
    """
    return tell(detect_images(source, images, out, score=score, overrides=overrides, **options))


def summary_job(config: Path, overrides: Sequence[str], *, measure: bool) -> None:
    """Print the trainable table of a config."""
    print(visible(summary(read_settings(config, overrides), measure=measure).table()))


def _tell(folder: Path) -> None:
    """The figures of an evaluation on stdout."""
    report: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    print(f"\n{folder.name}: {report['images']} images, {report['boxes']} boxes")
    print("  " + "  ".join(f"{name} {_number(report['coco'][name])}" for name in TOLD))
    for name, row in report["per_class"].items():
        figures = f"AP {_number(row['AP'])}  AP50 {_number(row['AP50'])}  best score {_number(row['threshold'])}"
        print(f"  {visible(name):16} {figures}")
    if len(report["per_domain"]) > 1:
        for name, row in report["per_domain"].items():
            print(f"  in {visible(name):13} AP {_number(row['AP'])}  AP50 {_number(row['AP50'])}")
    alarms = report["false_alarms"]
    if alarms["negative_images"]:
        per_image, images = _number(alarms["per_image"]), alarms["negative_images"]
        print(f"  false alarms per image without objects {per_image}, on {images} such images")
    print(f"figures: {folder}")


def _number(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.3f}"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
