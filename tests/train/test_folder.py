from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvpeft.config.load import load
from cvpeft.errors import ConfigError, ResourceError
from cvpeft.peft.inject import signatures
from cvpeft.train.folder import data_digest, is_finished, open_run, record
from tests.helpers import ellipses, settings


def test_the_resolved_config_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    s = settings(tmp_path)
    with open_run(s) as folder:
        assert folder == tmp_path / "runs" / "tiny"
        assert load(folder / "config.resolved.yaml", methods=signatures()) == s
        record(s, folder, torch.device("cpu"), "fp32")
        assert json.loads((folder / "env.json").read_text())["versions"]["timm"]


def test_a_run_without_a_state_may_be_begun_with_another_config(tmp_path: Path) -> None:
    with open_run(settings(tmp_path)):
        pass
    other = settings(tmp_path, train={"epochs": 5})
    with open_run(other) as folder:
        assert load(folder / "config.resolved.yaml", methods=signatures()) == other


@pytest.mark.parametrize("result", ["last", "last-1", "best", "adapter"])
def test_a_run_with_results_is_not_overwritten(tmp_path: Path, result: str) -> None:
    with open_run(settings(tmp_path)) as folder:
        (folder / result).mkdir()
    with (
        pytest.raises(ConfigError, match="the folder holds a run of another config"),
        open_run(settings(tmp_path, train={"epochs": 5})),
    ):
        pass
    with open_run(settings(tmp_path)):
        pass


def test_what_does_not_touch_the_result_may_change_while_a_run_goes_on(tmp_path: Path) -> None:
    with open_run(settings(tmp_path)) as folder:
        (folder / "last").mkdir()
    other = settings(tmp_path, data={"workers": 3}, train={"save_every": 7, "tensorboard": True})
    with open_run(other) as folder:
        assert load(folder / "config.resolved.yaml", methods=signatures()) == settings(tmp_path)
        record(other, folder, torch.device("cpu"), "fp32")
        assert load(folder / "config.resolved.yaml", methods=signatures()) == other
    (folder / "config.resolved.yaml").write_text("run: [")
    with pytest.raises(ConfigError, match="another config"), open_run(other):
        pass


def test_a_kill_before_the_config_was_written_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    for name in (".lock", "env.json", ".config.resolved.yaml.7.part"):
        (folder / name).write_text("half")
    with open_run(settings(tmp_path)):
        assert (folder / "config.resolved.yaml").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "holiday.jpg").write_text("mine")
    with pytest.raises(ConfigError, match="the folder holds something that is no run"), open_run(settings(tmp_path)):
        pass
    assert not (folder / "config.resolved.yaml").exists()


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").write_text("a file")
    with pytest.raises(ResourceError, match="the folder cannot be made") as caught, open_run(settings(tmp_path)):
        pass
    assert caught.value.exit_code == 4


HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with open_run(settings(tmp_path)) as folder:
        pass
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ResourceError, match="another process trains in this folder") as caught,
            open_run(settings(tmp_path)),
        ):
            pass
        other.communicate("")
    assert caught.value.exit_code == 4
    with open_run(settings(tmp_path)):
        pass


def test_loader_processes_that_outlive_their_parent_do_not_hold_the_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open_run(settings(tmp_path)):
        child = os.fork()
        if not child:
            os.read(read, 1)
            os._exit(0)
    try:
        with open_run(settings(tmp_path)):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)


def test_a_finished_run_stays_finished_without_its_resume_states(tmp_path: Path) -> None:
    """They are large, and left out where a run is copied: it must not be trained anew over its adapter."""
    with open_run(settings(tmp_path)) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}")
    assert is_finished(folder)
    with pytest.raises(ConfigError, match=r"this run is finished\."), open_run(settings(tmp_path)):
        pass
    for name in ("last-1", "last"):  # the adapter was written, and the state that says so was not
        (folder / name).mkdir()
        assert not is_finished(folder)
        (folder / name).rmdir()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"progress": []}', '{"progress": {"finished": false}}'])
def test_a_damaged_state_is_not_a_finished_one(tmp_path: Path, text: str) -> None:
    assert not is_finished(tmp_path)
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "state.json").write_text(text)
    assert not is_finished(tmp_path)


def test_the_digest_knows_every_json_file_and_their_order(tmp_path: Path) -> None:
    ellipses(tmp_path, 2)
    ellipses(tmp_path, 2, name="val")
    data = settings(tmp_path).data
    before = data_digest(data)
    assert data_digest(data) == before
    assert data_digest(data.model_copy(update={"train": data.val, "val": data.train})) != before
    ellipses(tmp_path, 2, name="val", seed=1)
    assert data_digest(data) != before
