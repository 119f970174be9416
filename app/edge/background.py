"""What was gathered in memory, written every so often by a thread of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from app.errors import StorageUnavailable

LAST_FLUSH_S_MAX = 1.0  # a database that does not answer must not hold the stop

log = structlog.get_logger(__name__)


class BackgroundWriter:
    """Calls `flush` again and again, and a last time at the stop; `write` is what that calls.

    `what` names what is written, in the log. The thread is its own: those of the loop's pool may
    all be waiting for something.
    """

    def __init__(self, what: str, flush: Callable[[], Awaitable[None]], every_s: float) -> None:
        self._what = what
        self._flush = flush
        self._every_s = every_s
        self._is_failing = False
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

    async def write(self, work: Callable[[], None]) -> bool:
        """Do it in the thread, and say whether it was done: what was not is to be kept."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except StorageUnavailable as error:
            if not self._is_failing:  # once, not every second
                log.error(self._kept, reason=error.reason)  # noqa: TRY400
        except Exception:
            log.exception(self._kept)
        else:
            self._is_failing = False
            return True
        self._is_failing = True
        return False

    @property
    def _kept(self) -> str:
        return f"{self._what} are kept for the next time"

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
