"""One base file, many cities: each adapter file gives its own run's boxes, and nothing else is written."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import AdapterFormat, OrtValue

from cvpeft.backbone.sites import sites
from cvpeft.config import schema
from cvpeft.detector.build import build_detector
from cvpeft.detector.saved import load_run
from cvpeft.errors import CheckpointError, ConfigError, DataError, ParityError
from cvpeft.export import cities as room
from cvpeft.export.cities import export_cities
from cvpeft.export.onnx import export_onnx
from cvpeft.export.run import verification_inputs
from cvpeft.export.verify import Tolerance, compare, predict_torch
from cvpeft.peft.inject import MethodSpec, freeze, inject
from cvpeft.runtime.adapters import FITTING
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.study.job import cities_job
from cvpeft.train.loop import train
from cvpeft.types import Prediction
from tests.helpers import QUICK, ellipses, settings

SLOW = 20  # how many times slower a busy machine of the tests may be


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three cities on one random ViT, the last of them with another rank."""
    folder = tmp_path_factory.mktemp("cities")
    found = {}
    for seed, city in enumerate(("berlin", "lyon", "oslo")):
        (folder / city).mkdir()
        ellipses(folder / city, 6, seed=seed)
        method = schema.Method(name="lora", settings={"rank": 3 if city == "oslo" else 2})
        body = {"name": "test_vit", "weights": "none", "neck_width": 16}
        rates = schema.LearningRates(adapter=2e-2, neck=3e-3, head=3e-3)
        sections = {"run": {"name": city}, "peft": {"methods": (method,)}, "backbone": body, "detector": QUICK}
        made = settings(folder / city, **sections, train={"epochs": 6, "lr": rates}, export={"verify_images": 6})
        found[city] = train(made)
    return found


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path]) -> list[Path]:
    return export_cities(runs["berlin"], [runs["berlin"], runs["lyon"]])


def found_by(detector: Detector, run: Path) -> list[Prediction]:

    images = verification_inputs(load_run(run), 6)
    found = detector.raw(np.stack([image.numpy() for image in images]))
    return [
        Prediction(
            boxes=torch.from_numpy(f.boxes), scores=torch.from_numpy(f.scores), labels=torch.from_numpy(f.labels)
        )
        for f in found
    ]


def test_every_city_gives_its_own_boxes_and_the_base_comes_back(runs: dict[str, Path], exported: list[Path]) -> None:
    base, berlin, lyon = exported
    assert [path.name for path in exported] == ["base.onnx", "berlin.onnx_adapter", "lyon.onnx_adapter"]
    detector = Detector(base)
    for adapter, name in ((lyon, "lyon"), (berlin, "berlin"), (None, "berlin"), (lyon, "lyon")):
        detector.use(adapter)
        reference = predict_torch(load_run(runs[name]).model, verification_inputs(load_run(runs[name]), 6))
        agreement = compare(reference, found_by(detector, runs[name]), threshold=0.05)
        assert agreement.within(Tolerance(threshold=0.05)), agreement
        assert detector.thresholds == pytest.approx(room.thresholds(load_run(runs[name]).meta))
    other = found_by(Detector(base, adapter=berlin), runs["lyon"])
    reference = predict_torch(load_run(runs["lyon"]).model, verification_inputs(load_run(runs["lyon"]), 6))
    assert not compare(reference, other, threshold=0.05).within(Tolerance(threshold=0.05))


def test_a_city_that_comes_later_leaves_the_base_as_it_is(runs: dict[str, Path], exported: list[Path]) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in exported[:2]}
    later = runs["lyon"].with_name("later")
    shutil.copytree(runs["lyon"], later, dirs_exist_ok=True)
    base, adapter = export_cities(runs["berlin"], [later])
    assert adapter.name == "later.onnx_adapter"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert sorted(path.name for path in base.parent.rglob("*")) == sorted([
        "base.onnx", "cities", "berlin.json", "berlin.onnx_adapter", "lyon.json", "lyon.onnx_adapter", "later.json",
        "later.onnx_adapter",
    ])  # fmt: skip


