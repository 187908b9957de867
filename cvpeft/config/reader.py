"""YAML 1.2 text -> a tree whose every node knows the line it stands on.

PyYAML reads `5e-3` as text, `off` as False and takes the last of two equal keys in silence; hence ruamel.yaml, and of
it only the node composer: no tag ever builds an object. Aliases are expanded under a cap: no small file grows large.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode

__all__ = ["Fault", "Node", "Origin", "RefusedError", "parse", "read", "sound", "suggest"]

MAX_BYTES = 256 * 1024  # reading takes ten seconds per megabyte in the worst case
MAX_NODES = 10_000
MAX_DEPTH = 40

TAG = "tag:yaml.org,2002:"
# A date, `<<` and `=` stay text as they are written.
TEXT_TAGS = {TAG + name for name in ("str", "timestamp", "merge", "value")}
VALUE_TAGS = {TAG + name for name in ("null", "bool", "int", "float")}


@dataclass(frozen=True)
class Origin:
    """Where a value stands.

    source: the file as the user named it, or "command line: key=value".
    line: from 1; 0 stands for the source as a whole.
    folder: what relative paths that stand here are relative to.
    """

    source: str
    line: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, as a clause without a full stop."""

    origin: Origin
    what: str


class RefusedError(Exception):
    """A fault behind which nothing more can be checked: of a whole file, an override, a method or a scalar."""

    def __init__(self, origin: Origin, what: str) -> None:
        self.fault = Fault(origin, what)
        super().__init__(what)


@dataclass(frozen=True)
class Node:
    """A value and its place; the origin of a mapping's value is the line of its key."""

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    origin: Origin

    def plain(self) -> Any:
        """The value alone, as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """What stands under a key or an index, if anything does."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return self.value[key]
        return None

    def deepest(self, *keys: str | int) -> Node:
        """The last node on the way along `keys` that exists."""
        node = self
        for key in keys:
            below = node.child(key)
            if below is None:
                break
            node = below
        return node


def read(path: Path, faults: list[Fault], asked: Origin | None = None) -> Node:
    """The mapping that a config file holds; faults that leave a tree standing are appended to `faults`.

    asked: where the file is named, if another file names it.
    """
    whole = Origin(str(path), 0, path.absolute().parent)
    text = _text(path, asked or whole)
    tree = parse(text, replace(whole, line=1), faults)
    if tree.value is None:
        raise RefusedError(whole, "the file holds no settings")
    if not isinstance(tree.value, dict):
        raise RefusedError(tree.origin, "expected sections such as 'data:' and 'train:' at the left margin")
    return tree


def parse(text: str, origin: Origin, faults: list[Fault]) -> Node:
    """The tree of one YAML document; its nodes count lines if `origin` does.

    Raises RefusedError for what is not YAML or too large; duplicate keys, foreign tags and the like go into `faults`.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows them: the nearest one above counts
    try:
        root = yaml.compose(text)
        if yaml.resolver.processing_version != (1, 2):  # %YAML 1.1 would bring `off` = False back
            raise RefusedError(origin, "the directive %YAML asks for another version than 1.2")
        if root is None:
            return Node(None, origin)
        _limit(root, origin)
        return _Builder(yaml, origin, faults).node(root)
    except MarkedYAMLError as error:
        raise RefusedError(_marked(origin, error.problem_mark), f"not YAML: {_sentence(error)}") from None
    except (YAMLError, ValueError, OverflowError) as error:  # bare ones: odd characters, escapes out of range
        raise RefusedError(origin, f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise RefusedError(origin, f"nested deeper than {MAX_DEPTH} levels") from None


def sound(text: str, origin: Origin) -> str:
    """Text that a file name can hold: neither NUL nor half a surrogate pair."""
    if re.search("[\0\ud800-\udfff]", text):
        raise RefusedError(origin, "text with a NUL or a lone surrogate character")
    return text


def suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """` (did you mean 'x'?)`, or nothing where no known word is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{prefix}{near[0]}'?)" if near else ""


