"""The text of a key."""

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.keys.token import ALPHABET, MalformedToken, base62, display, mint, parse

PREFIXES = st.from_regex(r"[a-z0-9][a-z0-9_]{0,31}", fullmatch=True)
CLIENT_IDS = st.none() | st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)


def _signed(signed: str) -> str:
    return signed + base62(crc32(signed.encode()), 6)


@given(PREFIXES, CLIENT_IDS)
def test_a_minted_key_is_read_back(prefix: str, client_id: str | None) -> None:
    """Whatever the prefix and client, the key_id of a new key is found in its text."""
    token = mint(prefix, client_id)
    parsed = parse(token.text)
    assert parsed is not None
    assert parsed.key_id == token.key_id
    assert len(parsed.secret) == 43
    assert token.display == display(token.text)
    assert parsed.secret not in token.display


def test_the_form_is_the_documented_one() -> None:
    """A key is prefix, client and 61 base62 characters, of which the id is shown."""
    token = mint("cl_live", "acme_corp")
    head, _, body = token.text.rpartition("_")
    assert head == "cl_live_acme_corp"
    assert len(body) == 61
    assert set(body) <= set(ALPHABET)
    assert token.display == f"cl_live_acme_corp_{body[:12]}***"
    assert mint("cl_admin", None).text.startswith("cl_admin_")


def test_the_checksum_is_crc32_of_all_before_it() -> None:
    """The last six characters are the CRC32, base62, big-endian and zero-padded."""
    text = mint("cl_live", "acme_corp").text
    number = 0
    for character in text[-6:]:
        number = number * 62 + ALPHABET.index(character)
    assert number == crc32(text[:-6].encode())


@given(st.data())
def test_one_wrong_character_is_noticed(data: st.DataObject) -> None:
    """Changing any character of the body makes the key malformed."""
    text = mint("cl_test", "acme").text
    at = data.draw(st.integers(len(text) - 61, len(text) - 1))
    wrong = data.draw(st.sampled_from([c for c in ALPHABET if c != text[at]]))
    with pytest.raises(MalformedToken):
        parse(text[:at] + wrong + text[at + 1 :])


@given(st.text() | st.text(ALPHABET + "_é\ud800\0", max_size=200))
def test_no_text_surprises_the_parser(text: str) -> None:
    """Any text at all is a key, none of ours, or malformed: nothing else is raised."""
    try:
        parse(text)
        parse(f"cl_live_{text}_{'a' * 61}")
    except MalformedToken:
        pass


@given(st.text(max_size=60))
def test_what_has_no_body_of_ours_is_not_ours(text: str) -> None:
    """Keys of other forms are left to whoever knows them."""
    assert parse(text) is None
    assert parse("_" + "a" * 61) is None
    assert parse("a" * 61) is None


def test_a_body_of_non_ascii_letters_is_not_ours() -> None:
    """Letters that only Unicode calls alphanumeric are not base62."""
    assert parse("cl_live_" + "é" * 61) is None


def test_a_secret_of_more_than_256_bits_is_malformed() -> None:
    """The largest 32-byte secret is read, the next number is not, checksum or no."""
    largest = base62((1 << 256) - 1, 43)
    assert parse(_signed(f"cl_live_{'0' * 12}{largest}")) is not None
    with pytest.raises(MalformedToken):
        parse(_signed(f"cl_live_{'0' * 12}{base62(1 << 256, 43)}"))


@pytest.mark.parametrize("prefix", ["", "CL", "_x", "a-b", "a" * 33, "é", "a\n"])
def test_a_bad_prefix_is_refused(prefix: str) -> None:
    """What could not be read back as a prefix is not minted."""
    with pytest.raises(ValueError, match="not a key prefix"):
        mint(prefix, "acme")


@pytest.mark.parametrize("client_id", ["", "Acme", "-a", "a" * 64, "a b", "a\n"])
def test_a_bad_client_id_is_refused(client_id: str) -> None:
    """What is no slug is not minted."""
    with pytest.raises(ValueError, match="not a client_id"):
        mint("cl_live", client_id)
