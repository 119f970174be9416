"""The protocol of a log store, owned by those who use it.

Implementations live in `app/storage/`: sqlite (embedded) and memory (a fake for tests). All pass
one contract suite, the files right in `tests/storage/`.
"""

from asyncio import Future
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.logs.aggregation import Aggregation, Cell
from app.logs.batch import Batch, Receipt, StoredOutcome
from app.logs.dead_letters import RejectedQuery
from app.logs.erasure import Erased
from app.logs.identity import ArrivalClock
from app.logs.place import STREAM_LOGS_MAX, Following, Place
from app.logs.query import LogQuery, Page, Portion, UsageQuery, UsageRow
from app.logs.retention import Expired, Policies
from app.logs.selection import Selection


class ClaimHeld(Exception):
    """Another request with the same Idempotency-Key is in flight."""


class LogStore(Protocol):
    """Durable, isolated storage of logs and of the usage they cause.

    Every method raises StorageUnavailable when the store can't serve now, also by a query that
    takes too long; reads raise Overloaded when too many wait already.
    """

    clock: ArrivalClock

    def append(self, batch: Batch) -> Awaitable[Receipt]:
        """Commit a batch with its usage and idempotency record; once awaited it is on disk.

        No coroutine by rule: a store may send the batch off at once, in the same turn of the loop.
        """
        ...

    def claim(self, client_id: str, key: str) -> AbstractAsyncContextManager[StoredOutcome | None]:
        """Hold a client's Idempotency-Key against all others until an append with it, or the end.

        Gives the outcome stored in the last 24 h, which anybody may have at any time, or None:
        then the holder may append with the key, once. Raises ClaimHeld while another holds it. A
        claim dies with its holder.
        """
        ...

    async def page(self, query: LogQuery) -> Page:
        """Return one page of a client's logs, rendered as JSON by the store."""
        ...

    async def aggregate(self, query: Aggregation) -> list[list[Cell]]:
        """Return the rows of a table, as `Groups` makes them; Invalid for one too large."""
        ...

    async def portion(self, query: LogQuery) -> Portion:
        """Return the next logs of an export, rendered as lines of JSON by the store."""
        ...

    async def follow(
        self, client_id: str, after: Place | None, limit: int = STREAM_LOGS_MAX
    ) -> Following:
        """Return a client's next logs after a place, in the order of their commits.

        It has `limit` logs at most, and fewer where STREAM_BYTES_MAX ends it. Without a place it
        returns the one behind all logs that are stored now, and no logs.
        """
        ...

    def next_commit(self, client_id: str) -> "Future[None]":
        """Return what is done once more logs of a client may have been stored since this call.

        Whoever calls this first, and `follow` then, misses nothing but what the store could not
        see: if a fault hides a commit, the future may come late.
        """
        ...

    async def rejected(self, query: RejectedQuery) -> Page:
        """Return one page of a client's rejected records, the newest first.

        Of each client and day of arrival the newest are kept, DAY_LETTERS_MAX at most.
        """
        ...

    async def erase(self, client_id: str, selection: Selection) -> Erased:
        """Erase a client's logs that are stored now; afterwards nothing reads them any more.

        A selection of all erases dead letters and idempotency records too. Later logs may be
        erased or stay. Usage stays. What fails or dies halfway has erased some: erasing again does
        the rest.
        """
        ...

    async def expire(self, policies: Policies, today: int) -> Expired:
        """Let go of logs and rejected records that have been kept for their time.

        Their usage stays, and so do the clients' own ids, for the window of deduplication. What
        fails halfway has let go of some; any number of workers may do the same at one time.
        """
        ...

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Return usage summed by group, in the group's order."""
        ...

    async def ping(self) -> None:
        """Return if the store takes writes now: the last one succeeded, or one more does."""
        ...

    async def aclose(self) -> None:
        """Let go of everything; what was appended is safe."""
        ...
