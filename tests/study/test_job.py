"""The commands from end to end on a run of seconds: what they find, what they leave alone, what they take up again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from cvpeft import __version__
from cvpeft.backbone.weights import base_licence
from cvpeft.detector.saved import load_run, run_folder
from cvpeft.errors import ConfigError, ParityError
from cvpeft.eval import plots
from cvpeft.eval.report import report, write_report
from cvpeft.export import quantize
from cvpeft.export.run import about_run, export_onnx_run, export_weights_run
from cvpeft.peft.state import owned, save_owned
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.study import job
from cvpeft.study.ranks import needed_ranks
from tests.helpers import ellipses

CONFIG = """
data: {{root: "{root}", train: train.json, val: val.json, test: test.json, size: [64, 96], augment: flip, workers: 0}}
backbone: {{name: {body}, weights: none, neck_width: {neck}}}
peft: {{methods: [{method}]}}
detector: {{head: {head}, head_width: 32, proposals: 60, anchor_sizes: {anchors}}}
train: {{epochs: {epochs}, batch: 2, device: cpu, precision: fp32, lr: {{adapter: 5e-3, neck: 3e-3, head: 3e-3}}}}
eval: {{latency_images: 0}}
export: {{verify_images: 4}}
"""


@pytest.fixture(scope="module", autouse=True)
def _no_plots() -> object:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("precision_recall", "confusion"):
            patch.setattr(plots, name, lambda _: b"")
        yield


def config(folder: Path, *, epochs: int = 2, head: str = "faster_rcnn", **parts: str) -> Path:
    for name, count in (("train", 8), ("val", 4), ("test", 4)):
        ellipses(folder, count, name=name)
    anchors = "[8, 16, 32, 64]" if head == "faster_rcnn" else "[16, 32, 64]" if head == "retinanet" else "[]"
    neck = "32" if head == "fcos" else "16"  # its towers are normalised in 32 groups
    values = {"body": "convnext_atto", "method": "lora: {rank: 2}", "neck": neck} | parts
    file = folder / "tiny.yaml"
    file.write_text(CONFIG.format(root=folder, epochs=epochs, head=head, anchors=anchors, **values))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run that has been trained, scored and exported, beside its data and `runs`."""
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        job.train_job(config(folder, epochs=10))
        job.export_job(folder / "tiny.yaml", "onnx", ())
    return folder / "tiny.yaml"


def test_other_forms_have_names_and_proofs_of_their_own(there: Path) -> None:
    """Bytes in, half the size, any size of input, candidates out; model.onnx stays as it is."""
    export = there / "runs/tiny/export"
    before = {file: file.read_bytes() for file in export.iterdir() if file.is_file()}
    overrides = ("export.takes=uint8", "export.weights=fp16", "export.nms=false", "export.free_size=true")
    made = job.export_job(there / "runs/tiny", "onnx", overrides)
    assert made.name == "model_uint8_fp16_raw_any_size.onnx"
    proof = json.loads(made.with_name("parity_uint8_fp16_raw_any_size.json").read_text())
    assert list(proof["other_sizes"]) == ["64 x 64", "96 x 128"]
    assert all(found["boxes"] for found in proof["other_sizes"].values())
    assert {file: file.read_bytes() for file in before} == before
    assert made.stat().st_size < 0.7 * (export / "model.onnx").stat().st_size


CONTRACT = {  # key -> what it must be, or a part of it; a program is fed and a reviewer informed by nothing else
    "cvpeft_version": __version__,
    "opset": 18,
    "task": "detect",
    "classes": ["good", "broke"],
    "first_label": 1,
    "input_size": [64, 96],
    "input_layout": "NCHW",
    "input_dtype": "float32",
    "input_range": [0, 255],
    "color_order": "RGB",
    "resize": "letterbox",
    "pad_value": 114,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "normalisation": "inside the graph: (images / 255 - mean) / std",
    "box_format": "xyxy, pixels of the input",
    "score_threshold": float,
    "score_thresholds": {"good": float, "broke": float},
    "nms": {"inside": True, "iou": float, "per_class": True, "max_detections": int},
    "dynamic_axes": {"batch": "free", "height": "fixed", "width": "fixed"},
    "free_size": None,
    "size_fixed_because": "export.free_size was not asked for",
    "canvas": None,
    "merged": True,
    "methods_in_graph": [],
    "detector": dict,
    "run": "tiny",
    "base_model": "convnext_atto",
    "base_sha256": re.compile("[0-9a-f]{64}"),
    "adapter_sha256": re.compile("[0-9a-f]{64}"),
    "data_sha256": re.compile("[0-9a-f]{64}"),
    "licence": {"base_weights": "none: trained from random weights", "model": "not stated (export.licence)"},
}


