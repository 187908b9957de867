"""The commands as a user meets them: a mistake is one sentence and an exit code, never a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cvpeft.cli import main
from cvpeft.config import shipped

CONFIG = """
data: {{train: {train}, size: [64, 64], workers: 0}}
backbone: {{name: {name}, weights: {weights}, neck_width: 16}}
detector: {{head_width: 16}}
peft: {{methods: [{{lora: {{rank: 2, targets: [{target}]}}}}]}}
train: {{epochs: 1}}
"""


def coco(folder: Path, **changes: object) -> Path:
    """One image with one box; `changes` replace parts of the json."""
    Image.new("RGB", (64, 64), "grey").save(folder / "a.jpg")
    content: dict[str, object] = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 30, 30]}],
        "categories": [{"id": 1, "name": "good"}],
    }
    (folder / "train.json").write_text(json.dumps({**content, **changes}))
    return folder / "train.json"


def config(folder: Path, **changes: str) -> Path:
    values = {"train": "train.json", "name": "vit_tiny_patch16_224", "weights": "none", "target": "attn.qkv"}
    (folder / "c.yaml").write_text(CONFIG.format(**{**values, **changes}))
    return folder / "c.yaml"


def missing_json(folder: Path) -> Path:
    return config(folder, train="absent.json")


def wrong_json(folder: Path) -> Path:
    coco(folder).write_text("[1, 2]")
    return config(folder)


def unknown_category(folder: Path) -> Path:
    coco(folder, annotations=[{"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 30, 30]}])
    return config(folder)


def box_outside(folder: Path) -> Path:
    coco(folder, annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 50, 60, 60]}])
    return config(folder)


def unknown_key(folder: Path) -> Path:
    file = config(folder)
    file.write_text(file.read_text().replace("epochs", "epoch"))
    return file


def unknown_backbone(folder: Path) -> Path:
    coco(folder)
    return config(folder, name="vit_tinny_patch16_224")


def target_without_match(folder: Path) -> Path:
    coco(folder)
    return config(folder, target="attn.qvk")


def missing_weights(folder: Path) -> Path:
    coco(folder)
    return config(folder, weights="absent.safetensors")


def unreachable_hub(folder: Path) -> Path:
    coco(folder)
    return config(folder, weights="timm")


def corrupt_image(folder: Path) -> Path:
    coco(folder)
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    return config(folder)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "absent.yaml", ["absent.yaml"]),
        (missing_json, ["absent.json"]),
        (wrong_json, ["train.json", "list"]),
        (unknown_category, ["train.json", "category_id is 7"]),
        (box_outside, ["a.jpg", "64"]),
        (unknown_key, ["c.yaml:6", "train.epoch", "did you mean", "train.epochs"]),
        (unknown_backbone, ["vit_tinny_patch16_224", "did you mean", "vit_tiny_patch16_224"]),
        (target_without_match, ["attn.qvk", "did you mean", "attn.qkv"]),
        (missing_weights, ["absent.safetensors"]),
        (unreachable_hub, ["hub", "backbone.weights=FILE"]),
        (corrupt_image, ["a.jpg"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    make: Callable[[Path], Path],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cvpeft.backbone.weights.hf_hub_download", no_hub)
    assert main(["train", str(make(tmp_path))]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in told if line.startswith("E-")]) == 1, told
    assert "Traceback" not in "\n".join(told)
    for word in words:
        assert word in told[-1]


def test_another_format_of_city_adapters_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/a", "--adapters", "runs/b", "--format", "int8"]) == 2
    assert "E-FORMAT runs/a - --format int8 stands beside --adapters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        (["predict", "a.onnx", "photos", "--out", "found"], "a smaller --batch"),
        (["data", "stats", "train.json"], "close other programs"),
    ],
)
def test_memory_that_ends_has_a_fix_of_the_command(
    command: list[str], fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(_: object) -> int:
        raise MemoryError

    for place in ("results.run_predict", "data.run_stats"):
        monkeypatch.setattr(f"cvpeft.cli.{place}", exhausted)
    assert main(command) == 4
    assert fix in capsys.readouterr().err


def test_memory_that_ends_in_torch_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU's says "CUDA out of memory. Tried to allocate ..."."""

    def exhausted(_: object) -> int:
        import torch

        return len(torch.empty(2**60, dtype=torch.uint8))

    monkeypatch.setattr("cvpeft.cli.results.run_eval", exhausted)
    assert main(["eval", "runs/a"]) == 4
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"E-MEMORY out of memory \(.*you tried to allocate \d+ bytes.*\)\. Fix: lower eval\.batch", told.strip()
    )
    monkeypatch.setattr("cvpeft.cli.results.run_eval", _bug)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["eval", "runs/a"])


