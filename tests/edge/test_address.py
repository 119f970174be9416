"""Where a request came from: nobody can choose it but a proxy that we trust."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.edge.address import limit_group, parse_networks, source_address

TRUSTED = parse_networks(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", b"198.51.100.1", "203.0.113.9"),  # no proxy of ours: its claim is air
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"1.1.1.1, 198.51.100.1", "198.51.100.1"),  # the rightmost, not the first
        ("10.0.0.1", b"1.1.1.1,198.51.100.1, 192.0.2.7 ,10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", b"10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", b"198.51.100.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("::ffff:10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("fd00::1", b"2001:db8::5", "2001:db8::5"),
        ("", b"198.51.100.1", ""),
        ("10.0.0.1", b"6.6.6.6:1000", "6.6.6.6"),
        ("10.0.0.1", b"6.6.6.6:1000, 10.0.0.2:99", "6.6.6.6"),
        ("10.0.0.1", b"[2001:db9::1]:5", "2001:db9::1"),
        ("10.0.0.1", b"[2001:db9::1]", "2001:db9::1"),
        ("fd00::1", b"6.6.6.6, [fd00::2]:80", "6.6.6.6"),
        ("10.0.0.1", b"6.6.6.6:", "10.0.0.1"),
        ("10.0.0.1", b"6.6.6.6:http", "10.0.0.1"),
        ("10.0.0.1", b"[6.6.6.6:1", "10.0.0.1"),
        ("10.0.0.1", b"[]:1", "10.0.0.1"),
        ("10.0.0.1", b"2001:db8::1:1000", "2001:db8::1:1000"),  # all of it is an address
    ],
)
def test_the_rightmost_untrusted_hop_counts(
    peer: str, forwarded: bytes | None, source: str
) -> None:
    """X-Forwarded-For is believed as far as trusted proxies wrote it, and no further."""
    assert source_address(peer, forwarded, TRUSTED) == source


@given(st.text(max_size=20), st.binary(max_size=60))
def test_without_trusted_proxies_nothing_is_believed(peer: str, forwarded: bytes) -> None:
    """By default the peer is the source, whatever the header says."""
    assert source_address(peer, forwarded, []) == peer


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_one_party_is_one_group(address: str, group: str) -> None:
    """A v6 party owns a /64, a v4 one its address, also when it is written as v6."""
    assert limit_group(address) == group
