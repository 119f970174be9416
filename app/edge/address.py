"""Where a request came from, through proxies that we trust and no others."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_WITH_PORT = re.compile(r"(?P<v4>[0-9.]+):[0-9]{1,5}|\[(?P<v6>[^]]*)\](?::[0-9]{1,5})?", re.ASCII)

Networks = Sequence[IPv4Network | IPv6Network]


def parse_networks(texts: Sequence[str]) -> Networks:
    """Read TRUSTED_PROXIES: addresses or CIDRs."""
    return [ip_network(text, strict=False) for text in texts]


def source_address(peer: str, forwarded_for: bytes | None, trusted: Networks) -> str:
    """Return the rightmost hop that is not a trusted proxy; `peer` itself unless it is one."""
    hop = peer
    if not trusted or forwarded_for is None:
        return hop
    hops = forwarded_for.decode("latin-1").split(",")
    while hops and _is_within(hop, trusted):
        claimed = _without_port(hops.pop().strip())
        if not _is_address(claimed):
            break
        hop = claimed
    return hop


def limit_group(address: str) -> str:
    """Return what one party owns: a v4 address, or the /64 of a v6 one."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Network((int(parsed) >> 64 << 64, 64)))
    return address


def _without_port(hop: str) -> str:
    """Leave the port out that some proxies write: `192.0.2.1:1234`, `[2001:db8::1]:1234`."""
    placed = _WITH_PORT.fullmatch(hop)
    return hop if placed is None else placed["v4"] or placed["v6"]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_within(text: str, networks: Networks) -> bool:
    try:
        parsed = ip_address(text)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)
