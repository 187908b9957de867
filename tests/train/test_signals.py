"""The real command: signals, kills and exit codes as a shell sees them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvpeft.cli import main
from cvpeft.config.load import dump
from cvpeft.train.loop import train
from tests.helpers import settings

from .runs import outcome


def command(folder: Path, **sections: dict[str, object]) -> list[str]:
    """`cvpeft train` on the tiny data."""
    (folder / "tiny.yaml").write_text(dump(settings(folder, **sections)))
    return [sys.executable, "-m", "cvpeft.cli", "train", str(folder / "tiny.yaml")]


def starting_by(method: str, line: list[str]) -> list[str]:
    """The same command where this is the usual way to start a process."""
    code = f"import multiprocessing, sys; multiprocessing.set_start_method({method!r}); from cvpeft.cli import main; "
    return [line[0], "-c", code + "sys.exit(main(sys.argv[1:]))", *line[3:]]


def started(line: list[str], group: bool = False) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, process_group=0 if group else None
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


LONG = {"epochs": 200, "save_every": 1}


@pytest.mark.parametrize(
    ("signum", "code", "method"),
    [
        (signal.SIGTERM, 143, "fork"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (signal.SIGINT, 130, "fork"),
                (signal.SIGINT, 130, "forkserver"),
                (signal.SIGTERM, 143, "forkserver"),
                (signal.SIGINT, 130, "spawn"),
            )
        ),
    ],
)
def test_a_signal_saves_and_gives_its_exit_code(data: Path, signum: int, code: int, method: str) -> None:
    """To the whole process group, as a terminal and `timeout` send it: loader processes must not die first."""
    line = starting_by(method, command(data, train=LONG, data={"workers": 1}))
    with started(line, group=True) as process:
        wait_for(data / "runs/tiny/last", process)
        os.killpg(process.pid, signum)
        _, said = process.communicate()
    assert process.returncode == code, said
    last = said.strip().splitlines()[-1]
    assert f"stopped by {signal.Signals(signum).name}, the state is saved" in last
    assert "Traceback" not in said
    assert (data / "runs/tiny/last/manifest.json").exists()
    assert not (data / "runs/tiny/adapter").exists()


def test_a_finished_run_is_a_mistake_with_exit_code_2(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(settings(data))
    assert main(command(data)[3:]) == 2
    assert capsys.readouterr().err.strip().endswith("choose another run.name, or move the folder away")


def step_of(run: Path) -> int:
    try:
        return int(json.loads((run / "last/state.json").read_text())["progress"]["step"])
    except (OSError, ValueError):  # a new state takes its place just now
        return 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_command_survives_kill_9_again_and_again(data: Path) -> None:
    rng, long = random.Random(0), {"epochs": 40, "save_every": 1}
    line, run = command(data, train=long, data={"workers": 1}), data / "runs/tiny"
    for _ in range(8):
        goal = step_of(run) + rng.randint(1, 9)
        with started(line) as process:
            while step_of(run) < goal:
                assert process.poll() is None, process.communicate()
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with started(line) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    whole = train(settings(data, run={"name": "whole"}, train=long, data={"workers": 1}))
    assert outcome(run) == outcome(whole)
