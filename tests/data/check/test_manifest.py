"""A changed, missing or new byte is told by its file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cvpeft.cli import main
from cvpeft.data.check.manifest import verify_manifest, write_manifest
from cvpeft.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    names = ["train.json", "images/a b.png", "images/井盖.png", "images/back\\slash.png", "images/line\nbreak.png"]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number]) * 50)
    return [tmp_path / name for name in names]


def test_nothing_changed(tmp_path: Path, files: list[Path]) -> None:
    assert write_manifest(tmp_path / "data.sha256", files) == 5
    assert verify_manifest(tmp_path / "data.sha256") == []
    done = subprocess.run(["sha256sum", "-c", "--quiet", "data.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("number", range(5))
def test_one_bit_a_gone_file_and_a_new_one(tmp_path: Path, files: list[Path], number: int) -> None:
    write_manifest(tmp_path / "data.sha256", files)
    whole = bytearray(files[number].read_bytes())
    whole[25] ^= 1
    files[number].write_bytes(whole)
    (finding,) = verify_manifest(tmp_path / "data.sha256")
    assert (finding.code, finding.images) == ("E-CHANGED", (files[number].resolve(),))
    files[number].unlink()
    (tmp_path / "images/new.png").touch()
    assert [finding.code for finding in verify_manifest(tmp_path / "data.sha256")] == ["E-GONE", "E-NEW"]
    assert main(["data", "check", "--verify", str(tmp_path / "data.sha256")]) == 2


def test_a_manifest_is_never_overwritten_and_reads_nothing_outside(tmp_path: Path, files: list[Path]) -> None:
    target = tmp_path / "data.sha256"
    write_manifest(target, files)
    with pytest.raises(DataError, match="the file is there already"):
        write_manifest(target, files)
    (tmp_path / "images/link").symlink_to("/etc")
    for name in ("../x", "/etc/passwd", "images/link/passwd", "a\0b"):
        target.write_text(f"{'0' * 64}  {name}\n")
        with pytest.raises(DataError, match="E-PATH"):
            verify_manifest(target)
    target.write_text("hello\n")
    with pytest.raises(DataError, match=r"data\.sha256:1 - this is no line of a manifest"):
        verify_manifest(target)
    with pytest.raises(DataError, match="lies outside of"):
        write_manifest(tmp_path / "images/data.sha256", files)
