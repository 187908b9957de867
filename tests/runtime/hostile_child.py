"""Opens files one after the other in a process that has no torch, and tells what each gave and what it cost.

python hostile_child.py FOLDER: every FOLDER/models/* and FOLDER/images/*; a line of json each.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

for absent in ("torch", "onnx", "cv2"):
    sys.modules[absent] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402

from cvpeft.errors import CvpeftError  # noqa: E402
from cvpeft.runtime.image import decode  # noqa: E402
from cvpeft.runtime.onnx_detector import Detector  # noqa: E402
from cvpeft.runtime.shot import read_shot  # noqa: E402

PHOTO = np.full((96, 128, 3), 255, np.uint8)


def look(file: Path) -> None:
    if file.parent.name == "models":
        Detector(file, threads=1)([PHOTO])
        return
    read_shot(file)
    decode(file)


def tried(file: Path) -> dict[str, object]:
    start = time.perf_counter()
    try:
        look(file)
        kind, code, told = "none", "", ""
    except CvpeftError as error:
        kind, code, told = "CvpeftError", error.code, str(error)
    except BaseException as error:
        kind, code, told = type(error).__name__, "", str(error)
    return {"kind": kind, "code": code, "told": told, "seconds": time.perf_counter() - start, "peak_mb": peak()}


def peak() -> float:
    """MiB. Not ru_maxrss where it can be helped: it is inherited, and a small child shows its large parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10  # type: ignore[index]


for path in sorted(Path(sys.argv[1]).glob("*/*")):
    print(json.dumps({"file": f"{path.parent.name}/{path.name}", **tried(path)}), flush=True)
