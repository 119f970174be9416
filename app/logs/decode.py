"""From the bytes of a body to records: bounded in time and memory, exact for bad ones.

A good body of moderate size is decoded in one step of C, which takes half the time. All else is
parted and decoded record by record, so that a bad one costs no other.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import msgspec
from msgspec import Raw

from app.errors import MalformedBody, TooLarge
from app.logs.record import (
    ABSENT,
    LogRecord,
    Rejection,
    malformed,
    mark_lone_surrogates,
    validate,
)

T = TypeVar("T")
Decoded = LogRecord | Rejection
_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_decode_record = msgspec.json.Decoder(LogRecord).decode
_decode_lines = msgspec.json.Decoder(LogRecord).decode_lines
_decode_array = msgspec.json.Decoder(list[LogRecord]).decode
_part_array = msgspec.json.Decoder(list[Raw]).decode

_BOM = b"\xef\xbb\xbf"
# From the first byte that JSON takes for more than a blank: a search for it never turns back.
_LINE = re.compile(rb"[^ \t\r\n].*")
_START = re.compile(rb"[ \t\r\n]*+(.?)", re.DOTALL)
_LOGS = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+"logs"[ \t\r\n]*+:[ \t\r\n]*+(?=\[)')
_ENDS = re.compile(rb"[ \t\r\n]*+")
_LOGS_END = re.compile(rb"[ \t\r\n]*+\}[ \t\r\n]*+")

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# What is nested at most two deep is passed in one step: metadata seldom goes deeper. Everything is
# possessive, so no byte is looked at more than three times.
_INNER = _STRING
for _ in range(2):
    _INNER = rb'%b|[\[{](?:[^"\[\]{}]++|%b)*+[\]}]' % (_STRING, _INNER)
_MARK = re.compile(rb'(?:[^"\[\]{}]++|%b)*+([\[\]{}])' % _INNER, re.DOTALL)
_MARK_OR_COMMA = re.compile(rb'(?:[^"\[\]{},]++|%b)*+([\[\]{},])' % _INNER, re.DOTALL)
# Bounds on `_split`, for an array that C can't part: of steps, of strings and brackets passed
# within them, and of bytes looked at where there are more of those. Each is worth 0.1 s.
_MARKS_MAX = 80_000
_PIECES_MAX = 1_750_000
_DENSE_BYTES_MAX = 2 * 1024**2
# An element costs at least one comma, and 72 bytes of memory to part in C.
_COMMAS_UNSUSPICIOUS = 500_000
_UNENDED = "Malformed JSON: the array does not end where the body does"


class _Envelope(msgspec.Struct):
    """Tells `{"logs": [...]}` from a record without building its members."""

    logs: Raw = ABSENT
    environment: Raw = ABSENT
    executed_at: Raw = ABSENT
    status: Raw = ABSENT

    def holds_logs(self) -> bool:
        """Say whether there is an array of logs, and none of a record's required members."""
        required = (self.environment, self.executed_at, self.status)
        is_array = bytes(memoryview(self.logs)[:1]) == b"["
        return is_array and all(one is ABSENT for one in required)


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """MAX_RECORD_BYTES and MAX_BATCH_RECORDS."""

    record_bytes: int = 1024**2
    batch_records: int = 10_000

    def record_too_large(self) -> str:
        """Return the text for a record over the limit."""
        return f"Body too large: a record is over {self.record_bytes} bytes"

    def batch_too_large(self) -> TooLarge:
        """Return the error for a batch over the limit."""
        return TooLarge(f"Body too large: more than {self.batch_records} records")


def decode_ndjson(body: bytes, limits: DecodeLimits) -> list[Decoded]:
    """Decode a batch of one record a line; blank lines don't count, nor do blanks before a record.

    Raises MalformedBody if there are lines and none is JSON, TooLarge if there are too many.
    """
    body = body.removeprefix(_BOM)
    records = _whole(partial(_decode_each_line, limits.batch_records), body, limits)
    if records is not None:
        return records
    lines = _part_lines(body, limits)
    decoded = _each(lines, limits)
    if lines and all(_is_malformed(one) for one in decoded):
        raise MalformedBody(f"{_detail(decoded[0])} (line 1; no line is JSON)")
    return decoded


def decode_singles(bodies: list[bytes]) -> list[LogRecord | None]:
    """Decode bodies of one plain record each in one step; None where one needs a closer look.

    Each body must begin with `{` and end with `}`. Then no record can reach over the line break
    between two bodies: behind a `}` inside a record JSON wants `,`, `]` or `}`, never `{`, and a
    string may hold no line break. So each body holds at least one; where there are as many records
    as bodies, each body is exactly one, and they belong to each other in their order.
    """
    records = _good(_decode_lines, b"\n".join(bodies))
    if records is not None and len(records) == len(bodies):
        return list[LogRecord | None](records)
    return [_good(_decode_record, body) for body in bodies]


def decode_json(body: bytes, limits: DecodeLimits) -> tuple[list[Decoded], bool]:
    """Decode one object, an array, or {"logs": [...]}; the flag tells a single object.

    Raises MalformedBody if it is not JSON, TooLarge for a single record or a batch over its limit.
    """
    body = body.removeprefix(_BOM)
    start = _START.match(body)
    if start is None or not start[1]:
        raise MalformedBody("Malformed JSON: the body is empty")
    if start[1] == b"[":
        return _decode_batch(body, limits), False
    record = _whole(_decode_record, body, limits)
    if record is not None:
        return [record], True
    try:
        envelope = _parse(_decode_envelope, body)
    except msgspec.ValidationError:
        return [Rejection(None, "must be an object")], True
    except RecursionError:
        return _each(_part_deep_logs(body, limits), limits), False
    except _FAULTS as error:
        raise MalformedBody(malformed(error)) from None
    if envelope.holds_logs():
        return _decode_batch(bytes(envelope.logs), limits), False
    if len(body) > limits.record_bytes:
        raise TooLarge(limits.record_too_large())
    return [validate(body)], True


