"""One table from several trainings: complete, resumable, and never of two protocols."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cvpeft.cli import main
from cvpeft.config.load import load
from cvpeft.detector.saved import load_run
from cvpeft.errors import ConfigError, NumericalError
from cvpeft.eval.evaluate import evaluate_run
from cvpeft.export.run import export_hf_run, export_weights_run
from cvpeft.peft.inject import signatures
from cvpeft.peft.state import owned
from cvpeft.study import compare as module
from cvpeft.study.compare import Sweep, compare
from cvpeft.train.folder import locked
from cvpeft.train.loop import Interrupted, train
from tests.study.sets import config


class Calls(list[tuple[str, ...]]):
    """Takes the place of `Processes`: does their work here and notes what was asked for."""

    stop_at: int = 1000

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None: ...

    def each(self, tasks: Sequence[Callable[[], None]]) -> Iterator[None]:
        return (task() for task in tasks)

    def call(self, command: str, *arguments: str, name: str) -> None:
        if len(self) >= self.stop_at:
            raise Interrupted(signal.SIGINT, Path(name))
        self.append((command, name))
        if command == "train":
            train(load(Path(arguments[0]), arguments[1:], methods=signatures()))
        elif command == "export":
            assert arguments[1:] == ("--format", "weights")
            export_weights_run(Path(arguments[0]))
        else:
            assert arguments[1:] == ("--split", "test"), "another split was asked for"
            evaluate_run(Path(arguments[0]), split="test")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    monkeypatch.setattr(module, "Processes", lambda jobs: found)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two modes and two seeds, beside its config."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Processes", lambda jobs: Calls())
        compare(config(folder), modes=("adapters", "frozen"), seeds=(0, 1), out=folder / "out")
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as f:
        return list(csv.DictReader(f))


def test_latencies_of_all_rows_are_measured_once_in_turn(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = done / "out" / "latency.json"
    written = json.loads(file.read_text())
    kept = written["ms"]
    assert list(kept) == ["adapters", "frozen"]
    table = rows(done / "out" / "table.csv")
    for row in table:
        assert float(row["ms"]) == kept[row["mode"]]["unmerged"] > 0
        assert float(row["ms_merged"]) == kept[row["mode"]]["merged"] > 0
    monkeypatch.setattr(module, "latencies", lambda *_, **__: pytest.fail("measured again"))
    compare(config(done), modes=("adapters", "frozen"), seeds=(0, 1), out=done / "out")
    assert rows(done / "out" / "table.csv") == table
    for changed in ({"where": "another machine"}, {"of": {**written["of"], "frozen": "0" * 64}}):
        file.write_text(json.dumps(written | changed))
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            compare(config(done), modes=("adapters", "frozen"), seeds=(0, 1), out=done / "out")
    file.write_text(json.dumps(written))
    compare(config(done), modes=("adapters", "frozen"), seeds=(0, 1), out=done / "out")


def test_figures_are_those_of_the_runs(done: Path) -> None:
    runs = rows(done / "out" / "runs.csv")
    assert [(row["mode"], row["seed"]) for row in runs] == [
        ("adapters", "0"), ("adapters", "1"), ("frozen", "0"), ("frozen", "1"),
    ]  # fmt: skip
    for row in runs:
        folder = done / "out" / "runs" / f"{row['mode']}-seed{row['seed']}"
        model = load_run(folder).model
        count = dict.fromkeys(("adapter", "neck", "head"), 0)
        for key, tensor in owned(model).items():
            part = "neck" if key.startswith("backbone.neck") else "adapter" if key.startswith("backbone") else "head"
            count[part] += tensor.numel()
        assert {part: int(row[part]) for part in count} == count
        assert (count["adapter"] > 0) == (row["mode"] == "adapters")
        report = json.loads((folder / "eval" / "val" / "metrics.json").read_text())
        assert float(row["AP"]) == report["coco"]["AP"]
        assert float(row["AP50"]) == report["coco"]["AP50"]
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        seconds = [record["seconds"] for record in log if "seconds" in record]
        assert float(row["seconds"]) == seconds[-1] > 0
        assert float(row["peak_memory_mib"]) > 100
        size = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
        assert float(row["file_mib"]) == size / 2**20


def test_means_and_deviations_over_seeds(done: Path) -> None:
    runs, table = rows(done / "out" / "runs.csv"), rows(done / "out" / "table.csv")
    assert [(row["mode"], row["methods"], row["seeds"]) for row in table] == [
        ("adapters", "lora", "0 1"), ("frozen", "", "0 1"),
    ]  # fmt: skip
    for row in table:
        one, two = (float(run["seconds"]) for run in runs if run["mode"] == row["mode"])
        assert float(row["seconds"]) == pytest.approx((one + two) / 2)
        assert float(row["seconds_sd"]) == pytest.approx(abs(one - two) / 2**0.5)


def test_methods_are_rows_of_their_own_beside_the_modes(tmp_path: Path, calls: Calls) -> None:
    out = tmp_path / "out"
    text = compare(config(tmp_path), modes=("frozen",), methods=("ia3", "bitfit"), out=out).read_text()
    table = rows(out / "table.csv")
    assert [(row["mode"], row["methods"]) for row in table] == [("ia3", "ia3"), ("bitfit", "bitfit"), ("frozen", "")]
    assert 0 < int(table[0]["adapter"]) < int(table[1]["adapter"])
    assert " --methods ia3 bitfit --modes frozen --seeds 0 " in text
    assert [name for _, name in calls] == ["ia3-seed0", "bitfit-seed0", "frozen-seed0"]
    with pytest.raises(ConfigError, match="did you mean 'bitfit'"):
        compare(tmp_path / "tiny.yaml", modes=(), methods=("bitft",), out=tmp_path / "other")


def test_each_row_finds_its_rate_on_what_was_held_out(tmp_path: Path, calls: Calls) -> None:
    file, out = config(tmp_path), tmp_path / "out"
    sweep = Sweep((1.0, 4.0), tmp_path / "train" / "train.json", tmp_path / "test" / "test.json")
    text = compare(file, modes=("full", "frozen"), methods=("ia3",), seeds=(1,), out=out, sweep=sweep).read_text()
    names = [name for _, name in calls]
    assert names == ["ia3-x1", "ia3-x4", "full-x1", "full-x4", "ia3-seed1", "full-seed1", "frozen-seed1"]
    tried = rows(out / "sweep.csv")
    assert [(row["mode"], float(row["lr"])) for row in tried] == [
        ("ia3", 2e-3), ("ia3", 8e-3), ("full", 1e-4), ("full", 4e-4),
    ]  # fmt: skip
    for row, part in (("ia3", "adapter"), ("full", "backbone")):
        best = max((t for t in tried if t["mode"] == row), key=lambda t: float(t["AP"]))
        settings = load(out / "runs" / f"{row}-seed1" / "config.resolved.yaml", methods=signatures())
        assert getattr(settings.train.lr, part) == pytest.approx(float(best["lr"]))
        assert settings.data.val[0].name == "val.json"
    assert "tried 1, 4 times its learning rate with one seed, trained on train.json and scored on test.json" in text
    assert "--sweep-lr 1 4 --held-out " in text
    calls.clear()
    compare(file, modes=("full", "frozen"), methods=("ia3",), seeds=(1,), out=out, sweep=sweep)
    assert calls == []
    for factors in ((1.0,), (0.0, 1.0)):
        with pytest.raises(ConfigError, match="multiplied by"):
            compare(file, modes=("full",), out=tmp_path / "no", sweep=Sweep(factors, sweep.train, sweep.val))
    for half in (["--sweep-lr", "1", "2"], ["--sweep-epochs", "2"]):
        assert main(["compare", str(file), *half, "--out", str(tmp_path / "no")]) == 2


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        (("train", "val"), r"2 of its images are in data\.val too"),
        (("val", "test"), r"2 of its images are in data\.val too"),
        (("train", "train"), r"4 of its images are in .*train\.json too"),
    ],
)
def test_a_sweep_that_sees_what_is_scored_is_refused(
    tmp_path: Path, calls: Calls, held_out: tuple[str, str], told: str
) -> None:
    file = config(tmp_path)
    parts = [tmp_path / split / f"{split}.json" for split in held_out]
    with pytest.raises(ConfigError, match=rf"E-SWEEP .*{told}.*would flatter"):
        compare(file, modes=("full",), out=tmp_path / "out", sweep=Sweep((1.0, 4.0), *parts))
    assert calls == []


def test_a_sweep_without_a_box_chooses_nothing(tmp_path: Path, calls: Calls) -> None:
    file, empty = config(tmp_path), tmp_path / "test" / "test.json"
    empty.write_text(json.dumps({**json.loads(empty.read_text()), "annotations": []}))
    sweep = Sweep((1.0, 4.0), tmp_path / "train" / "train.json", empty, epochs=1)
    with pytest.raises(ConfigError, match=r"E-SWEEP .*test\.json - there is no box to find"):
        compare(file, modes=("full",), out=tmp_path / "out", sweep=sweep)


def test_a_rate_that_diverges_is_not_taken(tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(command: str, *arguments: str, name: str) -> None:
        if name in diverging:
            calls.append((command, name))
            raise NumericalError("NAN", "step 3 is not finite")
        Calls.call(calls, command, *arguments, name=name)

    diverging = {"ia3-x9"}
    monkeypatch.setattr(calls, "call", call, raising=False)
    file, out = config(tmp_path), tmp_path / "out"
    sweep = Sweep((9.0, 1.0), tmp_path / "train" / "train.json", tmp_path / "test" / "test.json", epochs=1)
    for asked in (["ia3-x9", "ia3-x1", "ia3-seed0"], []):  # nor is it tried again
        compare(file, modes=(), methods=("ia3",), out=out, sweep=sweep)
        assert [name for _, name in calls] == asked
        calls.clear()
    assert [row["AP"] for row in rows(out / "sweep.csv")] == ["", "0.0"]
    settings = load(out / "runs" / "ia3-seed0" / "config.resolved.yaml", methods=signatures())
    assert settings.train.lr.adapter == 2e-3
    assert "not finite" in (out / "sweep" / "ia3-x9" / "diverged.txt").read_text()
    diverging.add("bitfit-seed0")
    with pytest.raises(NumericalError):  # in the table it is no answer
        compare(file, modes=(), methods=("bitfit",), out=tmp_path / "other")


def test_a_sweep_may_be_shorter_than_the_table(tmp_path: Path, calls: Calls) -> None:
    file, out = config(tmp_path), tmp_path / "out"
    sweep = Sweep((1.0, 4.0), tmp_path / "train" / "train.json", tmp_path / "test" / "test.json", epochs=1)
    text = compare(file, modes=(), methods=("ia3",), out=out, sweep=sweep).read_text()
    lengths = {
        name: load(out / folder / name / "config.resolved.yaml", methods=signatures()).train.epochs
        for folder, name in (("sweep", "ia3-x1"), ("sweep", "ia3-x4"), ("runs", "ia3-seed0"))
    }
    assert lengths == {"ia3-x1": 1, "ia3-x4": 1, "ia3-seed0": 2}
    assert "trained with train.epochs=1 on train.json" in text
    assert " --sweep-epochs 1\n" in text


def test_intervals_and_advice_come_from_redrawn_images(done: Path) -> None:
    table, text = rows(done / "out" / "table.csv"), (done / "out" / "table.md").read_text()
    for row in table:
        assert 0 <= float(row["AP_low"]) <= float(row["AP"]) + 0.05
        assert float(row["AP"]) - 0.05 <= float(row["AP_high"]) <= 1
        assert row["AP_of_full"] == ""
        assert 0 < float(row["step_seconds"]) < float(row["seconds"])
    advice = text.strip().splitlines()[-1]
    assert "adapters (lora): AP " in advice
    assert re.search(r"better than a frozen backbone in \d+% of the draws\. Fewer than three seeds", advice)
    assert (done / "out" / "table.png").read_bytes().startswith(b"\x89PNG")


def test_table_says_how_it_was_made(done: Path) -> None:
    text = (done / "out" / "table.md").read_text()
    assert f"cvpeft compare {done}/tiny.yaml --modes adapters frozen --seeds 0 1 --out {done}/out" in text
    assert "torch 2." in text
    assert re.search(r"Date: 20\d\d-\d\d-\d\d\.", text)
    assert "data.val (val.json). The same images chose the epoch (adapters-seed0 " in text
    assert "Mean ± standard deviation" in text
    assert "Not complete" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| adapters (lora) | 0 1 |")


def test_the_same_command_trains_nothing_again(done: Path, calls: Calls) -> None:
    before = (done / "out" / "runs.csv").read_text()
    compare(done / "tiny.yaml", modes=("adapters", "frozen"), seeds=(0, 1), out=done / "out")
    assert calls == []
    assert (done / "out" / "runs.csv").read_text() == before


def test_runs_of_another_config_or_other_data_are_refused(done: Path, calls: Calls) -> None:
    both = {"modes": ("adapters", "frozen"), "out": done / "out"}
    with pytest.raises(ConfigError, match="another config"):
        compare(done / "tiny.yaml", overrides=["train.epochs=3"], **both)
    file = done / "val" / "val.json"
    before = file.read_text()
    file.write_text(before + "\n")
    try:
        with pytest.raises(ConfigError, match="other data"):
            compare(done / "tiny.yaml", **both)
    finally:
        file.write_text(before)
    assert calls == []


def test_a_comparison_copied_without_its_resume_states_is_still_that_one(
    done: Path, calls: Calls, tmp_path: Path
) -> None:
    out = shutil.copytree(done / "out", tmp_path / "out", ignore=shutil.ignore_patterns("last", "last-1"))
    for resolved in out.rglob("config.resolved.yaml"):
        resolved.write_text(resolved.read_text().replace(str(done / "out"), str(out)))
    both = {"modes": ("adapters", "frozen"), "seeds": (0, 1), "out": out}
    with pytest.raises(ConfigError, match="another config"):
        compare(done / "tiny.yaml", overrides=["train.epochs=3"], **both)
    compare(done / "tiny.yaml", **both)
    assert calls == []


def test_methods_all_over_the_detector_stand_beside_a_frozen_backbone(done: Path, calls: Calls, tmp_path: Path) -> None:
    """With scope detector neck and head belong to the base of the methods, and not to that of mode frozen."""
    run = shutil.copytree(done / "out" / "runs" / "adapters-seed0", tmp_path / "base")
    base = export_weights_run(run)
    whole = (f"backbone.weights={json.dumps(str(base))}", "peft.scope=detector", "train.epochs=1")
    both = {"modes": ("adapters", "frozen"), "seeds": (0, 1), "overrides": whole, "out": tmp_path / "out"}
    compare(done / "tiny.yaml", **both)
    assert [name for _, name in calls] == ["adapters-seed0", "adapters-seed1", "frozen-seed0", "frozen-seed1"]
    compare(done / "tiny.yaml", **both)
    assert len(calls) == 4


def test_runs_on_other_base_weights_are_refused(done: Path, calls: Calls, tmp_path: Path) -> None:
    out = shutil.copytree(done / "out", tmp_path / "out")
    for resolved in out.rglob("config.resolved.yaml"):
        resolved.write_text(resolved.read_text().replace(str(done / "out"), str(out)))
    compare(done / "tiny.yaml", modes=("adapters", "frozen"), out=out)
    file = out / "runs" / "frozen-seed0" / "adapter" / "adapter_config.json"
    meta = json.loads(file.read_text())
    meta["base"]["sha256"] = "0" * 64
    file.write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match="other base weights"):
        compare(done / "tiny.yaml", modes=("adapters", "frozen"), out=out)


def test_an_interrupted_comparison_goes_on(tmp_path: Path, calls: Calls) -> None:
    file = config(tmp_path)
    calls.stop_at = 1
    with pytest.raises(Interrupted):
        compare(file, modes=("frozen", "adapters"), out=tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    assert "1 of 2 runs are done" in text
    assert "±" not in text
    calls.stop_at = 1000
    compare(file, modes=("frozen", "adapters"), out=tmp_path / "out")
    assert calls == [("train", "frozen-seed0"), ("train", "adapters-seed0")]
    assert "Not complete" not in (tmp_path / "out" / "table.md").read_text()


def test_figures_that_were_not_written_are_made_again(done: Path, calls: Calls, tmp_path: Path) -> None:
    """An evaluation in training must not end it, be the disk full."""
    folder = done / "out" / "runs" / "adapters-seed0" / "eval" / "val"
    shutil.move(folder, tmp_path / "val")
    try:
        with pytest.raises(AssertionError, match="asked"):
            compare(done / "tiny.yaml", modes=("adapters",), out=done / "out")
        assert calls == [("eval", "adapters-seed0")]
    finally:
        shutil.move(tmp_path / "val", folder)


def test_methods_that_follow_from_a_folder_are_those_of_the_run(
    tmp_path: Path, done: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(done / "out" / "runs" / "adapters-seed0", tmp_path / "base")
    hf = export_hf_run(run)
    text = (done / "tiny.yaml").read_text().replace("{methods: [{lora: {rank: 2}}]}", f"{{from: {hf.parent}}}")
    assert "from" in text
    file = tmp_path / "from.yaml"
    file.write_text(text)
    for _ in range(2):
        compare(file, modes=("adapters",), overrides=["train.epochs=1"], out=tmp_path / "out")
    assert calls == [("train", "adapters-seed0")]
    assert rows(tmp_path / "out" / "table.csv")[0]["methods"] == "lora"


def test_test_figures_win_over_val(tmp_path: Path, calls: Calls) -> None:
    file = config(tmp_path)
    compare(file, modes=("full",), overrides=["data.test=[test/test.json]"], out=tmp_path / "out")
    assert calls == [("train", "full-seed0"), ("eval", "full-seed0")]
    (row,) = rows(tmp_path / "out" / "runs.csv")
    figures = tmp_path / "out" / "runs" / "full-seed0" / "eval" / "test" / "metrics.json"
    assert float(row["AP50"]) == json.loads(figures.read_text())["coco"]["AP50"]
    assert int(row["backbone"]) > 10 * int(row["neck"])
    assert "data.test (test.json)." in (tmp_path / "out" / "table.md").read_text()


def test_runs_that_the_config_stands_on_are_made_first(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config(tmp_path, name="base.yaml")
    base = tmp_path / "runs" / "base"
    file = config(tmp_path)
    text = file.read_text().replace("weights: none", f"weights: {base}/export/merged.safetensors")
    file.write_text(text + "run: {needs: [base.yaml]}\n")
    for _ in range(2):
        compare(file, modes=("frozen",), out=tmp_path / "out")
    assert calls == [("train", "base"), ("export", "base"), ("train", "frozen-seed0")]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"modes": ()}, "make no comparison"),
        ({"seeds": (1, 1)}, "make no comparison"),
        ({"overrides": ["run.seed=3"]}, r"run\.seed is set by the comparison"),
        ({"overrides": ["peft.mode=full"]}, r"peft\.mode is set by the comparison"),
        ({"overrides": ["data.val=[]"]}, r"neither data\.test nor data\.val"),
        ({"overrides": ["peft.methods=[]"]}, r"peft\.methods is empty"),
        ({"overrides": ["peft.methods=[lora]"], "modes": ("full",), "methods": ("ia3",)}, "methods changes nothing"),
        ({"overrides": ["train.epocs=3"]}, "epochs"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(tmp_path: Path, calls: Calls, given: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        compare(config(tmp_path), **{"modes": ("adapters",), **given}, out=tmp_path / "out")
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_no_training_at_a_time_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="E-JOBS 0 trainings at a time"):
        compare(config(tmp_path), modes=("frozen",), jobs=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_may_have_any_name(tmp_path: Path, calls: Calls) -> None:
    out = tmp_path / "my runs: #1, [a]"
    assert compare(config(tmp_path), modes=("frozen",), out=out) == out / "table.md"
    assert (out / "runs" / "frozen-seed0" / "adapter").is_dir()
    assert "--out '" in (out / "table.md").read_text()


def test_two_comparisons_in_one_folder_do_not_mix(done: Path, calls: Calls) -> None:
    both = {"modes": ("adapters", "frozen"), "seeds": (0, 1), "out": done / "out"}
    with locked(done / "out", "it is taken", "go elsewhere"):  # by this process: a lock is no bar to its owner
        other = [sys.executable, "-m", "cvpeft.cli", "compare", str(done / "tiny.yaml"), "--out", str(done / "out")]
        told = subprocess.run(other, capture_output=True, text=True, check=False).stderr
    assert "E-LOCK" in told
    assert "another comparison is at work in this folder. Fix: wait, or choose another --out" in told
    compare(done / "tiny.yaml", **both)
    assert calls == []


@pytest.mark.slow
def test_trainings_beside_one_another_make_the_same_table(tmp_path: Path) -> None:
    file = config(tmp_path)
    tables = {}
    for jobs in ("1", "3"):
        out = tmp_path / jobs
        command = [sys.executable, "-m", "cvpeft.cli", "compare", str(file), "--seeds", "0", "1", "--jobs", jobs]
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
        tables[jobs] = [(row["mode"], row["seed"], row["AP"]) for row in rows(out / "runs.csv")]
    assert len(tables["1"]) == 6
    assert tables["1"] == tables["3"]
    assert "3 trainings at a time" in (tmp_path / "3" / "table.md").read_text()


@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cvpeft.cli", "compare", str(config(tmp_path)), "--modes", "adapters", "frozen"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (tmp_path / "out" / "table.md").read_text().strip()
    assert [row["mode"] for row in rows(tmp_path / "out" / "table.csv")] == ["adapters", "frozen"]


def test_a_val_that_chose_nothing_is_not_said_to_have_chosen(tmp_path: Path, calls: Calls) -> None:
    once = ("train.eval_every=2",)
    table = compare(config(tmp_path), modes=("frozen",), seeds=(0,), overrides=once, out=tmp_path / "out")
    assert "AP and AP50 on data.val (val.json), scored once, after the last epoch." in table.read_text()
