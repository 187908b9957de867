"""`cvpeft serve` as a process: its first line, its end, and that it leaves no trace on the disk."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cvpeft.cli import main
from tests.serve.client import ask, encoded, form, photo

ROOT = Path(__file__).parents[2]


def no_files() -> None:
    """In the process to be: not one byte can be written into any file; pipes are none. Ctrl+C is heard, which a shell's
    background job, as these tests may be, would not hear."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@contextmanager
def started(
    model: Path, *options: str, folder: Path, program: tuple[str, ...] = ("-m", "cvpeft.cli")
) -> Iterator[tuple[subprocess.Popen, int, str]]:
    """The process, its port and its first line; `folder` is its working, home and temporary folder."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "CI"))}
    places = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(
        command, cwd=folder, env=env | places, stdout=-1, stderr=-1, text=True, preexec_fn=no_files
    ) as process:
        try:
            line = process.stdout.readline()
            yield process, int(re.search(r":(\d+)/", line)[1]), line
        finally:
            process.kill()


def test_it_serves_without_writing_a_byte_and_stops_on_ctrl_c(model: Path, tmp_path: Path) -> None:
    large = encoded(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3)).astype(np.uint8), "BMP")  # 6.4 MB
    with started(model, folder=tmp_path) as (process, port, line):
        assert line == f"{model}: 2 classes, at http://127.0.0.1:{port}/ (Ctrl+C stops it)\n"
        for body, kind in ((large, "image/bmp"), form(("photo", "../../outside.bmp", large)), (b"no", "image/png")):
            assert ask(port, body=body, kind=kind).status in (200, 415)
        assert ask(port, body=b"x" * 30_000_000).status == 413
        assert list(tmp_path.iterdir()) == []
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "stopped\n"
    assert list(tmp_path.iterdir()) == []


ENDLESS = """
import sys
from cvpeft.cli import main
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.serve import server
def endless(self, images, raw=Detector.raw):
    while True:
        raw(self, images)
Detector.raw, server.GRACE = endless, 1
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_does_not_wait_for_a_photo_without_an_end(model: Path, tmp_path: Path) -> None:
    with (
        started(model, folder=tmp_path, program=("-c", ENDLESS)) as (process, port, _),
        ThreadPoolExecutor() as clients,
    ):
        answer = clients.submit(ask, port, body=photo())
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in told
        assert told.endswith("stopped\n")
        assert answer.result().status == 503
        assert answer.result().error.startswith("E-STOPPED")


def test_it_stops_when_it_is_terminated(model: Path, tmp_path: Path) -> None:
    with started(model, folder=tmp_path) as (process, _, _):
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


def test_other_machines_are_let_in_with_a_warning(model: Path, tmp_path: Path) -> None:
    with started(model, "--host", "0.0.0.0", folder=tmp_path) as (process, port, _):
        assert ask(port, body=photo(), headers={"Host": "box.city.example"}).status == 200
        process.terminate()
        told = process.stderr.read().splitlines()
    assert len(told) == 1
    assert told[0].startswith("W-HOST 0.0.0.0 - everyone who reaches this address can use the service")


def test_the_options_reach_the_service(model: Path, tmp_path: Path) -> None:
    options = ("--host", "localhost", "--canvas", "192x256", "--max-mb", "0.5", "--max-megapixels", "1")
    with started(model, *options, folder=tmp_path) as (_, port, _):
        about = ask(port, "/model").json
        assert ask(port, "/", headers={"Host": "evil.example"}).status == 421
    assert about["canvas"] == [192, 256]
    assert about["limits"] == {"megabytes": 0.5, "megapixels": 1}


def test_a_taken_port_is_told_in_one_sentence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", str(model), "--port", str(port)]) == 4
    assert capsys.readouterr().err.startswith(f"E-PORT 127.0.0.1:{port} - cannot listen at this address (Address")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["absent.onnx"], 2, "E-MODEL absent.onnx - no such file"),
        (["MODEL", "--port", "70000"], 4, "E-PORT"),
        (["MODEL", "--host", "no.such.host.invalid"], 4, "E-PORT no.such.host.invalid:8000"),
        (["MODEL", "--host", "é.."], 4, "E-PORT é..:8000"),
        (["MODEL", "--host", "a\0b"], 4, "E-PORT a\\x00b:8000"),
        (["MODEL", "--max-mb", "0"], 2, "E-LIMIT --max-mb is 0"),
        (["MODEL", "--max-mb", "1e305"], 2, "E-LIMIT --max-mb is 1e+305"),
        (["MODEL", "--max-megapixels", "500"], 2, "E-LIMIT --max-megapixels is 500"),
    ],
)
def test_a_mistake_is_one_sentence(
    model: Path, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *(str(model) if option == "MODEL" else option for option in options)]) == code
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_the_extra_its_name_is_told(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("cvpeft.serve", f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "model.onnx"]) == 2
    told = f"E-EXTRA cvpeft serve needs the package {package}. Fix: pip install 'cvpeft[serve]'\n"
    assert capsys.readouterr().err == told


def test_the_service_imports_no_torch() -> None:
    program = "import sys, cvpeft.serve.server; print(sorted({'torch', 'onnx', 'cv2', 'multipart'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
