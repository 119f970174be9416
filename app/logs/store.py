"""The protocol of a log store, owned by those who use it.

Implementations live in `app/storage/`: sqlite (embedded) and memory (a fake for tests). All pass
one contract suite, `tests/storage/test_contract.py`.
"""

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.logs.batch import Batch, Receipt, StoredOutcome
from app.logs.identity import ArrivalClock
from app.logs.query import LogQuery, Page, UsageQuery, UsageRow


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

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Return usage summed by group, in the group's order."""
        ...

    async def ping(self) -> None:
        """Return if the store takes writes now: the last one succeeded, or one more does."""
        ...

    async def aclose(self) -> None:
        """Let go of everything; what was appended is safe."""
        ...
