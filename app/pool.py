"""Threads for work that must not pile up: a few of them, a short queue, and no more.

And lanes before them, where what one asks for must not take the places of all others.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import NamedTuple, ParamSpec, TypeVar

from app.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


class BoundedPool:
    """`threads` work at once and `queue` wait; Overloaded for the next, and who waits too long."""

    def __init__(
        self, name: str, threads: int, queue: int, *, wait_s_max: float | None = None
    ) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._places = BoundedSemaphore(threads + queue)
        self._wait_s_max = wait_s_max

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread do it; raise Overloaded if no place is left in the queue."""
        if not self._places.acquire(blocking=False):
            raise Overloaded
        job = self._executor.submit(work, *args, **kwargs)
        job.add_done_callback(lambda _: self._places.release())
        return job

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Have a thread do it, and wait for the result; raise Overloaded and never do it.

        What has begun is waited for, however long it takes: it may be done in the end, and the
        caller is told so. What has not begun when the caller goes away is not done.
        """
        job = self.submit(work, *args, **kwargs)
        future = asyncio.wrap_future(job)
        try:
            await asyncio.wait([future], timeout=self._wait_s_max)
        finally:
            is_dropped = job.cancel()  # nothing that has begun
        if is_dropped:
            raise Overloaded
        return await future

    def close(self) -> None:
        """Drop what waits."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Lane(NamedTuple):
    """So many jobs of a kind may be under way, and so many of them of one owner."""

    places: int
    places_each: int


class Place(NamedTuple):
    """Whose job it is, and which lane it takes."""

    lane: Lane
    owner: str


class LanedPool:
    """A pool with lanes before it, no two of them alike. Belongs to one event loop."""

    def __init__(
        self,
        name: str,
        threads: int,
        lanes: Collection[Lane],
        *,
        wait_s_max: float | None = None,
    ) -> None:
        places = sum(lane.places for lane in lanes)
        self._pool = BoundedPool(name, threads, places, wait_s_max=wait_s_max)
        self._taken = Counter[Lane | Place]()

    async def run(self, place: Place, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a job and wait for it, as BoundedPool.run; Overloaded if its lane is full."""
        lane = place.lane
        if self._taken[lane] >= lane.places or self._taken[place] >= lane.places_each:
            raise Overloaded
        self._taken.update((lane, place))
        try:
            return await self._pool.run(work, *args, **kwargs)
        finally:
            self._taken.subtract((lane, place))
            if not self._taken[place]:
                del self._taken[place]  # it is not to grow by every client there was

    def close(self) -> None:
        """Drop what waits."""
        self._pool.close()
