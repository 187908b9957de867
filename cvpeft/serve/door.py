"""Who may come in, and what a browser may do with what goes out."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cvpeft.errors import CvpeftError, DataError
from cvpeft.serve.answers import answer

__all__ = ["LOCAL_NAMES", "Door"]

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"(\[[0-9a-f:]+\]|[^:\[\]]+)(:\d+)?")
SAFE_HEADERS = {
    # All of the page comes from the service: nothing of others' is loaded, run, framed or sent to.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Door:
    """An ASGI app in front of another: refuses foreign hosts and origins, adds the headers above to every answer.

    names: Host headers that are let in, any port; None: all. A service on localhost must check them, or a web page
    whose name is pointed at 127.0.0.1 (DNS rebinding) could read its answers.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # the server is set up without websockets and without a lifespan

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFE_HEADERS)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (self.app if refusal is None else answer(refusal))(scope, receive, send_safely)

    def _refusal(self, method: str, headers: Headers) -> CvpeftError | None:
        host = headers.get("host", "")
        parts = HOST.fullmatch(host.lower())
        if self.names is not None and (parts is None or parts[1] not in self.names):
            what, why = f"the Host header is {host[:80]!r}", "this service is for its own machine alone"
            return DataError("HOST", what, why=why, fix="ask for localhost, or start the service with --host")
        if method == "POST" and headers.get("sec-fetch-site") in ("cross-site", "same-site"):  # browsers say so
            return DataError("ORIGIN", "a page of another site sent this", fix="use the service's own page")
        return None
