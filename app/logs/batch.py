"""What goes into a log store and what comes back: plain rows, no object per log."""

from typing import Any, Final

import msgspec

# One log as the stores take it: (us, seq, series, run_id, duration_ms, external_id, message,
# error, metadata). `series` indexes Batch.series; error and metadata are JSON texts.
Row = tuple[int, int, int, str | None, Any, str | None, str | None, str | None, str | None]
ROW_SERIES: Final = 2
ROW_EXTERNAL_ID: Final = 5

# What many logs share: (dataset, environment, status, level, workflow).
Series = tuple[str, str, str, str | None, str | None]

DEFAULT_DATASET = "default"


class Idempotency(msgspec.Struct, array_like=True, frozen=True):
    """An Idempotency-Key with the digest of its request and the outcome to repeat."""

    key: str
    digest: bytes
    outcome: bytes


# Of one client's rejected records of a day: a sender that fails all day long must not fill the
# disk. The oldest go first, since who looks wants to know what is wrong now; a quarter at a time,
# so that not every request has to see to it.
DAY_LETTERS_MAX = 1000
DAY_LETTER_BYTES_MAX = 4 * 1024**2
DAY_LETTERS_LEFT = 3 * DAY_LETTERS_MAX // 4
DAY_LETTER_BYTES_LEFT = 3 * DAY_LETTER_BYTES_MAX // 4


class DeadLetter(msgspec.Struct, array_like=True, frozen=True):
    """A record that was rejected, as it was sent, with its place in the request.

    `arrival` is its own, as a log's. `dataset` is the one that it was meant for, where it could be
    told.
    """

    arrival: int
    index: int
    field: str | None
    detail: str
    dataset: str | None
    record: str


class Batch(msgspec.Struct, array_like=True):
    """One request's logs and what they count for, committed together or not at all.

    `day` (since 1970) and `minute` (since 1970) are those of the arrival. `logs` are counted by
    the store, which alone knows the duplicates. A batch without rows carries usage only.
    """

    client_id: str
    key_id: str
    day: int
    minute: int
    rows: list[Row] = []
    series: list[Series] = []
    requests: int = 0
    bytes: int = 0
    rejected: int = 0
    denied: int = 0
    idempotency: Idempotency | None = None
    dead_letters: list[DeadLetter] = []


class Receipt(msgspec.Struct, array_like=True, frozen=True):
    """The batch is on disk. `duplicates` of its rows were there before and not stored again;
    `duplicate_id` is the stored log's id of the first of them.
    """  # noqa: D205

    duplicates: int = 0
    duplicate_id: str | None = None


class StoredOutcome(msgspec.Struct, array_like=True, frozen=True):
    """What an Idempotency-Key led to the first time."""

    digest: bytes
    outcome: bytes
    receipt: Receipt


UsageKey = tuple[int, str, str, str]  # minute, client_id, key_id, dataset
UsageCounts = list[int]  # requests, logs, bytes, rejected, denied
USAGE_COUNTERS = ("requests", "logs", "bytes", "rejected", "denied")


def count_usage(totals: dict[UsageKey, UsageCounts], batch: Batch, rows: list[Row]) -> None:
    """Add a batch of which `rows` were stored to the totals of a commit.

    The request belongs to the first record's dataset; in a batch of several datasets its bytes
    are shared out by the number of logs, so that the sums stay exact.
    """
    series = batch.series
    first = series[0][0] if series else DEFAULT_DATASET
    logs_of: dict[str, int] = {first: 0}
    if all(one[0] == first for one in series):
        logs_of[first] = len(rows)
    else:
        for row in rows:
            dataset = series[row[ROW_SERIES]][0]
            logs_of[dataset] = logs_of.get(dataset, 0) + 1
    left = batch.bytes
    for dataset, logs in logs_of.items():
        if dataset != first:
            share = batch.bytes * logs // len(rows)
            left -= share
            _add(totals, batch, dataset, (0, logs, share, 0, 0))
    counts = (batch.requests, logs_of[first], left, batch.rejected, batch.denied)
    _add(totals, batch, first, counts)


def _add(
    totals: dict[UsageKey, UsageCounts], batch: Batch, dataset: str, counts: tuple[int, ...]
) -> None:
    key = (batch.minute, batch.client_id, batch.key_id, dataset)
    total = totals.get(key)
    if total is None:
        totals[key] = list(counts)
    else:
        for i, count in enumerate(counts):
            total[i] += count
