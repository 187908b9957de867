"""`cvpeft data check` from end to end: which files are which split, what is told, what is written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from cvpeft.data.check.finding import Anchors, Finding
from cvpeft.data.check.manifest import refuse_manifest, verify_manifest, write_manifest
from cvpeft.data.check.report import check_target, write_report
from cvpeft.data.check.run import SHOWN, Outcome, check
from cvpeft.errors import ConfigError, visible

__all__ = ["check_job"]


def check_job(
    files: Sequence[Path],
    *,
    config: Path | None = None,
    out: Path = Path("data_check"),
    manifest: Path | None = None,
    verify: Path | None = None,
    skip_unreadable: bool = False,
    allow_missing: bool = False,
    workers: int | None = None,
) -> int:
    """Check json files, each a split, or those of a config; returns the exit code: 2 where there are errors.

    manifest: where the bytes of all files are written down, if there is no error; verify: a manifest to hold the files
    against, with or without json files.
    """
    changed = _verify(verify) if verify else []
    if not files and config is None:
        if verify is None:
            raise ConfigError("DATA", "no json file is named", fix="cvpeft data check train.json val.json")
        return 2 if changed else 0
    if manifest is not None:
        refuse_manifest(manifest)
    check_target(out)
    splits, classes, anchors = _of_config(config, files) if config else (_by_name(files), (), None)
    outcome = check(
        splits, classes=classes, anchors=anchors, skip_unreadable=skip_unreadable, allow_missing=allow_missing,
        workers=workers,
    )  # fmt: skip
    told, page = write_report(out, outcome)
    print(visible("\n".join(outcome.lines())))
    print(f"all of it: {told}, with pictures: {page}")
    if manifest is not None:
        _write(manifest, outcome)
    return 2 if outcome.errors or changed else 0


def _by_name(files: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Each json is a split, named as briefly as tells them apart."""
    stems = [file.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [str(file) for file in files]
    return {name: (file,) for name, file in zip(names, files, strict=True)}


def _of_config(
    config: Path, files: Sequence[Path]
) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...], Anchors | None]:
    """Its splits, or the files in their place; its classes; its anchors, at the size that the network sees."""
    from cvpeft.data.splits import render_missing
    from cvpeft.detector.build import anchor_sides
    from cvpeft.study.job import read_settings

    settings = read_settings(config)
    data, head = settings.data, settings.detector
    splits = _by_name(files)
    if not files:
        render_missing(data)
        splits = {name: tuple(found) for name in ("train", "val", "test") if (found := getattr(data, name))}
    if not splits:
        raise ConfigError("DATA", "data.train names no json file", where=str(config), fix="set data.train")
    if head.head == "fcos":
        return splits, data.classes, None
    sides = tuple(chain.from_iterable(anchor_sides(head)))
    return splits, data.classes, Anchors(sides, head.aspect_ratios, data.canvas or data.size)


def _verify(manifest: Path) -> list[Finding]:
    found = verify_manifest(manifest)
    for finding in found[:SHOWN]:
        print(visible(finding.text))
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more")
    print(f"{manifest}: {len(found)} files differ" if found else f"{manifest}: every byte is as it was")
    return found


def _write(manifest: Path, outcome: Outcome) -> None:
    if outcome.errors:
        print("no manifest is written: the data has errors")
        return
    splits = outcome.case.splits
    sources = [file for split in splits for file in split.files]
    count = write_manifest(manifest, [*sources, *(image.path for split in splits for image in split.images)])
    print(f"{manifest}: {count} files; `cvpeft data check --verify {manifest}` tells when a byte of them changes")