def fulfils(said: object, wanted: object) -> bool:
    """Whether metadata say what the contract wants: a value, a type, a pattern, or a mapping of these."""
    if isinstance(wanted, dict):
        return (
            isinstance(said, dict)
            and said.keys() == wanted.keys()
            and all(map(fulfils, said.values(), wanted.values()))
        )
    if isinstance(wanted, type):
        return type(said) is wanted
    return bool(wanted.fullmatch(said)) if isinstance(wanted, re.Pattern) else said == wanted


def test_the_metadata_are_the_whole_contract(there: Path) -> None:
    run = there / "runs/tiny"
    said = Detector(run / "export/model.onnx").metadata
    assert said.keys() == CONTRACT.keys()
    assert {key: value for key, value in said.items() if not fulfils(value, CONTRACT[key])} == {}
    assert (
        said["adapter_sha256"] == hashlib.sha256((run / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()
    )


def test_the_users_licence_stands_in_every_form(there: Path) -> None:
    run = there / "runs/tiny"
    loaded = load_run(run, ["export.licence=CC-BY-4.0, city of Lyon"])
    assert about_run(loaded)["licence"]["model"] == "CC-BY-4.0, city of Lyon"
    file = export_weights_run(run, overrides=["export.licence=CC-BY-4.0"])
    assert base_licence("convnext_atto", file) == "CC-BY-4.0 (by merged.safetensors)"


@pytest.fixture
def there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `trained`, entered."""
    monkeypatch.chdir(trained.parent)
    return trained.parent


def test_the_export_of_a_trained_run_is_proven_against_its_real_merge(there: Path) -> None:
    proof = json.loads((there / "runs/tiny/export/parity.json").read_text())
    assert proof["unmerged_onnx"]["boxes"] > 0
    assert proof["unmerged_onnx"]["missing"] == proof["unmerged_onnx"]["extra"] == 0
    merging = proof["unmerged_merged"]
    assert 0 < merging["max_feature_difference"] <= 1e-5
    assert merging["max_feature_difference"] < merging["max_bf16_difference"] < merging["max_feature"]
    assert 0 < merging["max_double_difference"] <= 1e-6 * merging["max_feature"]
    ap = proof["ap"]
    assert (ap["split"], ap["images"]) == ("val", 4)
    assert ap["difference"] == abs(ap["torch"] - ap["onnx"]) <= ap["allowed"] == 0.0005


def test_int8_is_scored_and_timed_in_every_form_and_one_is_kept(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job.export_job(there / "runs/tiny", "int8", ["export.int8_max_ap_drop=1", "export.int8_images=6"])
    told = capsys.readouterr().out
    proof = json.loads(file.with_name("parity_int8.json").read_text())
    assert list(proof["forms"]) == ["fp32", "static", "dynamic"]
    assert all(re.search(rf"^{name} +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+x", told, re.MULTILINE) for name in proof["forms"])
    assert told.count("  kept\n") == 1
    about, plain = (Detector(path).metadata for path in (file, file.with_name("model.onnx")))
    assert about.items() > plain.items()
    kept = min(("static", "dynamic"), key=lambda form: proof["forms"][form]["ms"])
    assert about["precision"] == proof["precision"] == f"int8 {kept}"
    assert about["calibration_images"] == (6 if kept == "static" else 0)
    assert (about["fp32_AP"], about["int8_AP"]) == tuple(proof["forms"][form]["AP"] for form in ("fp32", kept))
    assert proof["model_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_int8_that_loses_too_much_leaves_an_older_file_alone(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = there / "runs/tiny/export"
    (folder / "model_int8.onnx").write_bytes(b"old model")
    (folder / "parity_int8.json").write_text("old figures")
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    aps = iter((0.5, 0.48, 0.45))
    monkeypatch.setattr(quantize, "onnx_ap", lambda *_, **__: {"coco": {"AP": next(aps), "AP50": 0.9}})
    monkeypatch.setattr(quantize, "export_onnx_run", lambda *_, **__: pytest.fail("model.onnx was proven already"))
    with pytest.raises(ParityError, match=r"static 0\.4800 \(-0\.0200.* dynamic 0\.4500 \(-0\.0500.*0\.01 may be lost"):
        job.export_job(there / "runs/tiny", "int8", ())
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    "change",
    [
        "data.size=[64, 128]",
        "adapter",
        "parity.json",
        "export.licence=CC0",
        "detector.max_detections=7",
        "detector.proposals=20",
    ],
)
def test_int8_is_made_of_a_file_that_was_proven_for_this_run(
    there: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run = there / "changed" / "tiny"  # of the same name, which the file says too
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(there / "runs/tiny", run)
    if change == "parity.json":
        (run / "export" / change).write_text('{"model_sha256": "0"}')
    elif change == "adapter":
        model = load_run(run).model
        with torch.no_grad():
            for tensor in owned(model).values():
                tensor.mul_(1.5)
        save_owned(run / "adapter/adapter_model.safetensors", model)  # whole, with its checksum

    def export(folder: Path, **_: object) -> Path:
        raise InterruptedError(folder)

    monkeypatch.setattr(quantize, "export_onnx_run", export)
    with pytest.raises(InterruptedError, match="changed"):
        job.export_job(run, "int8", [change] if "=" in change else ())


@pytest.mark.parametrize(
    "form", ["export.takes=uint8", "export.weights=fp16", "export.nms=false", "export.free_size=true"]
)
def test_int8_has_one_form_and_refuses_others(there: Path, form: str) -> None:
    run = there / "runs/tiny"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=rf"{form.partition('=')[0]} would change nothing: model_int8\.onnx has one"):
        job.export_job(run, "int8", [form])
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_config_and_its_overrides_name_the_run(there: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished run at .*runs/other"):
        job.eval_job(there / "tiny.yaml", "test", (), ["run.name=other"])
    with pytest.raises(ConfigError, match=r"no finished run at .*runs/other"):
        job.export_job(there / "tiny.yaml", "weights", ["run.name=other"])


def test_a_config_that_has_changed_since_is_told(there: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The figures are those of the run's own data, whatever its config names by now."""
    file = there / "tiny.yaml"
    before = file.read_text()
    file.write_text(before.replace("test: test.json", "test: val.json"))
    try:
        folder = job.eval_job(file, "test", (), ["detector.nms_iou=0.4"])
    finally:
        file.write_text(before)
    assert json.loads((folder / "metrics.json").read_text())["files"] == [f"{there}/test.json"]
    assert "tiny.yaml - data not as when the run was trained. The run's own settings are taken" in caplog.text
    caplog.clear()
    job.eval_job(file, "test", (), ["detector.nms_iou=0.4"])
    assert "W-CONFIG" not in caplog.text


def test_figures_are_told_in_any_locale(tmp_path: Path) -> None:
    """They are written in UTF-8; the locale's own encoding, GBK say, reads something else or nothing."""
    truth = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "井盖"}]}
    write_report(tmp_path, report(truth, [], ("井盖",)), [])
    code = f"from pathlib import Path; from cvpeft.study.job import _tell; _tell(Path({str(tmp_path)!r}))"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    env = {**os.environ, **ascii_only}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=False)
    assert "井盖" in done.stdout.decode(), done.stderr.decode()


