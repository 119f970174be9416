"""Where a request came from: nobody can choose it but a proxy that we trust."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.edge.address import forwarded_hops, parse_networks, source_address

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


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("203.0.113.9", b"for=198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.1", "10.0.0.1"),  # the other header's way
        ("10.0.0.1", b"for=198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"For=198.51.100.1:4711;proto=http;by=10.0.0.1", "198.51.100.1"),
        ("10.0.0.1", b"proto=https; for=198.51.100.1 ; host=a", "198.51.100.1"),
        ("10.0.0.1", b"for=1.1.1.1, for=198.51.100.1", "198.51.100.1"),
        (
            "10.0.0.1",
            b'for=1.1.1.1,for="198.51.100.1:80",for=192.0.2.7, for=10.9.9.9',
            "198.51.100.1",
        ),
        ("10.0.0.1", b'for="[2001:db8::5]"', "2001:db8::5"),
        ("10.0.0.1", b"for=[2001:db8::5]:4711;by=_x", "2001:db8::5"),
        ("10.0.0.1", b'for="[2001:db8::5]:4711"', "2001:db8::5"),
        ("10.0.0.1", b'for="198.51.100.1:_hidden"', "198.51.100.1"),
        ("10.0.0.1", rb'for="198.51.\100.1"', "198.51.100.1"),
        ("fd00::1", b'for=6.6.6.6, for="[fd00::2]:80"', "6.6.6.6"),
        # What is no address ends the walk.
        ("10.0.0.1", b"for=1.1.1.1, for=unknown", "10.0.0.1"),
        ("10.0.0.1", b"for=1.1.1.1, for=_hidden", "10.0.0.1"),
        ("10.0.0.1", b"for=1.1.1.1, proto=http", "10.0.0.1"),
        ("10.0.0.1", b"for=1.1.1.1, for=2.2.2.2;for=3.3.3.3", "10.0.0.1"),
        ("10.0.0.1", b"for=1.1.1.1, for=", "10.0.0.1"),
        ("10.0.0.1", b"for=1.1.1.1,", "10.0.0.1"),
        ("10.0.0.1", b"for=1.1.1.1, for=2001:db8::5", "10.0.0.1"),  # without its brackets
        ("10.0.0.1", b"for=1.1.1.1, \xff", "10.0.0.1"),
        ("10.0.0.1", b"for=1.1.1.1, nonsense, for=10.2.2.2", "10.2.2.2"),
        # A client's open quotation mark, and commas that a proxy quotes.
        ("10.0.0.1", b'for="evil, for=198.51.100.1', "198.51.100.1"),
        ("10.0.0.1", b'for="evil, for="[2001:db8::5]:1";by="_x"', "2001:db8::5"),
        ("10.0.0.1", b'for=1.1.1.1;x=", for=198.51.100.1;host="a, for=2.2.2.2"', "198.51.100.1"),
        ("10.0.0.1", b'for=198.51.100.1;host=", for=2.2.2.2;x="', "198.51.100.1"),
        ("10.0.0.1", b'for=198.51.100.1;host=", for=2.2.2.2;x=";proto="http"', "198.51.100.1"),
        ("10.0.0.1", b"for=1.1.1.1" + b"," * 50_000, "10.0.0.1"),
    ],
)
def test_forwarded_is_believed_as_far(peer: str, forwarded: bytes | None, source: str) -> None:
    """Forwarded (RFC 7239) is believed as far as trusted proxies wrote it, and no further."""
    assert source_address(peer, forwarded, TRUSTED, forwarded_hops) == source


@given(
    st.text(st.sampled_from('for=1.;," \\_xé'), max_size=40),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=30),
)
def test_no_client_moves_what_a_proxy_wrote(sent: str, host: str) -> None:
    """Whatever a client sends in the header, or as a host that is quoted, its place is its own."""
    quoted = host.replace("\\", "\\\\").replace('"', '\\"')
    assume(quoted.count(",") < 8)
    for wrote in (
        "for=198.51.100.1",
        f'for="198.51.100.1:1";host="{quoted}"',
        f'for=198.51.100.1;host="{quoted}";proto=https',
    ):
        value = f"{sent}, {wrote}".encode("latin-1")
        assert source_address("10.0.0.1", value, TRUSTED, forwarded_hops) == "198.51.100.1"


@given(st.text(max_size=20), st.binary(max_size=60))
def test_without_trusted_proxies_nothing_is_believed(peer: str, forwarded: bytes) -> None:
    """By default the peer is the source, whatever the header says."""
    assert source_address(peer, forwarded, []) == peer
