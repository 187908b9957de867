"""A service on a free port, and clients that say exactly what a test wants, right or wrong."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cvpeft.runtime.onnx_detector import Detector
from cvpeft.serve.app import Limits, create_app
from cvpeft.serve.door import LOCAL_NAMES
from cvpeft.serve.server import http_server

WHITE = (255, 255, 255)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence; there must be one, and nothing else."""
        assert self.json.keys() == {"error"}
        told = self.json["error"]
        assert told.startswith("E-")
        assert "\n" not in told
        assert "Traceback" not in told
        return told


@contextmanager
def running(detector: Detector, limits: Limits | None = None, names: Any = LOCAL_NAMES) -> Iterator[int]:
    """The port of a service, on a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as ears:
        server = http_server(create_app(detector, limits, names=names))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [ears]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield ears.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


def ask(
    port: int,
    path: str = "/detect",
    body: Any = None,
    *,
    kind: str = "image/jpeg",
    method: str = "",
    headers: dict[str, str] | None = None,
) -> Answer:
    """body: bytes, or an iterable of them, which is sent in chunks without a length."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = ({} if body is None else {"Content-Type": kind}) | (headers or {})
    try:
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, given, encode_chunked=not isinstance(body, bytes | None))
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def say(port: int, *parts: bytes, hang_up: bool = False) -> Answer:
    """Bytes as they are on a bare connection, and what comes back; hang_up: say no more before the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def encoded(image: Image.Image | np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 256, height: int = 96, colour: Any = WHITE, kind: str = "JPEG", **options: Any) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), kind, **options)


def form(*parts: tuple[str, str | None, bytes], boundary: str = "xYzZY") -> tuple[bytes, str]:
    """Body and Content-Type of a form; a part is (name, filename or None, content)."""
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
