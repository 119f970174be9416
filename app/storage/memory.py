"""The log store that forgets: a fake for tests, with the same answers as the real ones.

Stores over one `Contents` are to each other as the workers of one service.
"""

from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import time_ns
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from app.errors import StorageUnavailable
from app.logs.batch import (
    ROW_EXTERNAL_ID,
    ROW_SERIES,
    Batch,
    Receipt,
    Row,
    Series,
    StoredOutcome,
    UsageCounts,
    UsageKey,
    count_usage,
)
from app.logs.identity import ARRIVAL_BITS, ArrivalClock, Position, format_id, received_us
from app.logs.query import MINUTES, PAGE_BYTES_MAX, LogQuery, Page, UsageQuery, UsageRow
from app.logs.search import parse_exactly
from app.logs.store import ClaimHeld
from app.logs.timestamp import format_instant

OUTCOME_S_MAX = 24 * 3600

Name = tuple[str, str]  # a client, and an external id or an Idempotency-Key of it


class Log(NamedTuple):
    """A stored log; sorts by its place."""

    place: Position
    row: Row
    series: Series


@dataclass
class Contents:
    """What is stored, and who claims what."""

    logs: dict[str, list[Log]] = field(default_factory=dict)
    external_ids: dict[Name, Position] = field(default_factory=dict)
    outcomes: dict[Name, tuple[int, StoredOutcome]] = field(default_factory=dict)
    usage: dict[UsageKey, UsageCounts] = field(default_factory=dict)
    claims: dict[Name, "MemoryLogStore"] = field(default_factory=dict)


class MemoryLogStore:
    """LogStore in the memory of a process."""

    def __init__(self, contents: Contents | None = None, dedup_window_days: int = 7) -> None:
        self.clock = ArrivalClock()
        self._contents = Contents() if contents is None else contents
        self._window = dedup_window_days
        self._open = True

    async def append(self, batch: Batch) -> Receipt:
        """See LogStore.append."""
        self._require_open()
        contents = self._contents
        once = batch.idempotency
        if once and contents.claims.get((batch.client_id, once.key)) is not self:
            raise StorageUnavailable("the claim is another's now")
        kept: dict[Position, Log] = {}
        fresh: dict[Name, Position] = {}
        duplicates: list[Position] = []
        for row in batch.rows:
            place = _place(row, batch.day)
            name = (batch.client_id, row[ROW_EXTERNAL_ID] or "")
            if row[ROW_EXTERNAL_ID] is not None:
                known = self._find(name, batch.day) or fresh.get(name)
                if known is not None:
                    duplicates.append(known)
                    continue
                fresh[name] = place
            kept[place] = Log(place, row, batch.series[row[ROW_SERIES]])
        logs = contents.logs.setdefault(batch.client_id, [])
        if len(kept) + len(duplicates) < len(batch.rows) or kept.keys() & {one[0] for one in logs}:
            raise StorageUnavailable("two logs cannot have one place")
        for log in kept.values():
            insort(logs, log, key=lambda one: one.place)
        contents.external_ids |= fresh
        count_usage(contents.usage, batch, [log.row for log in kept.values()])
        receipt = Receipt(len(duplicates), _id(duplicates[0]) if duplicates else None)
        if once is not None:
            outcome = StoredOutcome(once.digest, once.outcome, receipt)
            contents.outcomes[batch.client_id, once.key] = (time_ns(), outcome)
            del contents.claims[batch.client_id, once.key]
        return receipt

    @asynccontextmanager
    async def claim(self, client_id: str, key: str) -> AsyncIterator[StoredOutcome | None]:
        """See LogStore.claim."""
        self._require_open()
        name, claims = (client_id, key), self._contents.claims
        if name in claims:
            raise ClaimHeld
        stored_ns, stored = self._contents.outcomes.get(name, (0, None))
        if stored is not None and time_ns() - stored_ns < OUTCOME_S_MAX * 10**9:
            yield stored
            return
        claims[name] = self
        try:
            yield None
        finally:
            if claims.get(name) is self:
                del claims[name]

    async def page(self, query: LogQuery) -> Page:
        """See LogStore.page."""
        self._require_open()
        logs = [log for log in self._contents.logs.get(query.client_id, ()) if _asked(query, log)]
        if query.order == "desc":
            logs.reverse()
        texts: list[str] = []
        size = 0
        for log in logs[: query.limit]:
            text = _render(query.client_id, log)
            size += len(text)
            if texts and size > PAGE_BYTES_MAX:
                break
            texts.append(text)
        more = len(logs) > len(texts)
        return Page(",".join(texts), _id(logs[len(texts) - 1].place) if more else None)

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """See LogStore.usage."""
        self._require_open()
        sums: dict[tuple[str, Any], list[int]] = {}
        for (minute, client_id, key_id, dataset), counts in self._contents.usage.items():
            if query.client_id not in {None, client_id}:
                continue
            if query.start_minute is not None and minute < query.start_minute:
                continue
            if query.end_minute is not None and minute >= query.end_minute:
                continue
            names: dict[str, str | int] = {"key": key_id, "dataset": dataset}
            names |= {name: minute - minute % length for name, length in MINUTES.items()}
            total = sums.setdefault((client_id, names[query.group_by]), [0] * len(counts))
            total[:] = [a + b for a, b in zip(total, counts, strict=True)]
        return [UsageRow(*group, tuple(sums[group])) for group in sorted(sums)]

    async def ping(self) -> None:
        """See LogStore.ping."""
        self._require_open()

    async def aclose(self) -> None:
        """See LogStore.aclose."""
        self._open = False
        claims = self._contents.claims
        for name in [name for name, holder in claims.items() if holder is self]:
            del claims[name]

    def _require_open(self) -> None:
        if not self._open:
            raise StorageUnavailable("closed")

    def _find(self, name: Name, day: int) -> Position | None:
        """Return the log that has an external id already, unless that is too long ago."""
        known = self._contents.external_ids.get(name)
        return known if known and day - self._window <= known.day <= day + 1 else None