def test_the_job_tells_sizes_and_what_was_proven(
    runs: dict[str, Path], exported: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cities_job(runs["berlin"], [runs["lyon"]], ())
    told = capsys.readouterr().out
    assert "of the base" in told
    assert "of the merged run" in told
    (ms,) = re.findall(r"putting another city in takes a running detector ([\d.]+) ms", told)
    assert 0 < float(ms) < 50 * SLOW  # 50 ms are promised of a machine that does nothing else
    about = json.loads(exported[2].with_suffix(".json").read_text())
    assert about["parity"]["missing"] == about["parity"]["extra"] == 0 < about["parity"]["boxes"]


def test_runs_that_do_not_belong_together_are_refused(runs: dict[str, Path], exported: list[Path]) -> None:
    with pytest.raises(CheckpointError, match=r"methods .*differ"):
        export_cities(runs["berlin"], [runs["oslo"]])
    with pytest.raises(ConfigError, match="name each run once"):
        export_cities(runs["berlin"], [runs["lyon"], runs["lyon"]])
    with pytest.raises(ConfigError, match="name each run once"):
        export_cities(runs["berlin"], [])


@pytest.mark.parametrize(
    "form", ["export.takes=uint8", "export.weights=fp16", "export.nms=false", "export.free_size=true"]
)
def test_forms_that_a_base_does_not_have_are_refused(runs: dict[str, Path], form: str) -> None:
    before = sorted(runs["oslo"].rglob("*"))
    with pytest.raises(ConfigError, match=rf"{form.partition('=')[0]} would change nothing: base\.onnx has one form"):
        export_cities(runs["oslo"], [runs["oslo"]], overrides=[form])
    assert sorted(runs["oslo"].rglob("*")) == before


def test_settings_reach_the_base_and_a_run_may_be_named_by_a_dot(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs["lyon"], tmp_path / "solo")
    monkeypatch.chdir(tmp_path / "solo")
    base, adapter = export_cities(Path(), [Path()], overrides=["detector.max_detections=7"])
    assert adapter.name == "solo.onnx_adapter"
    said = Detector(base, adapter=adapter).metadata
    assert said["nms"]["max_detections"] == 7
    assert said["run"] == "solo"
    ap = json.loads(adapter.with_suffix(".json").read_text())["ap"]
    assert ap["images"] == 6
    assert ap["difference"] <= ap["allowed"]
    with pytest.raises(ConfigError, match="its nms are not those of the run"):
        export_cities(Path(), [Path()])


def test_a_base_of_another_run_is_not_written_over(runs: dict[str, Path], exported: list[Path]) -> None:
    target = runs["oslo"] / "export" / "base.onnx"
    target.parent.mkdir()
    shutil.copy(exported[0], target)
    with pytest.raises(ConfigError, match="are not those of the run"):
        export_cities(runs["oslo"], [runs["oslo"]])
    assert target.read_bytes() == exported[0].read_bytes()


def test_an_adapter_that_is_not_proven_is_not_written(
    runs: dict[str, Path], exported: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in exported[0].parent.rglob("*") if path.is_file()}
    right = room.exchangeable
    monkeypatch.setattr(room, "exchangeable", lambda model: {key: t * 1.05 for key, t in right(model).items()})
    with pytest.raises(ParityError, match="lyon does not agree"):
        export_cities(runs["berlin"], [runs["lyon"]])
    assert {path: path.read_bytes() for path in exported[0].parent.rglob("*") if path.is_file()} == before


def damaged(folder: Path, exported: list[Path], **changes: object) -> Path:
    """A copy of lyon's adapter whose json is changed; None takes an entry out."""
    target = folder / exported[2].name
    if target != exported[2]:
        shutil.copy(exported[2], target)
    about = json.loads(exported[2].with_suffix(".json").read_text()) | changes
    target.with_suffix(".json").write_text(
        json.dumps({key: value for key, value in about.items() if value is not None})
    )
    return target


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base_sha256": "0" * 64}, "made for base 000000000000"),
        ({"base_sha256": None}, "lacks base_sha256"),
        ({"classes": ["broke", "good"]}, r"whose classes is \['broke', 'good'\], here it is \['good', 'broke'\]"),
        ({"classes": None}, "lacks classes"),
        ({"input_size": [96, 64]}, r"whose input_size is \[96, 64\]"),
        ({"canvas": [640, 960]}, r"whose canvas is \[640, 960\], here it is None"),
        ({"std": [1, 1, 1]}, r"whose std is \[1, 1, 1\]"),
        ({"methods": []}, r"whose methods is \[\]"),
        ({"windows": {"side": 2, "global_blocks": []}}, r"whose windows is {.side.: 2"),
        ({"adapter_sha256": "0" * 64}, "not what its json says"),
        ({"score_thresholds": {"good": 0.5}}, "without a number for each of good, broke"),
        ({"score_thresholds": {"good": 0.5, "broke": True}}, "without a number for each"),
        ({"score_thresholds": [1]}, "without a number for each"),
    ],
)
def test_foreign_adapters_are_refused_and_the_old_one_stays(
    changes: dict[str, object], sentence: str, exported: list[Path], tmp_path: Path
) -> None:
    detector = Detector(exported[0], adapter=exported[1])
    thresholds = dict(detector.thresholds)
    image = np.random.default_rng(0).integers(0, 255, (1, 3, 64, 96))
    before = detector.raw(image)[0].boxes
    with pytest.raises(DataError, match=sentence):
        detector.use(damaged(tmp_path, exported, **changes))
    assert detector.thresholds == thresholds
    assert (detector.raw(image)[0].boxes == before).all()


