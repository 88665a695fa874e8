"""Requests as JSON and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import UsageError
from sightline.video.request import SCHEDULERS, Request

REQUEST = Request("a cat", width=832, height=480, frames=81, steps=50, guidance=5.0, shift=3.0)


@given(
    prompt=st.text(min_size=1).filter(str.strip),
    seed=st.integers(0, 2**63 - 1),
    guidance=st.floats(0, 1000),
    shift=st.floats(0, 1000, exclude_min=True),
    scheduler=st.sampled_from(SCHEDULERS),
)
def test_a_request_comes_back_from_json_as_it_was(
    prompt: str, seed: int, guidance: float, shift: float, scheduler: str
) -> None:
    request = Request(prompt, 16, 16, 5, 3, guidance, shift, seed=seed, scheduler=scheduler)
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_a_field_that_is_missing_or_unknown_is_named() -> None:
    data = REQUEST.to_json()
    with pytest.raises(UsageError, match="no field 'size'"):
        Request.from_json(data | {"size": "832*480"})
    del data["steps"]
    with pytest.raises(UsageError, match="request lacks steps"):
        Request.from_json(data)


@given(value=st.integers(1, 5000), multiple=st.sampled_from([8, 16, 32]))
def test_the_nearest_sides_are_right(value: int, multiple: int) -> None:
    request = Request("a", width=value, height=multiple, frames=1, steps=1, guidance=1.0, shift=1.0)
    if value % multiple == 0:
        request.check(multiple, 4)
        return
    with pytest.raises(UsageError) as caught:
        request.check(multiple, 4)
    said = [int(word) for word in str(caught.value).split("take ")[1].split(" or ")]
    assert all(each > 0 and each % multiple == 0 and abs(each - value) < multiple for each in said)
