"""The HTTP service: a page, what the model is, and POST /detect from a photograph to boxes.

    GET /                    the page
    GET /health              {"status": "ok"}
    GET /model               {"run", "file", "classes", "input_size", "canvas", "score_thresholds", "limits"}
    POST /detect?score=0.5   {"width", "height", "detections": [{"box": [x1, y1, x2, y2], "score", "label", "name"}]}

Boxes are in pixels of the upright photograph, the same as those of `cvpeft predict`. Without a score each class's own
threshold counts. With one_name=0.7, of boxes of any classes that overlap by more than this IoU only the best is told.
No path of a request ever becomes a path on the disk, and nothing is written.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cvpeft.errors import ConfigError, DataError
from cvpeft.runtime.image import MAX_PIXELS, decode
from cvpeft.runtime.onnx_detector import Detections, Detector, Loaded
from cvpeft.serve.answers import tell_errors
from cvpeft.serve.body import read_photo
from cvpeft.serve.door import Door
from cvpeft.serve.turns import Turns

__all__ = ["Limits", "create_app"]

PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


PARAMETERS = {"score": "score", "one_name": "overlap one_name"}  # of the query, and what they are
EXAMPLE = "score=0.5&one_name=0.7"
MOST_MEGABYTES = 100_000


@dataclass(frozen=True)
class Limits:
    """What one request may bring, and how many may be inside.

    megabytes: of the upload. megapixels: of the photo, at most what the decoder takes at all. waiting: photos held in
    memory behind the one that is worked on. ConfigError for a limit that lets nothing in, or too much.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    waiting: int = 4

    def __post_init__(self) -> None:
        if not (0 < self.megabytes <= MOST_MEGABYTES):
            fix = f"give a number above 0 and up to {MOST_MEGABYTES}"
            raise ConfigError("LIMIT", f"--max-mb is {self.megabytes:g}", fix=fix)
        most = MAX_PIXELS / 1e6
        if not (0 < self.megapixels <= most):
            what, why = f"--max-megapixels is {self.megapixels:g}", f"the decoder takes {most:g} million pixels at most"
            raise ConfigError("LIMIT", what, why=why, fix=f"give a number above 0 and up to {most:g}")

    @property
    def most_bytes(self) -> int:
        return int(self.megabytes * 2**20)

    @property
    def places(self) -> int:
        return 1 + self.waiting

    @property
    def most_pixels(self) -> int:
        return int(self.megapixels * 1e6)


def create_app(
    detector: Detector,
    limits: Limits | None = None,
    *,
    names: Collection[str] | None = None,
    turns: Turns | None = None,
) -> Door:
    """The service as an ASGI app. names: the hosts that it may be asked under, see `Door`. turns: the thread that
    detects; None: one of its own, with the places that `limits` say."""
    limits = limits or Limits()
    # Its pages of documentation would load scripts from elsewhere; its redirects repeat any Host header.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    service = _Service(detector, limits, turns or Turns(limits.places))
    for path, (file, kind) in PAGE.items():
        app.add_api_route(path, _shipped(file, kind), methods=["GET"])
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/model", service.model, methods=["GET"])
    app.add_api_route("/detect", service.detect, methods=["POST"])
    tell_errors(app)
    return Door(app, names)


def _shipped(file: str, kind: str) -> Callable[[], Any]:
    content = Path(__file__).with_name("page").joinpath(file).read_bytes()

    async def page() -> Response:
        return Response(content, media_type=kind)

    return page


class _Service:
    def __init__(self, detector: Detector, limits: Limits, turns: Turns) -> None:
        self.detector, self.limits, self.turns = detector, limits, turns

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def model(self) -> dict[str, Any]:
        d = self.detector
        return {
            "run": d.metadata.get("run"),
            "file": d.path.name,
            "classes": d.classes,
            "input_size": d.size,
            "canvas": d.canvas,
            "score_thresholds": {name: d.thresholds[name] for name in d.classes},
            "limits": {"megabytes": self.limits.megabytes, "megapixels": self.limits.megapixels},
        }

    async def detect(self, request: Request) -> dict[str, Any]:
        wanted = _wanted(request.query_params)
        with self.turns.place():  # before the body is read, so that what waits is bounded too
            photo = await read_photo(request, self.limits.most_bytes)
            return await self.turns.run(self._detect, photo, wanted)

    def _detect(self, photo: bytes, wanted: Mapping[str, float]) -> dict[str, Any]:
        least = self.detector.least
        loaded = Loaded(*decode(io.BytesIO(photo), at_least=least, max_pixels=self.limits.most_pixels))
        (found,) = self.detector([loaded], threshold=wanted.get("score"), one_name=wanted.get("one_name"))
        height, width = loaded.size
        return {"width": width, "height": height, "detections": _rows(found)}


def _wanted(query: Mapping[str, str]) -> dict[str, float]:
    """The query's parameters; DataError for another one, or for a value outside of 0..1."""
    if strange := [name for name in query if name not in PARAMETERS]:
        raise DataError("QUERY", f"the parameter {strange[0][:40]!r} is not known", fix=f"/detect?{EXAMPLE}")
    return {name: _number(name, text) for name, text in query.items()}


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        what = f"the {PARAMETERS[name]} is {text[:40]!r}, no number in 0..1"
        raise DataError(name.upper(), what, fix=f"/detect?{EXAMPLE}, or leave it out")
    return value


def _rows(found: Detections) -> list[dict[str, Any]]:
    columns = zip(found.boxes, found.scores, found.labels, found.names, strict=True)
    return [
        {"box": [_short(side) for side in box], "score": _short(score), "label": int(label), "name": name}
        for box, score, label, name in columns
    ]


def _short(value: Any) -> float:
    """A float32 as the shortest decimal that means it: 0.9, not 0.8999999761581421."""
    return float(str(value))
