"""Which network addresses are public, and which this machine's own. Knows no HTTP; looks up names, connects nowhere."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

# Beside what `ipaddress` calls global, whose opinion differs between Python versions.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(net)
    for net in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3",
        "168.63.129.16/32",  # Azure's host and metadata service, under a public address
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
_PUBLIC_V6: Final = ipaddress.ip_network("2000::/3")
# All else of IPv6, and with it every form that wraps an IPv4 address (mapped, NAT64, compatible), lies outside of this.


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet: one host, reachable by anyone, wrapping no other address.

    Private, loopback, link-local, metadata, shared (CGNAT), multicast, reserved and documentation addresses are not,
    nor are IPv6 forms that wrap an IPv4 address: mapped, compatible, 6to4, Teredo, NAT64, ISATAP.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        isatap = int(ip) >> 32 & 0xFDFFFFFF == 0x5EFE
        if ip not in _PUBLIC_V6 or ip.scope_id is not None or isatap:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _NOT_PUBLIC)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own: nobody else reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resolve(host: str, port: int) -> Sequence[str]:
    """The system's addresses for a host, in its order.

    Raises:
        OSError: There are none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_host(host: str) -> bool:
    """Whether text is a host name in ASCII or an IP address, and nothing that a resolver could read as more."""
    if ":" not in host:
        return re.fullmatch(r"[a-z0-9_.-]{1,254}", host, re.I) is not None
    try:
        return ipaddress.IPv6Address(host).scope_id is None
    except ValueError:
        return False


def is_disguised(host: str) -> bool:
    """Whether a host is an IP address in a form that resolvers accept and people don't: 2130706433, 0x7f.1, 127.1."""
    last = host.removesuffix(".").rpartition(".")[2]
    if ":" in host or not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last, re.I):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False
