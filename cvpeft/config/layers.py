"""Layers of one config: a file over the file that it extends, and overrides of the command line over both.

Mappings are merged key by key, everything else is replaced. A layer that sets peft.mode to full or frozen and names no
methods also clears the methods below it: comparing the modes of one config is what such a layer is for, and a mode
without adapters takes no methods. Such a layer, and one that sets methods anew, also clears the folder peft.from below
it unless it names one: the folder holds values of the methods below.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cvpeft.config.reader import Fault, Node, Origin, RefusedError, parse, read, sound, suggest

__all__ = ["merge", "method_entry", "override", "stack"]

MAX_FILES = 8
MAX_KEYS = 20  # in one dotted key; the schema needs six
PLAIN_MODES = ("full", "frozen")


def stack(path: Path, faults: list[Fault]) -> Node:
    """The tree of a file over those that it extends: one `extends:` per file, at most eight files in all."""
    tree = Node({}, Origin(str(path), 0, path.absolute().parent))
    asked, seen = None, list[str]()
    while True:
        layer = read(path, faults, asked)
        seen.append(os.path.realpath(path))
        parent = layer.child("extends")
        tree = _layered(_without(layer, "extends"), tree)
        if parent is None:
            return tree
        asked, path = parent.origin, _parent(parent, seen)


def override(tree: Node, text: str, faults: list[Fault]) -> Node:
    """The tree with one `key=value` of the command line set in it; the value is YAML.

    A list's entry is named by its index, a method also by its name: peft.methods.lora.rank=4.
    """
    origin = Origin(f"command line: {text if len(text) <= 80 else text[:77] + '...'}", 0, Path.cwd())
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys) or len(keys) > MAX_KEYS:
        faults.append(Fault(origin, "expected key=value, for example train.epochs=20"))
        return tree
    try:
        sound(text, origin)
        layer = _branch(tree, _by_index(tree, keys, origin), parse(value, origin, faults))
        changes_a_method = keys[:2] == ["peft", "methods"] and len(keys) > 2
        return merge(tree, layer) if changes_a_method else _layered(tree, layer)
    except RefusedError as error:
        faults.append(error.fault)
        return tree


def merge(below: Node, above: Node) -> Node:
    """`above` over `below`."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, above.origin if above.origin.line else below.origin)


def method_entry(entry: Node) -> tuple[str, Node] | None:
    """Name and settings of one widened entry of peft.methods, `lora: {rank: 8}`; None for anything else."""
    if isinstance(entry.value, dict) and len(entry.value) == 1:
        [(name, settings)] = entry.value.items()
        return name, Node({}, settings.origin) if settings.value is None else settings
    return None


def _parent(named: Node, seen: list[str]) -> Path:
    if not isinstance(named.value, str) or not named.value:
        raise RefusedError(named.origin, f"extends is {named.plain()!r}, expected the path of one YAML file")
    path = Path(named.origin.source).parent / os.path.expanduser(named.value)
    if os.path.realpath(path) in seen:
        raise RefusedError(named.origin, f"extends '{named.value}' leads back to a file that extends this one")
    if len(seen) == MAX_FILES:
        raise RefusedError(named.origin, f"extends goes on over more than {MAX_FILES} files")
    return path


def _layered(below: Node, above: Node) -> Node:
    peft = above.child("peft")
    mode, methods = peft and peft.child("mode"), peft and peft.child("methods")
    is_plain = mode is not None and mode.value in PLAIN_MODES
    if is_plain and not methods:
        below = _without(below, "peft", "methods")
    if (is_plain or methods) and not (peft and peft.child("from")):
        below = _without(below, "peft", "from")
    return merge(below, above)


def _without(node: Node, key: str, *rest: str) -> Node:
    """The tree without what stands under the keys; a tree that has nothing there as it is."""
    child = node.child(key)
    if child is None or not isinstance(node.value, dict):
        return node
    others = {name: value for name, value in node.value.items() if name != key}
    return Node({**others, key: _without(child, *rest)} if rest else others, node.origin)


def _branch(tree: Node | None, keys: list[str], value: Node) -> Node:
    """A tree that holds `value` under `keys`, and beside it only the other entries of lists on the way."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if tree is None or not isinstance(tree.value, list):
        return Node({key: _branch(tree and tree.child(key), rest, value)}, value.origin)
    if key not in map(str, range(len(tree.value))):
        raise RefusedError(value.origin, f"there is no entry '{key}' in a list of {len(tree.value)}, counted from 0")
    index = int(key)
    entry = tree.value[index]
    changed = merge(entry, _branch(entry, rest, value)) if rest else value
    return Node([*tree.value[:index], replace(changed, origin=value.origin), *tree.value[index + 1 :]], tree.origin)


def _by_index(tree: Node, keys: list[str], origin: Origin) -> list[str]:
    """The keys, with a method's name after peft.methods preceded by its index."""
    listed = tree.deepest("peft", "methods").value
    if keys[:2] != ["peft", "methods"] or len(keys) < 3 or keys[2].isdecimal():
        return keys
    named = [(method_entry(entry) or ("",))[0] for entry in listed] if isinstance(listed, list) else []
    if named.count(keys[2]) == 1:
        return [*keys[:2], str(named.index(keys[2])), *keys[2:]]
    if keys[2] in named:
        raise RefusedError(origin, f"'{keys[2]}' is more than once in peft.methods; put its index before it, from 0")
    raise RefusedError(origin, f"there is no '{keys[2]}' in peft.methods{suggest(keys[2], named)}")
