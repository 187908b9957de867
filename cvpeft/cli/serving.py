"""The command that answers over HTTP: serve."""

from __future__ import annotations

import argparse
from pathlib import Path

from cvpeft.cli.parser import add_command
from cvpeft.errors import ConfigError
from cvpeft.runtime.options import add_canvas

__all__ = ["add_commands"]

EXTRA = ("fastapi", "starlette", "uvicorn")


def add_commands(commands: argparse._SubParsersAction) -> None:
    about = "Serve an exported model over HTTP: POST a photo, get JSON; or drop it on the page and see the boxes."
    parser = add_command(commands, "serve", run_serve, about, "cvpeft serve runs/manhole_lora/export/model.onnx")
    parser.add_argument("model", type=Path, help="an exported .onnx file")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: other machines too, without a password")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    add_canvas(parser)
    parser.add_argument("--max-mb", type=float, default=20.0, help="largest upload")
    parser.add_argument("--max-megapixels", type=float, default=50.0, help="largest photo, whatever its file's size")


def run_serve(args: argparse.Namespace) -> int:
    try:
        from cvpeft.serve.app import Limits
        from cvpeft.serve.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        what = f"cvpeft serve needs the package {error.name}"
        raise ConfigError("EXTRA", what, fix="pip install 'cvpeft[serve]'") from error
    limits = Limits(args.max_mb, args.max_megapixels)
    serve(args.model, host=args.host, port=args.port, canvas=args.canvas, limits=limits)
    return 0
