"""Which workers accept keys, and up to which change each of them knows the keys.

A key that was switched off fails on its next request in every worker, since each looks for changes
before it believes what it remembers. What is here proves that they all did, and says when.

**Why a report can be believed.** A change and its generation are one commit to the control
database. A worker (1) reads the generation, g; (2) then checks its keys, on the event loop; (3)
then reports g. The check sees every commit before it, g's among them, and empties the cache unless
an earlier check has done so for that commit. Nothing older comes back: the keyring reads a row and
remembers it without a pause between, so what it remembers after the check was read after it. The
other way round, check and then read, a change between both would be reported without having been
seen. A change between (1) and (2) is seen and not reported: the count of changes was taken before
(1), so it differs at the next look and the three steps begin anew.

So once every worker has reported g or more, each request that begins is checked against keys as of
g or later. A worker that is not counted makes no difference to that: one that starts remembers
nothing yet, one that is gone answers nobody, and one that stood still for longer than LIVE_S checks
before its next request, as it always does.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Engine, delete, select
from sqlmodel import col

from app.columns import utc_now
from app.errors import StorageUnavailable
from app.keys.database import reading, writing
from app.keys.models import Generation, Worker
from app.keys.objects import iso_time

# A look costs 6 µs; it is what a revocation waits for.
LOOK_S = 0.02
HEARTBEAT_S = 1.0
# Two heartbeats may be late before a worker is taken for dead.
LIVE_S = 3.0
FORGOTTEN_S = 60.0
# Neither may a database that does not answer hold up for longer.
START_S_MAX = 1.0
STOP_S_MAX = 1.0
POLL_S = 0.005

_T = TypeVar("_T")

log = logging.getLogger(__name__)


class Keys(Protocol):
    """What a worker remembers of the keys."""

    def check(self) -> int:
        """Look for changes, now; return how many times any were seen."""


class Receipt(NamedTuple):
    """The proof that a change of keys is in force everywhere; without `effective_at` it is none."""

    effective_at: datetime | None
    workers: int  # that confirmed it
    ms: float
    unconfirmed: int
    is_known: bool = True  # else none could be counted, and 1 stands for those that may be there

    def as_object(self) -> dict[str, Any]:
        """Show it."""
        return {
            "effective_at": iso_time(self.effective_at),
            "workers": self.workers,
            "ms": self.ms,
            "unconfirmed": self.unconfirmed,
        }


class Presence:
    """This process among the workers."""

    def __init__(self, control: Engine, activity: Engine, keys: Keys) -> None:
        self._control = control
        self._activity = activity
        self._keys = keys
        self._worker_id = uuid4()
        # None = not known, or not written: to be done.
        self._changes: int | None = None
        self._reported: int | None = None
        self._written_s = 0.0
        self._is_failing = False
        # A thread of its own: those of the loop's pool may all be waiting for this very report.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="presence")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Enter this worker before it answers anybody, and keep it entered.

        A database that fails is logged and tried again: no log waits for it.
        """
        entered = asyncio.Event()
        self._task = asyncio.create_task(self._run(entered))
        with suppress(TimeoutError):
            await asyncio.wait_for(entered.wait(), START_S_MAX)

    async def aclose(self) -> None:
        """Leave."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            leaving = self._in_thread(partial(_leave, self._activity, self._worker_id))
            await asyncio.wait_for(leaving, STOP_S_MAX)
        except (StorageUnavailable, TimeoutError):
            log.warning("this worker is still listed, for %.0f s", LIVE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, entered: asyncio.Event) -> None:
        while True:
            try:
                await self._look()
                self._is_failing = False
            except StorageUnavailable as error:
                if not self._is_failing:  # once, not at each try
                    log.error("changes of keys are not confirmed: %s", error.reason)  # noqa: TRY400
                self._failed()
            except Exception:
                log.exception("changes of keys are not confirmed")
                self._failed()
            entered.set()
            await asyncio.sleep(HEARTBEAT_S if self._is_failing else LOOK_S)

    def _failed(self) -> None:
        self._is_failing = True
        self._changes = None

    async def _look(self) -> None:
        """Report what has changed, in the order argued above, and that this worker lives."""
        changes = self._keys.check()
        generation = self._reported
        if changes != self._changes or generation is None:
            generation = await self._in_thread(partial(_read_generation, self._control))
            self._keys.check()
            self._changes = changes
        now_s = time.monotonic()
        if generation != self._reported or now_s - self._written_s >= HEARTBEAT_S:
            await self._in_thread(partial(_enter, self._activity, self._worker_id, generation))
            self._reported = generation
            self._written_s = now_s

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def await_dropped(
    control: Engine,
    activity: Engine,
    generation: int,
    *,
    is_served: bool,
    timeout_s: float = 2.0,
) -> Receipt:
    """Wait until every live worker has dropped what it knew of the keys before a generation.

    `is_served` says that there are workers, so that their absence from the list proves nothing:
    where it can't be written, all of them look dead.

    A database that fails, or a worker that is late, is in the receipt and no error: the change is
    made, only its proof is missing. Raises ValueError for a generation that is not committed yet.
    """
    started_s = time.monotonic()
    confirmed, unconfirmed = 0, 0
    try:
        if _read_generation(control) < generation:
            raise ValueError("a generation is waited for after its commit")
        while True:
            confirmed, unconfirmed = _confirmations(activity, generation)
            if not unconfirmed and (confirmed or not is_served):
                return Receipt(_next_ms(), confirmed, _ms_since(started_s), 0)
            if time.monotonic() - started_s >= timeout_s:
                break
            time.sleep(POLL_S)
    except StorageUnavailable as error:
        log.warning("what workers know of the keys cannot be read: %s", error.reason)
        confirmed, unconfirmed = 0, 0
    is_known = bool(confirmed or unconfirmed)
    return Receipt(None, confirmed, _ms_since(started_s), unconfirmed or 1, is_known)


def _read_generation(control: Engine) -> int:
    with reading(control) as session:
        return session.get_one(Generation, 1).value


def _enter(activity: Engine, worker_id: UUID, generation: int) -> None:
    now = utc_now()
    with writing(activity) as session:
        session.merge(Worker(worker_id=worker_id, generation=generation, seen_at=now))
        # Those that were killed.
        gone = col(Worker.seen_at) < now - timedelta(seconds=FORGOTTEN_S)
        session.execute(delete(Worker).where(gone))


def _leave(activity: Engine, worker_id: UUID) -> None:
    with writing(activity) as session:
        session.execute(delete(Worker).where(col(Worker.worker_id) == worker_id))


def _confirmations(activity: Engine, generation: int) -> tuple[int, int]:
    """Count the live workers that have reported a generation, and those that have not."""
    live = col(Worker.seen_at) >= utc_now() - timedelta(seconds=LIVE_S)
    with reading(activity) as session:
        known = session.scalars(select(col(Worker.generation)).where(live)).all()
    confirmed = sum(one >= generation for one in known)
    return confirmed, len(known) - confirmed


def _next_ms() -> datetime:
    """Give the present as replies show it, rounded up: a moment too early would be no proof."""
    return utc_now() + timedelta(milliseconds=1)


def _ms_since(started_s: float) -> float:
    return round((time.monotonic() - started_s) * 1000, 1)
