"""The published "Cracks and Potholes in Road Images Dataset" -> train.json, val.json and images/, as COCO.

    git clone https://github.com/biankatpas/Cracks-and-Potholes-in-Road-Images-Dataset published
    python datasets/road_potholes.py published datasets/road_potholes

The set (MIT licence, Bianka Passos 2020) holds one folder for each frame: Dataset/ID/ID_RAW.jpg and the masks
ID_POTHOLE.png, ID_CRACK.png and ID_LANE.png, where ID is number_region_road_section_metre. The frames of one section
lie 5 m apart and show the same potholes, so the split is by section, never by frame. A mask becomes one box for each of
its 8-connected components of at least 64 pixels. Of the sections below, all frames with a pothole are taken and, of
those without one, the 100 that are named; other sections are left out.

Needs OpenCV, NumPy and cvpeft's error classes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cvpeft.errors import CvpeftError, DataError, ResourceError

__all__ = ["SPLITS", "Split", "convert", "main"]

SOURCE = """# Road potholes

Made by cvpeft's datasets/road_potholes.py from the "Cracks and Potholes in Road Images Dataset",
https://github.com/biankatpas/Cracks-and-Potholes-in-Road-Images-Dataset, MIT licence, Copyright (c) 2020 Bianka Passos.

The photographs are as published. Boxes are derived from the pixel masks, one for each 8-connected component of at least
64 pixels. The split is by road section.
"""
LEAST_PIXELS = 64  # a smaller component is a slip of the brush
SURE = 127  # masks are 0 and 255


@dataclass(frozen=True)
class Split:
    """One json file: the sections it takes, the numbers of its frames without a pothole, and what must come out."""

    sections: frozenset[str]
    negatives: frozenset[int]
    images: int
    boxes: int


SPLITS = {
    "train": Split(
        frozenset((
            "DF_010_010BDF0010", "DF_010_010BDF0030_1", "DF_020_020BDF0070", "DF_060_060BDF0010", "DF_060_060BDF0012",
            "DF_060_060BDF0030", "DF_060_060BDF0050", "DF_070_070BDF0050", "DF_080_080BDF0032", "DF_080_080BDF0050",
            "DF_080_080BDF0050_1", "DF_080_080BDF0070", "DF_251_251BDF0525", "DF_251_251BDF0530", "ES_101_101ES000000",
            "RS_290_290RS150131", "RS_290_290RS294095", "RS_386_386RS124739", "RS_386_386RS289112",
        )),
        frozenset((
            915960, 915965, 916648, 916870, 917091, 917094, 917197, 917202, 917203, 917208, 917221, 917256, 917268,
            917272, 917290, 917293, 917296, 917471, 917563, 917569, 917577, 917886, 917906, 917910, 918386, 918389,
            919138, 919144, 919166, 919242, 919265, 919287, 919413, 919470, 919729, 919739, 1014587, 1014707, 1014794,
            1014862, 1014867, 1014910, 1014919, 1050931, 1053958, 1054928, 1055376, 1055969, 1076074, 1076685, 1077248,
            1081524, 1081558, 1081659, 1081738, 1081807, 1081818, 1082916, 1083232, 1090285,
        )),
        images=390,
        boxes=965,
    ),
    "val": Split(
        frozenset((
            "DF_070_070BDF0010", "DF_080_080BDF0090", "DF_251_251BDF0490", "ES_259_259ES000000", "RS_386_386RS169832",
        )),
        frozenset((
            765236, 765272, 766116, 774080, 819787, 1025762, 1025771, 1025779, 1025780, 1025884, 1025885, 1025910,
            1084105, 1084119, 1084318, 1084356, 1084399, 1084458, 1085449, 1091612, 1091702, 1091718, 1091725, 1091730,
            1091775, 1091782, 1091787, 1091788, 1091838, 1091845, 1091874, 1091908, 1091923, 1091930, 1091964, 1091966,
            1091974, 1092079, 1092081, 1092108,
        )),
        images=119,
        boxes=176,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One photograph with its boxes (x, y, width, height) in pixels."""

    photo: Path
    section: str
    height: int
    width: int
    boxes: tuple[tuple[int, int, int, int], ...]


