"""Every method at every kind of place: it works there or is refused in one sentence, and fails in no other way."""

from __future__ import annotations

import pytest
import torch

from cvpeft.errors import AdapterError
from cvpeft.peft.inject import MethodSpec, inject, methods, probe
from tests.contracts.cases import VARIANTS, base, features, images, sites


@pytest.mark.parametrize("family", ["deit", "convnext_conv"])
@pytest.mark.parametrize("name", sorted(methods()))
def test_a_place_is_taken_or_refused_in_one_sentence(name: str, family: str) -> None:
    spec, x = VARIANTS[name], images(family)
    with torch.no_grad():
        before = features(base(family), x)
    roles = dict.fromkeys(site.role for site in sites(base(family)))
    for role in roles:
        net = base(family)
        try:
            inject(net, sites(net), [MethodSpec(name, (role,), spec.settings)])
            probe(net, lambda net=net: features(net, x))
        except AdapterError:
            continue
        with torch.no_grad():
            assert features(net, x).shape == before.shape, role
