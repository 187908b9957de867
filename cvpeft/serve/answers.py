"""Every refusal as JSON: {"error": "E-CODE ..."}, the sentence that the command line would print, and its status."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cvpeft.errors import CvpeftError, DataError, ResourceError

__all__ = ["DETECT", "answer", "tell_errors"]

DETECT = "curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg 'http://HOST:PORT/detect?score=0.5'"
UNPROCESSABLE = 422  # what is refused for its content: a damaged image, a score of 7
STATUS = {
    "FORM": HTTPStatus.BAD_REQUEST,
    "QUERY": HTTPStatus.BAD_REQUEST,
    "ORIGIN": HTTPStatus.FORBIDDEN,
    "SLOW": HTTPStatus.REQUEST_TIMEOUT,
    "BYTES": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "PIXELS": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "FORMAT": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "TYPE": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "HOST": HTTPStatus.MISDIRECTED_REQUEST,
    "INTERNAL": HTTPStatus.INTERNAL_SERVER_ERROR,
    "BUSY": HTTPStatus.SERVICE_UNAVAILABLE,
    "MEMORY": HTTPStatus.SERVICE_UNAVAILABLE,
    "STOPPED": HTTPStatus.SERVICE_UNAVAILABLE,
}


def answer(error: CvpeftError) -> JSONResponse:
    """The response that tells one fault."""
    status = STATUS.get(error.code, UNPROCESSABLE)
    headers = {"Retry-After": "2"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"error": str(error)}, status, headers)


def tell_errors(app: FastAPI) -> None:
    """Let every exception of the app, foreseen or not, end in one such response."""
    for kind, tell in (
        (CvpeftError, _foreseen),
        (HTTPException, _route),
        (MemoryError, _memory),
        (ClientDisconnect, _gone),
        (Exception, _unforeseen),
    ):
        app.add_exception_handler(kind, tell)


async def _foreseen(_: Request, error: Exception) -> Response:
    assert isinstance(error, CvpeftError)
    return answer(error)


async def _route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method; the Allow header of the latter is kept."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.scope['path'][:80]} is not served ({HTTPStatus(error.status_code).phrase})"
    told = DataError("ROUTE", what, fix=f"GET /, /health or /model, or POST a photo: {DETECT}")
    return JSONResponse({"error": str(told)}, error.status_code, error.headers)


async def _memory(_: Request, __: Exception) -> Response:
    fix = "send a smaller photo, or start the service with a lower --max-megapixels"
    return answer(ResourceError("MEMORY", "the memory does not suffice for this photo", fix=fix))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # the client hung up: nobody reads it


async def _unforeseen(_: Request, error: Exception) -> Response:
    """The traceback goes to the service's own stderr, never to a client."""
    what = f"the service failed on this photo ({type(error).__name__})"
    return answer(CvpeftError("INTERNAL", what, fix="report it with the traceback that the service printed"))