def convert(source: Path, out: Path, *, copy: bool = False) -> dict[str, dict[str, Any]]:
    """Make `out` with train.json, val.json, images/ and the licence; returns the two contents by name.

    source: the published repository, or its folder Dataset. out: absent or empty, and not the working folder.
    copy: copy the photographs; else they are hard links, which take no space but need the same disk.
    DataError: `out` is in the way, or the published folder is damaged or not whole (all faults together).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("OUT", "the folder is in use", where=str(out), why="nothing is overwritten", fix="name another")
    if out.resolve() == Path.cwd():  # it would have to be taken away from under the one who stands in it
        what, fix = "this is the folder that you are in", "name a new folder in it, such as road_potholes"
        raise DataError("OUT", what, where=str(out), fix=fix)
    dataset = source / "Dataset" if (source / "Dataset").is_dir() else source
    contents: dict[str, dict[str, Any]] = {}
    photos: list[Path] = []
    for name, split in SPLITS.items():
        frames = _frames(dataset, split)
        contents[name] = _coco(frames)
        photos += [frame.photo for frame in frames]
        _check_whole(name, split, contents[name], dataset)
    _write(out, contents, photos, [dataset.parent / "LICENSE", dataset / "LICENSE"], copy=copy)
    return contents


def _frames(dataset: Path, split: Split) -> list[Frame]:
    """The frames of the split, by name."""
    if not dataset.is_dir():
        raise DataError("SOURCE", "no such folder", where=str(dataset), fix="clone the published repository first")
    folders = sorted(f for f in dataset.iterdir() if f.is_dir() and _section(f.name) in split.sections)
    with ThreadPoolExecutor() as pool:  # reading masks is all that takes time, and OpenCV lets threads run
        read = list(pool.map(_read, folders))
    if faults := [str(frame) for frame in read if isinstance(frame, DataError)]:
        more = f"\n... and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise DataError("SOURCE", f"{len(faults)} frames cannot be read:\n" + "\n".join(faults[:20]) + more)
    frames = [frame for frame in read if isinstance(frame, Frame)]
    return [frame for frame in frames if frame.boxes or int(frame.photo.name.split("_")[0]) in split.negatives]


def _section(name: str) -> str:
    """915960_RS_290_290RS294095_13250 -> RS_290_290RS294095; empty where the name is of another kind."""
    parts = name.split("_")
    return "_".join(parts[1:-1]) if parts[0].isdigit() else ""


def _read(folder: Path) -> Frame | DataError:
    photo, mask = (folder / f"{folder.name}_{kind}" for kind in ("RAW.jpg", "POTHOLE.png"))
    pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) if mask.is_file() else None
    image = cv2.imread(str(photo), cv2.IMREAD_REDUCED_GRAYSCALE_8) if photo.is_file() else None
    if pixels is None or image is None:
        file = mask if pixels is None else photo
        return DataError("IMAGE", "missing or damaged", where=str(file), fix="clone the repository again")
    height, width = pixels.shape
    if image.shape != (-(-height // 8), -(-width // 8)):
        return DataError("IMAGE", f"not of the photograph's size, {width}x{height}", where=str(mask))
    return Frame(photo, _section(folder.name), height, width, _boxes(pixels))


def _boxes(mask: np.ndarray) -> tuple[tuple[int, int, int, int], ...]:
    """mask (H, W) uint8 -> one box for each component, from the top down."""
    binary = (mask > SURE).astype(np.uint8)
    _, _, components, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)  # (N, 5): x y w h pixels
    rows = components[1:].tolist()  # the first one is the ground
    return tuple((x, y, w, h) for x, y, w, h, pixels in rows if pixels >= LEAST_PIXELS)


def _coco(frames: Sequence[Frame]) -> dict[str, Any]:
    boxes = [(number, box) for number, frame in enumerate(frames, 1) for box in frame.boxes]
    return {
        "info": {
            "description": "Road potholes, Brazilian highways; boxes derived from pixel masks; see SOURCE.md",
            "license": "MIT",
        },
        "licenses": [{"id": 1, "name": "MIT"}],
        "images": [
            {
                "id": number, "file_name": f"images/{frame.photo.name}", "width": frame.width, "height": frame.height,
                "section": frame.section, "region": frame.section[:2],
            }
            for number, frame in enumerate(frames, 1)
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "pothole", "supercategory": "road"}],
    }  # fmt: skip


def _check_whole(name: str, split: Split, content: dict[str, Any], dataset: Path) -> None:
    found = (len(content["images"]), len(content["annotations"]))
    if found != (split.images, split.boxes):
        what = f"{name} has {found[0]} images with {found[1]} boxes, not {split.images} with {split.boxes}"
        why = "figures on another selection could not be compared"
        raise DataError("SOURCE", what, where=str(dataset), why=why, fix="clone the whole repository")


def _write(
    out: Path, contents: dict[str, dict[str, Any]], photos: list[Path], licences: list[Path], *, copy: bool
) -> None:
    """Everything goes into a folder beside, which takes its name at the end: `out` is whole or not there."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    place = shutil.copyfile if copy else os.link
    try:
        (part / "images").mkdir(parents=True)
        for photo in photos:
            place(photo, part / "images" / photo.name)
        for licence in filter(Path.is_file, licences):
            shutil.copyfile(licence, part / "LICENSE")
        (part / "SOURCE.md").write_text(SOURCE, encoding="utf-8")
        for name, content in contents.items():
            (part / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        os.replace(part, out)
    except OSError as error:
        fix = "make room" if copy else "give --copy where SOURCE and OUT are on two disks"
        raise ResourceError("WRITE", f"cannot be made: {error}", where=str(out), fix=fix) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or the exit code of the mistake that it told."""
    about = "The published potholes data set -> train.json, val.json and images/, as COCO."
    example = "example:\n  python datasets/road_potholes.py published datasets/road_potholes"
    parser = argparse.ArgumentParser(
        description=about, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the published repository")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--copy", action="store_true", help="copy the photographs; else they are hard links")
    args = parser.parse_args(argv)
    try:
        contents = convert(args.source, args.out, copy=args.copy)
    except CvpeftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for name, content in contents.items():
        empty = len(content["images"]) - len({box["image_id"] for box in content["annotations"]})
        print(f"{args.out / name}.json: {len(content['images'])} images, {empty} of them without a box, "
              f"{len(content['annotations'])} boxes")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
