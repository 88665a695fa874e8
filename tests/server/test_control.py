"""From where a server may be managed that has one port for all."""

from __future__ import annotations

import pytest
from fastapi import Request

from sightline.server.control import from_this_machine
from sightline.server.errors import RequestError


def asked_from(client: str | None, host: str = "localhost") -> Request:
    scope = {"type": "http", "headers": [(b"host", host.encode())]}
    return Request({**scope, "client": None if client is None else (client, 1)})


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine(client: str) -> None:
    from_this_machine(asked_from(client))


@pytest.mark.parametrize(
    "client", ["10.0.0.1", "192.168.1.2", "::ffff:10.0.0.1", "fe80::1", "unix", "", None]
)
def test_any_other(client: str | None) -> None:
    with pytest.raises(RequestError, match="--management-port"):
        from_this_machine(asked_from(client))


def test_a_name_that_was_pointed_at_this_machine() -> None:
    with pytest.raises(RequestError):
        from_this_machine(asked_from("127.0.0.1", "evil.example:8000"))
