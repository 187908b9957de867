"""What an adapted model owns: naming it, saving it, loading it, switching it off.

Keys are canonical: the path in the plain model, then the method's name, then the tensor's own name. The file formats
are safetensors with a sha256 of the content in its metadata, since the format alone does not notice a flipped bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cvpeft.errors import AdapterError, CheckpointError
from cvpeft.files import write_whole
from cvpeft.peft.adapter import Adapter, Dense, Place, tensors, walk

__all__ = [
    "disabled",
    "fingerprint",
    "load_owned",
    "lr_factors",
    "owned",
    "read_owned",
    "remembered",
    "save_owned",
    "undecayed",
]


def owned(model: nn.Module) -> dict[str, Tensor]:
    """Canonical key -> every tensor that training may change, shared ones once under their first key.

    That is what Adapters own, and outside of Adapters (mode full) the parameters that want a gradient with the buffers
    beside them.
    """
    places = list(walk(model))
    seen = {id(tensor) for place in places if place.in_base for _, tensor in tensors(place.module)}
    result: dict[str, Tensor] = {}
    for place in places:
        for name, tensor in _owned_at(place):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            key = f"{place.prefix}.{name}" if place.prefix else name
            if key in result:
                raise AdapterError("KEY", f"two tensors have the key {key}")
            result[key] = tensor
    return result


def _owned_at(place: Place) -> list[tuple[str, Tensor]]:
    own = list(tensors(place.module))
    if place.owner is not None:
        return own
    trains = not place.in_base and any(tensor.requires_grad for _, tensor in own)
    return [(n, t) for n, t in own if trains and (t.requires_grad or not isinstance(t, nn.Parameter))]


def remembered(model: nn.Module) -> dict[str, Tensor]:
    """Canonical key -> what methods remember while they train and no adapter holds: their buffers not persistent."""
    return {
        f"{place.prefix}.{name}": buffer
        for place in walk(model)
        if isinstance(place.module, Adapter)
        for name, buffer in place.module.named_buffers(recurse=False)
        if name in place.module._non_persistent_buffers_set
    }


def undecayed(model: nn.Module) -> set[str]:
    """Canonical keys of the owned tensors that weight decay leaves alone: those that their Adapters name, and in mode
    full those that the backbone does (timm's `no_weight_decay`: tokens, tables of positions).
    """
    named = {
        f"{place.prefix}.{name}" if place.prefix else name
        for place in walk(model)
        for name in _named_undecayed(place.module)
    }
    return owned(model).keys() & named


def _named_undecayed(module: nn.Module) -> Collection[str]:
    if isinstance(module, Adapter):
        return module.undecayed
    names: Callable[[], Collection[str]] | None = getattr(module, "no_weight_decay", None)
    return names() if names else ()


def lr_factors(model: nn.Module) -> dict[str, float]:
    """Canonical key -> factor of the learning rate, for the owned tensors whose Adapters want another one."""
    return {
        f"{place.prefix}.{name}": factor
        for place in walk(model)
        if isinstance(place.module, Adapter)
        for name, factor in place.module.lr_factors.items()
    }


def fingerprint(model: nn.Module) -> str:
    """sha256 of the frozen base's tensors. Those that a plain Dense replaces are left out: nothing depends on them."""
    mine = {id(tensor) for tensor in owned(model).values()}
    for place in walk(model):
        if type(place.module) is Dense:
            mine |= {id(tensor) for tensor in place.module.base.state_dict(keep_vars=True).values()}
    base = {
        f"{place.prefix}.{name}": tensor
        for place in walk(model)
        for name, tensor in tensors(place.module)
        if id(tensor) not in mine
    }
    return _digest(base)


def _digest(content: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    digest = hashlib.sha256(repr(sorted((metadata or {}).items())).encode())
    for name, tensor in sorted(content.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_owned(file: Path, model: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write the owned tensors; the file is the old one or the new one at any moment, never half of it.

    ResourceError: the file cannot be written.
    """
    content = {key: tensor.detach().cpu().contiguous() for key, tensor in owned(model).items()}
    notes = dict(metadata or {})
    write_whole(file, save(content, {**notes, "sha256": _digest(content, notes)}), "the adapter")


def load_owned(file: Path, model: nn.Module) -> dict[str, str]:
    """Copy the file's tensors into the model and return the file's metadata.

    CheckpointError: a damaged file, or keys, shapes or types that are not exactly the model's; nothing is copied then.
    """
    content, metadata = _read(file)
    target = _checked(file, content, model)
    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(content[key])
    return metadata


def read_owned(file: Path, model: nn.Module) -> dict[str, Tensor]:
    """The file's tensors, which `load_owned` would copy into the model; the model is left as it is.

    CheckpointError: as there.
    """
    content, _ = _read(file)
    _checked(file, content, model)
    return content


def _checked(file: Path, content: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The model's owned tensors; CheckpointError where they are not exactly those of the file."""
    target = owned(model)
    missing = [f"missing {key}" for key in sorted(target.keys() - content.keys())]
    foreign = [f"not in the model {key}" for key in sorted(content.keys() - target.keys())]
    _refuse(file, missing + foreign)
    _refuse(file, [
        f"{key} is {_form(content[key])}, the model has {_form(tensor)}"
        for key, tensor in target.items()
        if _form(content[key]) != _form(tensor)
    ])  # fmt: skip
    return target


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _refuse(file: Path, faults: list[str]) -> None:
    if faults:
        rest = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            "KEYS", "; ".join(faults[:5]) + rest, where=str(file), why="the file was made for another model or method"
        )


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise CheckpointError("FILE", "it is a folder, a pipe or a device, not a file", where=str(file))
    try:
        with safe_open(file, framework="pt") as source:
            metadata = dict(source.metadata() or {})
            content = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError("FILE", f"cannot be read as safetensors: {error}", where=str(file)) from error
    if metadata.pop("sha256", None) != _digest(content, metadata):
        raise CheckpointError("FILE", "the content does not fit its checksum", where=str(file), why="it was damaged")
    return content, metadata


@contextmanager
def disabled(model: nn.Module, only: Callable[[Adapter], bool] | None = None) -> Iterator[None]:
    """Within the block every Adapter (or those that `only` accepts) is out of the tree and its base stands there."""
    held = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Adapter) and (only is None or only(child))
    ]
    try:
        for parent, name, adapter in reversed(held):  # innermost first, so that a stack comes down to its base
            setattr(parent, name, adapter.base)
        yield
    finally:
        for parent, name, adapter in held:
            setattr(parent, name, adapter)
