"""The bytes of a data set, file by file: written once, any change is told later. `sha256sum -c` reads it too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cvpeft.data.check.finding import Finding, error
from cvpeft.data.check.pixels import sha256_of
from cvpeft.data.images import is_file
from cvpeft.errors import DataError
from cvpeft.files import refuse_existing, write_whole

__all__ = ["refuse_manifest", "verify_manifest", "write_manifest"]

LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")


def write_manifest(target: Path, files: Sequence[Path]) -> int:
    """Write one line `SHA256  PATH` for each file, paths relative to the manifest's folder; returns their number.

    DataError: the manifest is there already, or a file lies outside of its folder.
    """
    refuse_manifest(target)
    root = target.absolute().parent.resolve()
    lines = []
    for file in sorted({file.resolve() for file in files}):
        if not file.is_relative_to(root):
            fix = "write the manifest in a folder above the json and its images"
            raise DataError("MANIFEST", f"{file} lies outside of {root}", where=str(target), fix=fix)
        name = file.relative_to(root).as_posix()
        plain = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")  # as sha256sum escapes them
        lines.append(f"{chr(92) if plain != name else ''}{sha256_of(file)}  {plain}\n")
    write_whole(target, "".join(lines).encode("utf-8", "surrogateescape"), "the manifest")
    return len(lines)


def refuse_manifest(target: Path) -> None:
    """DataError where the manifest is there already: it can be asked before a check of minutes."""
    refuse_existing(target, fix="verify it with --verify, or name another file")


def verify_manifest(source: Path) -> list[Finding]:
    """An error for each file that has changed, is missing, or is new in a folder that holds files of the manifest."""
    root = source.absolute().parent.resolve()
    known = _read(source, root)
    found = []
    for path, digest in known.items():
        if not is_file(path):
            found.append(_told("GONE", "the file is missing", path))
        elif sha256_of(path) != digest:
            found.append(_told("CHANGED", "the bytes are not those of the manifest", path))
    for folder in sorted({path.parent for path in known if path.parent.is_dir()}):
        for path in sorted(folder.iterdir()):
            if is_file(path) and path.resolve() not in known and path.resolve() != source.resolve():
                found.append(_told("NEW", "the file is not in the manifest", path))
    return found


def _read(source: Path, root: Path) -> dict[Path, str]:
    try:
        lines = source.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    except OSError as fault:
        raise DataError("MANIFEST", f"it cannot be read ({fault.strerror})", where=str(source)) from fault
    known = {}
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        if not match:
            fix = "each line is 64 hex digits, two spaces and a path; write the manifest anew"
            raise DataError("MANIFEST", "this is no line of a manifest", where=f"{source}:{number}", fix=fix)
        escaped, digest, name = match.groups()
        if escaped:
            name = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), name)
        known[_inside(root, name, f"{source}:{number}")] = digest
    return known


def _inside(root: Path, name: str, where: str) -> Path:
    """A name of the manifest below its folder; a backslash is a letter here, as sha256sum has it."""
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as fault:
        raise DataError("PATH", f"{name[:200]!r} cannot be a path ({fault})", where=where) from fault
    if not path.is_relative_to(root):
        why = "a manifest may only tell of its own files"
        raise DataError("PATH", f"{name[:200]!r} leads out of {root}", where=where, why=why, fix="take the line out")
    return path


def _told(code: str, what: str, path: Path) -> Finding:
    fix = "bring the old bytes back, or write a new manifest for the new data"
    return error(
        DataError(code, what, where=str(path), why="figures of other bytes are other figures", fix=fix), [path]
    )
