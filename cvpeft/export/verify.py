"""The proof that an exported file gives the boxes of the trained detector; without it no file is left behind.

Rows can swap where scores tie, so boxes are matched, by class and overlap, before they are compared. Every box from the
threshold on must have a partner on the other side, whatever the partner's score is; so a box that lies on the threshold
itself does no harm.

Of two overlapping boxes whose scores tie, rounding decides which one NMS keeps. Such pairs are counted, and left out of
the differences while they are one in a thousand or fewer.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_iou

from cvpeft import __version__
from cvpeft.backbone.build import Backbone
from cvpeft.errors import ParityError
from cvpeft.export.onnx import STEP, Form, export_onnx, halved
from cvpeft.export.score import as_prediction
from cvpeft.files import replacing, sync
from cvpeft.runtime.onnx_detector import Detections, Detector
from cvpeft.types import Prediction

__all__ = [
    "Agreement", "Tolerance", "agreed", "compare", "enough", "export_verified", "predict_onnx", "predict_torch",
    "resized", "verify",
]  # fmt: skip

PARTNER_IOU = 0.5  # less overlap is another object
SAME_PLACE = 1e-3  # pixels
SAME_SCORE = 1e-5  # less apart is a tie
OTHER_BOX = 1e-3  # 1 - IoU, from which on a partner of the same score is another box
TIES = 1e-3  # of all matched boxes
DOUBLE_IMAGES = 2  # of those that features are compared on, in float64 too: it takes several times as long
MERGED = 1e-7  # of the largest feature: about what the weights of a merge lose when they are rounded to float32
OTHER_SIZES = (0.75, 1.5)  # of the side that was trained at, to which a file of free size is proven too
BATCHES = (1, 2, 3, 8)  # sizes in which the file is fed in turn, so that its free batch axis is proven too


@dataclass(frozen=True)
class Tolerance:
    """What two models may differ by and still be the same model.

    score: largest difference of two matched scores. iou: smallest overlap of two matched boxes. threshold: score from
    which boxes are compared; it is lowered, never raised, until `least_boxes` are compared or there are no more,
    because agreement on nothing proves nothing.
    """

    score: float = 1e-4
    iou: float = 0.999
    threshold: float = 0.3
    least_boxes: int = 20


@dataclass(frozen=True)
class Agreement:
    """How far two lists of predictions are apart; the differences are over matched boxes, but for a few ties."""

    images: int
    boxes: int  # of the reference, from the threshold on
    missing: int  # of these, without a partner in the candidate
    extra: int  # boxes of the candidate from the threshold on, without a partner in the reference
    ties: int  # matched boxes of one score and two places: NMS kept one here and the other there
    max_score_difference: float
    max_pixel_difference: float
    min_iou: float

    def within(self, tolerance: Tolerance) -> bool:
        close = self.max_score_difference <= tolerance.score and self.min_iou >= tolerance.iou
        return self.boxes > 0 and self.missing == 0 and self.extra == 0 and close

    def sentence(self, tolerance: Tolerance) -> str:
        tied = f", where {self.ties} boxes have the very score of one that overlaps them and NMS keeps either"
        return (
            f"of {self.boxes} boxes in {self.images} images {self.missing} are missing and {self.extra} are extra, "
            f"scores differ by up to {self.max_score_difference:.2g} (allowed {tolerance.score:g}), "
            f"the smallest IoU is {self.min_iou:.6f} (allowed {tolerance.iou:g}){tied if self.ties else ''}"
        )


def compare(reference: Sequence[Prediction], candidate: Sequence[Prediction], *, threshold: float) -> Agreement:
    """Match the boxes of two models, image by image, from the score `threshold` on in either.

    A candidate that is longer has the same images again, from the first on, see `predict_onnx`; their boxes are counted
    once.
    """
    if len(candidate) < len(reference):
        raise ValueError(f"{len(candidate)} predictions for {len(reference)} images")
    pairs, missing, extra = [], 0, 0
    for one, other in zip(cycle(reference), candidate, strict=False):
        forth, lost = _partners(one, other, threshold)
        back, found = _partners(other, one, threshold)
        pairs += [forth, back]
        missing, extra = missing + lost, extra + found
    differences = torch.cat([torch.zeros(1, 3), *pairs])  # (1 + matched, 3): score, pixels, 1 - IoU
    tied = (differences[:, 0] <= SAME_SCORE) & (differences[:, 2] > OTHER_BOX)
    ties = int(tied.sum())
    if ties <= TIES * len(differences):
        differences = differences[~tied]
    score, pixels, apart = differences.amax(dim=0).tolist()
    boxes = sum(int((p["scores"] >= threshold).sum()) for p in reference)
    return Agreement(len(reference), boxes, missing, extra, ties, score, pixels, 1.0 - apart)


def _partners(one: Prediction, other: Prediction, threshold: float) -> tuple[Tensor, int]:
    """Differences (n, 3) of boxes of `one`, from the threshold on, to their partners in `other`; how many have none.

    Partners are taken in falling overlap, each once. Of a box thinner than a pixel rounding alone makes another IoU, so
    there the place decides.
    """
    rows = torch.where(one["scores"] >= threshold)[0]
    left, right = one["boxes"][rows].double(), other["boxes"].double()
    overlap = box_iou(left, right).nan_to_num(0.0)  # (n, m)
    thin = (left[:, 2:] - left[:, :2]).amin(dim=-1) < 1.0  # (n,)
    same_place = (left[:, None] - right).abs().amax(dim=-1) <= SAME_PLACE  # (n, m)
    overlap = torch.where(thin[:, None] & same_place, 1.0, overlap)
    overlap = torch.where(one["labels"][rows, None] == other["labels"], overlap, 0.0)
    found = []
    while overlap.numel() and overlap.max() > PARTNER_IOU:
        i, j = divmod(int(overlap.argmax()), overlap.shape[1])
        score = (one["scores"][rows[i]] - other["scores"][j]).abs().item()
        pixels = (one["boxes"][rows[i]] - other["boxes"][j]).abs().max().item()
        found.append((score, pixels, 1.0 - overlap[i, j].item()))
        overlap[i, :], overlap[:, j] = 0.0, 0.0
    return torch.tensor(found, dtype=torch.float64).view(-1, 3), len(rows) - len(found)


def enough(reference: Sequence[Prediction], tolerance: Tolerance) -> float:
    """The threshold that leaves `least_boxes` to compare, or all where there are fewer; ParityError where none are."""
    scores = torch.cat([torch.zeros(0), *(p["scores"].cpu() for p in reference)]).sort(descending=True).values
    if not len(scores):
        what = f"the trained detector finds nothing in {len(reference)} images, so the export cannot be proven"
        raise ParityError("PARITY", what, fix="verify on images with objects, or train longer")
    return min(tolerance.threshold, scores[: tolerance.least_boxes][-1].item())


def verify(
    detector: nn.Module, path: Path, images: Sequence[Tensor], *, tolerance: Tolerance = Tolerance()
) -> dict[str, Any]:
    """Compare a file with its detector on letterboxed images (3, H, W) uint8; ParityError if they do not agree."""
    reference = predict_torch(detector, images)
    threshold = enough(reference, tolerance)
    agreement = agreed("the ONNX model", reference, predict_onnx(path, images), threshold, tolerance)
    return {"threshold": threshold, "torch_onnx": asdict(agreement), **_evidence(path, tolerance)}


def export_verified(
    unmerged: nn.Module,
    merged: nn.Module,
    folder: Path,
    images: Sequence[Tensor],
    *,
    classes: Sequence[str],
    score_thresholds: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    opset: int = 18,
    tolerance: Tolerance = Tolerance(),
    more: Callable[[Path], Mapping[str, Any]] = lambda _: {},
    form: Form | None = None,
) -> Path:
    """Write folder/model.onnx and folder/parity.json if all three models agree; if not, an older pair stays untouched.

    form: see `Form`; those that are not the default have names of their own. Rounded weights are proven against the
    merged detector with the same rounded weights; how far they are from the unmerged one is told then, not judged.

    unmerged: the detector as it was trained. merged: the same with its adapters folded in, which is what is exported;
    give the unmerged one twice where it cannot be merged. Both in eval mode, on the CPU. images: letterboxed (3, H, W)
    uint8. score_thresholds, metadata: see `export_onnx`. more: another proof of the file at this path; it
    returns entries of parity.json, or raises.
    Raises ParityError, without writing anything, if the merged or the exported model differs from the trained one.
    """
    form = form or Form()
    target = folder / f"model{form.suffix}.onnx"
    reference = predict_torch(unmerged, images)
    threshold = enough(reference, tolerance)
    plain = predict_torch(merged, images)
    merging = agreed("the merged detector", reference, plain, threshold, tolerance)
    features = _checked_features(unmerged, merged, images)
    rounded = form.weights == "fp16"
    shipped = halved(merged) if rounded else merged
    wanted = predict_torch(shipped, images) if rounded else plain
    note_file = folder / f"parity{form.suffix}.json"
    with replacing(note_file, "the proof") as note, replacing(target, "the model") as part:
        export_onnx(
            shipped, part, classes=classes, score_thresholds=score_thresholds, metadata=metadata, opset=opset, form=form
        )
        exported = predict_onnx(part, images)
        to_trained = compare(reference, exported, threshold=threshold)
        parity = {
            "threshold": threshold,
            "unmerged_merged": {**asdict(merging), **features},
            "merged_onnx": asdict(agreed("the ONNX model", wanted, exported, threshold, tolerance)),
            "unmerged_onnx": asdict(to_trained if rounded else _checked("the ONNX model", to_trained, tolerance)),
            **({"other_sizes": _other_sizes(shipped, part, images, tolerance)} if form.free_size else {}),
            **more(part),
            **_evidence(part, tolerance),
        }
        note.write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
        sync(note)  # both files are whole before either takes its place, so that a full disk cannot part them
    return target


def predict_torch(detector: nn.Module, images: Sequence[Tensor]) -> list[Prediction]:
    """Predictions of a detector in eval mode on images (3, H, W) uint8, one by one."""
    device = next(detector.parameters()).device
    with torch.no_grad():
        found = [detector(image[None].to(device))[0] for image in images]
    # label 0 is background: torchvision's one-stage heads can give it, and Detector.raw leaves it out
    rows = [p["labels"] > 0 for p in found]
    return [
        Prediction(boxes=p["boxes"][keep].cpu(), scores=p["scores"][keep].cpu(), labels=p["labels"][keep].cpu())
        for p, keep in zip(found, rows, strict=True)
    ]


def feature_difference(one: nn.Module, other: nn.Module, images: Sequence[Tensor]) -> dict[str, float]:
    """How far the pyramid maps of two detectors are apart, beside what float32 itself does to them.

    max_feature_difference, max_feature: in float32 over all images, and the largest value there. The first
    DOUBLE_IMAGES are computed in float64 too. max_rounding: of `one` in float32 from itself in float64.
    max_double_difference: of the two in float64; of a right merge only the rounding of its weights is left there.
    max_bf16_difference: of the two once their weights are rounded to bf16, computed in float64: what merging costs who
    deploys bf16 weights, as small changes are lost in large weights there.
    """
    device = next(one.parameters()).device
    double_one, double_other = copy.deepcopy(one).double(), copy.deepcopy(other).double()
    low_one, low_other = (copy.deepcopy(model).bfloat16().double() for model in (one, other))
    apart, largest, rounding, double, low = 0.0, 0.0, 0.0, 0.0, 0.0
    for number, image in enumerate(images):
        x: Tensor = one.transform(image[None].to(device))[0].tensors  # type: ignore[operator]
        left, right = _maps(one, x), _maps(other, x)
        apart, largest = max(apart, _apart(left, right)), max(largest, *(m.abs().max().item() for m in left))
        if number < DOUBLE_IMAGES:
            wide_left, wide_right = _maps(double_one, x.double()), _maps(double_other, x.double())
            rounding, double = max(rounding, _apart(left, wide_left)), max(double, _apart(wide_left, wide_right))
            low = max(low, _apart(_maps(low_one, x.double()), _maps(low_other, x.double())))
    return {
        "max_feature_difference": apart,
        "max_feature": largest,
        "max_rounding": rounding,
        "max_double_difference": double,
        "max_bf16_difference": low,
    }


@torch.no_grad()
def _maps(detector: nn.Module, x: Tensor) -> list[Tensor]:
    maps: Mapping[str, Tensor] = detector.backbone(x)  # type: ignore[operator]
    return list(maps.values())


def _apart(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(left, right, strict=True))


def _checked_features(unmerged: nn.Module, merged: nn.Module, images: Sequence[Tensor]) -> dict[str, float]:
    """`feature_difference` of a merge that is right; boxes alone would not tell one that is slightly wrong.

    It may differ in float64 by what rounding to float32 does anyway, and no more.
    """
    found = feature_difference(unmerged, merged, images)
    apart, largest = found["max_double_difference"], found["max_feature"]
    if apart > max(found["max_rounding"], MERGED * largest):
        what = f"in float64 merging moves features by {apart:.1e}, of values up to {largest:.1f}"
        why = f"Rounding to float32 moves them by {found['max_rounding']:.1e} only. No model was written"
        raise ParityError("MERGE", what, why=why)
    return found


def predict_onnx(path: Path, images: Sequence[Tensor], *, adapter: Path | None = None) -> list[Prediction]:
    """Predictions of an exported file on images (3, H, W) uint8, fed in batches of changing size.

    Where there are too few for each of BATCHES, they follow once more, from the first on, until each size was fed.
    """
    detector, sizes = Detector(path, adapter=adapter), cycle(BATCHES)
    images = [*images, *islice(cycle(images), max(sum(BATCHES) - len(images), 0))]
    found: list[Detections] = []
    while len(found) < len(images):
        batch = images[len(found) : len(found) + next(sizes)]
        found += detector.raw(np.stack([image.cpu().numpy() for image in batch]))
    return [as_prediction(f) for f in found]


def agreed(
    who: str, reference: Sequence[Prediction], candidate: Sequence[Prediction], threshold: float, tolerance: Tolerance
) -> Agreement:
    """`compare`; ParityError, which begins with `who`, where the two do not agree."""
    return _checked(who, compare(reference, candidate, threshold=threshold), tolerance)


def _checked(who: str, agreement: Agreement, tolerance: Tolerance) -> Agreement:
    if not agreement.within(tolerance):
        what = f"{who} does not agree with the trained detector: {agreement.sentence(tolerance)}"
        raise ParityError("PARITY", what, why="No model was written")
    return agreement


def _other_sizes(
    detector: nn.Module, path: Path, images: Sequence[Tensor], tolerance: Tolerance
) -> dict[str, dict[str, Any]]:
    """Agreement at sizes that were not trained at, by "height x width", with the detector that is made for each."""
    least = Detector(path).metadata["free_size"]["least"]
    found = {}
    for factor in OTHER_SIZES:
        sides = zip(detector.transform.size, least, strict=True)  # type: ignore[arg-type]
        height, width = (max(low, round(side * factor / STEP) * STEP) for side, low in sides)
        other = resized(detector, (height, width))
        inputs = [nn.functional.interpolate(image[None].float(), (height, width))[0].byte() for image in images]
        reference = predict_torch(other, inputs)
        who, threshold = f"the ONNX model at {height} x {width}", enough(reference, tolerance)
        agreement = agreed(who, reference, predict_onnx(path, inputs), threshold, tolerance)
        found[f"{height} x {width}"] = asdict(agreement)
    return found


def resized(detector: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A copy for inputs of another (height, width), the tables of whose backbone timm has made anew."""
    other: Any = copy.deepcopy(detector)
    other.transform.size = size
    if isinstance(body := getattr(other.backbone, "body", None), Backbone):
        other.backbone.body = body.resized(size)
    return cast(nn.Module, other)


def _evidence(path: Path, tolerance: Tolerance) -> dict[str, Any]:
    """What the comparison was made with: enough to repeat it, and to tell which file it speaks of."""
    return {
        "agree": True,
        "tolerance": asdict(tolerance),
        "batches": list(BATCHES),
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "model_bytes": path.stat().st_size,
        "versions": {
            "cvpeft": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }
