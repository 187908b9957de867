"""Every method at every kind of place: it works there, or is refused in one sentence, and never fails in any other way."""

from __future__ import annotations

import pytest
import torch

from cvpeft.errors import AdapterError
from cvpeft.peft.inject import MethodSpec, inject, methods, probe
from tests.contracts.cases import FAMILIES, VARIANTS, base, features, images, sites


@pytest.mark.parametrize("family", ["deit", "dinov3", "convnext", "convnext_conv", "swin"])
@pytest.mark.parametrize("name", sorted(methods()))
def test_a_place_is_taken_or_refused_in_one_sentence(name: str, family: str) -> None:
    assert family in FAMILIES
    spec, x = VARIANTS[name], images(family)
    roles = dict.fromkeys(site.role for site in sites(base(family)))
    for role in roles:
        net = base(family)
        before = features(net, x)
        try:
            inject(net, sites(net), [MethodSpec(name, (role,), spec.settings)])
            probe(net, lambda net=net: features(net, x))
        except AdapterError as error:
            assert str(error).startswith("E-"), (role, error)
            continue
        with torch.no_grad():
            assert features(net, x).shape == before.shape, role
