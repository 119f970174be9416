"""What was gathered in memory, written every so often by a thread of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from app.edge import metrics
from app.errors import StorageUnavailable

LAST_FLUSH_S_MAX = 1.0  # a database that does not answer must not hold the stop
# How often what fails for no known reason is tried: it may be for what is in it, and then it would
# keep all that comes after it from being written.
TRIES_MAX = 3

log = structlog.get_logger(__name__)


class BackgroundWriter:
    """Calls `flush` again and again, and a last time at the stop; `write` is what that calls.

    `what` names what is written, in the log. The thread is its own: those of the loop's pool may
    all be waiting for something.
    """

    def __init__(self, what: str, flush: Callable[[], Awaitable[None]], every_s: float) -> None:
        self._kept = f"{what} are kept for the next time"
        self._lost = f"{what} are lost"
        self._flush = flush
        self._every_s = every_s
        self._is_failing = False
        self._faults = 0  # in a row, that nobody expected
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=what.replace(" ", "-"))
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    @property
    def is_stopping(self) -> bool:
        """Say whether this is the last time."""
        return self._stopping.is_set()

    async def write(self, work: Callable[[], None], count: int) -> bool:
        """Do it in the thread, and say whether it is over with: what is not is to be kept.

        `count` says how many are lost if it is given up. A database that is away is waited for;
        what fails otherwise is tried TRIES_MAX times in a row.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except StorageUnavailable as error:
            if not self._is_failing:  # once, not every second
                log.error(self._kept, reason=error.reason)  # noqa: TRY400
            self._is_failing = True
            return False
        except Exception:
            self._faults += 1
            if self._faults < TRIES_MAX:
                log.exception(self._kept)
                return False
            log.exception(self._lost, count=count)
            metrics.evidence_lost.inc(count)
        self._is_failing = False
        self._faults = 0
        return True

    async def _run(self) -> None:
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._every_s)
            is_last = self.is_stopping
            await self._flush()

    async def aclose(self) -> None:
        """Write the rest and stop."""
        self._stopping.set()
        if self._task is not None:
            # Not cancelled: of what a thread writes nobody would know whether it was written.
            await asyncio.wait([self._task], timeout=LAST_FLUSH_S_MAX)
        self._thread.shutdown(wait=False, cancel_futures=True)
