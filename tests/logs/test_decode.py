"""Bodies to records: fast for good ones, exact for bad ones, and never worse than refused."""

import json
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import LoggerError, MalformedBody, TooLarge
from app.logs.decode import Decoded, DecodeLimits, decode_json, decode_ndjson, decode_singles
from app.logs.record import LogRecord, Rejection, mark_lone_surrogates, validate
from app.logs.rows import Rows, build_rows
from tests.support import ndjson, record

LIMITS = DecodeLimits()
SMALL = DecodeLimits(record_bytes=200, batch_records=5)
GOOD = json.dumps(record()).encode()
DEEP = GOOD[:-1] + b',"metadata":' + b'{"a,]}":' * 5000 + b"1" + b"}" * 5001
LONE = GOOD[:-1] + rb',"message":"half \ud83d of a pair"}'
NOT_UTF8 = GOOD[:-1] + b',"message":"\xff"}'
WRONG = b'{"environment":"production","executed_at":"never","status":"x"}'

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
texts = st.none() | st.text(max_size=8)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "environment": st.text(max_size=70) | json_values,
    "executed_at": st.sampled_from(["2026-06-01T12:00:00.123456789Z", 1.5, 10**18]) | json_values,
    "status": st.text(max_size=35) | json_values,
    "workflow": texts | json_values,
    "run_id": texts | json_values,
    "level": texts | json_values,
    "message": texts | json_values,
    "duration_ms": st.floats(0, 1e300) | st.integers(0, 2**80) | json_values,
    "error": texts | json_values,
    "dataset": st.sampled_from(["orders", "Not A Slug", ""]) | json_values,
    "id": texts | st.text(min_size=120, max_size=130) | json_values,
    "metadata": st.dictionaries(st.text(max_size=4), json_values, max_size=3) | json_values,
}
known_records = st.builds(
    lambda required, more: required | more,
    st.fixed_dictionaries({name: FIELDS[name] for name in ("environment", "executed_at", "status")})
    | st.just(record()),
    st.fixed_dictionaries({}, optional=FIELDS),
)
any_records = st.builds(
    lambda known, unknown: unknown | known,
    known_records,
    st.dictionaries(st.sampled_from(["a", "_a", "host", "é", "\n"]), json_values, max_size=3),
)
chunks = st.sampled_from(
    [
        *(GOOD, DEEP, LONE, NOT_UTF8, WRONG, b"5", b"null", b"{", b"]", b"[", b'"', b",", b"}"),
        *(b"\n", b" ", b"\r\n", b'{"logs":', b'{"logs":[]}', b"\xef\xbb\xbf", b"\x00"),
        b"\\ud800",
    ]
)
bodies = st.binary(max_size=200) | st.lists(chunks, max_size=8).map(b"".join)


def rows_of(decoded: list[Decoded]) -> Rows:
    """Give what the store would get."""
    return build_rows(decoded, None, 0)


def decode(body: bytes, *, is_ndjson: bool, limits: DecodeLimits = LIMITS) -> list[Decoded]:
    """Decode in one of the two ways."""
    return decode_ndjson(body, limits) if is_ndjson else decode_json(body, limits)[0]


def shape(decoded: list[Decoded]) -> list[str]:
    """Say in short what came of each record."""
    return [one.detail if isinstance(one, Rejection) else "" for one in decoded]


@given(known_records)
def test_the_fast_way_and_the_careful_way_agree(sent: dict[str, Any]) -> None:
    """What the decoder of whole records takes, `validate` takes with the same result."""
    text = json.dumps(sent).encode()
    try:
        fast = msgspec.json.decode(text, type=LogRecord)
    except msgspec.DecodeError:
        assert isinstance(validate(text), Rejection)
    else:
        assert rows_of([fast]) == rows_of([validate(text)])


