"""What the service answers: boxes for a photograph, and one sentence for whatever cannot be one."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from cvpeft.errors import ConfigError, DataError
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.serve.app import Limits
from cvpeft.serve.body import read_photo
from tests.runtime.hostile_images import jpeg_scans
from tests.runtime.test_image import png_header
from tests.serve.client import ask, encoded, form, photo, running, say


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_a_photo_becomes_boxes_in_its_pixels(port: int) -> None:
    answer = ask(port, body=photo(256, 96))  # scaled by 1/2, 24 rows of grey above and below
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "width": 256,
        "height": 96,
        "detections": [
            {"box": [20, 12, 100, 72], "score": 0.9, "label": 1, "name": "good"},
            {"box": [128, 0, 256, 96], "score": 0.3, "label": 2, "name": "井盖"},
        ],
    }


@pytest.mark.parametrize(("score", "found"), [("0", 3), ("0.35", 2), ("0.95", 0), ("1", 0)])
def test_a_score_counts_for_all_classes(port: int, score: str, found: int) -> None:
    assert len(ask(port, f"/detect?score={score}", photo()).json["detections"]) == found


@pytest.mark.parametrize(
    ("overlap", "scores"), [("0", [0.9, 0.3]), ("0.3", [0.9, 0.4]), ("0.6", [0.9, 0.4, 0.3]), ("1", [0.9, 0.4, 0.3])]
)
def test_one_name_leaves_the_best_of_boxes_that_overlap(port: int, overlap: str, scores: list[float]) -> None:
    """The second box is the photo: it holds the first, a fifth of it, and the third, a half of it."""
    found = ask(port, f"/detect?score=0&one_name={overlap}", photo()).json["detections"]
    assert [row["score"] for row in found] == scores


@pytest.mark.parametrize("canvas", [None, (192, 256), "photo"])
def test_the_boxes_are_those_of_the_runtime_on_the_file(model: Path, tmp_path: Path, canvas: Any) -> None:
    """A large JPEG is decoded at a fraction of its size by both, or scores would differ in the last digits."""
    file = tmp_path / "large.jpg"
    file.write_bytes(encoded(noise(700, 900)))
    detector = Detector(model, threads=1, canvas=canvas)
    (expected,) = detector([file], threshold=0.0)
    with running(detector) as port:
        found = ask(port, "/detect?score=0", file.read_bytes()).json
    assert (found["width"], found["height"]) == (900, 700)
    rows = found["detections"]
    assert np.array_equal(np.array([row["box"] for row in rows], np.float32), expected.boxes)
    assert np.array_equal(np.array([row["score"] for row in rows], np.float32), expected.scores)
    assert [row["name"] for row in rows] == list(expected.names)


def test_a_turned_photo_is_answered_upright(port: int, model: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(96, 256, exif=exif)
    answer = ask(port, body=turned).json
    assert (answer["width"], answer["height"]) == (256, 96)
    assert answer["detections"] == ask(port, body=photo(256, 96)).json["detections"]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "JPEG"])
def test_every_format_of_the_decoder_is_taken_whatever_its_type_says(port: int, kind: str) -> None:
    for said in ("image/jpeg", "image/x-any", "application/octet-stream", "IMAGE/PNG; a=b"):
        assert len(ask(port, body=photo(kind=kind), kind=said).json["detections"]) == 2


def test_a_form_with_one_file_is_taken(port: int) -> None:
    body, kind = form(("note", None, b"street 5"), ("photo", "井盖.jpg", photo()))
    assert len(ask(port, body=body, kind=kind).json["detections"]) == 2
    content = noise(20, 30).tobytes() + b"\r\n--\r\n\r\n--xYzZ\r\n"  # what looks like an end is none
    body, kind = form(("photo", "a.bmp", encoded(noise(20, 30), "BMP") + content))
    assert ask(port, body=body, kind=kind).status == 200


def test_a_form_of_curl_and_of_old_browsers_is_taken() -> None:
    for said in ('multipart/form-data; boundary="a b\'c"', "Multipart/Form-Data; charset=x; BOUNDARY=\xe4"):
        marker = b"--a b'c" if '"' in said else b"--\xe4"
        head = b"content-disposition: form-data; name=photo; filename*=utf-8''%e4.jpg\r\nX: y"
        body = marker + b"\r\n" + head + b"\r\n\r\n\x00\r\n\r\n-\r\n" + marker + b"--"
        assert received(body, said) == b"\x00\r\n\r\n-"


def received(body: bytes, kind: str) -> bytes:
    """What is read out of a request, without a server."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode("latin-1"))]
    return asyncio.run(read_photo(Request({"type": "http", "method": "POST", "headers": headers}, receive), 10_000))


