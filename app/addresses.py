"""Addresses, and whose they are: one party's, one network's. Pure."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address, a v4 one that is written as v6 as what it is; None for anything else."""
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def party_of(address: str) -> str:
    """Return what one party owns: a v4 address, or the /64 of a v6 one; no address is its own."""
    parsed = parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed) >> 64 << 64, 64)))
    return address if parsed is None else str(parsed)


def network_of(address: str) -> str | None:
    """Name the network in which an address may move and still be usual: /24, of v6 /48."""
    parsed = parse_address(address)
    if parsed is None:
        return None
    return str(ip_network(f"{parsed}/{48 if isinstance(parsed, IPv6Address) else 24}", False))