@given(st.lists(any_records, max_size=4))
def test_every_form_gives_the_same_records(sent: list[dict[str, Any]]) -> None:
    """An array, {"logs": [...]} and NDJSON are three ways to say the same."""
    array = json.dumps(sent).encode()
    wanted = rows_of(decode(array, is_ndjson=False))
    assert rows_of(decode(b'{"logs":' + array + b"}", is_ndjson=False)) == wanted
    assert rows_of(decode(ndjson(sent), is_ndjson=True)) == wanted
    assert rows_of(decode(b"\xef\xbb\xbf" + array, is_ndjson=False)) == wanted
    assert len(wanted.rows) + len(wanted.rejections) == len(sent)
    for one in sent:
        alone = decode_json(json.dumps(one).encode(), LIMITS)
        assert alone[1] is ("logs" not in one)


@given(any_records)
def test_nothing_of_a_record_is_lost(sent: dict[str, Any]) -> None:
    """Each field of an accepted record is in its row, unknown ones under metadata, all exact."""
    built = rows_of(decode(json.dumps(sent).encode(), is_ndjson=False))
    if built.rejections:
        return
    (row,), (series,) = built.rows, built.series
    _, _, _, run_id, duration, external_id, message, error, metadata = row
    assert [run_id, message] == [sent.get(n) for n in ("run_id", "message")]
    assert external_id == (sent.get("id") or None)
    dataset = sent.get("dataset")
    assert series == (
        "default" if dataset is None else dataset,
        *(sent.get(name) for name in ("environment", "status", "level", "workflow")),
    )
    if sent.get("duration_ms") is None:
        assert duration is None
    else:
        assert json.loads(str(duration)) == sent["duration_ms"]
    assert json.loads(error or "null") == sent.get("error")
    kept = json.loads(metadata or "{}")
    own = sent.get("metadata") or {}
    assert {name: kept.pop(name) for name in own} == own
    unknown = {name: value for name, value in sent.items() if name not in FIELDS}
    assert len(kept) == len(unknown)
    for name, value in kept.items():
        assert any(unknown.get(name[strip:], ...) == value for strip in range(3))


@given(bodies, st.booleans())
@example(b'["\\ud800"', False)
@example(GOOD + GOOD, True)
@example(b"[" + DEEP + b"," + GOOD + b"]", False)
def test_any_bytes_are_decoded_or_refused(body: bytes, is_ndjson: bool) -> None:
    """No body raises anything but an error of ours, under any limits."""
    for limits in (LIMITS, SMALL):
        try:
            decoded = decode(body, is_ndjson=is_ndjson, limits=limits)
        except (MalformedBody, TooLarge):
            continue
        built = rows_of(decoded)
        assert len(built.rows) + len(built.rejections) == len(decoded) <= limits.batch_records
        for row in built.rows:
            for text in row[7:]:
                assert "\n" not in str(text or "")
                json.loads(str(text or "null"))


elements = st.sampled_from([GOOD, DEEP, LONE, NOT_UTF8, WRONG, b"5", b"null"])


@given(st.lists(elements, min_size=1, max_size=15))
def test_a_bad_record_costs_itself_alone(elements: list[bytes]) -> None:
    """Among any neighbours, in any form, a good record is accepted and a bad one is named."""
    array = b"[" + b" ,\n".join(elements) + b"]"
    wanted = [one == GOOD for one in elements]
    for body in (array, b' { "logs" : ' + array + b"}\n"):
        built = rows_of(decode(body, is_ndjson=False))
        bad = [index for index, _ in built.rejections]
        assert bad == [index for index, good in enumerate(wanted) if not good]
        assert len(built.rows) == sum(wanted)
    if set(elements) != {DEEP}:
        built = rows_of(decode(b"\n".join(elements), is_ndjson=True))
        assert [index for index, _ in built.rejections] == bad


@given(st.lists(any_records | json_values, max_size=6), st.sampled_from([b",", b" ,\r\n\t"]))
def test_an_array_is_parted_in_the_same_places_in_both_ways(sent: list[Any], comma: bytes) -> None:
    """Beside a record nested too deeply every other one comes out as it does without it."""
    parts = [json.dumps(one, ensure_ascii=False, indent=1).encode() for one in sent]
    wanted = rows_of(decode(b"[" + comma.join(parts) + b"]", is_ndjson=False))
    got = rows_of(decode(b" [" + comma.join([*parts, DEEP]) + b" ] ", is_ndjson=False))
    assert got.rows == wanted.rows
    assert got.rejections[:-1] == wanted.rejections
    assert got.rejections[-1][0] == len(sent)


