"""From the bytes of a body to records: fast for good bodies, exact for bad ones.

A good body is decoded in one step of C. Only if that fails is it taken apart record by record, so
that a bad record never costs its neighbours.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
_decode_raw_array = msgspec.json.Decoder(list[Raw]).decode

_BOM = b"\xef\xbb\xbf"
_LINE = re.compile(rb"[^\n]*[^\s][^\n]*")
_SPACE = re.compile(r"[ \t\r\n]*")
_SPACES = re.compile(rb"[ \t\r\n]*")
_CLOSED = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*")
_LOGS = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"logs"[ \t\r\n]*:[ \t\r\n]*(?=\[)')
# Up to the next mark of structure, past strings.
_MARK = re.compile(rb'(?:[^"\[\]{},]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+([\[\]{},])', re.DOTALL)
# An element costs at least one comma. Below this many, taking an array apart costs < 100 MB.
_COMMAS_UNSUSPICIOUS = 1_000_000


class _Envelope(msgspec.Struct):
    """Tells `{"logs": [...]}` from a record without building its members."""

    logs: Raw = ABSENT
    environment: Raw = ABSENT
    executed_at: Raw = ABSENT
    status: Raw = ABSENT

    def holds_logs(self) -> bool:
        """Say whether there is an array of logs, and none of a record's required members."""
        required = (self.environment, self.executed_at, self.status)
        return bytes(memoryview(self.logs)[:1]) == b"[" and not any(len(bytes(r)) for r in required)


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
    """Decode a batch of one record a line; blank lines don't count.

    Raises MalformedBody if there are lines and none is JSON, TooLarge if there are too many.
    """
    body = body.removeprefix(_BOM)
    if body.count(b"\n") >= limits.batch_records:
        _count_lines(body, limits)
    if len(body) <= limits.record_bytes or max(map(len, body.split(b"\n"))) <= limits.record_bytes:
        try:
            records = _decode_lines(body)
        except _FAULTS:
            pass
        else:
            # It would take two records on a line, or one on two lines, too.
            if len(records) == _count_ends(body) or len(records) == len(_lines(body)):
                return _checked(list[Decoded](records), limits)
    lines = _lines(body)
    decoded = _each(lines, limits)
    if lines and all(_is_malformed(one) for one in decoded):
        raise MalformedBody(f"{_detail(decoded[0])} (line 1; no line is JSON)")
    return decoded


def decode_singles(bodies: list[bytes]) -> list[LogRecord | None]:
    """Decode bodies of one plain record each in one step; None where one needs a closer look.

    Each body must begin with `{` and end with `}`. Then no record can reach over the line break
    between two bodies (behind a `}` inside a record JSON wants `,`, `]` or `}`, never `{`), so each
    body holds at least one; where there are as many records as bodies, each body is exactly one,
    and they belong to each other in their order.
    """
    try:
        records = _decode_lines(b"\n".join(bodies))
        if len(records) == len(bodies):
            return list[LogRecord | None](records)
    except _FAULTS:
        pass
    return [_decode_single(body) for body in bodies]


def _decode_single(body: bytes) -> LogRecord | None:
    try:
        return _decode_record(body)
    except _FAULTS:
        return None


def decode_json(body: bytes, limits: DecodeLimits) -> tuple[list[Decoded], bool]:
    """Decode one object, an array, or {"logs": [...]}; the flag tells a single object.

    Raises MalformedBody if it is not JSON, TooLarge for a single record or a batch over its limit.
    """
    body = body.removeprefix(_BOM)
    start = body[:64].lstrip()[:1] or body.lstrip()[:1]
    if not start:
        raise MalformedBody("Malformed JSON: the body is empty")
    if start == b"[":
        return _decode_batch(body, limits), False
    if len(body) <= limits.record_bytes:
        try:
            return [_decode_record(body)], True
        except _FAULTS:
            pass
    try:
        envelope = _parse(_decode_envelope, body)
    except msgspec.ValidationError:
        return [Rejection(None, "must be an object")], True
    except RecursionError:
        return _decode_deep_logs(body, limits), False
    except _FAULTS as error:
        raise MalformedBody(malformed(error)) from None
    if envelope.holds_logs():
        return _decode_batch(bytes(envelope.logs), limits), False
    if len(body) > limits.record_bytes:
        raise TooLarge(limits.record_too_large())
    return [validate(body)], True


