"""Photographs and videos in; pictures, json, table and map out; nothing of the user's is replaced."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvpeft.cli import main as cvpeft_main
from cvpeft.errors import ConfigError, DataError, ResourceError
from cvpeft.runtime.__main__ import main
from cvpeft.runtime.image import decode
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.runtime.photos import find_photos
from cvpeft.runtime.results import Findings
from cvpeft.runtime.search import DetectionRun, search_onnx
from cvpeft.runtime.video import frames
from tests.runtime.test_onnx_detector import METADATA, SIZE, model_file
from tests.runtime.test_shot import photo as shot
from tests.runtime.test_video import video

BOXES = [[10, 20, 40, 60], [50, 50, 70, 90], [0, 0, 0, 0]]
FILES = {"predictions.json", "coco_results.json", "detections.csv"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finds two boxes in a white photograph, none in a black one."""
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model_file(file, METADATA, boxes=BOXES, scores=[0.6, 0.3, 0], labels=[1, 2, 0])


def white(file: Path, size: tuple[int, int] = SIZE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], "white").save(file)
    return file


def placed(file: Path, gps: dict[int, Any] | None = None, exif: dict[int, Any] | None = None) -> Path:
    """A white photo with the position of Berlin."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(shot(file, gps, exif)) as image:
        block = image.getexif().tobytes()
    Image.new("RGB", SIZE[::-1], "white").save(file, exif=block)
    return file


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "detections.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def points(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "findings.geojson").read_text(encoding="utf-8"))
    return content


# The table


def test_the_table_has_one_row_a_box(model: Path, tmp_path: Path) -> None:
    white(tmp_path / "photos" / "a.png")
    placed(tmp_path / "photos" / "b.jpg", exif={0x9003: "2024:05:01 12:33:10"})
    Image.new("RGB", (50, 50)).save(tmp_path / "photos" / "nothing.png")
    search_onnx(model, [tmp_path / "photos"], tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["file_name"] for row in found] == ["a.png", "a.png", "b.jpg", "b.jpg"]
    first, placed_row = found[0], found[3]
    assert list(first.values()) == [
        "a.png", "good", "0.6", "10.0", "20.0", "40.0", "60.0", "128", "96", "", "", "",
    ]  # fmt: skip
    assert placed_row["class"] == "井盖"
    assert placed_row["taken"] == "2024-05-01T12:33:10"
    assert (float(placed_row["latitude"]), float(placed_row["longitude"])) == (52.52000694, 13.40495389)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "＝", "＠"])
def test_a_file_name_is_no_formula(model: Path, tmp_path: Path, start: str) -> None:
    name = f'{start}HYPERLINK("http:x","a, b").png'.replace("/", "")
    white(tmp_path / name)
    search_onnx(model, [tmp_path / name], tmp_path / "out")
    assert {row["file_name"] for row in rows(tmp_path / "out")} == {f"'{name}"}
    images = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))["images"]
    assert images[0]["file_name"] == name


def test_a_negative_longitude_stays_a_number(model: Path, tmp_path: Path) -> None:
    search_onnx(model, [placed(tmp_path / "a.jpg", {3: "W"})], tmp_path / "out")
    assert float(rows(tmp_path / "out")[0]["longitude"]) < 0


def test_names_that_are_no_utf8_are_written(model: Path, tmp_path: Path) -> None:
    odd = os.fsencode(white(tmp_path / "photos" / "a.png"))
    os.rename(odd, odd[:-5] + b"\xff\n.png")
    done = search_onnx(model, [tmp_path / "photos"], tmp_path / "out")
    assert done.boxes == 2
    assert rows(tmp_path / "out")[0]["file_name"] == "\ufffd\n.png"
    assert (tmp_path / "out" / "\ufffd\n.jpg").is_file()


# The map


def test_the_map_has_one_point_a_box_where_the_camera_was(model: Path, tmp_path: Path) -> None:
    placed(tmp_path / "a.jpg", {5: b"\0", 6: 34.5, 16: "T", 17: 271.5}, {0x9003: "2024:05:01 12:33:10"})
    done = search_onnx(model, [tmp_path / "a.jpg", white(tmp_path / "b.png")], tmp_path / "out")
    content = points(tmp_path / "out")
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == 2
    feature = content["features"][0]
    assert feature["type"] == "Feature"
    assert feature["geometry"] == {"type": "Point", "coordinates": [13.40495389, 52.52000694, 34.5]}
    known = feature["properties"]
    assert "camera" in known.pop("position")
    assert known == {
        "file_name": "a.jpg", "class": "good", "score": 0.6, "box": [10, 20, 40, 60],
        "taken": "2024-05-01T12:33:10", "heading": 271.5, "heading_north": "true",
    }  # fmt: skip
    assert done.unplaced == "1 of 2 photos have no GPS position and are not in findings.geojson."


def test_no_position_is_no_map_and_broken_ones_are_counted(model: Path, tmp_path: Path) -> None:
    broken = placed(tmp_path / "a.jpg", {1: None})
    done = search_onnx(model, [broken, white(tmp_path / "b.png")], tmp_path / "out")
    assert not (tmp_path / "out" / "findings.geojson").exists()
    told = "2 of 2 photos have no GPS position (1 of them a broken one), so there is no findings.geojson."
    assert done.unplaced == told
    assert search_onnx(model, [placed(tmp_path / "c.jpg")], tmp_path / "other").unplaced == ""


def test_the_map_of_an_earlier_call_goes_when_there_is_none_now(model: Path, tmp_path: Path) -> None:
    search_onnx(model, [placed(tmp_path / "a.jpg")], tmp_path / "out")
    assert (tmp_path / "out" / "findings.geojson").exists()
    search_onnx(model, [white(tmp_path / "b.png")], tmp_path / "out")
    assert not (tmp_path / "out" / "findings.geojson").exists()


def test_a_photo_without_boxes_gives_an_empty_map(model: Path, tmp_path: Path) -> None:
    search_onnx(model, [placed(tmp_path / "a.jpg")], tmp_path / "out", score=1.0)
    assert points(tmp_path / "out")["features"] == []


# What may be written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("detections.csv", "file_name,class,score,checked by\n"),
        ("detections.csv", ""),
        ("findings.geojson", '{"type": "FeatureCollection", "features": []}'),
        ("findings.geojson", "[" * 100_000),
        ("coco_results.json", "[]"),
        ("predictions.json", '{"info": {}}'),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_file_of_the_user_is_kept(model: Path, tmp_path: Path, name: str, content: str, earlier: bool) -> None:
    photo = placed(tmp_path / "a.jpg")
    if earlier and name != "coco_results.json":  # which an earlier predictions.json vouches for
        search_onnx(model, [photo], tmp_path / "out")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"{name}.* would be overwritten"):
        search_onnx(model, [photo], tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == content


def test_a_folder_and_a_dangling_link_in_the_way_are_told(model: Path, tmp_path: Path) -> None:
    photo = placed(tmp_path / "a.jpg")
    (tmp_path / "out" / "detections.csv").mkdir(parents=True)
    (tmp_path / "out" / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    with pytest.raises(ConfigError, match=r"a\.jpg, .*detections\.csv would be overwritten"):
        search_onnx(model, [photo], tmp_path / "out")


def test_a_picture_that_is_a_circle_of_links_is_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpg").symlink_to("a.jpg")
    with pytest.raises(ConfigError, match=r"a\.jpg would be overwritten"):
        search_onnx(model, [white(tmp_path / "a.png")], tmp_path / "out")


# Names


def test_equal_names_are_told_apart_by_their_folders(model: Path, tmp_path: Path) -> None:
    folders = [tmp_path / city / "monday" for city in ("lyon", "oslo")]
    for folder in folders:
        placed(folder / "street.jpg")
    placed(folders[0] / "only.jpg")
    search_onnx(model, folders, tmp_path / "out")
    names = ["only.jpg", "lyon/monday/street.jpg", "oslo/monday/street.jpg"]
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [(i["file_name"], i["picture"]) for i in images] == [
        *zip(names, ("only.jpg", "street.jpg", "street-2.jpg"), strict=True)
    ]
    assert [row["file_name"] for row in rows(tmp_path / "out")] == [name for name in names for _ in range(2)]
    assert {point["properties"]["file_name"] for point in points(tmp_path / "out")["features"]} == set(names)


def test_linked_folders_are_searched_once(model: Path, tmp_path: Path) -> None:
    white(tmp_path / "card" / "a.png")
    white(tmp_path / "photos" / "b.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "card")
    (tmp_path / "card" / "circle").symlink_to(tmp_path / "photos")
    found = find_photos([tmp_path / "photos"])
    assert [photo.name for photo in found] == ["b.png", "linked/a.png"]


def test_a_link_is_a_video_by_its_own_name(tmp_path: Path) -> None:
    video(tmp_path / "drive.avi", 3, SIZE).rename(tmp_path / "3f2a")
    (tmp_path / "drive.avi").symlink_to(tmp_path / "3f2a")
    (photo,) = find_photos([tmp_path / "drive.avi"])
    assert photo.is_video
    assert photo.path == tmp_path / "3f2a"
    assert photo.picture == "drive"


def test_names_that_are_too_long_are_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endless = str(tmp_path / ("x" * 300))
    with pytest.raises(DataError, match="no such file or folder"):
        find_photos([endless])
    assert cvpeft_main(["predict", f"{endless}.onnx", str(white(tmp_path / "a.png")), "--out", str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_longest_names_have_pictures(model: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        white(tmp_path / folder / ("盖" * 83 + ".png"))  # 253 bytes
    assert search_onnx(model, [tmp_path / "a", tmp_path / "b"], tmp_path / "out").images == 2
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 2


# What cannot be read


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder with sub/b.jpg and a.jpg; rights bind in the block, as they do not bind the administrator."""
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: it lies in a folder that nobody else may enter
        folder = Path(name)
        folder.chmod(0o755)
        white(folder / "a.jpg")
        white(folder / "sub" / "b.jpg")
        try:
            yield folder
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            (folder / "sub").chmod(0o755)


