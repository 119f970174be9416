"""The service's own keys inside what it is sent: found in the bytes, replaced by what may be shown.

A key that a workflow prints ends up in its log, and from there in every export, mail and screen.
So a body is looked through before anything of it is decoded or stored; then no copy that is made of
it later (a dead letter as it was sent, an Idempotency-Key's outcome) can hold the key either.

A key is known by its checksum (`app/keys/token.py`), whatever stands before or after it. It may be
written as JSON with `_` and `-` escaped, and inside the base64 of an Authorization header. Whoever
takes more trouble to hide a key from its own log has it in there: this is no defence against that.
"""

import asyncio
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from app.keys.token import (
    BODY_LENGTH,
    CHECKSUM_LENGTH,
    MalformedToken,
    base62,
    display,
    parse,
)

# A body is cut into windows of 31 bytes: 61 letters in a row, anywhere, fill at least one of them,
# and most windows are passed at a look at their first few bytes. 0.25 µs a log of 337 bytes, where
# a search for the 61 takes 3 µs. The windows are also filled by base64, and by `u005f` and a body.
_WINDOW = BODY_LENGTH // 2 + 1
_LETTERS = rb"[0-9A-Za-z+/]"
_PASSED = rb".{%d}(?<!%b{%d})" % (_WINDOW, _LETTERS, _WINDOW)
_SUSPECT = re.compile(rb"(?s)(?:%b%b)*+(?:%b)*+.{%d}" % (_PASSED, _PASSED, _PASSED, _WINDOW))
# The check of a short body, as it is: a function around it would cost a fifth more. It gives None
# for a body without a key; anything else says nothing, and `scan` has to look.
suspect = _SUSPECT.match
# Longer bodies are translated to letters and others, in which the search for 61 letters jumps:
# 0.17 µs a log. For short ones the two steps cost more than the one above.
_TRANSLATED_BYTES_MIN = 1024
_TABLE = bytes(1 if re.match(_LETTERS, bytes([byte])) else 0 for byte in range(256))
_RUN = b"\1" * BODY_LENGTH
# What is translated at once: a whole body would be held in memory twice.
_PIECE_BYTES = 64 * 1024

# Encoders that escape all but letters and digits make `\u005f` and `\u002d` of `_` and `-`;
# Markdown makes `\_`.
# Each `\` is looked at once: a pattern that began with all of them would take a square of time.
_BODY = re.compile(rb"(?:_|(?<=\\)u005[fF])([0-9A-Za-z]{%d})" % BODY_LENGTH)
_CHECKSUM_MAX = base62(0xFFFF_FFFF, CHECKSUM_LENGTH).encode()
# Prefix, `_` and client: what may stand before a body, read backwards from there.
_HEAD_LENGTH_MAX = 32 + 1 + 63
_HEAD = re.compile(rb"[a-z0-9_-]*+")
_ESCAPED = re.compile(rb"[fF]500u\\++|[dD]200u\\++|_\\*+|[a-z0-9-]")
_ESCAPED_LENGTH = 8
# Where the key begins is found by trying, if text runs into it: 2 µs a try, so a flood of what only
# looks like keys must not be tried for ever. Beyond this, only the longest heads are.
_TRIES_MAX = 10_000

# Of an Authorization that was logged: user, colon and key, of which a key is the most.
_CREDENTIAL = re.compile(rb"(?:[Bb]asic|[Aa]pi-?[Kk]ey) ([0-9A-Za-z+/\\]{80,2000}+)={0,2}")
_CREDENTIAL_BYTES_MAX = 2048

# Of a large body so much is looked through in one turn of the event loop: 0.5 ms, or 60 ms if it is
# made to take long.
SLICE_BYTES = 1024 * 1024


class FoundKey(NamedTuple):
    """A key of ours in a body: `start` to `end` is to be replaced by `shown`."""

    start: int
    end: int
    key_id: str
    shown: str
    # For whoever has to know if the key opens anything; it goes nowhere else.
    text: str

    def __repr__(self) -> str:
        """Tell what may be told: reprs get into logs."""
        return f"FoundKey({self.shown!r} at {self.start})"


def is_suspect(body: bytes) -> bool:
    """Say whether there may be a key in a body; True for any 61 letters of base64 in a row."""
    if len(body) < _TRANSLATED_BYTES_MIN:
        return suspect(body) is not None
    if len(body) <= _PIECE_BYTES:
        return _RUN in body.translate(_TABLE)
    reach = _PIECE_BYTES + BODY_LENGTH  # so that no run is cut by the end of a piece
    return any(
        _RUN in body[at : at + reach].translate(_TABLE) for at in range(0, len(body), _PIECE_BYTES)
    )


