"""The service's own keys inside what it is sent."""

import asyncio
import json
import re
from base64 import b64encode
from string import ascii_lowercase, digits
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.keys.token import ALPHABET, BODY_LENGTH, Token, mint
from app.protect.self_scan import (
    SLICE_BYTES,
    FoundKey,
    conceal,
    find_keys,
    is_suspect,
    scan,
    suspect,
)
from loadtests.records import encode, simple_record

SLUG = st.text(ascii_lowercase + digits + "_-", max_size=30).map(lambda end: "c" + end)
PREFIXES = st.sampled_from(["cl_live", "cl_test", "pk", "a" * 32, "my_own_prefix_1"])
KEYS = st.builds(mint, PREFIXES, SLUG) | st.builds(mint, st.just("cl_admin"), st.none())
TEXTS = st.text(max_size=80)
LEAVES = TEXTS | st.integers() | st.booleans() | st.none()
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
# What may stand right before and after a key, letters of its own alphabet as well.
AROUND = st.text(ALPHABET + "_-=:/ \n\t\"\\'é😀", max_size=40)


def found_in(body: bytes) -> list[FoundKey]:
    """Look through a body as ingestion does."""
    if not is_suspect(body):
        return []
    return asyncio.run(scan(body))


def places(value: Any, mark: str) -> Any:
    """Give a value with a text at each of its places: as a name, as a value, and around it."""
    if isinstance(value, dict):
        return {f"{name}{mark}": places(one, mark) for name, one in value.items()} | {mark: 1}
    if isinstance(value, list):
        return [mark, *(places(one, mark) for one in value)]
    return f"{value}{mark}" if isinstance(value, str) else value


@given(JSON, KEYS, AROUND, AROUND, st.booleans())
def test_a_key_anywhere_is_replaced_and_nothing_else(
    value: Any, key: Token, before: str, after: str, ascii_only: bool
) -> None:
    """Wherever in a JSON text a key stands, its public form takes its place, and nothing else."""
    document = {"first": places(value, f"{before}{key.text}{after}"), "last": key.text}
    shown = {"first": places(value, f"{before}{key.display}{after}"), "last": key.display}
    body = json.dumps(document, ensure_ascii=ascii_only).encode()
    found = found_in(body)
    concealed = conceal(body, found)
    assert concealed == json.dumps(shown, ensure_ascii=ascii_only).encode()
    assert {one.key_id for one in found} == {key.key_id}
    assert {one.text for one in found} == {key.text}
    assert key.text not in repr(found)


@given(KEYS, st.sampled_from(["\\u005f", "\\u005F", "\\\\u005f", "\\\\_", "\\_"]))
def test_a_key_with_escapes_is_found(key: Token, escape: str) -> None:
    """A key whose underscores are escaped, once or twice, is found as well."""
    body = b'{"a":"\\nkey: %b."}' % key.text.replace("_", escape).encode()
    assert conceal(body, found_in(body)) == b'{"a":"\\nkey: %b."}' % key.display.encode()


@given(KEYS, st.text(ascii_lowercase, max_size=20), st.sampled_from(["Basic", "ApiKey", "basic"]))
def test_a_key_in_a_credential_is_found(key: Token, user: str, scheme: str) -> None:
    """A key inside the base64 of a logged Authorization header is found, and the base64 goes."""
    credential = b64encode(f"{user}:{key.text}".encode()).decode()
    for written in (credential, credential.replace("/", "\\/")):
        body = f'{{"message":"Authorization: {scheme} {written}","b":1}}'.encode()
        concealed = conceal(body, found_in(body))
        wanted = f'{{"message":"Authorization: {scheme} {key.display}","b":1}}'
        assert concealed == wanted.encode()


@given(KEYS, st.integers(1, BODY_LENGTH), st.sampled_from(ALPHABET))
def test_a_lookalike_is_left_alone(key: Token, place: int, letter: str) -> None:
    """A text with a wrong letter in it is no key, and stays as it is."""
    text = key.text[:-place] + letter + key.text[len(key.text) - place + 1 :]
    body = json.dumps({"message": f"({text})"}).encode()
    assert bool(found_in(body)) is (text == key.text)


@given(st.integers(0, 70), st.binary(max_size=8))
def test_every_run_of_letters_is_suspect(offset: int, end: bytes) -> None:
    """No place in a short body hides 61 letters from the quick look, nor in a long one."""
    key = mint("pk", "c").text.encode()
    for size in (offset, 1024 + offset, 64 * 1024 - offset):
        body = b" " * size + key + end
        assert is_suspect(body)
        assert suspect(body) is not None
        assert not is_suspect(b" " * size + key[-30:] + b" " + end)


def test_plain_logs_are_not_suspect() -> None:
    """The quick look passes logs as workflows send them, one by one and in a batch."""
    logs = [encode(simple_record(number)) for number in range(500)]
    assert not any(suspect(log) for log in logs)
    assert not is_suspect(b"\n".join(logs))


@pytest.mark.parametrize("offset", [-200, -70, -61, -1, 0, 1, 2])
def test_a_key_across_two_slices_is_found_once(offset: int) -> None:
    """In a large body a key is found once, also where two parts of the search meet."""
    key = mint("cl_live", "acme")
    for text in (key.text, "Basic " + b64encode(f"u:{key.text}".encode()).decode()):
        body = bytearray(b" " * (2 * SLICE_BYTES + 100))
        at = SLICE_BYTES + offset
        body[at : at + len(text)] = text.encode()
        [found] = found_in(bytes(body))
        assert found.text == key.text
        assert re.fullmatch(
            rb" *(Basic )?%b *" % re.escape(found.shown.encode()), conceal(bytes(body), [found])
        )


@pytest.mark.parametrize(
    "part",
    [
        *(b"_a", b"\\", b"\\u005f", b"_" + b"0" * 61, b"a_" * 40 + b"_" + b"0" * 61),
        *(b"\\u005f" * 90 + b"_" + b"0" * 61, b"Basic ", b"Basic " + b"QUFB" * 400),
        b"a" * 60 + b".",
    ],
    ids=repr,
)
def test_what_is_made_to_take_long_does_not(part: bytes) -> None:
    """Bodies of what almost is a key are looked through in a time that grows with their size."""
    body = b"0" * BODY_LENGTH + part * (4 * SLICE_BYTES // len(part))

    async def look() -> list[FoundKey]:
        async with asyncio.timeout(20):  # 0.3 s on a slow machine; a square of it takes minutes
            return await scan(body)

    assert asyncio.run(look()) == []


def test_in_a_flood_of_lookalikes_plain_keys_are_still_found() -> None:
    """A body full of what looks like keys hides none that stands by itself."""
    key = mint("cl_live", "acme")
    flood = (b"a" * 90 + b"_" + b"0" * 61 + b" ") * 2000
    body = flood + b"'" + key.text.encode() + b"'"
    [found] = find_keys(body)
    assert found.text == key.text
