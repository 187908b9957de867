"""One photograph at a time, and few that wait, so that the memory in use has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import Queue
from threading import Thread
from typing import Any, TypeVar

from cvpeft.errors import ResourceError

__all__ = ["Turns"]

R = TypeVar("R")
Work = Queue[Callable[[], None]]


class Turns:
    """A worker thread and the places in front of it. All methods are called from one event loop.

    places: requests that may hold a photo at the same time, the one that is worked on included.
    """

    def __init__(self, places: int) -> None:
        self.places, self.taken = places, 0
        self._queue: Work = Queue()
        # A daemon: a service that is stopped does not wait for it, as it would for a ThreadPoolExecutor's.
        Thread(target=_work_off, args=(self._queue,), name="cvpeft-detect", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether the thread has work that is not done."""
        return self._queue.unfinished_tasks > 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places, for the block; ResourceError BUSY where all are taken."""
        if self.taken >= self.places:
            what = f"{self.taken} photos are being worked on or waiting, more are not taken"
            raise ResourceError("BUSY", what, why="memory would run out", fix="send the photo again in a few seconds")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, work: Callable[..., R], *args: Any) -> R:
        """Do the work in the thread, after what came before, even if the client hangs up meanwhile.

        ResourceError STOPPED where the service ends before the work does.
        """
        future: Future[R] = Future()
        self._queue.put(partial(_do, future, work, *args))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            raise ResourceError("STOPPED", "the service was stopped before the photo was done") from error


def _work_off(queue: Work) -> None:
    while True:
        queue.get()()  # held by no name, or the last photo would be kept until the next one comes
        queue.task_done()


def _do(future: Future[R], work: Callable[..., R], *args: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work(*args))
    except BaseException as error:
        future.set_exception(error)