@pytest.mark.parametrize(
    ("bad", "field", "detail"),
    [
        (LONE, "message", "is not valid UTF-8"),
        (NOT_UTF8, "message", "is not valid UTF-8"),
        (DEEP, None, "Malformed JSON: is nested too deeply"),
        (b"[]", None, "must be an object"),
        (GOOD[:-1] + b',"metadata":{"a":"\\udead"}}', None, "is not valid UTF-8"),
        (GOOD[:-1] + b',"\\ud800":1}', None, "Malformed JSON: is not valid UTF-8"),
    ],
)
def test_faults_are_named(bad: bytes, field: str | None, detail: str) -> None:
    """The rejection of a record says which field is at fault and why."""
    for body in (b"[" + GOOD + b"," + bad + b"]", b'{"logs":[' + GOOD + b"," + bad + b"]}"):
        ((index, rejection),) = rows_of(decode(body, is_ndjson=False)).rejections
        assert (index, rejection.field, rejection.detail) == (1, field, detail)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" \n", b"{", b"[", b"nope", b"\x00", b"{'a':1}", b"\xff\xfe{\x00}\x00"),
        *(GOOD + b"x", b"[" + GOOD + b"] x", b"[" + GOOD + b",]"),
        *(b"[" * 100_000, b'{"logs":' + b"[" * 100_000),
        *(b"[" + DEEP + b"}", b'{"logs":[' + DEEP + b"}}", b'{"logs":[' + DEEP + b"]"),
        *(DEEP, b"[" + DEEP, b"[" + DEEP + b"]]", b'{"logs":[' + DEEP + b"],"),
    ],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    """A body that is not JSON at all is refused as a whole, in the words of the contract."""
    with pytest.raises(MalformedBody, match=r"^Malformed JSON"):
        decode_json(body, LIMITS)


@pytest.mark.parametrize("body", [b"nope", b"{\n}\n", b"\n" + GOOD[:-1] + b"\n"])
def test_lines_none_of_which_is_json_are_malformed(body: bytes) -> None:
    """NDJSON is refused as a whole only if no line parses."""
    with pytest.raises(MalformedBody, match=r"^Malformed JSON"):
        decode_ndjson(body, LIMITS)
    decoded = decode_ndjson(body + b"\n" + GOOD, LIMITS)
    assert isinstance(decoded[-1], LogRecord)
    assert all(isinstance(one, Rejection) for one in decoded[:-1])


def test_a_line_is_one_record() -> None:
    """Two records on a line, or one on two lines, are malformed, whoever stands beside them."""
    split = GOOD.replace(b", ", b",\n", 1)
    nested = GOOD[:-1] + b',"metadata":{"a":{}\n}}'
    inner = GOOD[:-1] + b',"metadata":\n{}}'
    for body in (
        *(GOOD + GOOD + b"\n" + GOOD, split + b"\n" + GOOD + b"\n"),
        # As many records as lines: the one cut in two makes up for the two on one line.
        *(GOOD + GOOD + b"\n" + cut + b"\n" + GOOD for cut in (split, nested, inner)),
    ):
        decoded = decode_ndjson(body, LIMITS)
        assert isinstance(decoded[-1], LogRecord)
        assert all(isinstance(one, Rejection) for one in decoded[:-1])


line_chunks = st.lists(
    st.sampled_from(
        [
            *(GOOD, GOOD, GOOD, GOOD.replace(b", ", b",\n"), GOOD[:-1] + b',"metadata":{}\n}'),
            *(GOOD[:-1] + b',"metadata":\n{}}', GOOD[:-1] + b',"message":"', b'"}', WRONG),
            *(b"\n", b"\n", b"\n", b"\r\n", b" ", b"{}", b"{", b"}"),
        ]
    ),
    max_size=10,
).map(b"".join)