PIECES = [b"--b", b"--", b"\r\n", b"\n", b"b", b"Content-Disposition: form-data", b'; filename="a"', b"\0\xff", b": "]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join), st.text('b;="\\* \xe4Boundary/', max_size=30))
def test_no_form_is_more_than_a_file_or_a_sentence(body: bytes, kind: str) -> None:
    for said in (f"multipart/form-data;boundary={kind}", "multipart/form-data; boundary=b"):
        with suppress(DataError):
            assert isinstance(received(body, said), bytes)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (*form(("a", "a.jpg", b"1"), ("b", "b.jpg", b"2")), "holds 2 files"),
        (*form(("a", None, b"1")), "holds 0 files"),
        (*form(*[("a", None, b"1")] * 5000), "parts or more"),
        (form(("a", "a.jpg", b"1"))[0][:-12], "multipart/form-data; boundary=xYzZY", "cut off"),
        (form(("a", "a.jpg", b"1"))[0], "multipart/form-data; boundary=other", "cut off"),
        (form(("a", "a.jpg", b"1"))[0], "multipart/form-data", "names no boundary"),
        (b"--b\r\nno headers\r\n--b--", "multipart/form-data; boundary=b", "no end of its headers"),
        (b"", "multipart/form-data; boundary=b", "cut off"),
    ],
)
def test_a_form_that_is_not_one_file_is_refused(port: int, body: bytes, kind: str, words: str) -> None:
    answer = ask(port, body=body, kind=kind)
    assert answer.status == 400
    assert words in answer.error
    assert "curl -F" in answer.error


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (encoded(Image.new("1", (9000, 9000)), "PNG"), 413, "9000x9000 pixels, more than the limit of 2 million"),
        (png_header(65000, 65000).getvalue(), 413, "E-PIXELS"),
        (photo(1500, 1500), 413, "1500x1500"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99, 415, "HEIC photo"),
        (b"\0\0\0\x18ftypavif" + b"\0" * 99, 415, "AVIF"),
        (b"GIF89a" + b"\0" * 99, 415, "GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unknown kind"),
        (b"hello" * 200, 415, "JPEG, PNG, WebP and BMP are read"),
        (encoded(noise(60, 60))[:-400], 422, "damaged or cut off"),
        (photo(kind="PNG")[:-40], 422, "damaged or cut off"),
        (photo()[:10], 422, "E-IMAGE"),
        (jpeg_scans(1000), 422, "more than 100 scans"),
        (b"", 422, "empty"),
        (encoded(Image.new("I;16", (8, 8)), "PNG"), 422, "16 or more bits"),
    ],
)
def test_what_is_no_photo_is_refused_in_one_sentence(port: int, body: bytes, status: int, words: str) -> None:
    answer = ask(port, body=body)
    assert answer.status == status
    assert words in answer.error
    assert ask(port, body=photo()).status == 200


def test_a_type_that_is_no_image_is_refused_with_the_right_command(port: int) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json", "images/jpeg"):
        answer = ask(port, body=photo(), kind=kind)
        assert answer.status == 415
        assert f"'{kind}'" in answer.error
        assert "--data-binary @photo.jpg" in answer.error


TOO_LARGE = b"\xff\xd8\xff" + b"\0" * (3 * 2**20)


def test_an_upload_over_the_limit_is_refused_with_and_without_a_length(port: int) -> None:
    for body in (TOO_LARGE, iter([TOO_LARGE[:70000]] * 40), iter([b"x"] * 2 + [TOO_LARGE])):
        answer = ask(port, body=body)
        assert answer.status == 413
        assert "larger than the limit of 1 MB" in answer.error
    assert ask(port, body=photo(kind="BMP", width=500, height=500)).status == 200  # 0.7 MB


def test_chunks_below_the_limit_are_a_photo(port: int) -> None:
    whole = photo()
    assert ask(port, body=iter([whole[:100], whole[100:101], whole[101:]])).status == 200


