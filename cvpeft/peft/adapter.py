"""An Adapter takes the place of one module, keeps it as `.base`, and computes something of the same signature.

Who owns a tensor follows from the tree alone: it belongs to its nearest Adapter ancestor, unless it lies inside that
Adapter's `.base`. Training, saving, disabling and merging all read the tree through `walk` and know no method by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.types import Site

__all__ = [
    "Adapter", "BypassError", "Dense", "Foreign", "Place", "adapters", "by_class", "canonical", "check_compound",
    "check_scale", "in_own_type", "output_width", "plain", "tensors", "train_owned", "walk", "weighted_sum",
]  # fmt: skip

TRANSPARENT = {"base", "module", "_orig_mod"}  # steps that Adapter, DistributedDataParallel and torch.compile put in


class BypassError(AttributeError):
    """The model read an attribute of a replaced module instead of calling it."""


@dataclass(frozen=True)
class Foreign:
    """One Adapter as HF peft knows it.

    kind: its `peft_type`. tensors: by their names below the module. settings: of the config, alike at every site.
    rank, alpha: may differ from site to site; None where the kind has none. alpha_name: what the config calls alpha.
    shared: tensors of all sites, by their whole names. lists: of the config, which every site may add its path to.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    alpha: float | None = None
    alpha_name: str = "alpha"
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    lists: Sequence[str] = ()