@given(line_chunks | st.lists(st.sampled_from([GOOD, GOOD + b"\r"])).map(b"\n".join))
@example(GOOD + GOOD + b"\n" + GOOD.replace(b", ", b",\n", 1) + b"\n")
@example(GOOD + GOOD + b"\n" + GOOD[:-1] + b',"metadata":\n{}}\n')
def test_lines_decoded_together_are_those_decoded_alone(body: bytes) -> None:
    """Whatever stands on the lines, each gives what it gives as the only one."""
    lines = [line.strip(b" \t\r") for line in body.split(b"\n")]
    alone: list[Decoded] = [validate(line) for line in lines if line]
    if alone and all("Malformed" in detail for detail in shape(alone)):
        with pytest.raises(MalformedBody):
            decode_ndjson(body, LIMITS)
        return
    decoded = decode_ndjson(body, LIMITS)
    assert rows_of(decoded) == rows_of(alone)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b" \n\t\r\n"])
def test_blank_lines_do_not_count(end: bytes) -> None:
    """Blank lines and CRLF are neither records nor faults."""
    body = end + GOOD + end + WRONG + end
    assert shape(decode_ndjson(body, LIMITS))[0] == ""
    assert len(decode_ndjson(body, LIMITS)) == 2
    assert decode_ndjson(end, LIMITS) == []


@pytest.mark.parametrize("body", [b"[]", b'{"logs":[]}', b" [ ] "])
def test_an_empty_batch_is_no_fault(body: bytes) -> None:
    """A batch of nothing is a batch."""
    assert decode_json(body, LIMITS) == ([], False)


def test_a_record_with_a_field_logs_is_a_record() -> None:
    """An object that has a record's required members is one, whatever else it holds."""
    body = json.dumps(record(logs=[1])).encode()
    decoded, is_single = decode_json(body, LIMITS)
    assert is_single
    assert rows_of(decoded).rows[0][8] == '{"logs":[1]}'


def test_duplicate_members_are_decided_by_the_last() -> None:
    """Of two members of one name the last one counts, in the fast way and in the careful way."""
    body = GOOD[:-1] + b',"status":"LAST","host":1,"host":2'
    for more in (b"}", b',"metadata":{"host":0}}'):
        built = rows_of(decode(body + more, is_ndjson=False))
        assert built.series[0][2] == "LAST"
    assert json.loads(str(built.rows[0][8])) == {"host": 0, "_host": 2}


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, -(2**64), 10**30, 10**300])
def test_integers_of_any_size_survive(number: int) -> None:
    """Integers beyond 64 bits come out exactly as they went in, wherever they stand."""
    sent = record(metadata={"n": [number]}, offset=number, error={"code": number})
    row = rows_of(decode(json.dumps(sent).encode(), is_ndjson=False)).rows[0]
    assert json.loads(str(row[8])) == {"n": [number], "offset": number}
    assert json.loads(str(row[7])) == {"code": number}
    if number > 0:
        sent = record(duration_ms=number)
        row = rows_of(decode(json.dumps(sent).encode(), is_ndjson=False)).rows[0]
        assert int(row[4]) == number


def test_a_name_already_taken_gets_an_underscore() -> None:
    """Unknown fields go under metadata; a clash costs neither of the two."""
    sent = record(metadata={"host": 1, "_host": 2}, host=3, pid=4)
    row = rows_of(decode(json.dumps(sent).encode(), is_ndjson=False)).rows[0]
    assert json.loads(str(row[8])) == {"host": 1, "_host": 2, "__host": 3, "pid": 4}


def test_names_that_clash_take_no_time() -> None:
    """Unknown fields each of which clashes with all those before it are put away one by one."""
    taken, unknown = ({"_" * k + "x": k for k in range(count)} for count in (1000, 900))
    body = json.dumps(record(metadata=taken, **unknown)).encode()
    started = time.perf_counter()
    rows = rows_of(decode(b"\n".join([body] * 20), is_ndjson=True)).rows
    assert time.perf_counter() - started < 1.5
    kept = json.loads(str(rows[0][8]))
    assert kept == taken | {"_" * (1000 + k) + "x": k for k in range(900)}


