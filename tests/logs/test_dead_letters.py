"""Tests of app.logs.dead_letters: what is kept of a rejected record."""

import json

import pytest

from app.journal import REDACTED
from app.keys.token import mint
from app.logs.dead_letters import (
    CUT,
    LETTER_BYTES_MAX,
    REQUEST_BYTES_MAX,
    REQUEST_LETTERS_MAX,
    make_letters,
)
from app.logs.decode import DecodeLimits, decode_json, decode_ndjson, record_texts
from app.logs.record import Rejection

LIMITS = DecodeLimits()
FAULT = Rejection("status", "is required")
DEEP = b"[" * 5000 + b"]" * 5000


def kept(text: bytes) -> str:
    """Give what is kept of a record's text."""
    [letter] = make_letters([(0, FAULT)], [text], 0)
    return letter.record


def test_a_key_in_a_record_is_not_kept() -> None:
    """A key of ours inside the text of a record is taken out of it, wherever it stands."""
    key = mint("cl_live", "acme").text
    for text in (f'{{"message":"{key}"}}', key, f"{'x ' * 40_000}{key}"):
        assert key[-43:] not in kept(text.encode())
    assert REDACTED in kept(key.encode())


@pytest.mark.parametrize("before", range(LETTER_BYTES_MAX - 90, LETTER_BYTES_MAX + 1, 7))
def test_no_part_of_a_key_is_left_by_a_cut(before: int) -> None:
    """Where the text is cut inside a key, what stood before the cut goes as well."""
    key = mint("cl_live", "acme").text
    text = " " * before + key + " " * 100
    assert key.rpartition("_")[2][:5] not in kept(text.encode())


def test_a_long_text_is_cut_with_a_mark() -> None:
    """Of a long record its beginning is kept, and a mark tells that there was more."""
    text = kept("价 ".encode() * LETTER_BYTES_MAX)
    assert text.endswith(CUT)
    assert set(text.removesuffix(CUT)) == {"价", " "}
    assert LETTER_BYTES_MAX - 300 < len(text.encode()) < LETTER_BYTES_MAX + 20


def test_what_is_not_utf8_is_escaped() -> None:
    """Bytes that are no text come as escapes, so that nothing of a record is lost."""
    assert kept(b'{"a":"\xff\xfe"}') == '{"a":"\\xff\\xfe"}'
    assert len(kept(b"\xff" * LETTER_BYTES_MAX).encode()) < LETTER_BYTES_MAX + 20


def test_a_request_is_bounded() -> None:
    """Of very many rejected records of one request the first ones are kept, by number and size."""
    many = make_letters([(n, FAULT) for n in range(9000)], [b"{}"] * 9000, 0)
    assert [one.index for one in many] == list(range(REQUEST_LETTERS_MAX))
    large = make_letters([(n, FAULT) for n in range(99)], [b"x" * 60_000] * 99, 0)
    assert sum(len(one.record) for one in large) <= REQUEST_BYTES_MAX
    assert len(large) == REQUEST_BYTES_MAX // 60_000


@pytest.mark.parametrize(
    ("text", "dataset"),
    [
        (b'{"dataset":"orders"}', "orders"),
        (b'{"dataset":null}', "default"),
        (b"{}", "default"),
        (b'{"dataset":7}', None),
        (b"[]", None),
        (b'{"dataset":"orders"', None),
        (b"\xff", None),
        (DEEP, None),
    ],
)
def test_the_dataset_where_it_can_be_told(text: bytes, dataset: str | None) -> None:
    """A record's dataset is known where its text says so, and not where it is no record."""
    [letter] = make_letters([(0, FAULT)], [text], 0)
    assert letter.dataset == dataset


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (b'[{"a":1}, 7 ,"x"]', [b'{"a":1}', b"7", b'"x"']),
        (b' {"logs": [{"a":1}, {}]}', [b'{"a":1}', b"{}"]),
        (b'{"a":1}', [b'{"a":1}']),
        (b'"text"', [b'"text"']),
        (b'\xef\xbb\xbf{"a":1}', [b'{"a":1}']),
        (b'[{"a":' + DEEP + b'}, {"b":1}]', [b'{"a":' + DEEP + b"}", b'{"b":1}']),
        (b'{"logs":[{"a":' + DEEP + b'},{"b":1}]}', [b'{"a":' + DEEP + b"}", b'{"b":1}']),
    ],
    ids=["array", "envelope", "single", "no object", "mark", "deep", "deep logs"],
)
def test_the_texts_of_a_body_of_json(body: bytes, texts: list[bytes]) -> None:
    """The texts of a body's records are those that were sent, one for each that was decoded."""
    decoded, _ = decode_json(body, LIMITS)
    found = [bytes(text).strip() for text in record_texts(body, LIMITS, is_ndjson=False)]
    assert found == texts
    assert len(decoded) == len(found)


def test_the_texts_of_a_body_of_lines() -> None:
    """So are those of NDJSON, whether its lines are all good or not."""
    good = json.dumps({"environment": "a", "executed_at": 1, "status": "b"}).encode()
    for lines in ([good, good], [good, b"{", b"nonsense"]):
        body = b"\n".join(lines)
        assert len(decode_ndjson(body, LIMITS)) == len(lines)
        assert [*record_texts(body, LIMITS, is_ndjson=True)] == lines
    assert [*record_texts(b"\n\n" + good + b"\r\n\n{", LIMITS, is_ndjson=True)] == [
        good + b"\r",
        b"{",
    ]