def _place(row: Row, day: int) -> Position:
    us, seq, *_ = row
    return Position(us, seq >> ARRIVAL_BITS, day, seq & ((1 << ARRIVAL_BITS) - 1))


def _id(place: Position) -> str:
    return format_id(place.us, place.day, place.seq)


def _asked(query: LogQuery, log: Log) -> bool:
    place = log.place
    if query.log_id not in {None, place}:
        return False
    instant, duration = place[:2], log.row[4]
    after = query.after
    if not (
        (query.start is None or query.start <= instant)
        and (query.end is None or instant < query.end)
        and (after is None or (place < after if query.order == "desc" else place > after))
    ):
        return False
    if query.min_duration_ms is not None and (
        duration is None or float(duration) < query.min_duration_ms
    ):
        return False
    dataset, environment, status, level, workflow = log.series
    values = {
        "dataset": dataset,
        "environment": environment,
        "status": status,
        "level": level,
        "workflow": workflow,
        "run_id": log.row[3],
    }
    if not all(values[name] in accepted for name, accepted in query.filters.items()):
        return False
    return query.matches_content(parse_exactly(_render(query.client_id, log)))


def _render(client_id: str, log: Log) -> str:
    dataset, environment, status, level, workflow = log.series
    _, seq, _, run_id, duration, external_id, message, error, metadata = log.row
    place = log.place
    members = {
        "id": _id(place),
        "client_id": client_id,
        "executed_at": format_instant(place.us, place.ns),
        "received_at": format_instant(received_us(place.day, seq)),
        "environment": environment,
        "status": status,
        "dataset": dataset,
        "level": level,
        "workflow": workflow,
        "run_id": run_id,
        "message": message,
        "duration_ms": Raw(duration) if isinstance(duration, str) else duration,
        "error": None if error is None else Raw(error),
        "external_id": external_id,
        "metadata": Raw("{}" if metadata is None else metadata),
    }
    return msgspec.json.encode(members).decode()
