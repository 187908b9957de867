"""One photograph at a time, and few that wait, so that the memory in use has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from cvpeft.errors import ResourceError

__all__ = ["Turns"]

R = TypeVar("R")


class Turns:
    """A worker thread and the places in front of it. All methods are called from one event loop.

    places: requests that may hold a photo at the same time, the one that is worked on included.
    """

    def __init__(self, places: int) -> None:
        self.places, self.taken = places, 0
        self._worker = ThreadPoolExecutor(1, "cvpeft-detect")

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
        """Do the work in the thread, after what came before, even if the client hangs up meanwhile."""
        return await asyncio.wrap_future(self._worker.submit(work, *args))