def test_a_domain_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": 1, "domain": "a\x1b[2J"}, {"id": 2, "domain": "b"}]
    truth = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "good\x1b[2J"}]}
    write_report(tmp_path, report(truth, [], ("good\x1b[2J",)), [])
    job._tell(tmp_path)
    told = capsys.readouterr().out
    assert "in a\\x1b[2J" in told
    assert "\x1b" not in told


def test_figures_on_other_files_leave_those_of_the_splits_alone(there: Path) -> None:
    before = (there / "runs/tiny/eval/test/metrics.json").read_bytes()
    folders = []
    for city in ("lyon", "berlin"):
        ellipses(there / city, 3, name="test")
        folders.append(job.eval_job(there / "tiny.yaml", "test", [Path(city) / "test.json"], ()))
    assert folders[0] != folders[1]
    assert folders[0].name.startswith("lyon_test-")
    assert json.loads((folders[1] / "metrics.json").read_text())["files"] == ["berlin/test.json"]
    assert (there / "runs/tiny/eval/test/metrics.json").read_bytes() == before


def test_a_name_that_is_no_utf8_has_figures(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ellipses(there / "odd", 2, name="test").rename(there / "odd" / os.fsdecode(b"caf\xe9.json"))
    folder = job.eval_job(there / "runs/tiny", "test", [file], (), review=True)
    assert re.fullmatch("odd_caf\ufffd-[0-9a-f]{6}", folder.name)
    report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert report["files"] == [f"{there}/odd/caf\ufffd.json"]
    assert folder.name in capsys.readouterr().out


def test_figures_under_other_settings_leave_those_of_the_run_alone(there: Path) -> None:
    before = (there / "runs/tiny/eval/test/metrics.json").read_bytes()
    folder = job.eval_job(there / "runs/tiny", "test", (), ["detector.nms_iou=0.9"])
    assert folder.parent == there / "runs/tiny/eval"
    assert re.fullmatch(r"test-[0-9a-f]{6}", folder.name)
    assert json.loads((folder / "metrics.json").read_text())["overrides"] == ["detector.nms_iou=0.9"]
    assert (there / "runs/tiny/eval/test/metrics.json").read_bytes() == before
    same = job.eval_job(there / "tiny.yaml", "test", (), ["data.workers=1", "eval.batch=2"])
    assert same == there / "runs/tiny/eval/test"
    assert json.loads((same / "metrics.json").read_text())["overrides"] == []


def test_a_run_that_was_stopped_before_its_test_is_only_scored(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = there / "runs/tiny/eval/test/metrics.json"
    before = figures.read_bytes()
    with pytest.raises(ConfigError, match="this run is finished"):
        job.train_job(there / "tiny.yaml")
    figures.unlink()
    monkeypatch.setattr(job, "train", lambda _: pytest.fail("it was trained again"))
    job.train_job(there / "tiny.yaml")
    assert json.loads(figures.read_bytes())["coco"] == json.loads(before)["coco"]


def test_a_base_that_was_moved_can_be_named_for_every_command(there: Path, tmp_path: Path) -> None:
    job.export_job(there / "runs/tiny", "weights", ())
    base = there / "runs/tiny/export/merged.safetensors"
    text = (there / "tiny.yaml").read_text()
    (there / "second.yaml").write_text(
        text.replace("weights: none", f"weights: {base}").replace("epochs: 10", "epochs: 1")
    )
    job.train_job(there / "second.yaml")
    moved = base.rename(tmp_path / "base.safetensors")
    try:
        new = [f"backbone.weights={moved}"]
        assert job.export_job(there / "runs/second", "weights", new).is_file()
        assert (
            job.predict_job(there / "runs/second", [str(there / "images/test_1.png")], tmp_path / "out", 0.0, new) == 0
        )
        job.eval_job(there / "runs/second", "val", (), new)
        assert len(job.cities_job(there / "runs/second", [there / "runs/second"], new)) == 2
    finally:
        moved.rename(base)


@pytest.mark.parametrize("source", ["runs/tiny", "runs/tiny/export/model.onnx"])
def test_what_predict_finds_loads_as_coco_results(there: Path, tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    photos = [str(there / f"images/test_{n}.png") for n in (1, 2)]
    assert job.predict_job(Path(source), photos, out, 0.0) == 0
    found = json.loads((out / "coco_results.json").read_text())
    assert found
    loaded = COCO(str(out / "predictions.json")).loadRes(str(out / "coco_results.json"))
    assert len(loaded.getAnnIds()) == len(found)
    assert loaded.getImgIds() == [1, 2]
    assert job.predict_job(Path(source), photos, out, 0.0) == 0  # its own files are replaced


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("head", "body", "method"),
    [
        ("faster_rcnn", "vit_tiny_patch16_224, window: 2", "lora: {rank: 2}"),
        ("faster_rcnn", "vit_small_patch16_dinov3", "vpt: {tokens: 2}"),
        ("faster_rcnn", "swin_tiny_patch4_window7_224", "adapter: {width: 8}"),
        ("retinanet", "convnext_atto", "lora: {targets: [conv_dw, mlp.fc1]}"),
        ("fcos", "vit_tiny_patch16_224", "adapter: {place: parallel}"),
    ],
)
def test_runs_of_every_kind_are_exported_and_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, body: str, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = job.train_job(config(tmp_path, epochs=10, head=head, body=body, method=method))
    proof = json.loads(export_onnx_run(run).with_name("parity.json").read_text())
    assert proof["agree"]
    assert proof["unmerged_onnx"]["images"] == 4
    assert proof["unmerged_onnx"]["boxes"] > 0


def test_scope_detector_from_a_base_is_trained_saved_loaded_and_exported(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = job.export_job(there / "runs/tiny", "weights", ())
    text = (there / "tiny.yaml").read_text().replace("weights: none", f"weights: {base}")
    (there / "whole.yaml").write_text(
        text.replace("peft: {", "peft: {scope: detector, ").replace("epochs: 10", "epochs: 2")
    )
    run = job.train_job(there / "whole.yaml")
    assert run == run_folder(job.read_settings(there / "whole.yaml"))
    files = [there / "runs" / name / "adapter/adapter_model.safetensors" for name in ("whole", "tiny")]
    assert (
        files[0].stat().st_size < 0.6 * files[1].stat().st_size
    )  # nearly all of the tiny neck and head is in the other
    proof = json.loads(job.export_job(run, "onnx", ()).with_name("parity.json").read_text())
    assert proof["agree"]
    ranks = needed_ranks(run, 0.9).ranks
    assert {path.split(".")[0] for path in ranks} == {"backbone", "rpn", "roi_heads"}
    assert any(path.startswith("backbone.neck.") for path in ranks)
    job.summary_job(there / "whole.yaml", (), measure=True)
    assert "measured peak of real training steps" in capsys.readouterr().out
