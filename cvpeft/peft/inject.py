"""Methods and sites -> the same model with Adapters in place; all checks come before the first change.

Methods are applied in the order of the list, the first one innermost: list those that change weights (lora) before
those that stand around a module. Weight changes that are added come before those that multiply.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from cvpeft.errors import AdapterError
from cvpeft.peft import methods as folder
from cvpeft.peft.adapter import Adapter, BypassError, Dense, adapters, plain, train_owned, walk
from cvpeft.types import Site

__all__ = [
    "MethodSpec",
    "adapter_class",
    "freeze",
    "inject",
    "make_dense",
    "methods",
    "probe",
    "signatures",
    "stop_gradients",
]


@dataclass(frozen=True)
class MethodSpec:
    """One method to attach.

    targets: patterns of module paths or roles; empty: the method's own roles.
    settings: the method's keyword arguments; `patterns` among them maps a pattern to settings that differ there.
    """

    name: str
    targets: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


Expand = Callable[..., list[MethodSpec]]
Method = type[Adapter] | Expand


@functools.cache
def methods() -> dict[str, Method]:
    """Name of each file in methods/ -> its Adapter class, or its function `expand`."""
    return {
        name: _method_of(importlib.import_module(f"{folder.__name__}.{name}"))
        for _, name, _ in pkgutil.iter_modules(folder.__path__)
    }


def _method_of(module: Any) -> Method:
    if hasattr(module, "expand"):
        return module.expand
    own = [c for c in map(adapter_class, vars(module).values()) if c and c.__module__ == module.__name__]
    (method,) = [c for c in own if not c.__name__.startswith("_")]
    return method


def adapter_class(method: Any) -> type[Adapter] | None:
    """The class of a method that is one; None for a list of others."""
    return method if isinstance(method, type) and issubclass(method, Adapter) else None


def signatures() -> dict[str, inspect.Signature]:
    """Name of each method -> its keyword-only settings, annotations resolved."""
    return {name: _signature(method) for name, method in methods().items()}


def _signature(method: Method) -> inspect.Signature:
    parameters = inspect.signature(method, eval_str=True).parameters.values()
    settings = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if adapter_class(method):
        patterns = dict[str, dict[str, Any]]
        settings.append(inspect.Parameter("patterns", inspect.Parameter.KEYWORD_ONLY, default={}, annotation=patterns))
    return inspect.Signature(settings)


def inject(
    model: nn.Module,
    sites: Sequence[Site],
    specs: Sequence[MethodSpec],
    *,
    registry: Mapping[str, Method] | None = None,
) -> list[Site]:
    """Attach the methods to the model in place; returns the sites taken, those of one method after the other.

    sites: the places there are, paths relative to `model`.
    AdapterError: the model is left as it was.
    """
    registry = methods() if registry is None else registry
    _check_unique(sites)
    standing: dict[str, nn.Module] = {}  # path -> what will stand there
    taken: list[Site] = []
    for method, spec in _expanded(specs, registry):
        chosen = _chosen(model, method, spec, sites)
        for settings, group in _by_settings(method, spec, chosen):
            bases = [standing.get(site.path) or _standing(model, site.path) for site in group]
            _check_bases(method, spec, bases, group)
            built = method.build(list(zip(bases, group, strict=True)), **settings)
            standing.update((site.path, adapter) for site, adapter in zip(group, built, strict=True))
        taken += chosen
    _check_shared(model, standing)
    for path, adapter in standing.items():
        parent, name = _parent(model, path)
        setattr(parent, name, adapter)
    return taken


def _expanded(specs: Iterable[MethodSpec], registry: Mapping[str, Method]) -> list[tuple[type[Adapter], MethodSpec]]:
    """The Adapter classes in order; a method that is a list of others is replaced by them."""
    flat: list[tuple[type[Adapter], MethodSpec]] = []
    for spec in specs:
        if spec.name not in registry:
            raise AdapterError("METHOD", f"no method '{spec.name}'{_near(spec.name, registry)}", fix=_list(registry))
        method = registry[spec.name]
        _check_settings(method, spec.name, spec.settings)
        if adapter := adapter_class(method):
            _check_choosers(adapter, spec)
            flat.append((adapter, spec))
        elif spec.targets:
            what = f"{spec.name} takes no targets: it is a list of methods, each of which has its own places"
            raise AdapterError("TARGET", what, fix="leave targets out, or list these methods themselves")
        else:
            flat += _expanded(cast(Expand, method)(**spec.settings), registry)
    return flat


def _check_settings(method: Method, name: str, settings: Iterable[str], *, within_patterns: bool = False) -> None:
    known = [key for key in _signature(method).parameters if not (within_patterns and key == "patterns")]
    for key in settings:
        if key not in known:
            raise AdapterError("SETTING", f"{name} has no setting '{key}'{_near(key, known)}", fix=_list(known))


def _check_choosers(method: type[Adapter], spec: MethodSpec) -> None:
    special = (spec.settings.get("patterns") or {}).values()
    for key in method.choosers:
        if (spec.targets and key in spec.settings) or any(key in settings for settings in special):
            place = "targets" if spec.targets and key in spec.settings else "patterns"
            what = f"{spec.name} has {place} and '{key}'"
            why = f"places are chosen by {key} only where none are named"
            raise AdapterError("SETTING", what, why=why, fix=f"leave out {place}, or {key}")


# Targets


def _chosen(model: nn.Module, method: type[Adapter], spec: MethodSpec, sites: Sequence[Site]) -> list[Site]:
    """The sites that the method takes, in model order."""
    if not spec.targets:
        places = [(plain(_standing(model, site.path)), site) for site in sites]
        if chosen := method.choose(places, spec.settings):
            return chosen
        roles = ", ".join(method.roles(spec.settings)) or ", ".join(kind.__name__ for kind in method.accepts)
        found = f"{spec.name} stands at {roles}; this model has none of them"
        raise AdapterError("TARGET", found, fix=f"write targets; {_candidates(sites)}")
    for pattern in spec.targets:
        _check_matched(spec.name, pattern, sites)
    return [site for site in sites if any(_matches(pattern, site) for pattern in spec.targets)]


def _matches(pattern: str, site: Site) -> bool:
    """Whole path segments from the right, `*` within a segment; or the name of the role."""
    wanted, path = pattern.split("."), site.path.split(".")
    tail = path[-len(wanted) :]
    return pattern == site.role or (len(tail) == len(wanted) and all(map(fnmatchcase, tail, wanted)))


def _check_matched(name: str, pattern: str, sites: Sequence[Site]) -> None:
    if not any(_matches(pattern, site) for site in sites):
        starred = {".".join("*" if step.isdigit() else step for step in site.path.split(".")) for site in sites}
        near = _near(pattern, {site.role for site in sites} | starred)
        raise AdapterError("TARGET", f"{name}: the pattern '{pattern}' matches no module{near}", fix=_candidates(sites))


def _candidates(sites: Sequence[Site]) -> str:
    return _list(dict.fromkeys(site.role for site in sites))


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _list(known: Iterable[str]) -> str:
    return f"choose among {', '.join(known)}"


def _by_settings(
    method: type[Adapter], spec: MethodSpec, sites: Sequence[Site]
) -> list[tuple[dict[str, Any], list[Site]]]:
    """The sites, put together where `patterns` gives them the same settings; a later pattern wins."""
    common = {key: value for key, value in spec.settings.items() if key != "patterns"}
    patterns: Mapping[str, Mapping[str, Any]] = spec.settings.get("patterns") or {}
    for pattern, special in patterns.items():
        _check_matched(spec.name, pattern, sites)
        _check_settings(method, spec.name, special, within_patterns=True)
    groups: list[tuple[dict[str, Any], list[Site]]] = []
    for site in sites:
        settings = dict(common)
        for pattern, special in patterns.items():
            settings |= special if _matches(pattern, site) else {}
        group = next((group for known, group in groups if known == settings), None)
        if group is None:
            groups.append((settings, group := []))
        group.append(site)
    return groups


# Modules


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The plain module that holds the place, and its name there."""
    *steps, name = path.split(".")
    for step in steps:
        model = plain(model).get_submodule(step)
    return plain(model), name


