"""The log store that forgets: a fake for tests, with the same answers as the real ones.

Stores over one `Contents` are to each other as the workers of one service.
"""

from asyncio import Future, get_running_loop
from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from time import time_ns
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from app.errors import StorageUnavailable
from app.logs.aggregation import Aggregation, Cell, Groups, decode_counted, group_of
from app.logs.batch import (
    DAY_LETTER_BYTES_LEFT,
    DAY_LETTER_BYTES_MAX,
    DAY_LETTERS_LEFT,
    DAY_LETTERS_MAX,
    ROW_EXTERNAL_ID,
    ROW_SERIES,
    Batch,
    DeadLetter,
    Receipt,
    Row,
    Series,
    StoredOutcome,
    UsageCounts,
    UsageKey,
    count_usage,
)
from app.logs.dead_letters import RejectedQuery, letter_place
from app.logs.erasure import Erased, Tally
from app.logs.identity import ARRIVAL_BITS, ArrivalClock, Position, format_id, received_us
from app.logs.place import (
    STREAM_BYTES_MAX,
    STREAM_LOGS_MAX,
    Following,
    Mark,
    Place,
    end_of_commit,
)
from app.logs.query import (
    MINUTES,
    PAGE_BYTES_MAX,
    PORTION_LOGS_MAX,
    LogQuery,
    Page,
    Portion,
    UsageQuery,
    UsageRow,
)
from app.logs.retention import FOR_EVER, Expired, Policies
from app.logs.search import parse_exactly
from app.logs.selection import Selection
from app.logs.store import ClaimHeld
from app.logs.timestamp import format_instant

OUTCOME_S_MAX = 24 * 3600

Name = tuple[str, str]  # a client, and an external id or an Idempotency-Key of it


class Log(NamedTuple):
    """A stored log; sorts by its place."""

    place: Position
    row: Row
    series: Series
    commit_no: int

    @property
    def mark(self) -> Mark:
        """Where it stands among the commits of its day."""
        return Mark(self.commit_no, self.place.us, self.place.seq)


class Letter(NamedTuple):
    """A rejected record."""

    day: int
    key_id: str
    letter: DeadLetter

    def render(self) -> str:
        """Give it as JSON."""
        letter = self.letter
        members = {
            "received_at": format_instant(received_us(self.day, letter.arrival)),
            "index": letter.index,
            "field": letter.field,
            "detail": letter.detail,
            "record": letter.record,
            "key_id": self.key_id,
        }
        return msgspec.json.encode(members).decode()


