"""A tree of values -> typed settings, or every fault at once with its place.

The schema does the checking (pydantic, strict, through JSON, where a list may be a tuple and text a path); this module
says what was found in the user's words and gives the place.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cvpeft.config.describe import bare, expected, fields, inner, keys
from cvpeft.config.layers import method_entry
from cvpeft.config.reader import Fault, Node, RefusedError, suggest
from cvpeft.config.schema import Method, Settings

__all__ = ["checked", "widened"]

ENTRY = "a method such as 'lora' or 'lora: {rank: 8}'"
SHOWN = 60  # characters of a wrong value that an error line repeats


def checked(tree: Node, signatures: Mapping[str, inspect.Signature] | None, faults: list[Fault]) -> Settings | None:
    """The settings that a tree holds, to be used if `faults` stays empty; whatever is wrong is appended there.

    signatures: keyword-only settings by method name; without them names and settings are taken as they stand.
    """
    plain, listed = tree.plain(), tree.deepest("peft").child("methods")
    methods = _methods(listed, signatures, faults) if listed else ()
    if listed:
        plain["peft"]["methods"] = [{"name": method.name} for method in methods]
    settings: Settings | None = _valid(Settings.model_validate_json, plain, tree, Settings, "", faults)
    if settings is None:
        return None
    needed = settings.peft.mode == "adapters" and not settings.peft.from_
    if needed and not methods and not faults:
        where = tree.deepest("peft", "methods").origin
        faults.append(
            Fault(where, "peft.methods is empty, and mode 'adapters' needs at least one; add for example '- lora'")
        )
    return settings.model_copy(update={"peft": settings.peft.model_copy(update={"methods": methods})})


def widened(node: Node, annotation: Any = Settings) -> Node:
    """The tree with every short form written out.

    A lone text where the schema has a list of texts, paths or methods is a list of one; `lora` is `lora: {}`.
    """
    annotation = bare(annotation)
    if isinstance(node.value, dict):
        return Node({key: widened(child, inner(annotation, key)) for key, child in node.value.items()}, node.origin)
    if isinstance(node.value, str) and get_args(annotation) in [(str, ...), (Path, ...), (Method, ...)]:
        node = Node([node], node.origin)
    if isinstance(node.value, list) and get_args(annotation) == (Method, ...):
        return Node([_as_mapping(entry) for entry in node.value], node.origin)
    return node


def _as_mapping(entry: Node) -> Node:
    return Node({entry.value: Node({}, entry.origin)}, entry.origin) if isinstance(entry.value, str) else entry


def _methods(
    listed: Node, signatures: Mapping[str, inspect.Signature] | None, faults: list[Fault]
) -> tuple[Method, ...]:
    """The entries of peft.methods that can be used."""
    if not isinstance(listed.value, list):
        faults.append(Fault(listed.origin, f"peft.methods is {_shown(listed)}, expected a list, each {ENTRY}"))
        return ()
    methods = []
    for index, entry in enumerate(listed.value):
        try:
            methods.append(_method(f"peft.methods.{index}", entry, signatures, faults))
        except RefusedError as error:
            faults.append(error.fault)
    return tuple(methods)


def _method(place: str, entry: Node, signatures: Mapping[str, inspect.Signature] | None, faults: list[Fault]) -> Method:
    named = method_entry(entry)
    if named is None:
        raise RefusedError(entry.origin, f"{place} is {_shown(entry)}, expected {ENTRY}")
    name, body = named
    place = f"{place}.{name}"
    if not isinstance(body.value, dict):
        raise RefusedError(body.origin, f"{place} is {_shown(body)}, expected a mapping of the method's settings")
    if signatures is None:
        types: dict[str, Any] = dict.fromkeys(body.value, Any)
    elif name in signatures:
        types = _types(signatures[name])
        faults += _missing(place, body, signatures[name], types)
    else:
        raise RefusedError(
            entry.origin, f"unknown method '{name}' in {place.removesuffix('.' + name)}{_hint(name, signatures)}"
        )
    types = types | {"targets": tuple[str, ...]}
    values = {key: _setting(f"{place}.{key}", key, node, types, faults) for key, node in body.value.items()}
    if signatures is not None and values.get("patterns"):
        values["patterns"] = _patterns(f"{place}.patterns", body.value["patterns"], types, faults)
    return Method(name=name, targets=values.pop("targets", None) or (), settings=values)


def _setting(place: str, key: str, node: Node, types: Mapping[str, Any], faults: list[Fault]) -> Any:
    if key not in types:
        faults.append(Fault(node.origin, f"unknown key '{place}'{_hint(key, types, place.removesuffix(key))}"))
        return None
    adapter = TypeAdapter(types[key], config=ConfigDict(strict=True, allow_inf_nan=False))
    node = widened(node, types[key])
    return _valid(adapter.validate_json, node.plain(), node, types[key], place, faults)


def _patterns(place: str, node: Node, types: Mapping[str, Any], faults: list[Fault]) -> dict[str, dict[str, Any]]:
    """What differs where a pattern matches: the method's settings again, but where it stands and what differs there."""
    known = {key: kind for key, kind in types.items() if key not in ("patterns", "targets")}
    return {
        pattern: {
            key: _setting(f"{place}.{pattern}.{key}", key, value, known, faults)
            for key, value in cast(dict[str, Node], special.value).items()
        }
        for pattern, special in cast(dict[str, Node], node.value).items()
    }


