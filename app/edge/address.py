"""Where a request came from, through proxies that we trust and no others.

Proxies tell by one header: X-Forwarded-For, or Forwarded (RFC 7239), as TRUSTED_PROXY_HEADER says.
The other one is passed on by them as their client sent it, and never read.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from app.addresses import parse_address

_WITH_PORT = re.compile(r"(?P<v4>[0-9.]+):[0-9]{1,5}|\[(?P<v6>[^]]*)\](?::[0-9]{1,5})?", re.ASCII)

# An element of Forwarded: pairs, `name=token` or `name="quoted \" text"`, with `;` between them.
# Some proxies write a space around that, or forget to quote an address with a port.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # the grammar's word
_VALUE = _TOKEN.replace("[", "[][:", 1)
_PAIR = rf'({_TOKEN})=(?:({_VALUE})|"((?:[^"\\]|\\.)*)")'
_FORWARDED_PAIR = re.compile(_PAIR, re.ASCII | re.DOTALL)
_FORWARDED_ELEMENT = re.compile(
    rf"[ \t]*{_PAIR}(?:[ \t]*;[ \t]*{_PAIR})*[ \t]*", re.ASCII | re.DOTALL
)
# A node's port may be hidden as `_name`.
_NODE = re.compile(
    r"(?P<v4>[0-9.]+)(?::(?:[0-9]{1,5}|_[\w.-]+))?"
    r"|\[(?P<v6>[^]]*)\](?::(?:[0-9]{1,5}|_[\w.-]+))?",
    re.ASCII,
)
# Commas within the quoted texts of one element; more are nothing that a proxy writes.
_COMMAS_MAX = 8

Networks = Sequence[IPv4Network | IPv6Network]
# Gives the hops that a header's value names, the last one first; one that can't be read is no
# address.
Hops = Callable[[str], Iterator[str]]


def parse_networks(texts: Sequence[str]) -> Networks:
    """Read TRUSTED_PROXIES: addresses or CIDRs."""
    return [ip_network(text, strict=False) for text in texts]


def listed_hops(value: str) -> Iterator[str]:
    """Read X-Forwarded-For from its end."""
    for hop in reversed(value.split(",")):
        yield _without_port(hop.strip())


def forwarded_hops(value: str) -> Iterator[str]:
    """Read the `for` of Forwarded from its end.

    From there, since its beginning is whatever the client sent: a quotation mark that it left open
    must not swallow what a proxy wrote behind it. What ends the value within a quoted text has an
    odd number of marks, and so is no element: the shortest that is one is the last one's.
    """
    end = len(value)
    while end >= 0:
        start = end
        for _ in range(_COMMAS_MAX + 1):
            start = value.rfind(",", 0, start)
            if _FORWARDED_ELEMENT.fullmatch(value, start + 1, end):
                break
            if start < 0:
                break
        else:
            yield ""
            return
        yield _forwarded_for(value, start + 1, end)
        end = start


# How proxies may tell of those before them, by the header's name.
HOPS: dict[str, Hops] = {"x-forwarded-for": listed_hops, "forwarded": forwarded_hops}


def source_address(
    peer: str, forwarded: bytes | None, trusted: Networks, hops: Hops = listed_hops
) -> str:
    """Return the rightmost hop that is not a trusted proxy; `peer` itself unless it is one.

    A hop that is no address (malformed, obfuscated, `unknown`) ends the walk at the one before it.
    """
    hop = peer
    if not trusted or forwarded is None or not is_within(hop, trusted):
        return hop
    for claimed in hops(forwarded.decode("latin-1")):
        if parse_address(claimed) is None:
            break
        hop = claimed
        if not is_within(hop, trusted):
            break
    return hop


def _forwarded_for(value: str, start: int, end: int) -> str:
    """Return the one address of an element; empty if there is none, or more than one."""
    if not _FORWARDED_ELEMENT.fullmatch(value, start, end):
        return ""
    nodes = [
        token or re.sub(r"\\(.)", r"\1", quoted)
        for name, token, quoted in _FORWARDED_PAIR.findall(value, start, end)
        if name.lower() == "for"
    ]
    node = _NODE.fullmatch(nodes[0]) if len(nodes) == 1 else None
    return "" if node is None else node["v4"] or node["v6"]


def _without_port(hop: str) -> str:
    """Leave the port out that some proxies write: `192.0.2.1:1234`, `[2001:db8::1]:1234`."""
    placed = _WITH_PORT.fullmatch(hop)
    return hop if placed is None else placed["v4"] or placed["v6"]


def is_within(text: str, networks: Networks) -> bool:
    """Say whether a text is an address of one of these networks, v4 within v6 too."""
    parsed = parse_address(text)
    return parsed is not None and any(parsed in network for network in networks)
