"""`cvpeft serve`: an exported model on a port of this machine, until it is stopped."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from cvpeft.errors import ResourceError
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.runtime.tiles import Canvas
from cvpeft.serve.app import Limits, create_app
from cvpeft.serve.door import LOCAL_NAMES
from cvpeft.serve.turns import Turns

__all__ = ["http_server", "serve"]

GRACE = 5  # seconds that a stopped service waits for what it still works on


def serve(
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    canvas: Canvas | None = None,
    limits: Limits | None = None,
) -> None:
    """Answer until a signal stops it; Ctrl+C ends in KeyboardInterrupt, or in exit code 130 where a photo is still
    worked on after GRACE seconds.

    host: address to listen at; on a loopback address only requests under this machine's own names are answered.
    port: 0 takes a free one, which the printed line tells. canvas: see `Detector`.
    DataError: the model cannot be used. ResourceError: the address cannot be listened at.
    """
    limits = limits or Limits()
    detector = Detector(model, canvas=canvas)
    local = _is_local(host)
    with _listen(host, port) as ears:
        port = ears.getsockname()[1]
        if not local:
            print(_warning(host), file=sys.stderr, flush=True)
        name = f"[{host}]" if ":" in host else host
        print(f"{model}: {len(detector.classes)} classes, at http://{name}:{port}/ (Ctrl+C stops it)", flush=True)
        turns = Turns(limits.places)
        app = create_app(detector, limits, names={*LOCAL_NAMES, name.lower()} if local else None, turns=turns)
        try:
            http_server(app).run(sockets=[ears])
        except KeyboardInterrupt:
            if turns.busy:
                _leave()
            raise


def http_server(app: ASGIApp) -> uvicorn.Server:
    """The server that runs an app of `create_app`."""
    config = uvicorn.Config(
        app,
        http="h11",  # named, or what else is installed would choose
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)


def _leave() -> NoReturn:
    """End the process as Ctrl+C does, without Python's own end: that aborts where a thread comes back from C++."""
    print("stopped", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


def _is_local(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may stand for any address


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two: no name that could be looked up
        what = f"cannot listen at this address ({getattr(error, 'strerror', None) or error})"
        fix = "choose another --port or --host; --port 0 takes a free port"
        raise ResourceError("PORT", what, where=f"{host}:{port}", fix=fix) from error


def _warning(host: str) -> str:
    return (
        f"W-HOST {host} - everyone who reaches this address can use the service, without a password or encryption. "
        "Fix: leave --host out, or put a proxy that has both in front of it."
    )