def _standing(model: nn.Module, path: str) -> nn.Module:
    parent, name = _parent(model, path)
    return parent.get_submodule(name)


def _check_unique(sites: Sequence[Site]) -> None:
    if len({site.path for site in sites}) != len(sites):
        raise AdapterError("SITE", "the list of sites names one module twice")


def _check_bases(method: type[Adapter], spec: MethodSpec, bases: Sequence[nn.Module], sites: Sequence[Site]) -> None:
    for base, site in zip(bases, sites, strict=True):
        kind = plain(base)
        if not isinstance(kind, method.accepts):
            types = ", ".join(accepted.__name__ for accepted in method.accepts)
            found = f"{spec.name} cannot take {site.path}, a {type(kind).__name__}; it takes {types}"
            raise AdapterError("TARGET", found, fix="write targets that match such modules only")
        if any(adapter.method == method.method for adapter in _stack(base)):
            raise AdapterError("TWICE", f"{spec.name} is attached twice at {site.path}", fix="give it other targets")


def _stack(module: nn.Module) -> list[Adapter]:
    return [module, *_stack(module.base)] if isinstance(module, Adapter) else []


def _check_shared(model: nn.Module, standing: Mapping[str, nn.Module]) -> None:
    """A module that is used at two places would be adapted at one of them only."""
    paths: dict[int, list[str]] = {}
    for place in walk(model):
        paths.setdefault(id(place.module), []).append(place.path)
    for path, adapter in standing.items():
        if len(reached := paths[id(plain(adapter))]) > 1:
            raise AdapterError("SHARED", f"{path} is one module at {len(reached)} places: {', '.join(reached)}")