def _bug(_: object) -> int:
    raise RuntimeError("shapes differ")


def test_names_in_a_json_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class of such a name is refused, a city is not."""
    (data := tmp_path / "data").mkdir()
    file = coco(data)
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["city"] = "lyon\x1b]0;mine\x07"
    city = json.dumps(content)
    content["categories"] = [{"id": 1, "name": "good\x1b]0;mine\x07"}, {"id": 2, "name": "broke\x9b2J"}]
    for text, told in (
        (city, r"lyon\x1b]0;mine\x07"),
        (json.dumps(content), r'the name "good\u001b]0;mine\u0007" has'),
    ):
        file.write_text(text)
        for command in (
            ["data", "stats", str(file)],
            ["data", "check", str(file), "--out", str(tmp_path / "check"), "--workers", "1"],
            ["data", "import", str(file), "--out", str(tmp_path / "imported")],
            ["summary", str(config(data)), "--no-measure"],
        ):
            main(command)
            out = "".join(capsys.readouterr())
            assert told in out or command[1] != "stats", out
            assert not set(out) & set("\x1b\x07\x9b"), command


def no_hub(*_: object, **__: object) -> str:
    raise OSError("Name or service not known")


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        "train",
        "eval",
        "predict",
        "export",
        "serve",
        "data",
        "summary",
        "compare",
        "benchmark",
        "pretrain",
        "demo",
    ):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"example:\n  cvpeft {command}" in capsys.readouterr().out


def test_the_scripts_in_tools_are_the_commands() -> None:
    tools = Path(__file__).parents[1] / "tools"
    for script in sorted(tools.glob("*.py")):
        done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"cvpeft {script.stem}" in done.stdout


def test_a_reader_that_had_enough_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert main(["train", "--keys"]) == 141
    assert capsys.readouterr().err == ""


def test_another_broken_pipe_is_not_hushed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("cvpeft.cli.data.run_stats", broken)
    with pytest.raises(BrokenPipeError):
        main(["data", "stats", "a.json"])


@pytest.mark.parametrize("argv", [["train", "{}.yaml"], ["eval", "{}"], ["export", "{}"]])
def test_a_name_that_no_file_can_have_is_one_sentence(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([text.format("a" * 300) for text in argv]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert re.search(
        r"^E-\w+ a{40}\.\.\. - a name of 30\d bytes is longer than the file system takes\. Fix: ", told, re.M
    )


@pytest.mark.parametrize(
    ("encoding", "told"), [("ascii", "\\u4e95\\u76d6"), ("cp1252", "\\u4e95\\u76d6"), ("utf-8", "井盖")]
)
def test_a_name_in_letters_that_the_output_lacks_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, told: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "井盖"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert main(["data", "stats", str(tmp_path / "a.json")]) == 0
    assert told in written.getvalue().decode(encoding)


def test_help_does_not_import_torch() -> None:
    code = "import sys; from cvpeft.cli import _parser; _parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shipped_configs_are_copied_once_and_never_over_the_users(tmp_path: Path) -> None:
    mine = tmp_path / "configs" / "potholes_lora.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    path, note = shipped.find_config(tmp_path / "configs" / "manhole_lora.yaml")
    assert path.read_text() == shipped.shipped_configs()["manhole_lora.yaml"].read_text()
    assert "copied" in note
    assert mine.read_text() == "mine"
    assert shipped.find_config(path) == (path, "")


def test_the_figures_of_a_missing_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path)]) == 3
    assert "no config.resolved.yaml" in capsys.readouterr().err


def test_settings_may_stand_on_both_sides_of_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path)
    command = ["summary", str(config(tmp_path)), "peft.methods.lora.rank=3", "--no-measure", "backbone.neck_width=24"]
    assert main(command) == 0
    assert "neck" in capsys.readouterr().out
    for left in ("--unknown", "neck_width"):
        with pytest.raises(SystemExit, match="2"):
            main([*command, left])
        assert f"unrecognized arguments: {left}" in capsys.readouterr().err
