"""From a host's name to a connection: every address it stands for is checked, and one of these is connected to.

The check sits below the HTTP client, in the only place that opens connections. So the address that was checked is
the address that is used, for the first hop and for every redirect, and no second look-up can bring another.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio
import httpcore2

from sightline.server.media.addresses import is_public, parse_address
from sightline.server.media.refusal import busy, closed_host
from sightline.server.threads import Threads

Resolver = Callable[[str, int], Awaitable[list[str]]]

# Of the addresses that a name has; the first that answers is used.
_MOST_TRIES = 4
_LOOKUPS = 32  # at once


class SystemResolver:
    """Looks names up as the system does (its hosts file, its name servers)."""

    def __init__(self) -> None:
        self._threads = Threads(_LOOKUPS, "sightline-lookup", busy)

    async def __call__(self, host: str, port: int) -> list[str]:
        """All addresses of `host` in the order of the system's preference; none where it has none.

        Raises:
            OSError: the name servers do not know it or do not answer.
        """
        found = await self._threads.run(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(address[4][0]) for address in found))


def own_addresses() -> frozenset[str]:
    """Those of this machine's interfaces: a public one of its own would lead behind its firewall."""
    import psutil

    return frozenset(
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    )


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to public addresses alone.

    Args:
        resolver: asked once for each connection; by default the system's.
        dialer: connects to the address that was checked.
        closed: further addresses, in their usual notation, that are never connected to.
    """

    def __init__(
        self,
        resolver: Resolver | None = None,
        dialer: httpcore2.AsyncNetworkBackend | None = None,
        closed: Iterable[str] = (),
    ) -> None:
        self._resolver = resolver or SystemResolver()
        self._dialer = dialer or httpcore2.AnyIOBackend()
        self._closed = frozenset(closed)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises AddressRefused where one of the host's addresses is not public; one sheep does not make a flock."""
        error: Exception = httpcore2.ConnectError()
        try:
            with anyio.fail_after(timeout):
                for address in (await self.addresses(host, port))[:_MOST_TRIES]:
                    try:
                        return await self._dialer.connect_tcp(address, port, socket_options=socket_options)
                    except (httpcore2.ConnectError, httpcore2.ConnectTimeout, OSError) as failure:
                        error = failure
        except TimeoutError:
            error = httpcore2.ConnectTimeout()
        if isinstance(error, (httpcore2.ConnectError, httpcore2.ConnectTimeout)):
            raise error
        raise httpcore2.ConnectError from error

    async def addresses(self, host: str, port: int) -> list[str]:
        """The public addresses of `host`.

        Raises:
            AddressRefused: it has none, or one that is not public.
        """
        literal = parse_address(host)
        if literal is not None:
            found: list[str] = [host]
        else:
            try:
                found = await self._resolver(host, port)
            except (OSError, UnicodeError) as error:
                raise closed_host(host) from error
        checked = []
        for text in found:
            address = parse_address(text)
            if address is None or not is_public(address) or str(address) in self._closed:
                raise closed_host(host)
            checked.append(str(address))
        if not checked:
            raise closed_host(host)
        return checked

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.UnsupportedProtocol

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
