"""The records that clients send, and the oracle for what comes back."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.records import (
    KNOWN_FIELDS,
    batches,
    canonical_time,
    encode,
    expected,
    ndjson,
    records,
    same,
    simple_record,
)

CLIENTS = ["acme_corp", "beta-7", "c"]
MANY = list(records(7, CLIENTS, 5000))


def test_the_same_seed_gives_the_same_records() -> None:
    """A seed fixes every byte, and another seed gives other records."""
    again = [(client, encode(record)) for client, record in records(7, CLIENTS, 5000)]
    assert again == [(client, encode(record)) for client, record in MANY]
    other = [(client, encode(record)) for client, record in records(8, CLIENTS, 5000)]
    assert other != again


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    """The first records do not depend on how many are asked for."""
    assert list(records(7, CLIENTS, 50)) == MANY[:50]


def test_records_are_valid() -> None:
    """Every record has what the service requires, within the service's lengths."""
    for _, record in MANY:
        assert 0 < len(record["environment"]) <= 64
        assert record["status"] in {"SUCCESS", "FAILED", "RUNNING"}
        assert isinstance(record["executed_at"], str | int | float)
        assert record.get("duration_ms", 0) >= 0
        assert len(record.get("id", "")) <= 128
        assert isinstance(record.get("error", ""), str | dict)
        assert isinstance(record.get("metadata", {}), dict)


def test_own_ids_never_repeat_within_a_client() -> None:
    """A repeated id would be a duplicate and not come back."""
    ids = [(client, record["id"]) for client, record in MANY if "id" in record]
    assert len(ids) > 300
    assert len(set(ids)) == len(ids)


def test_records_show_what_clients_send() -> None:
    """Every kind of field and every form of time occurs, in believable proportions."""
    sent = [record for _, record in MANY]
    statuses = Counter(record["status"] for record in sent)
    assert statuses["SUCCESS"] > statuses["RUNNING"] > statuses["FAILED"] > 0
    assert {client for client, _ in MANY} == set(CLIENTS)
    assert {type(r["error"]) for r in sent if "error" in r} == {str, dict}
    assert any("\n" in r["error"] for r in sent if isinstance(r.get("error"), str))
    assert {type(r["duration_ms"]) for r in sent if "duration_ms" in r} == {int, float}
    assert {type(r["executed_at"]) for r in sent} == {str, int, float}
    assert any(r.keys() - {*KNOWN_FIELDS, "id"} for r in sent)
    assert any("workflow" not in r for r in sent)
    lines = b"".join(map(encode, sent))
    assert b"\\u4fa1" in lines
    assert "価".encode() in lines
    assert b"123456789012345678901234567890" in lines
    times = {len(expected(r)["executed_at"]) for r in sent}
    assert times == {20, 24, 27, 30}


def test_records_of_a_run_share_its_run_id() -> None:
    """A run is several records of one client that belong together."""
    sizes = Counter((client, record["run_id"]) for client, record in MANY)
    assert max(sizes.values()) > 3
    ended = Counter((c, r["run_id"]) for c, r in MANY if r["status"] != "RUNNING")
    assert set(ended.values()) == {1}


def test_encoded_records_parse_to_what_was_sent() -> None:
    """One line each, whatever the text holds; equal again once parsed."""
    sent = [record for _, record in MANY]
    lines = ndjson(sent).splitlines()
    assert len(lines) == len(sent)
    assert [json.loads(line) for line in lines] == sent


def test_simple_records_have_the_size_of_the_design_figures() -> None:
    """The speed benches use records of about 340 bytes, each another one."""
    sizes = [len(ndjson([simple_record(i)])) for i in range(0, 1_000_000, 997)]
    assert 325 <= sum(sizes) / len(sizes) <= 350
    assert simple_record(1001)["executed_at"] == "2026-06-01T00:00:01.001Z"
    assert len({encode(simple_record(i)) for i in range(2000)}) == 2000


def test_batches_cut_a_stream_without_loss() -> None:
    """Every record is in one batch, in order; only the last batch may be shorter."""
    stream = [simple_record(i) for i in range(7)]
    assert list(batches(stream, 3)) == [stream[:3], stream[3:6], stream[6:]]


