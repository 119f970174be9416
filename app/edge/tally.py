"""Usage of requests that store nothing: counted in memory, committed every second.

The usage of stored logs is committed with them. What is here (refusals, bad bodies) is lost with a
`kill -9` of its last second, and nothing else is.
"""

import asyncio
import time
from contextlib import suppress

import structlog

from app.edge import metrics
from app.errors import StorageUnavailable
from app.keys.principal import Principal
from app.logs.batch import Batch
from app.logs.store import LogStore

FLUSH_S = 1.0
LAST_FLUSH_S_MAX = 1.0  # a store that does not answer must not hold the stop
# A store that is away must not make this grow without end: older minutes are given up first.
ENTRIES_MAX = 10_000

log = structlog.get_logger(__name__)


class Tally:
    """Counts of this process that are not in the store yet."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._batches: dict[tuple[int, str, str], Batch] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to flush."""
        self._task = asyncio.create_task(self._run())

    def count(self, principal: Principal, *, requests: int = 0, denied: int = 0) -> None:
        """Count a request that failed, or one that was denied, of a known client."""
        if principal.client_id is None:
            return
        minute = int(time.time() // 60)
        name = (minute, principal.client_id, principal.key_id)
        batch = self._batches.get(name)
        if batch is None:
            if len(self._batches) >= ENTRIES_MAX:
                del self._batches[next(iter(self._batches))]
            batch = Batch(principal.client_id, principal.key_id, minute // 1440, minute)
            self._batches[name] = batch
        batch.requests += requests
        batch.denied += denied

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                metrics.hand_over()
                await self.flush()
            except Exception:
                log.exception("counts are kept for the next time")

    async def flush(self) -> None:
        """Commit what was counted; keep it for the next time if the store is away."""
        for name in list(self._batches):
            batch = self._batches.pop(name, None)
            if batch is None:
                continue  # given up while another was on its way
            try:
                await self._store.append(batch)
            except StorageUnavailable:
                newer = self._batches.setdefault(name, batch)
                if newer is not batch:  # counted while this one was on its way
                    newer.requests += batch.requests
                    newer.denied += batch.denied
                return

    async def aclose(self) -> None:
        """Commit the rest and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH_S_MAX):
                await self.flush()
