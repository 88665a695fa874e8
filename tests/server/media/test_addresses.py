"""Only public unicast addresses are connected to, however they are written."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sightline.server.media.addresses import is_public, parse_address
from sightline.server.media.refusal import Refused
from sightline.server.media.urls import normal_host, parse_url

v4 = st.integers(0, 2**32 - 1).map(IPv4Address)
v6 = st.one_of(
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**125 - 1).map(lambda low: low + (1 << 125)),  # 2000::/3
    *(
        st.integers(0, 2**32 - 1).map(lambda low, top=top: top + low)
        for top in (0, 0xFFFF << 32, 0x64FF9B << 96, 0x64FF9B << 96 | 1 << 80, 0x2002 << 112, 0x2001 << 112)
    ),
).map(IPv6Address)


def globally_reachable(address: IPv4Address | IPv6Address) -> bool:
    """What the standard library says, of the address and of any IPv4 address inside it."""
    inner = [address]
    if isinstance(address, IPv6Address):
        low = IPv4Address(int(address) & 0xFFFFFFFF)
        if int(address) >> 32 in (0, 0xFFFF, 0x64FF9B << 64):
            return globally_reachable(low)
        inner += [given for given in (address.ipv4_mapped, address.sixtofour) if given is not None]
        inner += list(address.teredo or ())
    return all(
        one.is_global and not (one.is_multicast or one.is_reserved or one.is_private or one.is_loopback)
        and not (one.is_link_local or one.is_unspecified)
        for one in inner
    )  # fmt: skip


@given(v4)
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("192.0.0.9"))
def test_no_address_passes_that_is_not_global(address: IPv4Address) -> None:
    assert not is_public(address) or globally_reachable(address)


@given(v6)
def test_no_ipv6_address_passes_that_is_not_global(address: IPv6Address) -> None:
    assert not is_public(address) or globally_reachable(address)


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001:800::200e", "64:ff9b::808:808"]
)
def test_public_hosts_pass(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


def spellings(address: IPv4Address) -> list[str]:
    a, b, c, d = address.packed
    number = int(address)
    return [
        *(str(number), hex(number), f"0{number:o}", f"{a}.{b}.{c}.{d}.", f"{a}.{b}.{c << 8 | d}"),
        *(f"{a}.{b << 16 | c << 8 | d}", f"0x{a:x}.{b}.{c}.{d}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        *(
            f"{a:03}.{b:03}.{c:03}.{d:03}",
            f"{a}。{b}｡{c}．{d}",
            str(address).translate(_WIDE),
            f"{a}.{b}.{c}.0x{d:x}",
        ),
        *(f"[::ffff:{address}]", f"[::{address}]", f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]"),
    ]


_WIDE = {ord(str(digit)): chr(0xFF10 + digit) for digit in range(10)}


@given(v4)
@example(IPv4Address("127.0.0.1"))
def test_every_spelling_of_an_address_is_that_address_or_refused(address: IPv4Address) -> None:
    for text in spellings(address):
        try:
            host = normal_host(text)
        except Refused:
            continue
        found = parse_address(host)
        assert found is not None, text  # a name would be looked up, and read by the C library
        assert found == address or not is_public(found)


@given(st.text(max_size=40))
def test_a_host_has_one_plain_spelling_or_none(text: str) -> None:
    try:
        host = normal_host(text)
    except Refused:
        return
    assert host.isascii()
    assert host == host.lower()
    assert not set(host) & set(" \\/@%?#\r\n\t\0")
    again = f"[{host}]" if ":" in host else host
    assert normal_host(again) == host


@given(st.text(alphabet="htps:/\\@[]%.#?0123456789abcxé \t\r\n\0１。", max_size=60))
def test_an_address_is_read_as_the_standard_library_reads_it_or_refused(rest: str) -> None:
    from urllib.parse import urlsplit

    try:
        address = parse_url("http://" + rest)
    except Refused:
        return
    other = urlsplit("http://" + rest)
    assert address.target.isascii()
    assert not set(address.target) & set(" \r\n\t\0\\#")
    assert (
        normal_host(other.netloc.rpartition(":")[0] if other.port else other.netloc.removesuffix(":"))
        == address.host
    )
    assert parse_url(str(address)) == address