# After injection


_BYPASS = "a method there would train nothing"
_ELSEWHERE = "choose other targets, such as attn.proj, mlp.fc1, mlp.fc2"


def probe(model: nn.Module, call: Callable[[], Any]) -> None:
    """Run `call` once and demand that it reaches every Adapter; the model is left as it was.

    Some models read a weight and never call its module (timm's BEiT, EVA-02 and SwinV2 at `attn.qkv`): a method there
    would train nothing.
    """
    attached = [adapter for stack in adapters(model).values() for adapter in stack]
    modes = {module: module.training for module in model.modules()}
    called: set[nn.Module] = set()
    hooks = [adapter.register_forward_pre_hook(lambda module, _: called.add(module)) for adapter in attached]
    try:
        model.eval()
        with torch.no_grad():
            call()
    except BypassError as error:
        raise AdapterError("BYPASS", str(error), why=_BYPASS, fix=_ELSEWHERE) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if missed := [adapter for adapter in attached if adapter not in called]:
        first = ", ".join(f"{adapter.method} at {adapter.site.path}" for adapter in missed[:5])
        raise AdapterError("BYPASS", f"{len(missed)} Adapters are never called: {first}", why=_BYPASS, fix=_ELSEWHERE)


def freeze(model: nn.Module) -> None:
    """No gradient and eval mode for everything that no Adapter owns, now and after every later `.train()`.

    The lock lies on this module and holds when a parent's `.train()` reaches it; a deep copy carries a lock of its own.
    """
    stop_gradients(model)
    model.train = functools.partial(train_owned, model)  # type: ignore[method-assign]
    model.train(model.training)


def stop_gradients(model: nn.Module) -> None:
    """No gradient for everything that no Adapter owns; modes stay as they are."""
    for place in walk(model):
        if place.owner is None:
            for parameter in place.module.parameters(recurse=False):
                parameter.requires_grad_(False)


def make_dense(root: nn.Module, chosen: Callable[[str, nn.Module], bool] | None = None) -> None:
    """Put a Dense in the place of every leaf below `root` that holds parameters or BatchNorm statistics.

    chosen: which of them, by canonical path and module; empty: all. A leaf that an Adapter has taken is left to it.
    """
    leaves = [place for place in walk(root) if not isinstance(place.module, Adapter) and _holds(place.module)]
    if chosen is not None:
        leaves = [place for place in leaves if chosen(place.path, place.module)]
    for place in leaves:
        if place.module is root or next(place.module.children(), None):
            found = f"{place.path or type(root).__name__} holds parameters and is not a leaf below the root"
            raise AdapterError("DENSE", found)
    standing = {p.path: Dense(p.module, Site(p.path, "dense", "NCHW")) for p in leaves if not p.owner and not p.in_base}
    _check_shared(root, standing)
    for path, dense in standing.items():
        dense.base.requires_grad_(False)
        parent, name = _parent(root, path)
        setattr(parent, name, dense)


def _holds(module: nn.Module) -> bool:
    has_parameters = next(module.parameters(recurse=False), None) is not None
    return has_parameters or getattr(module, "running_mean", None) is not None