@given(
    st.sets(st.integers(0, 6)),
    st.lists(st.integers(0, 6), unique=True, max_size=7),
)
def test_a_clashing_name_gets_no_more_underscores_than_it_needs(
    taken: set[int], unknown: list[int]
) -> None:
    """Of the names that an unknown field may get, it gets the first that is free."""
    sent = record(
        metadata={"_" * k + "x": -1 for k in taken}, **{"_" * k + "x": k for k in unknown}
    )
    row = rows_of(decode(json.dumps(sent).encode(), is_ndjson=False)).rows[0]
    wanted = dict.fromkeys(taken, -1)
    for k in unknown:
        free = next(n for n in range(k, 20) if n not in wanted)
        wanted[free] = k
    assert json.loads(str(row[8] or "{}")) == {"_" * k + "x": v for k, v in wanted.items()}


HALVES = [
    *(rb"\ud83d", rb"\uDE00", rb"\udbff", rb"\uDC00", rb"\\", rb"\"", rb"\n", rb"\u0041"),
    *(b"u", b"ud800", b"x", "\u00e9".encode(), b"\xfe", b"\xfe\xfe"),
]


@given(st.lists(st.sampled_from(HALVES), max_size=8).map(b"".join))
def test_half_surrogate_pairs_are_marked_and_nothing_else(text: bytes) -> None:
    """A text with half a pair turns into one that is not UTF-8; any other stays as it is."""
    sent = b'["' + text + b'"]'
    marked = mark_lone_surrogates(sent)
    if b"\xfe" in text:
        assert len(marked) == len(sent)
        return
    halves = [unit for unit in json.loads(sent)[0] if "\ud800" <= unit <= "\udfff"]
    assert marked.count(b"\xff" * 6) == len(halves)
    assert (marked == sent) is (not halves)
    whole = json.loads(marked.replace(b"\xff" * 6, b""))[0]
    assert whole == "".join(unit for unit in json.loads(sent)[0] if unit not in halves)


@pytest.mark.parametrize("size", [1_000_000, 20_000_000])
def test_very_many_half_pairs_are_malformed(size: int) -> None:
    """A text of nothing but half surrogate pairs is refused without putting each one right."""
    body = b'["' + rb"\ud800x" * (size // 7) + b'"]'
    started = time.perf_counter()
    with pytest.raises(MalformedBody, match=r"^Malformed JSON"):
        decode_json(body, LIMITS)
    assert time.perf_counter() - started < 1


def test_a_record_too_large_costs_itself_in_a_batch() -> None:
    """Over MAX_RECORD_BYTES a record is rejected inside a batch, and refused alone."""
    large = json.dumps(record(message="x" * 200)).encode()
    detail = "Body too large: a record is over 200 bytes"
    array = b"[" + GOOD + b"," + large + b"]"
    for decoded in (
        decode_json(array, SMALL)[0],
        decode_json(b'{"logs":' + array + b"}", SMALL)[0],
        decode_ndjson(GOOD + b"\n" + large, SMALL),
    ):
        assert shape(decoded) == ["", detail]
    with pytest.raises(TooLarge, match=detail):
        decode_json(large, SMALL)


@pytest.mark.parametrize("body", [GOOD, b"{}", b"0", WRONG, b"{\n"])
def test_too_many_records_are_refused(body: bytes) -> None:
    """Over MAX_BATCH_RECORDS the whole batch is refused, before a record of it is looked at."""
    text = "Body too large: more than 5 records"
    with pytest.raises(TooLarge, match=text):
        decode_ndjson(b"\n".join([body] * 6), SMALL)
    assert len(decode_ndjson(b"\n\n".join([GOOD] * 5), SMALL)) == 5
    if body != b"{\n":
        for array in (
            b"[" + b",".join([body] * 6) + b"]",
            b'{"logs":[' + b",".join([body] * 6) + b"]}",
        ):
            with pytest.raises(TooLarge, match=text):
                decode_json(array, SMALL)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"0," * 5_000_000 + b"0]",
        b"[" + b"{}," * 3_000_000 + b"{}]",
        b'{"logs":[' + b"[]," * 3_000_000 + b"[]]}",
        b"[" * 5_000_000,
        b"[" + b'"",' * 3_000_000,
    ],
    ids=["numbers", "objects", "arrays", "brackets", "cut"],
)
def test_tiny_elements_do_not_take_memory(body: bytes) -> None:
    """A body of millions of tiny elements is refused in little more memory than its own."""
    tracemalloc.start()
    try:
        with pytest.raises(LoggerError):
            decode_json(body, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body) + 20_000_000


