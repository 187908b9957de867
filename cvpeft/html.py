"""Pages that are one file: text and pictures in it, no script, nothing fetched, light or dark as the reader has it."""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files

__all__ = ["escape", "image_source", "page", "section"]

# It holds even where a name from a file should have slipped through unescaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, body: str, *, generator: str = "cvpeft") -> str:
    """A whole document. title: plain text; body: HTML, what came from files in it through `escape`.

    generator: the mark by which a later call knows a page as its own.
    """
    style = files("cvpeft").joinpath("html.css").read_text("utf-8")
    return "\n".join([
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="{escape(generator)}">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style>",
        f"<h1>{escape(title)}</h1>",
        body,
        "</html>\n",
    ])  # fmt: skip


def section(title: str, content: str) -> str:
    """A part of a page under its heading; nothing where it has no content. content: HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def image_source(kind: str, content: bytes) -> str:
    """What stands in `src` for an image that the page carries in itself. kind: jpeg or png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
