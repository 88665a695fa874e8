"""A client's web address, taken apart once; what is checked and what is requested are the parts found here.

Stricter than browsers are: where two readers of an address could differ (a backslash, a user name before the
host, numbers in other bases), it is refused rather than mended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from sightline.server.media.addresses import parse_address
from sightline.server.media.refusal import broken_url

LONGEST = 8192  # characters

# What no part of an address may hold: blanks, controls, what separates lines anywhere, and a second slash's twin.
_FORBIDDEN = re.compile(r"[\s\\\x00-\x20\x7f-\x9f\ud800-\udfff\ufeff\u200b-\u200f\u2028-\u202e]")
_PARTS = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?", re.IGNORECASE | re.ASCII
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@%]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class WebAddress:
    """`host` is a lower-case ASCII name or an address without brackets; `target` is path and query, in ASCII."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.target}"

    def joined(self, location: str) -> WebAddress:
        """Where a redirect from here leads.

        Raises:
            Refused: as `parse_url`; or from https down to http.
        """
        if _FORBIDDEN.search(location):
            raise broken_url("it holds characters that no address may hold")
        try:
            whole = urljoin(str(self), location)
        except ValueError as error:
            raise broken_url("it cannot be read") from error
        after = parse_url(whole)
        if self.scheme == "https" and after.scheme == "http":
            raise broken_url("it leaves https")
        return after


def parse_url(url: str) -> WebAddress:
    """Take an address apart.

    Raises:
        Refused: it is not an http(s) address of one plain spelling.
    """
    if len(url) > LONGEST:
        raise broken_url(f"it has more than {LONGEST} characters")
    if _FORBIDDEN.search(url):
        raise broken_url("it holds characters that no address may hold")
    parts = _PARTS.fullmatch(url)
    if parts is None:
        raise broken_url("it does not begin with http:// or https://")
    if "@" in parts["authority"]:
        raise broken_url("it holds a user name or password")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise broken_url("its host or port cannot be read")
    scheme = parts["scheme"].lower()
    return WebAddress(
        scheme, normal_host(authority["host"]), _port(scheme, authority["port"]), _target(parts["target"])
    )


def normal_host(text: str) -> str:
    """A host's one spelling: lower case, ASCII (IDNA 2008 after UTS 46), no dot at the end, addresses compressed.

    Raises:
        Refused: not a host name, or an address in another notation than a.b.c.d or [IPv6].
    """
    if text.startswith("["):
        address = parse_address(text[1:-1])
        if address is None or not text.endswith("]"):
            raise broken_url("its IPv6 address cannot be read")
        return str(address)
    name = _ascii(text).lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # C libraries read 127.1, 0x7f.1, 017700000001 and 2130706433 as addresses, each in its own way.
        address = parse_address(name)
        if address is None:
            raise broken_url("write an address as four decimal numbers")
        return str(address)
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise broken_url("its host is not a host name")
    return name


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError, ValueError):
        pass
    raise broken_url("its host is not a host name")


def _port(scheme: str, text: str | None) -> int:
    """Web servers use 80, 443 and the ports from 1024 on; below live mail, shells and file shares."""
    port = int(text) if text else _DEFAULT_PORTS[scheme]
    if port not in (80, 443) and not 1024 <= port <= 65535:
        raise broken_url("its port must be 80, 443 or from 1024 to 65535")
    return port


def _target(text: str) -> str:
    text = text if text.startswith("/") else f"/{text}"
    # Other scripts as their UTF-8, as browsers send them; all that is ASCII stays as the client wrote it.
    return text if text.isascii() else quote(text, safe="".join(map(chr, range(0x21, 0x7F))))