def test_expected_fills_in_what_was_absent() -> None:
    """Known fields are present with null, metadata with {}, the dataset with its default."""
    sent = {"environment": "e", "executed_at": "2026-01-01T00:00:00Z", "status": "SUCCESS"}
    assert expected(sent) == {
        "environment": "e",
        "executed_at": "2026-01-01T00:00:00Z",
        "status": "SUCCESS",
        "workflow": None,
        "run_id": None,
        "level": None,
        "message": None,
        "duration_ms": None,
        "error": None,
        "dataset": "default",
        "external_id": None,
        "metadata": {},
    }


def test_expected_moves_unknown_fields_under_metadata() -> None:
    """An unknown field lands under metadata, behind underscores where its name is taken."""
    sent = {
        "environment": "e",
        "executed_at": 0,
        "status": "S",
        "id": "own-1",
        "dataset": "orders",
        "metadata": {"host": "a", "_pid": 1, "pid": 2},
        "host": "b",
        "pid": 3,
        "extra": None,
    }
    result = expected(sent)
    assert result["external_id"] == "own-1"
    assert result["dataset"] == "orders"
    assert result["metadata"] == {
        "host": "a",
        "_pid": 1,
        "pid": 2,
        "_host": "b",
        "__pid": 3,
        "extra": None,
    }
    assert sent["metadata"] == {"host": "a", "_pid": 1, "pid": 2}


@pytest.mark.parametrize(
    ("sent", "canonical"),
    [
        ("2026-06-01T00:00:00Z", "2026-06-01T00:00:00Z"),
        ("2026-06-01t00:00:00z", "2026-06-01T00:00:00Z"),
        ("2026-06-01T02:00:00.120+02:00", "2026-06-01T00:00:00.120Z"),
        ("2026-05-31T18:30:00.1000-05:30", "2026-06-01T00:00:00.100Z"),
        ("2026-06-01T00:00:00.000001Z", "2026-06-01T00:00:00.000001Z"),
        ("2026-06-01T00:00:00.123456789Z", "2026-06-01T00:00:00.123456789Z"),
        ("2026-06-01T00:00:00.12345678Z", "2026-06-01T00:00:00.123456780Z"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500Z"),
        (1_780_272_000, "2026-06-01T00:00:00Z"),
        (1_780_272_000.25, "2026-06-01T00:00:00.250Z"),
        (1_780_272_000.123456, "2026-06-01T00:00:00.123456Z"),
        (1_780_272_000_123, "2026-06-01T00:00:00.123Z"),
        (1_780_272_000_123_456, "2026-06-01T00:00:00.123456Z"),
        (1_780_272_000_123_456_789, "2026-06-01T00:00:00.123456789Z"),
    ],
)
def test_times_are_normalised(sent: str | float, canonical: str) -> None:
    """Every form becomes UTC with the shortest exact fraction of 0, 3, 6 or 9 digits."""
    assert canonical_time(sent) == canonical


@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001  # made aware below
    st.integers(-14 * 60, 14 * 60),
)
def test_offsets_and_epochs_of_one_instant_agree(naive: datetime, offset_minutes: int) -> None:
    """However a client writes an instant, it is the same instant."""
    at = naive.replace(tzinfo=UTC)
    epoch_us = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    shifted = (at + timedelta(minutes=offset_minutes)).replace(tzinfo=None)
    sign = "+" if offset_minutes >= 0 else "-"
    hours, minutes = divmod(abs(offset_minutes), 60)
    text = f"{shifted.isoformat()}{sign}{hours:02d}:{minutes:02d}"
    assert canonical_time(text) == canonical_time(epoch_us * 1000)
    assert canonical_time(text) == canonical_time(at.isoformat())


def test_a_time_that_is_not_rfc_3339_is_refused() -> None:
    """The oracle does not guess."""
    with pytest.raises(ValueError, match="not RFC 3339"):
        canonical_time("yesterday")


def test_same_lets_only_integers_beyond_64_bits_come_back_as_text() -> None:
    """Everything else must come back as what it was."""
    assert same({"a": [2**64, "x"]}, {"a": [str(2**64), "x"]})
    assert same(1.0, 1)
    assert not same(5, "5")
    assert not same(2**64, str(2**64 + 1))
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert not same([1, 2], [1])
    assert not same(True, 1)
    assert not same(None, {})


def test_most_records_go_out_as_orjson_writes_them() -> None:
    """Only what orjson can't write is escaped, so both forms of text arrive."""
    plain = [record for _, record in MANY if encode(record).isascii() is False]
    assert all(encode(record) == orjson.dumps(record) for record in plain)
    assert plain
