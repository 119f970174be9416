"""Where a request came from, through proxies that we trust and no others."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Networks = Sequence[IPv4Network | IPv6Network]


def parse_networks(texts: Sequence[str]) -> Networks:
    """Read TRUSTED_PROXIES: addresses or CIDRs."""
    return [ip_network(text, strict=False) for text in texts]


def source_address(peer: str, forwarded_for: bytes | None, trusted: Networks) -> str:
    """Return the rightmost hop that is not a trusted proxy; `peer` itself unless it is one."""
    hop = peer
    if not trusted or forwarded_for is None:
        return hop
    hops = [part.strip() for part in forwarded_for.decode("latin-1").split(",")]
    while hops and _is_within(hop, trusted):
        claimed = hops.pop()
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
