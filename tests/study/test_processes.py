"""Commands in processes of their own: errors are passed on, signals too, and several go on beside one another."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from cvpeft.errors import CheckpointError, ConfigError, CvpeftError, NumericalError, ResourceError
from cvpeft.study import processes as module
from cvpeft.study.processes import Processes
from cvpeft.train.loop import Interrupted


def call(*arguments: str, name: str) -> None:
    with Processes() as started:
        started.call(*arguments, name=name)


def program(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(module, "PROGRAM", (sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        ("raise SystemExit(2)", ConfigError, "exit code 2"),
        ("raise SystemExit(3)", CheckpointError, "exit code 3"),
        ("raise SystemExit(4)", ResourceError, "exit code 4"),
        ("raise SystemExit(5)", NumericalError, "exit code 5"),
        ("raise SystemExit(1)", CvpeftError, "exit code 1"),
        ("import os; os.kill(os.getpid(), 9)", ResourceError, "signal 9. Mostly memory"),
        ("raise SystemExit(130)", Interrupted, "SIGINT"),
    ],
)
def test_the_childs_error_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, code: str, kind: type[CvpeftError], told: str
) -> None:
    program(monkeypatch, code)
    with pytest.raises(kind, match=told):
        call("train", "x.yaml", name="full-seed0")


def test_a_child_that_ends_well_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, "import sys; assert sys.argv[1:] == ['train', 'x.yaml']")
    call("train", "x.yaml", name="full-seed0")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_child_which_may_finish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signum: int
) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    program(
        monkeypatch,
        "import pathlib, signal, sys, time\n"
        "def stop(number, _):\n"
        f"    time.sleep(0.5); pathlib.Path({str(saved)!r}).touch(); sys.exit(128 + number)\n"
        f"signal.signal({int(signum)}, stop)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(30)",
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Interrupted) as stopped:
        call("train", "x.yaml", name="full-seed0")
    thread.join()
    assert stopped.value.exit_code == 128 + signum
    assert saved.exists()
    assert signal.getsignal(signum) == before


@pytest.mark.parametrize("code", [0, 1, -15])
def test_a_signal_that_the_child_did_not_heed_ends_the_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    """It was still importing, or already done: the next training must not begin, and it is no fault."""
    ready = tmp_path / "ready"
    heed = "signal.SIG_DFL" if code < 0 else f"lambda *_: sys.exit({code})"
    program(
        monkeypatch,
        f"import pathlib, signal, sys, time; signal.signal(15, {heed}); pathlib.Path({str(ready)!r}).touch(); "
        "time.sleep(30)",
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Interrupted) as stopped:
        call("eval", "run", name="full-seed0")
    thread.join()
    assert stopped.value.exit_code == 143


def test_tasks_go_on_beside_one_another_and_end_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first waits for the second; in turn it would wait for ever."""
    program(
        monkeypatch,
        "import pathlib, sys, time\n"
        f"mine, other = (pathlib.Path({str(tmp_path)!r}, name) for name in sys.argv[1:3])\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.02)",
    )
    with Processes(2) as started:

        def task(mine: str, other: str) -> str:
            started.call(mine, other, name=mine)
            return mine

        assert list(started.each([partial(task, "a", "b"), partial(task, "b", "a")])) == ["a", "b"]


def test_a_task_that_fails_stops_those_beside_it_which_save_their_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    program(
        monkeypatch,
        "import pathlib, signal, sys, time\n"
        f"ready, saved = pathlib.Path({str(ready)!r}), pathlib.Path({str(saved)!r})\n"
        "if sys.argv[1] == 'fails':\n"
        "    while not ready.exists(): time.sleep(0.02)\n"
        "    sys.exit(5)\n"
        "signal.signal(signal.SIGTERM, lambda number, _: (saved.touch(), sys.exit(128 + number)))\n"
        "ready.touch(); time.sleep(60)",
    )

    def run() -> None:
        with Processes(2) as started:
            list(started.each([partial(started.call, name, name=name) for name in ("fails", "lasts", "never begun")]))

    with pytest.raises(NumericalError, match="exit code 5"):
        run()
    assert saved.exists()


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program(monkeypatch, "import os, sys; assert os.environ.get('OMP_NUM_THREADS', 'none') == sys.argv[1]")
    for at_once, threads in ((1, "none"), (2, "3"), (9, "1")):
        with Processes(at_once) as started:
            started.call(threads, name="x")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with Processes(2) as started:
        started.call("4", name="x")
    with pytest.raises(ConfigError, match="--jobs 1 or more"):
        Processes(0)
