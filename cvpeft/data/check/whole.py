"""Files that cannot be decoded, and sizes that are not those of the json."""

from __future__ import annotations

from collections.abc import Iterator

from cvpeft.data.check.finding import Case, Finding, Split, error, warning
from cvpeft.data.images import too_many_unreadable, wrong_size
from cvpeft.errors import DataError

__all__ = ["check_files", "check_sizes"]

TURNED = (2, 3, 4)  # EXIF orientations that leave width and height as they are


def check_files(case: Case, *, skip: bool = False) -> Iterator[Finding]:
    """skip: an unreadable image is a warning, as long as few are: the user will take them out (data autofix)."""
    for split in case.splits:
        paths = [image.path for image in split.images if image.path in case.pixels]
        broken = [path for path in paths if case.pixels[path].fault]
        many = too_many_unreadable(len(broken), len(paths), split.name)
        for path in broken:
            fault = case.pixels[path].fault
            assert fault is not None
            yield warning(fault, [path]) if skip and not many else error(fault, [path])
        if skip and many:
            yield error(many, broken)


def check_sizes(case: Case) -> Iterator[Finding]:
    for split in case.splits:
        for image in split.images:
            pixels = case.pixels.get(image.path)
            stated = (image.height, image.width)
            if pixels and not pixels.fault and pixels.size != stated:
                yield error(wrong_size(image.path, stated, pixels.size), [image.path])
        yield from _turned(case, split)


def _turned(case: Case, split: Split) -> Iterator[Finding]:
    """Sizes cannot tell whether a box was drawn on a photo as stored or as shown, where both have the same size."""
    turned = [
        image.path
        for image in split.images
        if len(image.boxes)
        and (pixels := case.pixels.get(image.path))
        and (pixels.orientation in TURNED or (pixels.orientation > 1 and image.height == image.width))
    ]
    if turned:
        what = f"{len(turned)} labelled photos are stored upside down or mirrored (EXIF), the first is {turned[0].name}"
        why = "their size does not tell whether they were labelled as stored or as shown"
        fix = "look at them in the report; boxes must lie on the photo as shown"
        yield warning(DataError("EXIF", what, where=split.name, why=why, fix=fix), turned)