def _limit(root: YamlNode, origin: Origin) -> None:
    """Refuses a tree that is too deep, or too large once its aliases are expanded, as one that holds itself is."""
    count, left = 0, [(root, 0)]
    while left:
        node, depth = left.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise RefusedError(_marked(origin, node.start_mark), f"nested deeper than {MAX_DEPTH} levels")
        if count + len(left) > MAX_NODES:
            raise RefusedError(origin, f"more than {MAX_NODES} keys and values once the aliases are expanded")
        if isinstance(node, MappingNode):
            left += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            left += [(item, depth + 1) for item in node.value]


class _Builder:
    """Turns composed YAML nodes into ours; a key with a fault below it is told and left out."""

    def __init__(self, yaml: YAML, origin: Origin, faults: list[Fault]) -> None:
        self.yaml, self.origin, self.faults = yaml, origin, faults

    def node(self, node: YamlNode, origin: Origin | None = None) -> Node:
        origin = origin or _marked(self.origin, node.start_mark)
        if isinstance(node, MappingNode) and node.tag == TAG + "map":
            return Node(self.mapping(node), origin)
        if isinstance(node, SequenceNode) and node.tag == TAG + "seq":
            return Node([self.node(item) for item in node.value], origin)
        return Node(self.scalar(node, origin), origin)

    def mapping(self, node: MappingNode) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key, value in node.value:
            origin = _marked(self.origin, key.start_mark)
            try:
                name = _key(key, origin)
                if name in children:
                    raise RefusedError(origin, f"key '{name}' stands twice, first in {children[name].origin}")
                children[name] = self.node(value, origin)
            except RefusedError as error:
                self.faults.append(error.fault)
        return children

    def scalar(self, node: YamlNode, origin: Origin) -> str | int | float | bool | None:
        if not isinstance(node, ScalarNode) or node.tag not in TEXT_TAGS | VALUE_TAGS:
            raise RefusedError(origin, f"tag '{_short_tag(node)}' is refused; a config holds plain values only")
        if node.tag in TEXT_TAGS:
            return sound(node.value, origin)
        try:
            value = self.yaml.constructor.construct_object(node)
        except (ValueError, KeyError, IndexError):
            raise RefusedError(origin, f"'{node.value[:40]}' is no {node.tag.removeprefix(TAG)}") from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise RefusedError(origin, f"{node.value[:40]} does not fit into 64 bits")
        return value


def _key(node: YamlNode, origin: Origin) -> str:
    """A key as it is written, also if it looks like a number."""
    if node.tag == TAG + "merge":
        raise RefusedError(origin, "merge keys '<<' are not part of YAML 1.2; repeat the keys or use 'extends'")
    if not isinstance(node, ScalarNode) or node.tag not in TEXT_TAGS | VALUE_TAGS:
        raise RefusedError(origin, "a key is not plain text")
    return sound(node.value, origin)


def _text(path: Path, asked: Origin) -> str:
    try:
        if path.is_file():
            return _decoded(path, _bytes(path))
        what = f"'{path}' is no file" if path.exists() else f"the file '{path}' does not exist{_similar(path)}"
    except OSError as error:
        what = f"the file '{path}' cannot be read: {error.strerror}"
    raise RefusedError(asked, what)


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise RefusedError(Origin(str(path), 0, path.parent), f"larger than {MAX_BYTES // 1024} KiB, so no config")
    return data


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RefusedError(Origin(str(path), line, path.parent), "not UTF-8 text; save the file as UTF-8") from None


def _similar(path: Path) -> str:
    """The YAML file of that folder whose name is nearest, else the first few that are there."""
    try:
        names = sorted(name for name in os.listdir(path.parent) if name.endswith((".yaml", ".yml")))
    except OSError:
        return ""
    there = f" (there are: {', '.join(names[:5])})" if names else ""
    return suggest(path.name, names) or suggest(path.stem, [Path(name).stem for name in names]) or there


def _marked(origin: Origin, mark: Any) -> Origin:
    return replace(origin, line=mark.line + 1) if origin.line and mark else origin


def _sentence(error: MarkedYAMLError) -> str:
    parts = [part.replace("\n", " ") for part in (error.context, error.problem) if part]
    return ": ".join(parts)


def _short_tag(node: YamlNode) -> str:
    return str(node.tag).replace(TAG, "!!")[:60]