class Adapter(nn.Module):
    """Base class of all methods. A method's settings are the keyword-only arguments of its constructor.

    targets: roles of the sites that it takes by default; at least one must exist in the model.
    accepts: types of module that it can stand in for.
    choosers: settings that do nothing but choose the default places, and so mean nothing beside targets.
    additive: whether the sum of its tensors changes the sum of what they change.
    identity_at_init: whether a fresh Adapter computes exactly what its base computes.
    method: name in configs and keys; the name of the file, unless the class sets its own.
    undecayed: own tensors, dotted below the Adapter, that weight decay must leave alone: zero is not neutral for them.
    lr_factors: name of an own tensor, dotted below the Adapter -> what its learning rate is multiplied by.

    `.base` is never written. No attribute of it is exposed: a model that reads `.weight` would go past the method.
    """

    targets: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)
    choosers: ClassVar[tuple[str, ...]] = ()
    additive: ClassVar[bool] = False
    identity_at_init: ClassVar[bool] = True
    method: ClassVar[str] = ""
    undecayed: tuple[str, ...] = ()
    lr_factors: Mapping[str, float] = {}

    base: nn.Module
    site: Site

    def __init_subclass__(cls) -> None:
        if "method" not in vars(cls):
            cls.method = cls.__module__.rpartition(".")[2]

    def __init__(self, base: nn.Module, site: Site) -> None:
        super().__init__()
        self.base = base
        self.site = site

    @classmethod
    def roles(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Default roles under these settings, for methods with a setting that chooses the place."""
        return cls.targets

    @classmethod
    def choose(cls, places: Sequence[tuple[nn.Module, Site]], settings: Mapping[str, Any]) -> list[Site]:
        """The sites that it takes where the config names no targets: those of its roles.

        places: every (plain module, site) of the model, in its order. Override it where a role is not enough.
        """
        roles = cls.roles(settings)
        return [site for _, site in places if site.role in roles]

    @classmethod
    def build(cls, places: Sequence[tuple[nn.Module, Site]], **settings: Any) -> list[Adapter]:
        """One Adapter for each (base, site), in their order; override it to let them share a module."""
        return [cls(base, site, **settings) for base, site in places]

    def merged(self) -> nn.Module | None:
        """A new plain module with the change folded in; None where that is impossible. `.base` is plain when asked."""
        return None

    def to_hf(self) -> Foreign | None:
        """The same in the form that HF peft stores; None where it has no such method.

        Where the numbers are the same ones, in another shape perhaps, the tensors are views: writing into them is what
        makes a start from such a folder.
        """
        return None

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        """Settings that take over what HF peft stored at one place; None where that is another method.

        stored: its settings are the whole adapter_config.json.
        """
        return None

    def settled_hf(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors that HF peft stored at this place, in the one form that `to_hf` gives where it knows several."""
        return tensors

    @classmethod
    def hf_numbers(cls, forms: Mapping[str, Foreign]) -> dict[str, Any]:
        """Rank and alpha of all places as adapter_config.json has them: the first's, and as patterns those that differ.

        forms: path -> what `to_hf` gave, at least one. AdapterError: HF peft cannot say it.
        """
        first = next(iter(forms.values()))
        numbers: dict[str, Any] = {}
        if first.rank is not None:
            ranks = {path: form.rank for path, form in forms.items() if form.rank != first.rank}
            numbers |= {"r": first.rank, "rank_pattern": ranks}
        if first.alpha is not None:
            alphas = {path: form.alpha for path, form in forms.items() if form.alpha != first.alpha}
            numbers |= {first.alpha_name: first.alpha, "alpha_pattern": alphas}
        return numbers

    def mixed(self, states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """Own tensors that change what several trained states of this Adapter change, weighted and summed.

        states: own tensors by their names below the Adapter. AdapterError: it is not `additive` and knows no other way.
        """
        if not self.additive:
            what = f"{self.method} at {self.site.path} cannot be mixed by what it changes"
            why = "summed tensors would give another change than the sum"
            raise AdapterError("MIX", what, why=why, fix="mix linearly (how='linear')")
        return weighted_sum(states, weights)

    @classmethod
    def penalty(cls, adapters: Sequence[Self]) -> Tensor | None:
        """A term of the loss, for all Adapters of this class in a model; None where the method has none."""
        return None

    @classmethod
    def after_step(cls, adapters: Sequence[Self], step: int, total: int) -> None:
        """Called with all Adapters of this class after each optimizer step, while its gradients are there.

        step: from 0, of `total`. What it has to remember goes into buffers that are not persistent: they are saved in
        the state of training, and not in the adapter.
        """

    def train(self, mode: bool = True) -> Self:
        train_owned(self, mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            site = vars(self).get("site")
            where = f"{self.method} at {site.path}" if site else self.method
            raise BypassError(f"{where} has no '{name}': the model reads it and does not call the module") from None


class Dense(Adapter):
    """Trains a copy of a leaf module, so that the original stays as it was.

    only: parameters to train; the others stay shared with the base. Empty: all. Buffers (BatchNorm's statistics) are
    always copied, since they change in training.
    """

    method = "dense"
    additive = True

    def __init__(self, base: nn.Module, site: Site, *, only: tuple[str, ...] = ()) -> None:
        super().__init__(base, site)
        if isinstance(base, Adapter):
            what, why = f"{self.method} at {site.path} stands upon {base.method}", "it copies the module itself"
            raise AdapterError("DENSE", what, why=why, fix=f"list {self.method} first")
        original = dict(base.named_parameters(recurse=False))
        if unknown := set(only) - set(original):
            raise AdapterError("DENSE", f"{site.path} has no parameter {', '.join(sorted(unknown))}")
        self.trained = copy.deepcopy(base)
        for name, parameter in original.items():
            if only and name not in only:
                self.trained.register_parameter(name, parameter)
            else:
                self.trained.get_parameter(name).requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.trained(*args, **kwargs)

    def merged(self) -> nn.Module:
        return copy.deepcopy(self.trained)


class Place(NamedTuple):
    """A module of an adapted model.

    path: canonical path; that of an Adapter is its site's.
    owner: the Adapter that owns the module's tensors; None for the model's own.
    in_base: the module stands inside an Adapter's `.base`, and no nearer Adapter owns it.
    """

    path: str
    module: nn.Module
    owner: Adapter | None
    in_base: bool

    @property
    def prefix(self) -> str:
        """Canonical prefix of the keys of the module's own tensors."""
        return _join(self.path, self.module.method) if isinstance(self.module, Adapter) else self.path


def walk(model: nn.Module) -> Iterator[Place]:
    """Every module of the model, parents first; a module that is reached twice is given twice."""
    yield from _walk(Place("", model, None, False))


def _walk(place: Place) -> Iterator[Place]:
    path, module, owner, in_base = place
    if isinstance(module, Adapter):
        place = Place(path, module, module, False)
    yield place
    for name, child in module._modules.items():  # named_children would give a child that has two names once
        if child is None:
            continue
        if not isinstance(module, Adapter):
            yield from _walk(Place(canonical(_join(path, name)), child, owner, in_base))
        elif name == "base":
            yield from _walk(Place(path, child, None, True))
        else:
            yield from _walk(Place(_join(place.prefix, name), child, module, False))


def _join(*parts: str) -> str:
    return ".".join(filter(None, parts))


def canonical(path: str) -> str:
    """The dotted path as it is in the plain model, without the steps that wrappers put in."""
    return ".".join(step for step in path.split(".") if step not in TRANSPARENT)


def plain(module: nn.Module) -> nn.Module:
    """The innermost module under a stack of Adapters."""
    while isinstance(module, Adapter):
        module = module.base
    return module


def adapters(model: nn.Module) -> dict[str, list[Adapter]]:
    """Canonical path -> the Adapters that stand there, innermost first."""
    found: dict[str, list[Adapter]] = {}
    for place in walk(model):
        if isinstance(place.module, Adapter):
            found.setdefault(place.path, []).insert(0, place.module)
    return found


def by_class(model: nn.Module) -> dict[type[Adapter], list[Adapter]]:
    """The Adapters of a model in its order, those of one class together."""
    found: dict[type[Adapter], list[Adapter]] = {}
    for module in model.modules():
        if isinstance(module, Adapter):
            found.setdefault(type(module), []).append(module)
    return found


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters and persistent buffers, those of its children left out."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def check_compound(method: str, site: Site) -> None:
    """AdapterError where a site is no attention, mlp or block, for methods that stand around a whole one."""
    if site.role not in {"attn", "mlp", "block"}:
        found = f"{method} cannot take {site.path}, whose role is {site.role}"
        raise AdapterError("TARGET", found, fix="choose among attn, mlp, block")


def check_scale(method: str, scale: float) -> None:
    """AdapterError where what a method adds is multiplied by nothing."""
    if not scale > 0:
        raise AdapterError(method.upper(), f"scale {scale:g}", why="nothing would be trained", fix="set scale above 0")


def weighted_sum(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Name -> sum of weight times tensor over the states; tensors of whole numbers are those of the first."""
    return {
        key: sum((w * state[key] for w, state in zip(weights, states, strict=True)), torch.zeros_like(first))
        if first.is_floating_point()
        else first
        for key, first in states[0].items()
    }


def in_own_type(module: nn.Module, x: Tensor) -> Tensor:
    """module(x) computed in the type of the module's parameters, given back in that of x."""
    y: Tensor = module(x.to(next(module.parameters()).dtype))
    return y.to(x.dtype)


def output_width(module: nn.Module) -> int:
    """Channels that come out of attention, an mlp or a block: those of its last linear map.

    AdapterError: it has none.
    """
    maps = [p.module for p in walk(module) if p.owner is None and isinstance(p.module, nn.Linear | nn.Conv2d)]
    if not maps:
        raise AdapterError("TARGET", f"a {type(module).__name__} has no linear map and so no width of its own")
    return maps[-1].weight.shape[0]


def train_owned(model: nn.Module, mode: bool = True) -> nn.Module:
    """Like nn.Module.train, but only what Adapters own leaves eval mode: a frozen BatchNorm must not drift."""
    for place in walk(model):
        place.module.training = mode and place.owner is not None
    return model