def test_an_adapter_of_before_fits_by_its_classes(exported: list[Path], tmp_path: Path) -> None:
    """A json that repeats nothing else of its base."""
    older = damaged(tmp_path, exported, **dict.fromkeys(FITTING[1:]))
    Detector(exported[0], adapter=older)


def test_an_adapter_of_another_rank_is_refused(exported: list[Path], tmp_path: Path) -> None:
    content = AdapterFormat.read_adapter(str(exported[2])).get_parameters()
    values = {key: np.array(value.numpy()) for key, value in content.items()}
    values[next(key for key in values if key.endswith("lora.change.A"))] = np.zeros((3, 64), np.float32)
    changed = damaged(tmp_path, exported)
    made = AdapterFormat()
    made.set_parameters({key: OrtValue.ortvalue_from_numpy(value) for key, value in values.items()})
    made.export_adapter(str(changed))
    changed = damaged(
        tmp_path, [*exported[:2], changed], adapter_sha256=hashlib.sha256(changed.read_bytes()).hexdigest()
    )
    with pytest.raises(DataError, match="1 tensors are not those of the base"):
        Detector(exported[0], adapter=changed)


def test_absent_files_and_files_without_places(exported: list[Path], tmp_path: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="not readable"):
        Detector(exported[0], adapter=tmp_path / "none.onnx_adapter")
    alone = damaged(tmp_path, exported)
    alone.unlink()
    with pytest.raises(DataError, match="not readable"):
        Detector(exported[0], adapter=alone)


@pytest.mark.slow
def test_a_city_of_lora_alone_has_a_twenty_fifth_of_its_base(tmp_path: Path) -> None:
    """Rank 8 at every linear of a ViT-Tiny in the sizes that a config has where it sets none, neck and head frozen."""
    made = schema.Settings.model_validate(
        {"data": {"size": (416, 640)}, "backbone": {"name": "vit_tiny_patch16_224", "weights": "none"}}
    )
    model = build_detector(made, ("cover",)).eval()
    net = model.backbone.body.net  # type: ignore[union-attr]
    inject(net, sites(net), [MethodSpec("lora", settings={"rank": 8})])
    freeze(model)
    tensors = room.exchangeable(model)
    assert len(tensors) == 2 * 4 * 12
    base = export_onnx(model, tmp_path / "base.onnx", classes=("cover",), exchangeable=tensors)
    room._save_tensors(tmp_path / "city.onnx_adapter", tensors)
    share = (tmp_path / "city.onnx_adapter").stat().st_size / base.stat().st_size
    assert share <= 0.04, f"{share:.2%}"