@pytest.mark.parametrize(
    "body",
    [
        b"[[" + b"{}," * 1_000_000 + b"{}]]",
        b"[[[[" + b"{}," * 1_000_000 + b"{}]]]]",
        b"[" + b"[" * 2000 + b'"",' * 1_000_000 + b"0" + b"]" * 2001,
        b"[" + b"[[[[]]]]," * 150_000 + b"0]",
        b"[" + DEEP + b",[" + b"[[[[]]]]," * 150_000 + b"0]]",
        b'[["' + b'\\"' * 1_500_000 + b'"' + b",0" * 600_000 + b"]]",
        b"[" * 3_000_000,
        b"[" * 999_999,
        b"[" + DEEP + b",[" + b"[[]]," * 4_000_000 + b"0]]",
    ],
    ids=[
        *("objects", "four deep", "very deep", "marks", "marks inside", "quotes", "brackets"),
        *("few brackets", "twenty megabytes"),
    ],
)
def test_structure_takes_neither_memory_nor_time(body: bytes) -> None:
    """A few megabytes of nothing but structure hold neither the worker nor its memory for long."""
    started = time.perf_counter()
    with suppress(MalformedBody, TooLarge):
        decode_json(body, LIMITS)
    assert time.perf_counter() - started < 1
    tracemalloc.start()
    try:
        with suppress(MalformedBody, TooLarge):
            decode_json(body, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_a_large_batch_of_rich_records_is_taken() -> None:
    """What guards against bodies of nothing but structure lets pass what a sender may mean."""
    rich = record(metadata={"items": [{"id": n, "tags": ["a", "b"]} for n in range(30)]})
    body = b"[" + b",".join([json.dumps(rich).encode()] * 9_000) + b"]"
    decoded, _ = decode_json(body, LIMITS)
    assert len(decoded) == 9_000
    assert shape(decoded) == [""] * 9_000


def test_blanks_take_no_time() -> None:
    """However blanks are spread over lines, finding the records is linear work."""
    started = time.perf_counter()
    with suppress(TooLarge):
        decode_ndjson(b" " * 1_000_000 + b"\n" * 10_001 + GOOD, LIMITS)
    with suppress(TooLarge):
        decode_ndjson((b" " * 100_000 + b"\r\n") * 50 + b"\n" * 10_001 + GOOD, LIMITS)
    decode_json(b" " * 5_000_000 + b"[" + b" " * 5_000_000 + b"]", LIMITS)
    assert time.perf_counter() - started < 3


def test_millions_of_lines_do_not_take_memory() -> None:
    """Lines are counted before they are cut apart."""
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decode_ndjson(b"{}\n" * 3_000_000, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


inner_chunks = st.sampled_from(
    [
        *(GOOD, DEEP, LONE, NOT_UTF8, WRONG, GOOD[:-1], GOOD[1:], GOOD[:-1] + b',"metadata":{'),
        *(GOOD[:-1] + b',"message":"', b'","level":"INFO"}', b'"', b"\n"),
    ]
)
singles = st.one_of(
    inner_chunks,
    st.lists(inner_chunks, max_size=3).map(b"".join),
    known_records.map(lambda sent: json.dumps(sent).encode()),
).map(lambda body: b"{%b}" % body if body[:1] + body[-1:] != b"{}" else body)


@given(st.lists(singles, min_size=1, max_size=5))
@example([b'{"m":"}', b'{"}'])
@example([GOOD[:-1] + b',"message":"}', b'{"}', GOOD + b"\n" + GOOD])
@example([GOOD[:-1] + b',"metadata":{}', b"{}}", GOOD + GOOD])
def test_records_decoded_together_are_those_decoded_alone(sent: list[bytes]) -> None:
    """Of bodies decoded in one step each gets its own record, or None as it would alone."""

    def alone(body: bytes) -> LogRecord | None:
        try:
            return msgspec.json.decode(body, type=LogRecord)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    for got, body in zip(decode_singles(sent), sent, strict=True):
        wanted = alone(body)
        assert (got is None) is (wanted is None)
        if got is not None and wanted is not None:
            assert rows_of([got]) == rows_of([wanted])