def bind(folder: Path, mode: int) -> None:
    """Change the rights of a folder, and be somebody whom they bind."""
    folder.chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_folder_that_cannot_be_read_is_told() -> None:
    with as_nobody() as folder:
        bind(folder / "sub", 0o311)
        with pytest.raises(DataError, match=r"E-READ .*sub - the folder cannot be read \(Permission denied\)"):
            find_photos([folder])


def test_photos_in_a_folder_that_cannot_be_entered_are_told_one_by_one() -> None:
    with as_nobody() as folder:
        (folder / "sub" / "c.avi").touch()
        bind(folder / "sub", 0o444)
        names = [photo.name for photo in find_photos([folder, f"{folder}/sub/*.avi"])]
        for read, photo in ((decode, "b.jpg"), (lambda file: next(frames(file, 1.0)), "c.avi")):
            with pytest.raises(DataError, match=photo):
                read(folder / "sub" / photo)
    assert names == ["a.jpg", "sub/b.jpg", "c.avi"]


# What cannot be written


def test_pictures_longer_than_a_jpeg_are_scaled(model: Path, tmp_path: Path) -> None:
    photo = white(tmp_path / "a.png", (2, 65_501))
    assert search_onnx(model, [photo], tmp_path / "out", score=0).images == 1
    with Image.open(tmp_path / "out" / "a.jpg") as picture:
        assert picture.width == 65_500
    (image,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert (image["height"], image["width"]) == (2, 65_501)


def test_what_was_found_before_a_picture_fails_is_written(model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    white(photos / "a.png")
    white(photos / "sub" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file where the folder would be")
    with pytest.raises(ResourceError, match="the picture cannot be written"):
        search_onnx(model, [photos], tmp_path / "out")
    assert {row["file_name"] for row in rows(tmp_path / "out")} == {"a.png"}


@pytest.mark.parametrize("end", [MemoryError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("full", [False, True])
def test_whatever_ends_a_search_what_was_found_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException], full: bool
) -> None:
    for name in "abc":
        white(tmp_path / "photos" / f"{name}.png")
    calls = iter((None, None, end("the first")))

    def ending(detector: Detector, *args: Any, **options: Any) -> Any:
        if fault := next(calls):
            raise fault
        return call(detector, *args, **options)

    def unwritten(*_: Any) -> None:
        raise OSError("the second")

    call = Detector.__call__
    monkeypatch.setattr(Detector, "__call__", ending)
    if full:
        monkeypatch.setattr(Findings, "write", unwritten)
    with pytest.raises(end, match="the first"):
        search_onnx(model, [tmp_path / "photos"], tmp_path / "out")
    if not full:
        assert {row["file_name"] for row in rows(tmp_path / "out")} == {"a.png", "b.png"}


# Batches


def same(one: DetectionRun, other: DetectionRun) -> None:
    first, second = (json.loads((run.out / "predictions.json").read_text()) for run in (one, other))
    assert first["images"] == second["images"]
    keys = ("image_id", "category_id")
    assert [[a[k] for k in keys] for a in first["annotations"]] == [[a[k] for k in keys] for a in second["annotations"]]
    for key in ("bbox", "score"):
        one_by_one, at_once = ([row[key] for row in content["annotations"]] for content in (first, second))
        np.testing.assert_allclose(one_by_one, at_once, atol=1e-5)


@pytest.mark.parametrize("canvas", [None, (192, 256), "photo"])
@pytest.mark.parametrize("batch", [2, 3, 50])
def test_a_batch_gives_the_boxes_of_one_by_one(model: Path, tmp_path: Path, batch: int, canvas: Any) -> None:
    for i, size in enumerate([(96, 128), (300, 200), (90, 500), (64, 64), (400, 400)]):
        white(tmp_path / "photos" / f"{i}.png", size)
    (tmp_path / "photos" / "2b.png").write_bytes(b"broken")
    photos = [tmp_path / "photos"]
    single = search_onnx(model, photos, tmp_path / "single", canvas=canvas)
    many = search_onnx(model, photos, tmp_path / "many", canvas=canvas, batch=batch)
    assert single.boxes == many.boxes > 5
    assert single.failed == many.failed != ()
    same(single, many)


def test_the_detector_feeds_as_many_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, fed = Detector(model), []
    run = detector._run
    monkeypatch.setattr(detector, "_run", lambda images: (fed.append(len(images)), run(images))[1])
    images = [np.full((96, 128, 3), value, np.uint8) for value in (255, 0, 255, 255, 128)]
    wanted = detector(images)
    assert fed == [1] * 5
    found = detector(iter(images), batch=2)
    assert fed[5:] == [2, 2, 1]
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes)
        np.testing.assert_allclose(a.scores, b.scores)
        assert a.names == b.names
    assert detector([], batch=4) == []


def test_a_form_whose_ranges_span_a_batch_is_fed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = METADATA | {"precision": "int8 dynamic"}
    detector, fed = Detector(model_file(tmp_path / "m.onnx", about, BOXES, [0.6, 0.3, 0], [1, 2, 0])), []
    run = detector._run
    monkeypatch.setattr(detector, "_run", lambda images: (fed.append(len(images)), run(images))[1])
    assert len(detector([np.full((96, 128, 3), 255, np.uint8)] * 5, batch=3)) == 5
    assert fed == [1] * 5


# Videos


def test_a_video_is_searched(model: Path, tmp_path: Path) -> None:
    file = video(tmp_path / "drive.avi", 30, SIZE)
    done = search_onnx(model, [file], tmp_path / "out", every=1.0, batch=2, score=0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == FILES | {f"drive_{second:06}.000.jpg" for second in range(3)}
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"drive.avi#t={second}.000" for second in range(3)]
    assert done.images == 3
    assert rows(tmp_path / "out")[0]["file_name"] == "drive.avi#t=0.000"
    assert search_onnx(model, [file], tmp_path / "out").images == 3  # its own files are replaced
    white(tmp_path / "out" / "drive_000077.000.jpg")
    with pytest.raises(ConfigError, match=r"drive_000077\.000\.jpg would be overwritten"):
        search_onnx(model, [file], tmp_path / "out")


def test_videos_are_found_by_name_and_pattern_and_not_in_folders(model: Path, tmp_path: Path) -> None:
    video(tmp_path / "a" / "drive.avi", 3, SIZE)
    video(tmp_path / "b" / "drive.avi", 3, SIZE)
    white(tmp_path / "c" / "drive_000000.000.jpg")
    with pytest.raises(DataError, match="no photograph in this folder"):
        search_onnx(model, [tmp_path / "a"], tmp_path / "out")
    search_onnx(model, [f"{tmp_path}/*/*.*"], tmp_path / "out")
    drawn = {path.name for path in (tmp_path / "out").glob("*.jpg")}
    assert drawn == {"drive_000000.000.jpg", "drive-2_000000.000.jpg", "drive-3_000000.000.jpg"}


def test_what_cannot_be_read_of_videos_is_told(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    early = video(tmp_path / "b.avi", 60, SIZE)
    early.write_bytes(early.read_bytes()[: early.stat().st_size // 2])
    files = [tmp_path / "a.mp4", early, white(tmp_path / "c.png")]
    done = search_onnx(model, files, tmp_path / "out")
    assert done.exit_code == 2
    assert done.images > 2
    assert "it has no frame" in done.failed[0]
    assert "it ends after" in done.failed[1]
    monkeypatch.setitem(sys.modules, "cv2", None)
    done = search_onnx(model, files, tmp_path / "other")
    assert done.images == 1
    assert "not installed" in done.failed[0]


# The command


def test_the_command_tells_what_it_did(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    white(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    command = [str(model), str(tmp_path / "*.*"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    told = capsys.readouterr()
    assert "2 boxes in 1 images, 1 unreadable" in told.out
    assert "b.jpg" in told.err
    assert "1 of 1 photos have no GPS position" in told.err
    assert main([str(tmp_path / "no.onnx"), *command[1:]]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([*command, "--batch", "0"]) == 2
    assert "the batch is 0" in capsys.readouterr().err
    assert main([*command, "--every", "-1"]) == 2


def test_names_cannot_steer_the_terminal(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "\x1b]0;mine\x07\x1b[2J.jpg"
    odd.write_bytes(b"no photo")
    assert main([str(model), str(tmp_path), "--out", str(tmp_path / "out\x1b[2J")]) == 2
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "\\x1b]0;mine\\x07\\x1b[2J.jpg" in told.err
    assert "1 unreadable" in told.out


def test_both_commands_run_without_what_deployment_lacks(model: Path, tmp_path: Path) -> None:
    white(tmp_path / "a.png")
    for name, call in (("runtime", "cvpeft.runtime.__main__ import main"), ("cli", "cvpeft.cli import main")):
        program = f"""
import sys
for absent in ("torch", "torchvision", "timm", "cv2", "onnx", "pydantic", "ruamel", "tqdm", "safetensors", "psutil"):
    sys.modules[absent] = None
from {call}
sys.exit(main({["predict"] * (name == "cli")} + {[str(model), str(tmp_path / "a.png"), "--out", str(tmp_path / name)]}))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / name).iterdir()} == FILES | {"a.jpg"}


@pytest.mark.parametrize("program", [["-m", "cvpeft.runtime"], ["-m", "cvpeft.cli", "predict"]], ids=["runtime", "cli"])
def test_a_terminal_that_lacks_a_letter_does_not_end_the_command(
    tmp_path: Path, model: Path, program: list[str]
) -> None:
    """As a file that stdout is led into, on Windows; what was found is written by then."""
    Image.new("RGB", (100, 100), "white").save(tmp_path / "a.png")
    call = [sys.executable, *program, model, tmp_path / "a.png", "--out", tmp_path / "结果"]
    done = subprocess.run(call, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0)
    assert rb"\u7ed3\u679c" in done.stdout