def find_keys(body: bytes, start: int = 0, end: int | None = None) -> list[FoundKey]:
    """Find the keys in a body whose last `_` lies from `start` to before `end`, in their order."""
    last = len(body) if end is None else end
    found = [*_plain_keys(body, start, last), *_wrapped_keys(body, start, last)]
    return sorted(found)


def conceal(body: bytes, found: Sequence[FoundKey]) -> bytes:
    """Replace each key by what may be shown of it; all else stays as it is."""
    parts: list[bytes] = []
    at = 0
    for key in found:
        parts += (body[at : key.start], key.shown.encode())
        at = key.end
    return b"".join((*parts, body[at:]))


async def scan(body: bytes) -> list[FoundKey]:
    """Find the keys in a body of any size; one large enough to hold up the loop, piece by piece."""
    found: list[FoundKey] = []
    for start in range(0, len(body), SLICE_BYTES):
        if start:
            await asyncio.sleep(0)
        end = start + SLICE_BYTES
        if is_suspect(body[start : end + _CREDENTIAL_BYTES_MAX]):
            found += find_keys(body, start, end)
    return found


def _plain_keys(body: bytes, start: int, end: int) -> Iterator[FoundKey]:
    tries_left = _TRIES_MAX
    # A match begins before `end`, and may go beyond it.
    for match in _BODY.finditer(body, start, min(len(body), end + BODY_LENGTH + 5)):
        if match.start() >= end:
            return
        digits = match[1]
        if digits[-CHECKSUM_LENGTH:] > _CHECKSUM_MAX:
            continue
        for at, head in _heads(body, match.start(), is_thorough=tries_left > 0):
            tries_left -= 1
            key = _checked(head, digits)
            if key is not None:
                yield FoundKey(at, match.end(), *key)
                break


def _heads(body: bytes, end: int, *, is_thorough: bool) -> Iterator[tuple[int, bytes]]:
    r"""Give what may be the head of a key whose `_` is at `end`, with its place, longest first.

    More than one, since the text before a key may be letters too: `\ncl_live_...`.
    """
    backwards = body[max(0, end - _HEAD_LENGTH_MAX) : end][::-1]
    length = _HEAD.match(backwards).end()  # type: ignore[union-attr]  # it matches nothing as well
    head = body[end - length : end]
    if not is_thorough:
        yield end - length, head
    elif b"\\" in backwards:
        yield from _escaped_heads(body, end)
    else:
        for at in range(length):
            yield end - length + at, head[at:]


def _escaped_heads(body: bytes, end: int) -> Iterator[tuple[int, bytes]]:
    """Do the same for a head in which `_` and `-` may be escaped."""
    reach = _HEAD_LENGTH_MAX * _ESCAPED_LENGTH
    backwards = body[max(0, end - reach) : end][::-1]
    at = len(backwards) - len(backwards.lstrip(b"\\"))  # of the last `_`
    heads = []
    head = b""
    while len(head) < _HEAD_LENGTH_MAX and (match := _ESCAPED.match(backwards, at)):
        at = match.end()
        letter = match[0]
        if len(letter) > 1:
            letter = b"-" if letter[:1] in b"dD" else b"_"
        head = letter + head
        heads.append((end - at, head))
    yield from reversed(heads)


def _checked(head: bytes, digits: bytes) -> tuple[str, str, str] | None:
    """Give the key_id, what may be shown, and the text, if head and body are a key."""
    text = f"{head.decode()}_{digits.decode()}"
    try:
        parsed = parse(text)
    except MalformedToken:
        return None
    return None if parsed is None else (parsed.key_id, display(text), text)


def _wrapped_keys(body: bytes, start: int, end: int) -> Iterator[FoundKey]:
    """Find keys in what is sent as `Authorization: Basic ...`; the whole base64 gives way."""
    for match in _CREDENTIAL.finditer(body, start, min(len(body), end + _CREDENTIAL_BYTES_MAX)):
        if match.start() >= end:
            return
        text = match[1].replace(b"\\", b"")  # `\/` is how some write a slash in JSON
        try:
            pair = b64decode(text + b"=" * (-len(text) % 4))
        except Base64Error:
            continue
        for key in _plain_keys(pair, 0, len(pair)):
            yield key._replace(start=match.start(1), end=match.end())
            break
