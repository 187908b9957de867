"""Places in the queue, slow senders, and those who hang up."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from cvpeft.errors import ResourceError
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.serve.app import Limits
from cvpeft.serve.body import read_photo
from tests.serve.client import ask, photo, running

HEAD = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"


def wait_for(port: int, status: int) -> Any:
    deadline = time.monotonic() + 60
    while (answer := ask(port, body=photo())).status != status and time.monotonic() < deadline:
        time.sleep(0.02)
    return answer


def test_a_full_queue_refuses_at_once_and_frees_the_places_of_those_who_hang_up(model: Path) -> None:
    with running(Detector(model, threads=1), Limits(waiting=2)) as port:
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for connection in waiting:
            connection.sendall(HEAD)
        answer = wait_for(port, 503)
        assert "3 photos are being worked on or waiting" in answer.error
        assert answer.headers["retry-after"] == "2"
        assert ask(port, "/health").status == 200  # it lives, it is busy
        for connection in waiting:
            connection.close()
        assert wait_for(port, 200).status == 200


def test_a_refused_photo_gives_its_place_back(model: Path) -> None:
    with running(Detector(model, threads=1), Limits(waiting=0)) as port:
        for body in (b"no photo", b"", b"x" * 30_000_000):
            assert ask(port, body=body).status in (413, 415, 422)
        assert ask(port, body=photo()).status == 200


def test_who_sends_too_slowly_is_refused() -> None:
    async def drops() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": []}, drops)
    with pytest.raises(ResourceError, match=r"E-SLOW .* within 0\.1 seconds"):
        asyncio.run(read_photo(request, 1000, seconds=0.1))
