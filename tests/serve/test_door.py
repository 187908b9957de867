"""Who is let in, what the headers say, and paths that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvpeft.runtime.onnx_detector import Detector
from tests.serve.client import ask, photo, running, say


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]:8000"])
def test_names_of_this_machine_are_let_in(port: int, host: str) -> None:
    assert ask(port, "/health", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "localhost:80@evil.example", "0.0.0.0",
     "localhost.", "localhost:", "", "[::1", "::1", "a" * 3000],
)  # fmt: skip
def test_a_name_that_was_pointed_here_is_refused(port: int, host: str) -> None:
    for path, body in (("/", None), ("/model", None), ("/detect", photo())):
        answer = ask(port, path, body, headers={"Host": host})
        assert answer.status == 421
        assert "E-HOST" in answer.error
        assert len(answer.error) < 300


def test_a_request_without_a_host_is_refused(port: int) -> None:
    assert say(port, b"GET /model HTTP/1.0\r\n\r\n").status == 421
    assert say(port, b"GET /model HTTP/1.1\r\n\r\n").status == 400
    assert say(port, b"GET /model HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").status == 400


def test_every_name_is_let_in_where_others_are_invited(model: Path) -> None:
    with running(Detector(model, threads=1), names=None) as port:
        assert ask(port, "/health", headers={"Host": "box.city.example:8000"}).status == 200
        assert ask(port, "/none", headers={"Host": "[::1"}).status == 404


def test_a_page_of_another_site_cannot_send_photos(port: int) -> None:
    for site in ("cross-site", "same-site"):
        answer = ask(port, body=photo(), headers={"Sec-Fetch-Site": site})
        assert answer.status == 403
        assert "E-ORIGIN" in answer.error
        assert ask(port, "/", headers={"Sec-Fetch-Site": site}).status == 200  # a link to it may stand anywhere
    assert ask(port, body=photo(), headers={"Sec-Fetch-Site": "same-origin"}).status == 200


def test_every_answer_has_the_safe_headers(port: int) -> None:
    wrong_host = ask(port, "/", headers={"Host": "evil.example"})
    for answer in (ask(port, "/"), ask(port, "/page.js"), ask(port, "/none"), ask(port, body=b"no"), wrong_host):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_the_page_and_its_parts_come_from_here_alone(port: int) -> None:
    kinds = {
        "/": "text/html",
        "/page.css": "text/css",
        "/words.js": "text/javascript",
        "/page.js": "text/javascript",
        "/icon.svg": "image/svg+xml",
    }
    for path, kind in kinds.items():
        answer = ask(port, path)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(kind)
        text = answer.body.decode().replace("http://www.w3.org/2000/svg", "")  # a name, which is not asked for
        assert "//" not in "\n".join(line.partition("// ")[0] for line in text.splitlines()), path


@pytest.mark.parametrize(
    "path",
    ["/../app.py", "/page.js/../../app.py", "/%2e%2e/%2e%2e/etc/passwd", "/..%2fapp.py", "/page/page.html",
     "//etc/passwd", "/..\\app.py", "/page.js%00.py", "/etc/passwd", "/static/../../x", "/docs", "/openapi.json",
     "http://localhost/../etc/passwd", "/page.js/"],
)  # fmt: skip
def test_paths_lead_nowhere(port: int, path: str) -> None:
    answer = say(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.status == 404
    assert "E-ROUTE" in answer.error
    assert b"root:" not in answer.body
    assert b"import" not in answer.body
