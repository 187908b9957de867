"""Small folders as labelling tools write them, made for one test each. Photos are 100 x 60 pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cvpeft.data.coco import CocoData, load_coco

from .sets import picture

FIVE = ("good", "broke", "lose", "uncovered", "circle")
HEIGHT, WIDTH = 60, 100


def photo(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), *, orientation: int = 1) -> None:
    """A photograph, lying as its EXIF orientation says; `size` is that of its pixels as they are stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big")
    Image.fromarray(picture(*size, seed)).save(path, exif=exif)


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def yolo(root: Path, photos: Mapping[str, str | None], yaml: str | None = None) -> Path:
    """Photo -> rows of its label file, None for a photo without one; paths as Roboflow has them: train/images/a.jpg."""
    for name, rows in photos.items():
        photo(root / name)
        if rows is not None:
            put((root / name.replace("images/", "labels/")).with_suffix(".txt"), rows)
    splits = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    put(root / "data.yaml", yaml or f"{splits}\nnc: 5\nnames: [{', '.join(FIVE)}]\n\nroboflow:\n  license: CC BY 4.0\n")
    put(root / "README.roboflow.txt", "exported via roboflow.com")
    return root


def xml(objects: Sequence[tuple[Any, ...]] = (), filename: str = "", size: tuple[Any, Any] = (HEIGHT, WIDTH)) -> str:
    """An xml of LabelImg. objects: name, xmin, ymin, xmax, ymax, and 1 where it is difficult."""
    parts = [
        f"<object><name>{name}</name><pose>Unspecified</pose><difficult>{(*more, 0)[0]}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, *more in objects
    ]
    shape = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{shape}{''.join(parts)}</annotation>"


def coco(photos: Mapping[str, Sequence[tuple[int, Sequence[float]]]], names: Mapping[int, str], start: int = 1) -> Any:
    """A COCO dict: photo -> (category id, box) of its objects. start: of the ids of images and annotations."""
    images = [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(photos, start)]
    boxes = [(i, *box) for i, name in enumerate(photos, start) for box in photos[name]]
    annotations = [
        {"id": n, "image_id": i, "category_id": k, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
        for n, (i, k, box) in enumerate(boxes, start)
    ]
    categories = [{"id": k, "name": name, "supercategory": "none"} for k, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def state(root: Path) -> dict[str, tuple[str, int]]:
    """Bytes and times of all files, to see that nothing was changed."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def labels(file: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Photo -> class and box of each label, as the project's own reader has them."""
    data: CocoData = load_coco([file])
    assert not [note for note in data.notes if "does not occur" not in note], data.notes
    return {
        image.file_name: [
            (data.classes[label - 1], [round(v, 3) for v in box])
            for label, box in zip(image.labels, image.boxes.tolist(), strict=True)
        ]
        for image in data.images
    }


def content(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found
