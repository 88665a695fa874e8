"""What the routes of the management port may see and do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from fastapi import Request

from sightline.server.errors import RequestError
from sightline.server.gate import LOCAL_NAMES, Traffic, is_called
from sightline.server.health import Health
from sightline.server.service import Service
from sightline.server.settings import ServeSettings

# Headers of proxies: behind one on this machine every client would look local.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


@dataclass(frozen=True)
class Control:
    """One running server.

    Attributes:
        traffic: the requests that are open at the API's port, and those that were turned away there.
        stop: ends the server as SIGTERM does; `stop(True)` at once. Returns before it has ended.
    """

    service: Service
    settings: ServeSettings
    health: Health
    traffic: Traffic
    stop: Callable[[bool], None]


def from_no_page(http: Request) -> None:
    """A route's guard: no page but the server's own, since an image's address is enough to send a GET.

    Browsers say which site asks, but not over plain http to another machine; then whatever a browser sends is refused,
    for what calls itself one no page can change.

    Raises:
        RequestError: 403.
    """
    browser = http.headers.get("user-agent", "").startswith("Mozilla/")
    site = http.headers.get("sec-fetch-site", "unknown" if browser else "none")
    if site not in ("none", "same-origin"):
        raise RequestError(
            "pages of other sites may not manage this server, and over plain http no browser may; use curl",
            status=403,
        )


def from_this_machine(http: Request) -> None:
    """A route's guard: clients of this machine alone, called by a local name and not through a proxy.

    Raises:
        RequestError: 403.
    """
    from_no_page(http)
    client = http.client.host if http.client else ""
    proxied = any(name in http.headers for name in _FORWARDED)
    if not proxied and _is_loopback(client) and is_called(http.headers.get("host", ""), LOCAL_NAMES):
        return
    raise RequestError(
        "only clients on the server's own machine may do this; elsewhere use a management port (--management-port)",
        status=403,
    )


def _is_loopback(client: str) -> bool:
    try:
        address = ip_address(client)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
