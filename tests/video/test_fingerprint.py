"""Fingerprints of weights."""

from __future__ import annotations

import pytest
import torch
from tiny_wan import make_model

from sightline.errors import SightlineError
from sightline.video.fingerprint import fingerprint


def test_equal_weights_have_one_fingerprint_and_others_another() -> None:
    model = make_model()
    found = fingerprint(model)
    assert found == fingerprint(make_model())
    assert found != fingerprint(make_model(seed=1))
    assert len(found) == 64
    with torch.no_grad():
        # All values of a tensor of this size count.
        model.blocks[2].ffn.net[2].bias[7] += 1e-6
    assert fingerprint(model) != found


def test_a_change_among_many_weights_is_seen_wherever_training_changes_them_all() -> None:
    model = torch.nn.Linear(100, 100)
    found = fingerprint(model)
    with torch.no_grad():
        model.weight.mul_(1 + 1e-6)
    assert fingerprint(model) != found


def test_order_of_creation_does_not_matter_and_precision_does() -> None:
    one = torch.nn.ParameterDict({"a": torch.ones(2), "b": torch.zeros(2)})
    other = torch.nn.ParameterDict({"b": torch.zeros(2), "a": torch.ones(2)})
    assert fingerprint(one) == fingerprint(other)
    thirds = torch.nn.ParameterDict({"a": torch.ones(2) / 3})
    found = fingerprint(thirds)
    assert fingerprint(thirds.to(torch.bfloat16)) != found


def test_weights_that_are_not_loaded_are_named() -> None:
    with pytest.raises(SightlineError, match="bias has no values yet; load the model"):
        fingerprint(torch.nn.Linear(2, 2, device="meta"))
