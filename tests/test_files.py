from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvpeft import files
from cvpeft.errors import ResourceError
from cvpeft.files import replacing, sweep, unwritable, write_whole


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("text", ["", "井盖, naïve\nline\r\n", "x" * 2**20, b"\0\xff\r\n"])
def test_what_is_written_is_read_again_byte_by_byte(tmp_path: Path, text: str | bytes) -> None:
    for _ in range(2):  # a new file, and over an old one
        write_whole(tmp_path / "a" / "b" / "file.txt", text)
        assert content(tmp_path) == {"a/b/file.txt": text.encode() if isinstance(text, str) else text}


def test_a_name_that_is_no_utf8_is_written_as_json_reads_it(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_whole(tmp_path / "log.json", json.dumps({"井盖": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "log.json").read_text("utf-8")) == {"井盖": name}


def test_a_new_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_gives_way_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert content(tmp_path) == {"link": b"new", "target": b"old"}


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bytes]] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        told.append(("fsync", os.pread(handle, 9, 0)))
        fsync(handle)

    def replaced(part: Path, file: Path) -> None:
        told.append(("replace", file.read_bytes()))
        replace(part, file)

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_whole(tmp_path / "file", "new")
    assert told == [("fsync", b"new"), ("replace", b"old")]


def refuse(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


PLACES = [(Path, "mkdir"), (Path, "write_bytes"), (os, "open"), (os, "fsync"), (os, "replace")]
CODES = {errno.ENOSPC: "DISK", errno.EIO: "WRITE", errno.EACCES: "WRITE", errno.EROFS: "WRITE"}


@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("old", [{}, {"file": b"old"}])
def test_a_write_that_fails_leaves_what_was_there_and_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, old: dict[str, bytes]
) -> None:
    for file, text in old.items():
        (tmp_path / file).write_bytes(text)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse(number))
        with pytest.raises(ResourceError) as caught:
            write_whole(tmp_path / "file", "new", "the list", fix="do this")
    said = rf"the list cannot be written \({os.strerror(number)}; \d+ MB free\)\. Fix: do this"
    assert caught.match(rf"\AE-{CODES[number]} {tmp_path}/file - {said}\Z")
    assert caught.value.exit_code == 4
    assert content(tmp_path) == old


def test_a_part_that_cannot_be_removed_does_not_hide_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", refuse(errno.EIO))
    monkeypatch.setattr(Path, "unlink", refuse(errno.EROFS))
    with pytest.raises(ResourceError, match=os.strerror(errno.EIO)):
        write_whole(tmp_path / "file", "new")
    monkeypatch.undo()
    assert len(content(tmp_path)) == 1
    sweep(tmp_path)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, ResourceError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, kind: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")
    error = ResourceError("OTHER", "said elsewhere") if kind is ResourceError else kind("x")

    def fail() -> None:
        with replacing(tmp_path / "file") as part:
            part.write_text("half")
            assert (tmp_path / "file").read_text() == "old"
            raise error

    with pytest.raises(kind) as caught:
        fail()
    assert caught.value is error
    assert content(tmp_path) == {"file": b"old"}


def test_a_block_that_writes_nothing_is_a_fault_and_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file"), replacing(tmp_path / "file"):
        pass
    assert content(tmp_path) == {}


def test_two_files_take_their_places_only_together(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "second") as second, replacing(tmp_path / "first") as first:
            first.write_text("1")
            second.write_text("2")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResourceError, match="E-DISK"):
        fail()
    assert content(tmp_path) == {}


def test_two_processes_do_not_write_into_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replacing(tmp_path / "file") as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        write_whole(tmp_path / "file", "theirs")
    assert content(tmp_path) == {"file": b"mine"}


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    write_whole(small_disk / "file", "old")
    with pytest.raises(ResourceError, match=r"E-DISK .*disk/file - the file cannot be written \(No space left"):
        write_whole(small_disk / "file", "x" * 2**21)
    assert content(small_disk) == {"file": b"old"}


@pytest.mark.parametrize("name", ["file/below", "file/below/it"])
def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match=r"E-WRITE .* \((File exists|Not a directory); \d+ MB free\)"):
        write_whole(tmp_path / name, "x")
    assert content(tmp_path) == {"file": b"mine"}


def test_the_sentence_of_another_library_is_kept_and_a_full_disk_known_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = unwritable(Exception("no room (os error 28)"), Path("gone/for/good"), "last", why="the rest is safe")
    assert str(full).startswith("E-DISK gone/for/good - last cannot be written (no room (os error 28); ")
    assert "MB free). The rest is safe. Fix: make room" in str(full)
    assert unwritable(Exception("odd"), tmp_path).code == "WRITE"
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(Path, "exists", refuse(errno.EACCES))  # so it is below a folder that may not be entered
    assert unwritable(OSError(errno.EACCES, "Permission denied"), tmp_path / "shut" / "in").code == "WRITE"


def test_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "last.part").mkdir()
    (tmp_path / "last.part" / "a.part").write_text("")
    (tmp_path / "best").mkdir()
    for name in ("best/.adapter_model.safetensors.7.part", "best/.metrics.json.7.tmp", "best/kept.json", "log.txt"):
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["best", "best/kept.json", "log.txt"]


def test_a_killed_process_leaves_the_old_file_and_a_part_that_is_swept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    child = os.fork()
    if not child:
        with replacing(tmp_path / "file") as part:
            part.write_text("half")
            os._exit(9)
    os.waitpid(child, 0)
    (part,) = tmp_path.glob(f".*.{child}{files.TEMP}")
    assert content(tmp_path) == {"file": b"old", part.name: b"half"}
    sweep(tmp_path)
    assert content(tmp_path) == {"file": b"old"}


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    names = ["x" * 255, "盖" * 85]
    for name in names:
        write_whole(tmp_path / name, "new")
    assert sorted(content(tmp_path)) == sorted(names)
