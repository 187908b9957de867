"""What a type of the schema means in words: for error messages and for the table of all keys."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from cvpeft.config.schema import Method, Settings

__all__ = ["bare", "expected", "fields", "inner", "keys"]

WORDS: Mapping[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    NoneType: "null",
    Method: "a method, such as lora or lora: {rank: 8}",
    Any: "any value",
}


def keys() -> list[tuple[str, str, str, str]]:
    """Every key of a config in the schema's order: dotted key, type in words, default as YAML, description.

    The default of a key without one is "required"; the keys of a section that may be null follow like all others.
    """
    return list(_keys(Settings, ""))


def expected(annotation: Any) -> str:
    """The values that a type allows, as a phrase that follows "expected"."""
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            return expected(arguments[0]) + _range(arguments[1:])
        case origin if origin is Literal:
            return "one of " + ", ".join(str(value) for value in arguments)
        case origin if origin in (Union, UnionType):
            return " or ".join(expected(part) for part in arguments)
        case origin if origin is tuple and arguments[-1] is ...:
            return f"a list, each {expected(arguments[0])}"
        case origin if origin is tuple:
            return f"a list of {len(arguments)}, each {expected(arguments[0])}"
        case origin if origin is dict or (_is_model(annotation) and annotation is not Method):
            return "a mapping of keys"
    return WORDS.get(annotation, inspect.formatannotation(annotation))


def inner(annotation: Any, *keys: str | int) -> Any:
    """The type of what stands under keys and indices of a value of this type; None where the type does not say."""
    for key in keys:
        annotation = _below(bare(annotation), key)
    return annotation


def bare(annotation: Any) -> Any:
    """A type without its ranges and without `| None`."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not NoneType]
        return bare(parts[0]) if len(parts) == 1 else annotation
    return annotation


def fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section as a config writes them; `from` has another name in Python."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _field_type(field: FieldInfo) -> Any:
    """A field's type with its ranges; pydantic keeps the two apart."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _keys(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in fields(section).items():
        annotation = bare(field.annotation)
        if _is_model(annotation):
            yield from _keys(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, expected(_field_type(field)), _default(field), field.description or ""


def _below(annotation: Any, key: str | int) -> Any:
    if _is_model(annotation):
        field = fields(annotation).get(str(key))
        return field and _field_type(field)
    if get_origin(annotation) is tuple and isinstance(key, int):
        arguments = get_args(annotation)
        return arguments[0] if arguments[-1] is ... else (*arguments, None)[min(key, len(arguments))]
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    return value if isinstance(value, str) and value else json.dumps(value)


def _range(metadata: tuple[Any, ...]) -> str:
    bounds: dict[str, Any] = {}
    for item in metadata:
        for part in item.metadata if isinstance(item, FieldInfo) else [item]:
            bounds |= {name: getattr(part, name) for name in ("gt", "ge", "lt", "le") if hasattr(part, name)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None:
        return "" if high is None else f" {'up to' if 'le' in bounds else 'below'} {high}"
    if high is None:
        return f" of at least {low}" if "ge" in bounds else f" above {low}"
    start = f" from {low}" if "ge" in bounds else f" above {low}"
    return f"{start} to {high}" if "le" in bounds else f"{start} to below {high}"


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
