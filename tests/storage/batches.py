"""What storage tests append and read: the product's own decoding in front, plain objects behind."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.logs.batch import Batch
from app.logs.decode import DecodeLimits, decode_json
from app.logs.identity import ArrivalClock, parse_id, received_us
from app.logs.query import PAGE_BYTES_MAX, LogQuery, Order
from app.logs.rows import build_rows
from app.logs.store import LogStore
from loadtests.records import Record, expected

NOON = "2026-06-01T12:00:00Z"
RECORD_BYTES_MAX = 4 * 1024**2
LIMITS = DecodeLimits(RECORD_BYTES_MAX, 10_000)
ORDERS: tuple[Order, ...] = ("asc", "desc")
# Few instants, so that logs of many days share them; the second and third differ by ns alone.
INSTANTS = (
    "2026-06-01T12:00:00Z",
    "2026-06-01T12:00:00.000000001Z",
    "2026-06-01T12:00:00.000000999Z",
    "2026-06-01T12:00:00.000001Z",
    "2026-06-02T00:00:00Z",
    "1969-12-31T23:59:59.999999999Z",
    "1970-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
)
DAYS = (20_000, 20_001, 20_002, 20_007)


def record(**fields: Any) -> Record:
    """Give a small valid record."""
    return {"environment": "production", "executed_at": NOON, "status": "SUCCESS"} | fields


def make_batch(
    clock: ArrivalClock,
    client_id: str,
    records: Sequence[Record],
    *,
    day: int | None = None,
    key_id: str = "key-1",
) -> Batch:
    """Give the batch of one request; `day` moves its arrival to another day's file."""
    body = json.dumps(records).encode()
    decoded, _ = decode_json(body, LIMITS)
    today, arrival = clock.take(max(1, len(records)))
    day = today if day is None else day
    built = build_rows(decoded, None, arrival)
    assert not built.rejections
    return Batch(
        client_id=client_id,
        key_id=key_id,
        day=day,
        minute=received_us(day, arrival) // 60_000_000,
        rows=built.rows,
        series=built.series,
        requests=1,
        bytes=len(body),
    )


async def append(store: LogStore, client_id: str, *records: Record, day: int | None = None) -> None:
    """Append records that are not duplicates."""
    receipt = await store.append(make_batch(store.clock, client_id, records, day=day))
    assert receipt.duplicates == 0


async def read_page(store: LogStore, query: LogQuery) -> tuple[list[Record], str | None]:
    """Give the logs of one page and the last one's id if more follow."""
    page = await store.page(query)
    return json.loads(f"[{page.logs}]"), page.last_id


async def read_all(store: LogStore, query: LogQuery) -> list[Record]:
    """Follow the pages of a query to their end."""
    logs: list[Record] = []
    while True:
        found, last_id = await read_page(store, query)
        logs += found
        if last_id is None:
            return logs
        assert (
            len(found) == query.limit or len(json.dumps(found)) > PAGE_BYTES_MAX - RECORD_BYTES_MAX
        )
        assert found[-1]["id"] == last_id
        query = replace(query, after=parse_id(last_id))


def sent_part(log: Record) -> Record:
    """Give of a log read back what its client sent, as `expected` gives it."""
    return {
        name: value for name, value in log.items() if name not in {"id", "client_id", "received_at"}
    }


def key_of(log: Record) -> str:
    """Give a text by which logs that are equal sort together."""
    return json.dumps(log, sort_keys=True)


def assert_same_logs(read: Sequence[Record], sent: Sequence[Record]) -> None:
    """Compare what was read with the records sent, in any order."""
    want = sorted((expected(one) for one in sent), key=key_of)
    assert sorted(map(sent_part, read), key=key_of) == want
