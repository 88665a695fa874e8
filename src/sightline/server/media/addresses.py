"""Which IP addresses a server may be sent to by its clients: public hosts and nothing else.

A list of what is allowed in IPv6 (global unicast) and of what is not in IPv4, after the special-purpose registries
of IANA (RFC 6890 and its successors), with `ipaddress`'s own opinion as a second guard, whose edition depends
on the Python that runs.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_CLOSED_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; on Linux 0.0.0.0 is the machine itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind carriers' translators; also a cloud's metadata (100.100.100.200)
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public number that a cloud answers inside every machine of its own
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_OPEN_6 = IPv6Network("2000::/3")
_CLOSED_6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4, which carries an IPv4 address that nobody needs any more
        "3ffe::/16",
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in strict notation (dotted decimal, RFC 4291); None for a name or anything looser.

    An IPv4 address mapped into IPv6 comes out as the IPv4 address that is connected to.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address in _MAPPED and not address.scope_id:
        return _low_32_bits(address)
    return address


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether `address` is a unicast address of the public internet."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _CLOSED_4)
    if address.scope_id:
        return False
    if address in _MAPPED or address in _NAT64:
        # In a network without IPv4, its resolver gives every IPv4 host in the NAT64 prefix.
        return is_public(_low_32_bits(address))
    return address in _OPEN_6 and address.is_global and not any(address in network for network in _CLOSED_6)


def _low_32_bits(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)
