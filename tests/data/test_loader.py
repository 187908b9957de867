"""Batches: the same ones whatever the workers and the restart point, and errors that arrive as one sentence."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvpeft.data import loader as room
from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.loader import Batch, TrainLoader, eval_loader, read_sample, train_loader
from cvpeft.data.transforms import build_augment
from cvpeft.errors import ConfigError, DataError, ResourceError
from cvpeft.runtime.image import decode, fit, letterbox

from .sets import coco, picture, write

SIZE = (64, 96)
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> CocoData:
    """Seven images; the first has a crowd box, the last has none."""
    content = coco(7)
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"] = content["annotations"][:-2]
    return load_coco([write(tmp_path, content)])


def batches(
    data: CocoData, *, workers: int = 0, seed: int = 3, batch: int = 2, spec: Any = "road", **rest: Any
) -> TrainLoader:
    return train_loader(
        data, SIZE, build_augment(spec, SIZE), batch=batch, workers=workers, seed=seed, **{"epochs": 2} | rest
    )


def as_lists(steps: Iterator[tuple[int, int, Batch]] | TrainLoader) -> list[Any]:
    """Everything that a step holds, comparable with ==."""
    return [
        (epoch, step, batch.images.numpy().tobytes(), batch.names, batch.letterboxes, labels(batch))
        for epoch, step, batch in steps
    ]


def labels(batch: Batch) -> list[Any]:
    return [(t["boxes"].numpy().tobytes(), t["labels"].tolist(), t["image_id"]) for t in batch.targets]


# -------------------------------------------------------------------------------------------------------------- batches


def test_what_a_batch_holds(data: CocoData) -> None:
    steps = list(batches(data))
    assert [(epoch, step) for epoch, step, _ in steps] == [(e, s) for e in (0, 1) for s in range(4)]
    assert [len(batch.names) for _, _, batch in steps] == [2, 2, 2, 1] * 2
    for _, _, batch in steps:
        assert batch.images.shape[1:] == (3, *SIZE)
        assert batch.images.dtype == torch.uint8
        for target in batch.targets:
            assert target["boxes"].dtype == torch.float32
            assert target["labels"].dtype == torch.int64
            assert target["boxes"].shape == (len(target["labels"]), 4)


def test_every_epoch_shows_each_image_once_in_a_new_order(data: CocoData) -> None:
    orders: dict[int, list[int]] = {}
    for epoch, _, batch in batches(data, epochs=3):
        orders.setdefault(epoch, []).extend(target["image_id"] for target in batch.targets)
    assert all(sorted(order) == list(range(1, 8)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(data: CocoData, workers: int) -> None:
    assert as_lists(batches(data, workers=workers)) == as_lists(batches(data))


@pytest.mark.parametrize("start", [(0, 1), (0, 3), (0, 4), (1, 0), (1, 2), (2, 0)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_goes_on_with_the_same_batches(data: CocoData, start: tuple[int, int], workers: int) -> None:
    whole = as_lists(batches(data))
    skipped = start[0] * 4 + start[1]
    resumed = batches(data, start=start, workers=workers)
    assert as_lists(resumed) == whole[skipped:]
    assert len(resumed) == 4


@pytest.mark.parametrize("pin", [False, True])
def test_memory_is_pinned_where_the_run_wants_it(data: CocoData, monkeypatch: pytest.MonkeyPatch, pin: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert batches(data, pin=pin).loader.pin_memory == pin
    assert eval_loader(data, SIZE, batch=2, workers=0, pin=pin).loader.pin_memory == pin


def test_the_seed_and_the_epoch_matter(data: CocoData) -> None:
    first, other = as_lists(batches(data)), as_lists(batches(data, seed=4))
    assert first != other
    by_name = [{name: batch.images[i] for _, _, batch in part for i, name in enumerate(batch.names)}
               for part in (list(batches(data))[:4], list(batches(data))[4:])]  # fmt: skip
    assert any(not torch.equal(by_name[0][name], by_name[1][name]) for name in by_name[0])


def test_a_sample_does_not_depend_on_the_other_images(data: CocoData) -> None:
    """The image keeps its id, so it is augmented alike when others are taken out."""
    part = replace(data, images=data.images[2:])
    images = {name: batch.images[i] for e, _, batch in batches(data) for i, name in enumerate(batch.names) if e == 1}
    for epoch, _, batch in batches(part):
        for i, name in enumerate(batch.names):
            assert epoch == 0 or torch.equal(batch.images[i], images[name])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(data: CocoData, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(batches(data, workers=workers))
    list(eval_loader(data, SIZE, batch=2, workers=workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_crowd_boxes_are_not_learnt(data: CocoData) -> None:
    targets = {t["image_id"]: t for _, _, batch in batches(data, spec="none", epochs=1) for t in batch.targets}
    assert targets[1]["labels"].tolist() == [2]
    assert targets[2]["labels"].tolist() == [3, 1]
    assert targets[7]["boxes"].shape == (0, 4)


def test_boxes_land_in_network_pixels(data: CocoData) -> None:
    for batch in eval_loader(data, SIZE, batch=3, workers=0):
        for target, letter, name in zip(batch.targets, batch.letterboxes, batch.names, strict=True):
            image = data.images[target["image_id"] - 1]
            assert name == image.file_name
            corners = image.boxes[~image.crowd].copy()
            corners[:, 2:] += corners[:, :2]
            assert np.allclose(letter.inverse(target["boxes"].numpy()), corners, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_as_in_deployment(data: CocoData, workers: int) -> None:
    loader = eval_loader(data, SIZE, batch=3, workers=workers)
    found = list(loader)
    assert len(loader) == len(found) == 3
    assert [t["image_id"] for batch in found for t in batch.targets] == [1, 2, 3, 4, 5, 6, 7]
    for image, pixels in zip(data.images, torch.cat([batch.images for batch in found]), strict=True):
        canvas, letter = letterbox(decode(image.path)[0], SIZE)
        assert np.array_equal(pixels.numpy(), canvas.transpose(2, 0, 1))
        assert letter == fit((60, 100), SIZE)


def test_real_photographs_give_real_batches(potholes: Path) -> None:
    data = load_coco([potholes / "val.json"])
    part = replace(data, images=data.images[:8])
    one, two = ([as_lists(batches(part, workers=w, batch=4, epochs=1, spec=["HorizontalFlip"]))] for w in (0, 2))
    assert one == two
    for batch in eval_loader(part, (416, 640), batch=4, workers=0):
        assert batch.images.shape == (4, 3, 416, 640)
        assert all((t["boxes"][:, 2:] > t["boxes"][:, :2]).all() for t in batch.targets)


# ----------------------------------------------------------------------------------------------------------------- EXIF


def test_the_eight_exif_variants_of_a_photograph_agree(tmp_path: Path, potholes: Path) -> None:
    """A bright rectangle is painted at the box; it must be found where the target says, in all eight files."""
    box = (300, 350, 120, 80)
    photo = np.array(Image.open(sorted((potholes / "images").iterdir())[0]).convert("RGB"))
    photo = (photo * 0.5).astype(np.uint8)
    photo[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
    images = [{"id": i, "file_name": f"{i}.jpg", "width": photo.shape[1], "height": photo.shape[0]} for i in STORED]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": box} for i in STORED]
    for i, store in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = i
        Image.fromarray(np.ascontiguousarray(store(photo))).save(tmp_path / f"{i}.jpg", exif=exif, quality=95)
    path = write(
        tmp_path, {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}, pictures=[]
    )
    for size in ((416, 640), (160, 160)):  # the second is decoded at half size
        (batch,) = eval_loader(load_coco([path]), size, batch=8, workers=0)
        for image, target in zip(batch.images, batch.targets, strict=True):
            rows, columns = np.nonzero(image.numpy().min(0) > 200)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(target["boxes"].numpy()[0] - found).max() <= 1


@pytest.mark.parametrize(("stated", "code", "words"), [
    ((100, 60), "E-EXIF", "the json says 60x100, the upright image has 100x60. The two are swapped"),
    ((61, 100), "E-IMGSIZE", "the json says 100x61, the upright image has 100x60"),
])  # fmt: skip
def test_a_stated_size_that_is_not_the_images(tmp_path: Path, stated: tuple[int, int], code: str, words: str) -> None:
    path = write(tmp_path, coco(1, size=stated))
    image = load_coco([path]).images[0]
    with pytest.raises(DataError) as caught:
        read_sample(image, SIZE, build_augment("none", SIZE), 0)
    assert str(caught.value).startswith(f"{code} {image.path} - ")
    assert words in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_corrupt_image_is_told_by_its_name(data: CocoData, workers: int) -> None:
    path = data.images[4].path
    path.write_bytes(path.read_bytes()[:200])
    for loader in (batches(data, workers=workers), eval_loader(data, SIZE, batch=2, workers=workers)):
        with pytest.raises(DataError) as caught:
            list(loader)
        assert str(caught.value).startswith(f"E-IMAGE {path} - the image is damaged or cut off")
        assert caught.value.code == "IMAGE"
        assert caught.value.exit_code == 2


def test_the_batches_before_a_corrupt_image_arrive(data: CocoData) -> None:
    order = [t["image_id"] for _, _, batch in batches(data, epochs=1) for t in batch.targets]
    data.images[order[4] - 1].path.write_bytes(b"")
    steps = iter(batches(data, workers=1))
    assert [next(steps)[:2], next(steps)[:2]] == [(0, 0), (0, 1)]
    with pytest.raises(DataError, match="the image file is empty"):
        next(steps)


def test_an_image_that_vanishes(data: CocoData) -> None:
    data.images[0].path.unlink()
    with pytest.raises(DataError, match="E-MISSING"):
        list(eval_loader(data, SIZE, batch=2, workers=1))


class Refusing:
    """An augmentation that raises what it is told to."""

    detail = 1.0

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __call__(self, *_: object) -> Any:
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise self.error  # type: ignore[misc]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_other_kinds_keep_their_kind(data: CocoData, workers: int) -> None:
    loader = train_loader(data, SIZE, Refusing(ConfigError("AUGMENT", "x")), batch=2, workers=workers, seed=0, epochs=1)
    with pytest.raises(ConfigError, match="E-AUGMENT x"):
        list(loader)


@pytest.mark.parametrize("bug", [ZeroDivisionError, RuntimeError])
def test_a_bug_is_not_dressed_up(data: CocoData, bug: type[Exception]) -> None:
    with pytest.raises(bug, match="in the code"):
        list(train_loader(data, SIZE, Refusing(bug("in the code")), batch=2, workers=1, seed=0, epochs=1))


def test_a_killed_worker_is_a_resource_error(data: CocoData) -> None:
    with pytest.raises(ResourceError, match=r"E-WORKER a loader process died.*data\.workers=0"):
        list(train_loader(data, SIZE, Refusing(None), batch=2, workers=1, seed=0, epochs=1))


def test_training_without_any_box_is_refused(tmp_path: Path) -> None:
    data = load_coco([write(tmp_path, coco(annotations=[]))])
    with pytest.raises(DataError, match="none of the 3 training images has a box"):
        batches(data)
    assert len(list(eval_loader(data, SIZE, batch=2, workers=0))) == 2


def test_workers_use_one_thread_each(data: CocoData, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.delattr(signal, "sigwaitinfo", raising=False)  # this process must go on hearing SIGTERM
    cv_threads, torch_threads = cv2.getNumThreads(), torch.get_num_threads()
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        room._init_worker(0)
        assert cv2.getNumThreads() <= 1
        assert torch.get_num_threads() == 1
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
        cv2.setNumThreads(cv_threads)
        torch.set_num_threads(torch_threads)


def test_large_photographs_are_decoded_at_a_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = room.decode

    def spy(*args: Any, **kwargs: Any) -> Any:
        pixels, full = original(*args, **kwargs)
        seen.append(pixels.shape[:2])
        return pixels, full

    monkeypatch.setattr(room, "decode", spy)
    content = coco(1, size=(1600, 2400))
    content["images"][0]["file_name"] = "a.jpg"
    path = write(tmp_path, content, pictures=[])
    Image.fromarray(picture(1600, 2400)).save(tmp_path / "a.jpg")
    image = load_coco([path]).images[0]
    boxes = {spec: read_sample(image, SIZE, build_augment(spec, SIZE), 0).target["boxes"] for spec in ("none", "road")}
    assert seen == [(200, 300), (200, 300)]
    assert len(boxes["none"]) == 0  # 20x10 of 2400x1600 is thinner than a pixel of the network input
    content["annotations"][0]["bbox"] = [240, 160, 480, 320]
    path.write_text(json.dumps(content))
    image = load_coco([path]).images[0]
    found = read_sample(image, SIZE, build_augment("none", SIZE), 0).target["boxes"]
    assert np.allclose(found.numpy(), [[9.6, 6.4, 28.8, 19.2]], atol=0.05)
