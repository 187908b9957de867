"""Commands of ours in processes of their own, some at a time; signals reach them all, and none outlives this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar

from cvpeft.errors import CheckpointError, ConfigError, CvpeftError, NumericalError, ResourceError
from cvpeft.train.loop import Interrupted

__all__ = ["Processes"]

R = TypeVar("R")
PROGRAM = (sys.executable, "-m", "cvpeft.cli")
THREADS = "OMP_NUM_THREADS"
STOPPING = (signal.SIGINT, signal.SIGTERM)
KINDS: Mapping[int, type[CvpeftError]] = {
    kind.exit_code: kind for kind in (ConfigError, CheckpointError, ResourceError, NumericalError)
}


class Processes:
    """A context in which `call` runs commands, and `each` several tasks that call.

    at_once: how many tasks go on beside one another; their processes share the cores, unless OMP_NUM_THREADS says
    otherwise. Signals are passed on to every process, which saves its state. Enter it in the main thread.
    """

    def __init__(self, at_once: int = 1) -> None:
        if at_once < 1:
            raise ConfigError("JOBS", f"{at_once} trainings at a time", fix="give --jobs 1 or more")
        self.at_once = at_once
        self._came: list[int] = []  # the signals
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = Lock()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Processes:
        self._pool = ThreadPoolExecutor(self.at_once)
        self._before = {signum: signal.signal(signum, self._forward) for signum in STOPPING}
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._forward(signal.SIGTERM, None)  # what goes on beside the task that failed saves its state too
        self._pool.shutdown(cancel_futures=True)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def each(self, tasks: Sequence[Callable[[], R]]) -> Iterator[R]:
        """What the tasks return, in their order, each as soon as those before it are done."""
        futures = [self._pool.submit(task) for task in tasks]
        return (_result(future) for future in futures)

    def call(self, *arguments: str, name: str) -> None:
        """Run a command of ours, all its output on stderr; its error becomes one of the same kind.

        Interrupted: a signal came, whatever the process made of it: it may have been too young or too far to heed it.
        """
        code = 0 if self._came else self._ended(arguments)
        if self._came or code - 128 in STOPPING:
            raise Interrupted((*self._came, code - 128)[0], Path(name))
        if code:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            why = "Mostly memory did not suffice" if code == -signal.SIGKILL else "What it said stands above"
            kind = ResourceError if code < 0 else KINDS.get(code, CvpeftError)
            what = f"`cvpeft {arguments[0]}` of {name} ended with {how}"
            raise kind("RUN", what, why=why, fix="mend it; then the same")

    def _ended(self, arguments: Sequence[str]) -> int:
        """The exit code of a command, once it has ended."""
        command = [*PROGRAM, *arguments]
        # a session of its own, so that no signal reaches it twice
        with subprocess.Popen(command, stdout=2, env=self._environment(), start_new_session=True) as child:  # noqa: S603
            with self._lock:
                self._running.add(child)
            if self._came:  # while it was started
                child.send_signal(self._came[0])
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._running.discard(child)

    def _environment(self) -> dict[str, str]:
        share = str(max(1, len(os.sched_getaffinity(0)) // self.at_once))
        return dict(os.environ) if self.at_once == 1 else {THREADS: share, **os.environ}

    def _forward(self, signum: int, _: object) -> None:
        self._came.append(signum)
        for child in tuple(self._running):
            child.send_signal(signum)


def _result(future: Future[R]) -> R:
    """In steps: a signal may reach another thread of ours, and Python only runs the handler when the main thread comes
    back from waiting.
    """
    while not future.done():
        wait([future], timeout=1)
    return future.result()
