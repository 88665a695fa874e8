"""Options that are more than a value: how they are written."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.cli.options import media_limits
from sightline.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("image=4,video=1", {"image": 4, "video": 1}),
        ("image = 4", {"image": 4}),
        ('{"image": 4}', {"image": 4}),
        (
            ' {"image": {"count": 4, "width": 8, "height": 9}}',
            {"image": {"count": 4, "width": 8, "height": 9}},
        ),
    ],
)
def test_limits_of_media(text: str | None, expected: dict[str, Any] | None) -> None:
    assert media_limits(text) == expected


@pytest.mark.parametrize(
    "text", ["", "4", "image", "image=", "image=a", "image=1=2", "image=1,image=2", "{image: 4}"]
)
def test_what_is_no_limit_of_media(text: str) -> None:
    with pytest.raises(UsageError, match="write image=4,video=1 or JSON"):
        media_limits(text)
