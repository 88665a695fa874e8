"""What a server's owner is told at its start."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.server.security import warnings_about
from sightline.server.settings import ServeSettings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"management_port": 1, "management_host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "allowed_hosts": ["box.example"]}, False),
        ({"host": "0.0.0.0", "api_key": ["k"]}, False),  # a page has no key
        ({}, False),
    ],
)
def test_whom_other_sites_pages_reach_by_rebinding_is_told(settings: dict[str, Any], told: bool) -> None:
    notes = warnings_about(ServeSettings(model="m", **settings))
    assert any("DNS rebinding" in note and "--allowed-hosts" in note for note in notes) is told