@dataclass
class Contents:
    """What is stored, and who claims what."""

    logs: dict[str, list[Log]] = field(default_factory=dict)
    external_ids: dict[Name, Position] = field(default_factory=dict)
    outcomes: dict[Name, tuple[int, StoredOutcome]] = field(default_factory=dict)
    rejected: dict[str, list[Letter]] = field(default_factory=dict)
    usage: dict[UsageKey, UsageCounts] = field(default_factory=dict)
    claims: dict[Name, "MemoryLogStore"] = field(default_factory=dict)
    commits: int = 0
    followed: dict[str, Future[None]] = field(default_factory=dict)


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
        contents.commits += 1
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
            kept[place] = Log(place, row, batch.series[row[ROW_SERIES]], contents.commits)
        logs = contents.logs.setdefault(batch.client_id, [])
        if len(kept) + len(duplicates) < len(batch.rows) or kept.keys() & {one[0] for one in logs}:
            raise StorageUnavailable("two logs cannot have one place")
        for log in kept.values():
            insort(logs, log, key=lambda one: one.place)
        contents.external_ids |= fresh
        self._keep(batch)
        count_usage(contents.usage, batch, [log.row for log in kept.values()])
        receipt = Receipt(len(duplicates), _id(duplicates[0]) if duplicates else None)
        if once is not None:
            outcome = StoredOutcome(once.digest, once.outcome, receipt)
            contents.outcomes[batch.client_id, once.key] = (time_ns(), outcome)
            del contents.claims[batch.client_id, once.key]
        if batch.client_id in contents.followed:
            contents.followed.pop(batch.client_id).set_result(None)
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
        texts, last_id = self._read(query)
        return Page(",".join(texts), last_id)

    async def portion(self, query: LogQuery) -> Portion:
        """See LogStore.portion."""
        texts, last_id = self._read(replace(query, limit=PORTION_LOGS_MAX))
        return Portion("".join(f"{text}\n" for text in texts).encode(), last_id)

    def _read(self, query: LogQuery) -> tuple[list[str], str | None]:
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
        return texts, _id(logs[len(texts) - 1].place) if more else None

    async def aggregate(self, query: Aggregation) -> list[list[Cell]]:
        """See LogStore.aggregate."""
        self._require_open()
        groups = Groups(query)
        for client_id, logs in self._contents.logs.items():
            asked = LogQuery(client_id, **query.members())
            if query.client_id in {None, client_id}:
                for log in logs:
                    if _asked(asked, log):
                        [counted] = decode_counted(f"[{_render(client_id, log)}]")
                        groups.add(*group_of(query, counted))
        return groups.table()

    async def rejected(self, query: RejectedQuery) -> Page:
        """See LogStore.rejected."""
        self._require_open()
        found: list[tuple[Position, str]] = []
        for letter in self._contents.rejected.get(query.client_id, ()):
            low, high = query.arrivals(letter.day)
            dataset = letter.letter.dataset
            if low <= letter.letter.arrival < high and dataset in query.filters.get(
                "dataset", (dataset,)
            ):
                found.append((letter_place(letter.day, letter.letter.arrival), letter.render()))
        found.sort(key=lambda one: one[0][2:], reverse=True)
        size, fit = 0, 0
        for _, text in found[: query.limit]:
            size += len(text)
            if fit and size > PAGE_BYTES_MAX:
                break
            fit += 1
        last_id = _id(found[fit - 1][0]) if fit < len(found) else None
        return Page(",".join(text for _, text in found[:fit]), last_id)

    def _keep(self, batch: Batch) -> None:
        """Keep rejected records; of too many of a day, the oldest go."""
        letters = self._contents.rejected.setdefault(batch.client_id, [])
        letters += [Letter(batch.day, batch.key_id, one) for one in batch.dead_letters]
        letters.sort(key=lambda one: (one.day, one.letter.arrival))
        today = [one for one in letters if one.day == batch.day]
        sizes = [len(one.letter.record.encode()) for one in today]
        if len(today) <= DAY_LETTERS_MAX and sum(sizes) <= DAY_LETTER_BYTES_MAX:
            return
        newest = accumulate(reversed(sizes))
        left = sum(
            number < DAY_LETTERS_LEFT and size <= DAY_LETTER_BYTES_LEFT
            for number, size in enumerate(newest)
        )
        for one in today[: len(today) - left]:
            letters.remove(one)

    async def follow(
        self, client_id: str, after: Place | None, limit: int = STREAM_LOGS_MAX
    ) -> Following:
        """See LogStore.follow."""
        self._require_open()
        stored = self._contents.logs.get(client_id, [])
        if after is None:
            day = max((log.place.day for log in stored), default=0)
            now = end_of_commit(self._contents.commits)
            return Following(Place(day, now, now), [])
        place = after
        logs: list[tuple[int, Mark, str]] = []
        size = 0
        for log in sorted(stored, key=lambda log: (log.place.day, log.mark)):
            day = log.place.day
            if after.has(day, log.mark):
                continue
            text = _render(client_id, log)
            size += len(text)
            if logs and (len(logs) >= limit or size > STREAM_BYTES_MAX):
                return Following(place, logs, more=True)
            place = place.at(day, log.mark)
            logs.append((day, log.mark, text))
        return Following(place, logs)

    def next_commit(self, client_id: str) -> Future[None]:
        """See LogStore.next_commit."""
        return self._contents.followed.setdefault(client_id, get_running_loop().create_future())

    async def erase(self, client_id: str, selection: Selection) -> Erased:
        """See LogStore.erase."""
        self._require_open()
        contents, tally = self._contents, Tally()
        asked = LogQuery(client_id, **selection.members())
        logs = contents.logs.get(client_id, [])
        gone = {log.place for log in logs if _asked(asked, log)}
        tally.add(_id(place) for place in sorted(gone))
        logs[:] = [log for log in logs if log.place not in gone]
        contents.external_ids = {
            name: place
            for name, place in contents.external_ids.items()
            if name[0] != client_id or place not in gone
        }
        if selection == Selection():
            contents.rejected.pop(client_id, None)
            ids = contents.external_ids.items()
            contents.external_ids = {name: one for name, one in ids if name[0] != client_id}
            outcomes = contents.outcomes.items()
            contents.outcomes = {name: one for name, one in outcomes if name[0] != client_id}
        return tally.total()

    async def expire(self, policies: Policies, today: int) -> Expired:
        """See LogStore.expire."""
        self._require_open()
        count = 0
        for client_id, logs in self._contents.logs.items():
            is_over = policies.get(client_id, FOR_EVER).is_over
            kept = [log for log in logs if not is_over(log.series[0], today - log.place.day)]
            count += len(logs) - len(kept)
            logs[:] = kept
        for client_id, letters in self._contents.rejected.items():
            is_over = policies.get(client_id, FOR_EVER).is_over
            letters[:] = [
                one for one in letters if not is_over(one.letter.dataset, today - one.day)
            ]
        return Expired(logs=count)

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
            if query.datasets is not None and dataset not in query.datasets:
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
    after = query.after
    if after is not None and not (place < after if query.order == "desc" else place > after):
        return False
    return query.matches(parse_exactly(_render(query.client_id, log)))


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
