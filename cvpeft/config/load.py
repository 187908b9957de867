"""A YAML file and overrides -> Settings, or one ConfigError that names every fault and its line; and back.

Paths in a file are relative to that file, paths in overrides to the working folder. data.train, data.val and data.test
are relative to data.root, whoever names them, so that one override of data.root moves a whole data set.
"""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from cvpeft.config.check import checked, widened
from cvpeft.config.layers import override, stack
from cvpeft.config.reader import Fault, Node, RefusedError
from cvpeft.config.schema import Method, Settings
from cvpeft.errors import ConfigError

__all__ = ["dump", "load"]


def load(
    path: Path, overrides: Sequence[str] = (), *, methods: Mapping[str, inspect.Signature] | None = None
) -> Settings:
    """The settings of one run, every path in them absolute.

    overrides: `key=value` with dotted keys and YAML values, set from left to right: `train.lr.adapter=5e-3`,
        `data.size=[416,640]`, `peft.methods.lora.rank=4`. Setting peft.mode to full or frozen also clears peft.methods.
    methods: the signature of each method's keyword-only settings, by which names and settings of methods are checked.

    A file may name one other by `extends: other.yaml`, that one the next, up to eight in all; mappings are merged key
    by key, lists are replaced. Raises ConfigError with all faults of all layers, each as `file:line: fault`.
    """
    path, faults = Path(path), list[Fault]()
    try:
        tree = widened(stack(path, faults))
        for text in overrides:
            tree = widened(override(tree, text, faults))
        settings = checked(tree, methods, faults)
        if settings and not faults:
            return _settled(settings, tree, path)
    except RefusedError as error:
        faults.append(error.fault)
    raise _refusal(path, faults)


def dump(settings: Settings) -> str:
    """YAML text that load() reads back to equal settings wherever it is stored, for its paths are absolute."""
    plain = settings.model_dump(mode="json", by_alias=True)
    plain["peft"]["methods"] = [_entry(method) for method in settings.peft.methods]
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # their hint knows the default, None, only
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(plain, text)
    return text.getvalue()


class _Representer(SafeRepresenter):
    """Quotes what is more than a plain word: bare, `? x` and a NEL within a text are read back as something else."""


def _quoted(representer: _Representer, text: str) -> ScalarNode:
    is_plain = re.fullmatch(r"[\w./-]+", text, re.ASCII)
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Representer.add_representer(str, _quoted)


def _settled(settings: Settings, tree: Node, path: Path) -> Settings:
    """The same settings with absolute paths, and with what follows from the file's name and place filled in."""

    def absolute(file: Path, *keys: str | int) -> Path:
        return _absolute(tree.deepest(*keys).origin.folder, file)

    run, data, weights = settings.run, settings.data, settings.backbone.weights
    root = absolute(data.root, "data", "root") if data.root else Path(os.path.abspath(path)).parent
    changes: dict[str, dict[str, Any]] = {
        "run": {
            "name": run.name or _run_name(path),
            "dir": absolute(run.dir, "run", "dir") if run.dir else Path.cwd() / "runs",
            "needs": tuple(absolute(file, "run", "needs", index) for index, file in enumerate(run.needs)),
        },
        "data": {
            "root": root,
            "train": tuple(_absolute(root, file) for file in data.train),
            "val": tuple(_absolute(root, file) for file in data.val),
            "test": tuple(_absolute(root, file) for file in data.test),
        },
        "backbone": {"weights": absolute(weights, "backbone", "weights") if isinstance(weights, Path) else weights},
    }
    if settings.peft.from_:
        changes["peft"] = {"from_": absolute(settings.peft.from_, "peft", "from")}
    sections = {name: getattr(settings, name).model_copy(update=update) for name, update in changes.items()}
    return settings.model_copy(update=sections)


def _absolute(folder: Path, file: Path) -> Path:
    """Joined and without `..`, but links are kept: the user's own names appear in messages and in the resolved file."""
    return Path(os.path.abspath(folder / os.path.expanduser(file)))


def _run_name(path: Path) -> str:
    """The file's name without its ending; what a run's name may not hold becomes `_`."""
    return re.sub(r"[^\w.-]", "_", path.stem).lstrip(".-") or "run"


def _entry(method: Method) -> str | dict[str, Any]:
    plain = method.model_dump(mode="json")
    body = ({"targets": plain["targets"]} if method.targets else {}) | plain["settings"]
    return {method.name: body} if body else method.name


def _refusal(path: Path, faults: Sequence[Fault]) -> ConfigError:
    if len(faults) == 1:
        return ConfigError("CONFIG", faults[0].what, where=str(faults[0].origin))
    sources = list(dict.fromkeys(fault.origin.source for fault in faults))
    ordered = sorted(faults, key=lambda fault: (sources.index(fault.origin.source), fault.origin.line))
    lines = [f"{fault.origin}: {fault.what}" for fault in ordered]
    return ConfigError("CONFIG", ".\n".join([f"{len(faults)} faults", *lines]), where=str(path))
