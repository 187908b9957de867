"""What every format is read into: photos with their labels. One importer checks them, one writer takes them on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cvpeft.errors import DataError
from cvpeft.runtime.image import Size

__all__ = ["Found", "Label", "Photo", "hull"]


@dataclass(frozen=True)
class Label:
    """One labelled object, as the tool wrote it.

    name: of its class; empty where the tool wrote none. box: x y w h in pixels of the upright image, not checked yet.
    rotation: degrees about the box's centre. area: of the object, in pixels; None: that of its box.
    crowd: counts neither for nor against in scoring and is not trained on.
    """

    name: str
    box: object
    where: str
    rotation: object = None
    crowd: bool = False
    area: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)  # more keys of the annotation


@dataclass
class Photo:
    """One image and its labels; with a fault it is left out as a whole, as half of its labels would teach falsely.

    name: of the image in the source's tree. split: train, val, test, or empty. stated: (height, width) in
    the labels; None where these hold none; the image's own where the format has no place for it.
    fields: more keys of the image.
    """

    name: str
    labels: list[Label] = field(default_factory=list)
    split: str = ""
    stated: Size | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    faults: list[DataError] = field(default_factory=list)

    def take(self, read: Callable[[], Label]) -> None:
        """Keep a label, or the fault that it has."""
        try:
            self.labels.append(read())
        except DataError as fault:
            self.faults.append(fault)


@dataclass
class Found:
    """What a source holds.

    classes: names in the source's order. faults: of labels that belong to no image. unlabelled: images without a word
    on what they show, and the split of each. counts: what was put right, or needs to be known, and how often.
    loose_sizes: see `settle`.
    """

    photos: list[Photo] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    faults: list[DataError] = field(default_factory=list)
    unlabelled: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    loose_sizes: bool = False

    def blame(self, images: Sequence[str], fault: DataError) -> None:
        """A label file that cannot be used: its images have the fault, or they would pass for photos without labels."""
        self.photos += [Photo(name, faults=[fault]) for name in images]
        if not images:
            self.faults.append(fault)

    def names(self) -> list[str]:
        """Classes as they come up in the labels, sorted: of formats that have no list of them."""
        return sorted({label.name for photo in self.photos for label in photo.labels})

    def leave_unlabelled(self, images: Sequence[str], split: Callable[[str], str]) -> None:
        """Keep those of the source's images that no label speaks of. split: of an image, by its name."""
        seen = {photo.name for photo in self.photos}
        self.unlabelled = {name: split(name) for name in images if name not in seen}


def hull(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """The box x y w h around points."""
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