def _decode_batch(array: bytes, limits: DecodeLimits) -> list[Decoded]:
    if array.count(b",") >= _COMMAS_UNSUSPICIOUS:
        _count_elements(array, limits)
    if len(array) <= limits.record_bytes:
        try:
            return _checked(list[Decoded](_decode_array(array)), limits)
        except _FAULTS:
            pass
    try:
        elements = _checked(_parse(_decode_raw_array, array), limits)
    except RecursionError:
        return _decode_deep(array, _SPACES, limits)
    except _FAULTS as error:
        raise MalformedBody(malformed(error)) from None
    if max((len(memoryview(one)) for one in elements), default=0) <= limits.record_bytes:
        try:
            return list(_decode_array(array))
        except _FAULTS:
            pass
    return _each(elements, limits)


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


def _decode_deep_logs(body: bytes, limits: DecodeLimits) -> list[Decoded]:
    """Decode `{"logs": [...]}`, some record of which is nested too deeply."""
    logs = _LOGS.match(body)
    if logs is None:
        raise MalformedBody(malformed(RecursionError()))
    return _decode_deep(body[logs.end() :], _CLOSED, limits)


def _decode_deep(text: bytes, end: re.Pattern[bytes], limits: DecodeLimits) -> list[Decoded]:
    """Decode the array that `text` begins with, some record of which is nested too deeply.

    Only here are the marks of structure counted in Python: the record must not cost the others.
    `end` is what may follow the array.
    """
    if sum(text.count(mark) for mark in (b"[", b"{", b",")) > _COMMAS_UNSUSPICIOUS:
        raise MalformedBody(malformed(RecursionError()))
    elements: list[bytes] = []
    depth = at = start = 0
    while (match := _MARK.match(text, at)) is not None:
        mark, at = match[1], match.end()
        if mark in b"[{":
            depth += 1
            start = at if depth == 1 else start
        elif depth == 1:  # a comma between two elements, or the end of the array
            elements.append(text[start : at - 1])
            start = at
        if mark in b"]}":
            depth -= 1
        if depth == 0:
            break
    if depth or not end.fullmatch(text, at):
        raise MalformedBody("Malformed JSON: the array does not end where the body does")
    return _each(_checked(elements, limits), limits)


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


def _lines(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n") if line and not line.isspace()]


def _count_ends(body: bytes) -> int:
    return body.count(b"\n") + (not body.endswith(b"\n"))


def _count_lines(body: bytes, limits: DecodeLimits) -> None:
    """Refuse too many records before they take memory."""
    for count, _ in enumerate(_LINE.finditer(body), 1):
        if count > limits.batch_records:
            raise limits.batch_too_large()


def _count_elements(array: bytes, limits: DecodeLimits) -> None:
    """Walk a suspicious array one element at a time and refuse too many before they take memory."""
    try:
        text = array.decode()
        scan = json.JSONDecoder().raw_decode
        at = text.index("[") + 1
        for count in range(1, limits.batch_records + 2):
            at = _space(text, at)
            if text[at] == "]":
                return
            _, at = scan(text, at)
            at = _space(text, at)
            if text[at] == "]":
                return
            if count == limits.batch_records:
                break
            at += 1
    except (ValueError, IndexError, RecursionError) as error:
        raise MalformedBody(f"Malformed JSON: {type(error).__name__} in an array") from None
    raise limits.batch_too_large()


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
