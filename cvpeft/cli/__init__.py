"""`cvpeft COMMAND`: parse, call one library function, exit code. A command's modules are imported only when it runs.

Exit codes: 0 done, 2 config or data, 3 checkpoint, 4 resources, 5 numbers, 130, 141 and 143 stopped by a signal or by a
reader that had enough, as `head` has.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import PurePath

from cvpeft import __version__
from cvpeft.cli import data, results, serving, study, training
from cvpeft.errors import CvpeftError, print_any_letter, visible

__all__ = ["main"]

MEMORY_FIXES = {  # command -> what makes it take less memory
    "train": "lower train.batch or data.size",
    "eval": "lower eval.batch",
    "export": "lower eval.batch",
    "predict": "take smaller photos, a smaller --canvas or a smaller --batch",
    "serve": "take smaller photos or a smaller --canvas",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every mistake of the user ends in one sentence on stderr and its exit code."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    print_any_letter()
    args = _parsed(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Visible("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("cvpeft").setLevel(logging.INFO)
    try:
        code = int(args.command(args))
        sys.stdout.flush()
        return code
    except CvpeftError as error:
        return _told(error, error.exit_code, debug=args.debug)
    except (MemoryError, RuntimeError) as error:
        if not _memory_ended(error):
            raise
        fix = MEMORY_FIXES.get(args.called, "close other programs, or take a machine with more memory")
        what = str(error).partition("\n")[0].rstrip(". ")
        return _told(f"E-MEMORY out of memory ({what}). Fix: {fix}", 4, debug=args.debug)
    except KeyboardInterrupt:
        return _told("stopped", 130, debug=False)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141
    except OSError as error:  # any command may be given such a name, in any of its arguments
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = max(PurePath(str(error.filename)).parts, key=len)
        what = f"a name of {len(os.fsencode(name))} bytes is longer than the file system takes"
        return _told(f"E-NAME {name[:40]}... - {what}. Fix: choose a shorter one", 2, debug=args.debug)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes `key=value` on one side of an option only: those that it leaves over are put to the others."""
    parser = _parser()
    args, left = parser.parse_known_args(argv)
    if strange := [text for text in left if text.startswith("-") or "=" not in text or "overrides" not in args]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if left:
        args.overrides = [*args.overrides, *left]
    return args


class _Visible(logging.Formatter):
    """Notes on a data set hold its names, as errors do."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _memory_ended(error: Exception) -> bool:
    """torch has no class of its own for it on a CPU, and must not be imported to ask for that of a GPU."""
    ends = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in ends)


def _nobody_reads() -> bool:
    """Whether the reader of stdout is gone; what Python would write there as it ends goes nowhere then."""
    try:
        print(flush=True)  # a flush alone may find nothing left to write
    except BrokenPipeError:  # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _told(message: object, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cvpeft", description="Adapt object detectors with few trained parameters.")
    parser.add_argument("--version", action="version", version=f"cvpeft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for room in (training, results, serving, data, study):
        room.add_commands(commands)
    return parser
