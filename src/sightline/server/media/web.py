"""Fetching one medium from the web: GET, redirects by hand, every byte counted, everything with a time limit.

The answer's own statements are not believed: its length is checked and then counted, its type is read off its
first bytes, and it must come uncompressed, so that what is counted is what is kept.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable

import anyio
import httpcore2

from sightline.data.media import IMAGE_KINDS, VIDEO_KINDS, sniff
from sightline.server.media import refusal
from sightline.server.media.policy import MediaPolicy
from sightline.server.media.refusal import Refused
from sightline.server.media.resolver import CheckedBackend
from sightline.server.media.urls import WebAddress

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = [
    (b"User-Agent", b"sightline"),
    (b"Accept", b"image/*, video/*;q=0.9, */*;q=0.1"),
    (b"Accept-Encoding", b"identity"),
    # A connection that is kept may be closed by the host in the moment it is used again.
    (b"Connection", b"close"),
]
_HEAD = 64  # bytes that `sniff` looks at


class WebClient:
    """GETs media; no cookies, no credentials, no proxy of the environment, no connection kept.

    Args:
        tls: whom to believe about https hosts; by default the authorities that the system trusts.
    """

    def __init__(
        self, policy: MediaPolicy, backend: CheckedBackend, tls: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls or httpcore2.default_ssl_context(),
            max_connections=None,  # bounded by `Fetcher`, which waits for its turn before the clock starts
            max_keepalive_connections=0,
            network_backend=backend,
        )
        self._timeouts = {
            "connect": policy.connect_seconds,
            "read": policy.idle_seconds,
            "write": policy.idle_seconds,
        }

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def get(self, address: WebAddress, kind: str, take: Callable[[int], None]) -> bytes:
        """The bytes of a medium.

        Args:
            kind: "image" or "video".
            take: told of every piece's length before it is kept; raises where there is no more room.

        Raises:
            Refused: the address or what it leads to is not allowed, or the host failed.
        """
        try:
            with anyio.fail_after(self._policy.fetch_seconds):
                return await self._follow(address, kind, take)
        except (TimeoutError, httpcore2.TimeoutException) as error:
            raise refusal.too_slow(address.host) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError, ssl.SSLError) as error:
            raise refusal.failed(address.host) from error

    async def _follow(self, first: WebAddress, kind: str, take: Callable[[int], None]) -> bytes:
        address = first
        for _ in range(self._policy.max_redirects + 1):
            if not self._policy.allows_host(address.host):
                raise refusal.host_not_listed(first.host) if address is first else refusal.bad_redirect()
            try:
                found = await self._hop(address, first.host, kind, take)
            except refusal.AddressRefused:
                if address is first:
                    raise
                raise refusal.bad_redirect() from None
            if isinstance(found, bytes):
                return found
            address = found
        raise refusal.too_many_redirects(self._policy.max_redirects)

    async def _hop(
        self, address: WebAddress, host: str, kind: str, take: Callable[[int], None]
    ) -> bytes | WebAddress:
        """The medium, or where the answer says it is. `host` is the one that errors name."""
        url = httpcore2.URL(
            scheme=address.scheme.encode(),
            host=address.host.encode(),
            port=address.port,
            target=address.target.encode(),
        )
        headers = [(b"Host", address.host_header.encode()), *_HEADERS]
        async with self._pool.stream(
            "GET", url, headers=headers, extensions={"timeout": self._timeouts}
        ) as response:
            if response.status in _REDIRECTS:
                return _target_of(response, address)
            if response.status != 200:
                raise refusal.answered(host, response.status)
            return await self._body(response, host, kind, take)

    async def _body(
        self, response: httpcore2.Response, host: str, kind: str, take: Callable[[int], None]
    ) -> bytes:
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise refusal.encoded(host)
        most = self._policy.max_bytes
        length = _header(response, b"content-length")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise refusal.too_many_bytes(most)
        body, looked = io.BytesIO(), False
        async for piece in response.aiter_stream():
            if body.tell() + len(piece) > most:
                raise refusal.too_many_bytes(most)
            take(len(piece))
            body.write(piece)
            if not looked and body.tell() >= _HEAD:
                check_kind(body.getvalue(), kind)
                looked = True
        data = body.getvalue()
        if not data:
            raise refusal.empty()
        check_kind(data, kind)
        return data


def check_kind(data: bytes, kind: str) -> None:
    """Raises Refused where the first bytes are not those of a picture or of a video, as `kind` says."""
    found = sniff(data[:_HEAD])
    if kind == "image" and found not in IMAGE_KINDS:
        raise refusal.not_a_picture()
    if kind == "video" and found not in VIDEO_KINDS:
        raise refusal.not_a_video()


def _target_of(response: httpcore2.Response, address: WebAddress) -> WebAddress:
    try:
        return address.joined(_header(response, b"location"))
    except Refused as error:
        raise refusal.bad_redirect() from error


def _header(response: httpcore2.Response, name: bytes) -> str:
    """A header's value; several of one name joined, as they mean the same as one with commas."""
    return ",".join(value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name)