def record_texts(body: bytes, limits: DecodeLimits, *, is_ndjson: bool) -> Sequence[bytes | Raw]:
    """Part a body that was decoded into the texts of its records.

    Only whoever has rejected some of them asks for it: of a good body nothing more is kept.
    """
    body = body.removeprefix(_BOM)
    if is_ndjson:
        return _part_lines(body, limits)
    if _START.match(body)[1] == b"[":  # type: ignore[index]  # else nothing was decoded
        return _part(body, limits)
    try:
        envelope = _parse(_decode_envelope, body)
    except RecursionError:
        return _part_deep_logs(body, limits)
    except _FAULTS:
        return [body]
    return _part(bytes(envelope.logs), limits) if envelope.holds_logs() else [body]


def _decode_batch(array: bytes, limits: DecodeLimits) -> list[Decoded]:
    records = _whole(_decode_array, array, limits)
    if records is not None:
        return _checked(list[Decoded](records), limits)
    return _each(_part(array, limits), limits)


def _part(array: bytes, limits: DecodeLimits) -> Sequence[bytes | Raw]:
    """Part an array into its elements."""
    if array.count(b",") > _COMMAS_UNSUSPICIOUS:
        return _split(array, _ENDS, limits)
    try:
        return _checked(_parse(_part_array, array), limits)
    except RecursionError:
        return _split(array, _ENDS, limits)
    except _FAULTS as error:
        raise MalformedBody(malformed(error)) from None


def _part_deep_logs(body: bytes, limits: DecodeLimits) -> list[bytes]:
    """Part `{"logs": [...]}`, some record of which is nested too deeply."""
    logs = _LOGS.match(body)
    if logs is None:
        raise MalformedBody(malformed(RecursionError()))
    return _split(body[logs.end() :], _LOGS_END, limits)


def _part_lines(body: bytes, limits: DecodeLimits) -> list[bytes]:
    found = islice(_LINE.finditer(body), limits.batch_records + 1)
    return _checked([line[0] for line in found], limits)


def _good(decode: Callable[[bytes], T], text: bytes) -> T | None:
    try:
        return decode(text)
    except _FAULTS:
        return None


def _whole(decode: Callable[[bytes], T], body: bytes, limits: DecodeLimits) -> T | None:
    """Decode a good body in which, by its size, no record is too large, nor are very many."""
    return _good(decode, body) if len(body) <= limits.record_bytes else None


def _decode_each_line(most: int, body: bytes) -> list[Decoded] | None:
    """Decode up to `most` lines that are all good: each by itself, so that each is one record."""
    lines = body.split(b"\n", most + 1)
    if not lines[-1]:
        lines.pop()
    return list(map(_decode_record, lines)) if len(lines) <= most else None


def _parse(decode: Callable[[bytes], T], text: bytes) -> T:
    """Decode what may hold half surrogate pairs; see mark_lone_surrogates."""
    try:
        return decode(text)
    except msgspec.ValidationError:
        raise
    except _FAULTS:
        marked = mark_lone_surrogates(text)
        if marked == text:
            raise
        return decode(marked)


def _split(text: bytes, ends: re.Pattern[bytes], limits: DecodeLimits) -> list[bytes]:
    """Part the array that `text` begins with, within _MARKS_MAX steps and _PIECES_MAX pieces.

    For what C would part into too many elements, or not at all since one is nested too deeply.
    Elements come as they are: whether they are JSON is for their decoder to say. `ends` is what
    may follow the array.
    """
    elements: list[bytes] = []
    pieces = text.count(b'"') // 2 + text.count(b"[") + text.count(b"{")
    # There may be too many elements all the same, which is found out early.
    reach = len(text) if pieces <= _PIECES_MAX else _DENSE_BYTES_MAX
    start = at = text.index(b"[") + 1
    depth = 1
    for _ in range(_MARKS_MAX):
        match = (_MARK_OR_COMMA if depth == 1 else _MARK).match(text, at, reach)
        if match is None and reach < len(text):
            break
        if match is None:
            raise MalformedBody(_UNENDED)
        mark, at = match[1], match.end()
        if mark in b"[{":
            depth += 1
            continue
        if depth == 1:  # a comma between two elements, or the end of the array
            elements.append(text[start : at - 1])
            start = at
            _checked(elements, limits)
        if mark in b"]}":
            depth -= 1
        if depth == 0:
            if mark == b"]" and ends.fullmatch(text, at):
                return elements
            raise MalformedBody(_UNENDED)
    raise MalformedBody(malformed(RecursionError()))


def _checked(records: list[T], limits: DecodeLimits) -> list[T]:
    if len(records) > limits.batch_records:
        raise limits.batch_too_large()
    return records


def _each(parts: Iterable[bytes | Raw], limits: DecodeLimits) -> list[Decoded]:
    """Decode record by record: one fault costs one record."""
    decoded: list[Decoded] = []
    for part in parts:
        if len(memoryview(part)) > limits.record_bytes:
            decoded.append(Rejection(None, limits.record_too_large()))
            continue
        try:
            decoded.append(_decode_record(part))
        except _FAULTS:
            decoded.append(validate(part))
    return decoded


def _is_malformed(one: Decoded) -> bool:
    return isinstance(one, Rejection) and one.field is None and one.detail.startswith("Malformed")


def _detail(one: Decoded) -> str:
    return one.detail if isinstance(one, Rejection) else ""
