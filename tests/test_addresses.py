"""Tests of app.addresses."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.addresses import network_of, party_of


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
def test_one_party_has_one_name(address: str, group: str) -> None:
    """A v6 party owns a /64, a v4 one its address, also when it is written as v6."""
    assert party_of(address) == group


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_an_address_is_within_its_network(address: object) -> None:
    """The network of an address is a /24 or /48 that it is in."""
    text = str(address)
    network = network_of(text)
    assert network is not None
    plain = getattr(ip_address(text), "ipv4_mapped", None) or ip_address(text)
    assert plain in ip_network(network)
    assert ip_network(network).prefixlen == (24 if plain.version == 4 else 48)


def test_what_is_no_address() -> None:
    """What is no address has no network, and is its own party."""
    assert (network_of("unix"), network_of(""), party_of("unix")) == (None, None, "unix")
