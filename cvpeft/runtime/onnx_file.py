"""An .onnx file -> a session of onnxruntime, after what it could do to this machine was looked at.

Nobody knows where a file has been. Before onnxruntime gets it, its bytes are walked for tensors that lie in other files
(onnxruntime would open every one in the model's folder), without the onnx package; and what a graph may allocate is
bounded, since a hundred bytes of it can ask for any amount of memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime

from cvpeft.errors import DataError, ResourceError

__all__ = ["check_file", "first_line", "memory_fault", "memory_limit", "open_session", "too_much"]

LARGEST = 2**31 - 1  # bytes; protobuf reads no larger message
MOST_FIELDS = 1_000_000  # of a protobuf message; a large detector's has some ten thousand
NO_MODEL = "it is damaged, cut off, or no ONNX file"
MEMORY = "CVPEFT_MEMORY_MB"  # environment: what the graphs of this process may allocate together

# The messages of onnx.proto that lead to tensors: field number -> what lies in it. It is written in the standard.
Message = Mapping[int, Any]
TENSOR: dict[int, Any] = {}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of TENSOR
SPARSE = {1: TENSOR, 2: TENSOR}
ATTRIBUTE: dict[int, Any] = {5: TENSOR, 10: TENSOR, 22: SPARSE, 23: SPARSE}
NODE = {5: ATTRIBUTE}
GRAPH = {1: NODE, 5: TENSOR, 15: SPARSE}
ATTRIBUTE |= {6: GRAPH, 11: GRAPH}
FUNCTION = {7: NODE, 11: ATTRIBUTE}
MODEL = {7: GRAPH, 20: {1: GRAPH, 2: GRAPH}, 25: FUNCTION}


def open_session(path: Path, threads: int) -> Any:
    """A session on the CPU; threads: of onnxruntime, 0: as many as cores.

    DataError where the file is none, refers to other files, or onnxruntime cannot read it. ResourceError where it asks
    for more than `memory_limit`.
    """
    check_file(path)
    _bound_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is wrong is told once, by the exception
    options.add_session_config_entry("session.use_env_allocators", "1")  # the bounded one
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        if too_much(error):
            raise memory_fault(path) from error
        raise _unreadable(path, f"ONNX Runtime cannot read it: {first_line(error)}") from error


def check_file(path: Path) -> None:
    """DataError where the path is no file of a size that can be a model, or where its tensors lie in other files."""
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise _unreadable(path, "it is a folder, a pipe or a device" if os.path.exists(path) else "no such file")
    size = path.stat().st_size
    if size == 0:
        raise _unreadable(path, "the file is empty")
    if size > LARGEST:
        raise _unreadable(path, f"the file has {size / 2**30:.1f} GB, and ONNX files end at 2 GB")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            outside = _refers_outside(content)
    except OSError as error:
        raise _unreadable(path, f"it cannot be opened ({error.strerror})") from error
    except (IndexError, ValueError) as error:
        raise _unreadable(path, NO_MODEL) from error
    if outside:
        what, why = "the model takes tensors from other files", "it could read any file of this machine"
        fix = "export it again: `cvpeft export` writes one file"
        raise DataError("EXTERNAL", what, where=str(path), why=why, fix=fix)


def memory_limit() -> int:
    """Bytes that the graphs of this process may allocate together: CVPEFT_MEMORY_MB, or half of what the machine has.

    ResourceError where the variable is no positive number.
    """
    given = os.environ.get(MEMORY)
    if given is None:
        return _machine_memory() // 2
    if not (given.isdecimal() and int(given)):
        raise ResourceError("MEMORY", f"{MEMORY} is {given!r}", why="it is a number of megabytes", fix=f"{MEMORY}=2048")
    return int(given) * 2**20


def too_much(error: Exception) -> bool:
    """Whether onnxruntime's exception says that memory was refused, by the limit or by the system."""
    return any(words in str(error) for words in ("Available memory of", "Failed to allocate memory", "bad_alloc"))


def memory_fault(path: Path) -> ResourceError:
    """The sentence for a graph that asks for more than the limit."""
    limit = memory_limit() // 2**20
    what = f"the model asks for more memory than the limit of {limit} MB"
    fix = f"take a smaller batch, or set {MEMORY} higher if the file is trusted"
    return ResourceError("MEMORY", what, where=str(path), fix=fix)


def first_line(error: Exception) -> str:
    """The first line of a library's exception, short enough for a sentence."""
    return next(iter(str(error).splitlines()), type(error).__name__).strip().rstrip(".")[:300]


@cache
def _bound_memory() -> None:
    """One bounded arena for all sessions of the process: onnxruntime knows no limit for a single one."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with suppress(RuntimeError):  # the program around us has registered one of its own: then that one counts
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": memory_limit()}))


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 * 2**30


def _refers_outside(content: mmap.mmap) -> bool:
    """Whether a tensor anywhere in a ModelProto is external; IndexError or ValueError where it is no such message."""
    left, count = [(MODEL, 0, len(content))], 0
    while left:
        kind, at, end = left.pop()
        for field, start, stop in _fields(content, at, end):
            if kind is TENSOR and (field == EXTERNAL_DATA or (field == DATA_LOCATION and _number(content, start)[0])):
                return True
            if field in kind:
                left.append((kind[field], start, stop))
            count += 1
            if count > MOST_FIELDS:
                raise ValueError("more fields than any detector has")
    return False


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of the protobuf message that lies at at:end; unread beyond its head."""
    while at < end:
        key, at = _number(content, at)
        if key >> 32:  # ONNX Runtime cuts it to 32 bits, and would see another field than is looked at here
            raise ValueError("a tag of more than 32 bits")
        wire = key & 7
        if wire == 0:
            start, at = at, _number(content, at)[1]
        elif wire == 2:
            length, start = _number(content, at)
            at = start + length
        else:
            start, at = at, at + {1: 8, 5: 4}.get(wire, end)  # groups are older than ONNX
        if at > end:
            raise ValueError("a field goes beyond its message")
        yield key >> 3, start, at


def _number(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A varint, and where it ends; IndexError at the end of the file."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _unreadable(path: Path, what: str) -> DataError:
    return DataError("MODEL", what, where=str(path))
