"""Pretrained weights from the hub's cache, the hub or a file: never pickled, half loaded or random unasked."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, XetDownloadError
from safetensors import SafetensorError, safe_open
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import load_pretrained
from timm.models.vision_transformer import get_pretrained_grid_size
from torch import Tensor, nn

from cvpeft.errors import BackboneError

__all__ = [
    "BODY", "DETECTOR_FORMAT", "WeightsFile", "base_licence", "grid_entry", "hub_file", "load_weights", "read_weights",
    "street_file",
]  # fmt: skip

DETECTOR_FORMAT = "cvpeft-detector"  # metadata["format"] of a file that holds a whole detector
BODY = "backbone.body.net."  # where such a file keeps the backbone
FILE = "model.safetensors"
TABLE = ".relative_position_bias_table"  # timm's name of a window's table, behind the module's path
SHIPPED = Path(__file__).parents[1] / "weights"
HUB_ERRORS = (OSError, ValueError, HTTPError, EntryNotFoundError, XetDownloadError)  # no base class in common


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of one safetensors file, the backbone's apart from the rest of a detector.

    body: tensors by timm's names.
    rest: neck and head of a detector file by the detector's names; empty for a plain backbone file.
    metadata: the file's own metadata.
    """

    body: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_weights(file: Path) -> WeightsFile:
    """The tensors of a `.safetensors` file; BackboneError where it is absent, damaged or of another kind."""
    if file.suffix != ".safetensors":
        fix = "convert it once, outside: load it with torch, save it with safetensors.torch.save_file"
        raise BackboneError(
            "WEIGHTS", f"'{file.suffix}' is not read", where=str(file), why="pickled files can run code", fix=fix
        )
    if not file.is_file():
        raise BackboneError(
            "WEIGHTS", "no such file", where=str(file), fix="set backbone.weights to a .safetensors file"
        )
    try:
        with safe_open(str(file), "pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            metadata = f.metadata() or {}
    except (OSError, SafetensorError) as e:
        raise BackboneError(
            "WEIGHTS", f"not a whole safetensors file ({e})", where=str(file), fix="copy it again"
        ) from e
    if metadata.get("format") != DETECTOR_FORMAT:
        return WeightsFile(tensors, {}, metadata)
    body = {key.removeprefix(BODY): t for key, t in tensors.items() if key.startswith(BODY)}
    return WeightsFile(body, {key: t for key, t in tensors.items() if not key.startswith(BODY)}, metadata)


def hub_file(name: str) -> Path:
    """The safetensors file of a timm model: the hub's local cache first, then the hub itself.

    BackboneError where timm has no weights for the name or the hub cannot be reached.
    """
    cfg = timm.get_pretrained_cfg(name)
    repo = cfg.hf_hub_id if cfg is not None else None
    if not repo:
        raise BackboneError(
            "WEIGHTS", f"timm has no hub weights for '{name}'", fix="set backbone.weights to a file, or to none"
        )
    with suppress(*HUB_ERRORS):
        return Path(hf_hub_download(repo, FILE, local_files_only=True))
    try:
        return Path(hf_hub_download(repo, FILE))
    except HUB_ERRORS as e:
        raise BackboneError(
            "HUB",
            f"the weights of '{name}' are not in the hub's cache and cannot be had from the hub ({_first_line(e)})",
            why="training would start from random weights",
            fix=f"download {FILE} of {repo} where there is a network and set backbone.weights=FILE",
        ) from e


def street_file(name: str) -> Path:
    """The detector that ships with the package for a backbone, trained on rendered streets; its card lies beside it.

    BackboneError where there is none for the name.
    """
    file = SHIPPED / f"street_{name}.safetensors"
    if not file.is_file():
        shipped = ", ".join(sorted(f.stem.removeprefix("street_") for f in SHIPPED.glob("street_*.safetensors")))
        raise BackboneError(
            "WEIGHTS",
            f"there are no street weights for '{name}'",
            why="training would start from random weights",
            fix=f"set backbone.name to one of {shipped or 'none, as this copy ships no weights'}, "
            "or backbone.weights to timm or a file",
        )
    return file


def base_licence(name: str, weights: str | Path) -> str:
    """The licence of the base weights and who says so, or that it is not known; of a `weights` setting.

    A file can say it in its safetensors metadata, under "licence" or "license".
    """
    if weights == "none":
        return "none: trained from random weights"
    if weights == "street":
        return "Apache-2.0 (ships with cvpeft)"
    if weights == "timm":
        cfg = timm.get_pretrained_cfg(name)
        said, source = cfg.license if cfg else None, f"timm's {name}"
    else:
        metadata = read_weights(Path(weights)).metadata
        said, source = metadata.get("licence") or metadata.get("license"), Path(weights).name
    return f"{said} (by {source})" if said else f"unknown ({source} does not say)"


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")


def grid_entry(net: nn.Module) -> dict[str, str]:
    """The entry "grid" of a file's metadata, rows and columns of tokens that the net's position embeddings and tables
    of relative positions are made for, since their count alone does not tell; empty where it has none.
    """
    made_for_one = _has_positions(net) or _tables(net)
    return {"grid": json.dumps(list(net.patch_embed.grid_size))} if made_for_one else {}  # type: ignore[union-attr,arg-type]


def load_weights(
    net: nn.Module, tensors: Mapping[str, Tensor], *, source: str, metadata: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Load a timm state dict into `net`; position embeddings are resampled to its size, from the grid that `metadata`
    tells or else from a square one, as timm's own files have. So are tables of relative positions.

    Returns the keys of the file that the model has no place for (its classifier, say).
    BackboneError where a tensor of the model is not in the file, or has another shape there, where the file is of a
    deeper model, or where it is not known which grid the position embeddings are of.
    """
    about = metadata or {}
    positions = {**_positions(net, tensors, about, source), **_relative_positions(net, tensors, about, source)}
    missing: list[str] = []
    unexpected: list[str] = []

    def note(_: nn.Module, keys: Any) -> None:
        missing.extend(keys.missing_keys)
        unexpected.extend(keys.unexpected_keys)

    handle = net.register_load_state_dict_post_hook(note)
    cfg = {**net.pretrained_cfg, "state_dict": dict(tensors), "source": "", "custom_load": False}  # type: ignore[dict-item]
    try:
        load_pretrained(net, cfg, num_classes=0, filter_fn=_filter_of(net, positions), strict=False)
    except (AttributeError, KeyError, RuntimeError, ValueError) as e:
        raise BackboneError(
            "WEIGHTS",
            f"the tensors do not fit the model ({str(e).splitlines()[-1].strip()})",
            where=source,
            fix="set backbone.name to the model the file was made from",
        ) from e
    finally:
        handle.remove()
    if missing:
        raise BackboneError(
            "WEIGHTS",
            f"{len(missing)} tensors of the model are not in the file, first {', '.join(missing[:5])}",
            where=source,
            why="they would stay random",
            fix="set backbone.name to the model the file was made from",
        )
    if beyond := [key for key in unexpected if _is_beyond(net, key)]:
        raise BackboneError(
            "WEIGHTS",
            f"{len(beyond)} tensors of the file are of layers that the model does not have, first {beyond[0]}",
            where=source,
            why="what follows these layers was trained on what they give",
            fix="set backbone.name to the model the file was made from",
        )
    return tuple(unexpected)


def _is_beyond(net: nn.Module, key: str) -> bool:
    """Whether a tensor is of a member that a row of layers of `net` does not have: ConvNeXt-Small has the widths of
    ConvNeXt-Tiny, and more blocks.
    """
    path = key.rpartition(".")[0]
    while path:
        with suppress(AttributeError):  # there is no such module, but there may be one that it would stand in
            return isinstance(net.get_submodule(path), nn.Sequential | nn.ModuleList)
        path = path.rpartition(".")[0]
    return False


def _filter_of(net: nn.Module, positions: Mapping[str, Tensor]) -> Any:
    """timm's checkpoint filter beside the model's class: renames foreign keys, resamples position embeddings.

    positions: those that are resampled already. They go past the filter, which would take them for a square's.
    """
    filter_fn = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if filter_fn is None:
        return None
    renames_gamma = "adapt_layer_scale" in inspect.signature(filter_fn).parameters
    extra = {"adapt_layer_scale": True} if renames_gamma else {}

    def filtered(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        rest = {key: t for key, t in tensors.items() if key not in positions}
        return {**filter_fn(rest, model, **extra), **positions}

    return filtered


def _has_positions(net: nn.Module) -> bool:
    return getattr(net, "pos_embed", None) is not None and _has_grid(net)


def _has_grid(net: nn.Module) -> bool:
    return hasattr(getattr(net, "patch_embed", None), "grid_size")


def _positions(net: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """The position embeddings on the net's grid, where the file tells its own; else empty, and timm's filter takes them
    for those of the pretrained or a square grid. BackboneError where they may be of another one.
    """
    file = tensors.get("pos_embed")
    if not _has_positions(net) or file is None or file.ndim != 3:
        return {}
    rows, columns = net.patch_embed.grid_size
    prefix = net.pos_embed.shape[1] - rows * columns
    count = file.shape[1] - prefix
    if grid := _told_grid(metadata, count):
        new, old = [rows, columns], list(grid)
        return {"pos_embed": resample_abs_pos_embed(file.float(), new, old, num_prefix_tokens=prefix)}
    as_it_is = count == rows * columns and rows != columns
    pretrained = get_pretrained_grid_size(net, tensors.get("patch_embed.proj.weight"), count)
    if pretrained is None and (as_it_is or count < 1 or math.isqrt(count) ** 2 != count):
        raise BackboneError(
            "WEIGHTS",
            f"it does not say which grid its {count} position embeddings are of, for data.size a grid of "
            f"{rows} x {columns} is wanted",
            where=source,
            why="resampled from another grid they would be scrambled",
            fix="write the file again (cvpeft export RUN --format weights), or add the grid to its safetensors "
            'metadata, as "grid": "[rows, columns]"',
        )
    return {}


def _tables(net: nn.Module) -> dict[str, Tensor]:
    """Key -> table of relative positions (rows, heads), of those that have one row for each pair of shifts."""
    named = net.named_parameters() if _has_grid(net) else ()  # CoAtNet has tables and no grid of patches
    return {key: table for key, table in named if key.endswith(TABLE) and table.ndim == 2}


def _relative_positions(
    net: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str
) -> dict[str, Tensor]:
    """The same as `_positions`, of tables of relative positions. timm's filter takes them for those of a square window,
    or else of the net's own, though a window of 6 x 10 has as many shifts as one of 10 x 6.
    """
    found = {}
    for key, table in _tables(net).items():
        if (file := tensors.get(key)) is None or file.ndim != 2:
            continue
        grid, own = _written_grid(metadata), tuple(net.patch_embed.grid_size)
        window = tuple(net.get_submodule(key.removesuffix(TABLE)).window_size)
        extra = len(table) - _shifts(window)  # of class tokens
        if grid == own and file.shape == table.shape:
            found[key] = file
        elif grid and window == own and len(file) - extra == _shifts(grid):
            found[key] = resize_rel_pos_bias_table(file.float(), window, table.shape, old_window_size=grid)
        elif math.isqrt(max(len(file) - extra, 0)) ** 2 != len(file) - extra:
            told = f"are of a grid of {grid[0]} x {grid[1]}" if grid else "are of a grid that it does not say"
            raise BackboneError(
                "WEIGHTS",
                f"its tables of relative positions {told}, for data.size one of {own[0]} x {own[1]} is wanted",
                where=source,
                why="resampled from another grid they would be scrambled",
                fix="set data.size as in the run that it is of"
                if grid
                else "write the file again (cvpeft export RUN --format weights)",
            )
    return found


def _shifts(window: tuple[int, ...]) -> int:
    """How many places one token of a window can have relative to another."""
    return math.prod(2 * side - 1 for side in window)


def _written_grid(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """(rows, columns) of the entry that `grid_entry` makes; None where there is none that can be read."""
    with suppress(ValueError, TypeError, KeyError):
        rows, columns = map(int, json.loads(metadata["grid"]))
        return (rows, columns) if rows > 0 and columns > 0 else None
    return None


def _told_grid(metadata: Mapping[str, str], count: int) -> tuple[int, int] | None:
    """(rows, columns) of a file's grid of `count` tokens; None where its metadata does not tell.

    Base weights made before it was written down tell the size of the pictures they have seen: theirs is the grid
    nearest to that in shape, of those that a data.size in steps of two tokens can have.
    """
    with suppress(ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError):
        if "grid" in metadata:
            grid = _written_grid(metadata)
            return grid if grid and math.prod(grid) == count else None
        height, width = json.loads(metadata["data"])["size"]
        grids = [(rows, count // rows) for rows in range(2, count // 2 + 1, 2) if count % (2 * rows) == 0]
        return min(grids, key=lambda grid: abs(math.log(grid[0] * width / (grid[1] * height))))
    return None