def head(*lines: str, path: str = "/detect", host: str = "localhost") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: image/jpeg", *lines, "", ""]).encode()


def test_a_declared_size_is_refused_before_a_byte_is_sent(port: int) -> None:
    answer = say(port, head("Content-Length: 99999999999999999999"))
    assert answer.status == 413
    assert "E-BYTES" in answer.error
    answer = say(port, head("Content-Length: 2000000", "Expect: 100-continue"))
    assert answer.status == 413  # not 100: curl does not send it then


def test_a_length_that_lies_does_no_harm(port: int) -> None:
    short = photo()
    answer = say(port, head("Content-Length: 20"), short)  # 20 bytes are the photo; the rest is no request
    assert answer.status == 422
    for length in ("-5", "many", "1e3"):
        assert say(port, head(f"Content-Length: {length}"), short).status == 400
    with pytest.raises(ConnectionError):  # it promises more than it sends, and hangs up
        say(port, head("Content-Length: 100000"), short, hang_up=True)
    assert ask(port, body=short).status == 200


def test_a_damaged_chunk_does_no_harm(port: int) -> None:
    answer = say(port, head("Transfer-Encoding: chunked"), b"zz\r\nnot a length\r\n")
    assert answer.status == 400
    assert ask(port, body=photo()).status == 200


@pytest.mark.parametrize("number", ["2", "-0.1", "nan", "inf", "-inf", "high", "", "0,5", "0x1", "9" * 400])
@pytest.mark.parametrize(("name", "word"), [("score", "score"), ("one_name", "overlap one_name")])
def test_a_number_that_is_none_is_refused(port: int, name: str, word: str, number: str) -> None:
    answer = ask(port, f"/detect?{name}={number}", photo())
    assert answer.status == 422
    assert f"the {word} is" in answer.error
    assert "no number in 0..1" in answer.error
    assert len(answer.error) < 200


def test_a_parameter_that_is_not_known_is_refused(port: int) -> None:
    answer = ask(port, "/detect?scores=0.5", photo())
    assert answer.status == 400
    assert "'scores' is not known" in answer.error


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/detect", "POST"), ("PUT", "/detect", "POST"), ("DELETE", "/model", "GET"), ("POST", "/", "GET")],
)
def test_a_wrong_method_is_told_the_right_one(port: int, method: str, path: str, allowed: str) -> None:
    answer = ask(port, path, b"" if method == "POST" else None, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert f"{method} {path} is not served (Method Not Allowed)" in answer.error


def test_the_model_says_what_it_is(port: int) -> None:
    assert ask(port, "/health").json == {"status": "ok"}
    assert ask(port, "/model").json == {
        "run": "city_a",
        "file": "model.onnx",
        "classes": ["good", "井盖"],
        "input_size": [96, 128],
        "canvas": None,
        "score_thresholds": {"good": 0.5, "井盖": 0.2},
        "limits": {"megabytes": 1, "megapixels": 2},
    }


class Watched(Detector):
    """Counts how many photos are worked on at the same time."""

    inside = most = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        threading.Event().wait(0.02)
        self.inside -= 1
        return super().__call__(*args, **kwargs)


def test_clients_at_once_get_their_own_boxes_one_after_the_other(model: Path) -> None:
    detector = Watched(model, threads=1)
    sizes = [(256 + 16 * i, 96) for i in range(4)] * 5
    with running(detector) as port, ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda size: ask(port, body=photo(*size)), sizes))
    assert [(a.json["width"], a.json["height"]) for a in answers] == sizes
    assert detector.most == 1


class Broken(Detector):
    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [(RuntimeError("secret path /home/x"), 500, "RuntimeError"), (MemoryError(), 503, "memory does not suffice")],
)
def test_a_fault_of_the_service_is_told_without_its_inner_life(
    model: Path, fault: Exception, status: int, words: str
) -> None:
    detector = Broken(model, threads=1)
    detector.fault = fault
    with running(detector) as port:
        answer = ask(port, body=photo())
        assert ask(port, "/health").status == 200
    assert answer.status == status
    assert words in answer.error
    assert "secret" not in answer.error
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("limits", [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0), (1, 101)])
def test_limits_that_are_none_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"E-LIMIT --max-m"):
        Limits(*limits)
