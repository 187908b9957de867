"""Every mistake that a user can make, as one sentence and one exit code.

CvpeftError                2
├── ConfigError            2   a key, a value, an override, a missing config file
├── DataError              2   json, images, boxes, categories
├── BackboneError          2   unknown name, weights that cannot be had or do not fit
├── AdapterError           2   a target without a match, a site that the method cannot take
├── CheckpointError        3   a damaged, foreign or mismatched adapter or resume state
├── ResourceError          4   memory, disk, a folder that cannot be written
└── NumericalError         5   a loss that is not finite
    └── ParityError        5   an exported model that does not agree with the trained one
"""

from __future__ import annotations

import io
import sys
from typing import Any

__all__ = [
    "AdapterError",
    "BackboneError",
    "CheckpointError",
    "ConfigError",
    "CvpeftError",
    "DataError",
    "NumericalError",
    "ParityError",
    "ResourceError",
    "print_any_letter",
    "visible",
]

# Unicode's category Cc without newline and tab: names of photos and of what a model holds may be anybody's
CONTROLS = {n: f"\\x{n:02x}" for n in (*range(0x20), *range(0x7F, 0xA0)) if chr(n) not in "\n\t"}


def visible(text: str) -> str:
    """Text for a terminal, which a control character could steer: those are written out, as \\x1b."""
    return text.translate(CONTROLS)


def print_any_letter() -> None:
    """Have stdout write letters that its encoding lacks with backslashes, as stderr does: names come in any script."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class CvpeftError(Exception):
    """One fault, told as `E-CODE where - what. Why it matters. Fix: one edit or command.`

    code: short upper-case name without the `E-`, such as "PATH".
    what: what was found, with the value, as a clause without a full stop.
    where: file, file:line or the like; empty when there is none.
    why, fix: one clause each; empty parts are left out.
    Control characters are written out, see `visible`.
    """

    exit_code = 2

    def __init__(self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.code = code
        self._parts = (code, what, where, why, fix)
        head = f"E-{code} {where} - {what}." if where else f"E-{code} {what}."
        tail = (f" {why[0].upper()}{why[1:]}." if why else "") + (f" Fix: {fix}" if fix else "")
        super().__init__(visible(head + tail))

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses process borders, from a loader's worker for one
        return _rebuild, (type(self), *self._parts)


def _rebuild(kind: type[CvpeftError], code: str, what: str, where: str, why: str, fix: str) -> CvpeftError:
    return kind(code, what, where=where, why=why, fix=fix)


class ConfigError(CvpeftError):
    """A key, a value or a file of the configuration is wrong."""


class DataError(CvpeftError):
    """The data set cannot be used as it stands."""


class BackboneError(CvpeftError):
    """The backbone is unknown, or its weights cannot be had or do not fit."""


class AdapterError(CvpeftError):
    """A method cannot be attached where the config asks for it."""


class CheckpointError(CvpeftError):
    """An adapter folder or a resume state is damaged, foreign or mismatched."""

    exit_code = 3


class ResourceError(CvpeftError):
    """Memory, disk space or permissions do not suffice."""

    exit_code = 4


class NumericalError(CvpeftError):
    """A computation left the finite numbers."""

    exit_code = 5


class ParityError(NumericalError):
    """An exported model does not give the boxes of the trained one."""