def _types(signature: inspect.Signature) -> dict[str, Any]:
    """The types of the keyword-only settings; annotations that are still text may use the names of `typing`."""
    settings = [item for item in signature.parameters.values() if item.kind is item.KEYWORD_ONLY]
    annotations = {item.name: Any if item.annotation is item.empty else item.annotation for item in settings}
    holder = SimpleNamespace(__annotations__=annotations)
    return typing.get_type_hints(holder, globalns=dict(vars(typing)), include_extras=True)


def _missing(place: str, body: Node, signature: inspect.Signature, types: Mapping[str, Any]) -> list[Fault]:
    required = [name for name in types if signature.parameters[name].default is inspect.Parameter.empty]
    return [
        Fault(body.origin, f"{place}.{name} is missing, expected {expected(types[name])}")
        for name in required
        if not body.child(name)
    ]


def _valid(
    validate: Callable[[str], Any], plain: Any, node: Node, annotation: Any, place: str, faults: list[Fault]
) -> Any:
    """The typed value; None after faults, of which every place gets one."""
    try:
        return validate(json.dumps(plain))
    except ValidationError as error:
        found = [_fault(item, node, annotation, place) for item in error.errors(include_url=False)]
        faults += dict.fromkeys(found)
        return None


def _fault(item: Any, node: Node, annotation: Any, place: str) -> Fault:
    """One pydantic error as a fault; the end of its path may be labels of a union's branches, which no user knows."""
    kind, path = item["type"], _known(item["loc"], annotation)
    if kind == "extra_forbidden":
        return _unknown(item["loc"], node, annotation)
    name = ".".join(filter(None, [place, *map(str, path)]))
    origin, wanted = node.deepest(*path).origin, expected(inner(annotation, *path))
    if kind == "missing":
        return Fault(origin, f"{name} is missing, expected {wanted}")
    if kind == "value_error":
        wanted = str(item["ctx"]["error"])
    if kind == "literal_error":
        wanted += suggest(str(item["input"]), map(str, get_args(bare(inner(annotation, *path)))))
    return Fault(origin, f"{name} is {_shown(node.deepest(*path))}, expected {wanted}")


def _known(path: tuple[str | int, ...], annotation: Any) -> tuple[str | int, ...]:
    """The part of a path that the type knows."""
    depth = 0
    while depth < len(path) and inner(annotation, *path[: depth + 1]) is not None:
        depth += 1
    return path[:depth]


def _unknown(path: tuple[str | int, ...], node: Node, annotation: Any) -> Fault:
    name, origin = ".".join(map(str, path)), node.deepest(*path).origin
    schema = [key for key, *_ in keys()]
    if name in schema:
        return Fault(origin, f"key '{name}' is written with dots; nest it below '{name.split('.')[0]}:'")
    elsewhere = [f"'{key}'" for key in schema if key.endswith(f".{path[-1]}")]
    if elsewhere:
        return Fault(origin, f"unknown key '{name}' (did you mean {' or '.join(elsewhere)}?)")
    known = fields(bare(inner(annotation, *path[:-1])))
    return Fault(origin, f"unknown key '{name}'{_hint(str(path[-1]), known, name.removesuffix(str(path[-1])))}")


def _hint(word: str, known: typing.Iterable[str], prefix: str = "") -> str:
    return suggest(word, known, prefix) or f" (there are: {', '.join(known)})"


def _shown(node: Node) -> str:
    if node.value is None:
        return "empty"
    text = repr(node.plain())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
