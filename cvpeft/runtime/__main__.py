"""`python -m cvpeft.runtime model.onnx photos/ --out found`: `cvpeft predict` with numpy, Pillow, onnxruntime alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cvpeft.errors import CvpeftError, print_any_letter
from cvpeft.runtime.options import add_options
from cvpeft.runtime.search import search_onnx, tell

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Detect with an exported file; a mistake of the user ends in one sentence on stderr and its exit code."""
    print_any_letter()
    parser = argparse.ArgumentParser(
        prog="python -m cvpeft.runtime",
        description="Detect on photos: pictures with boxes, COCO json, CSV, and GeoJSON from GPS positions.",
        epilog="example:\n  python -m cvpeft.runtime model.onnx photos/ --out found",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, "an exported .onnx file")
    try:
        return tell(search_onnx(**vars(parser.parse_args(argv))))
    except CvpeftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except MemoryError as error:
        print(f"E-MEMORY out of memory ({error}). Fix: take smaller photos, or a smaller --batch", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
