"""Where routes write to the control database: one at a time, and a place in the queue for each.

Not in the loop's own threads: while another process holds the database, writes would take them all,
and reads that nothing holds up would wait behind them.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from app.errors import Overloaded
from app.keys.principal import Principal
from app.pool import BoundedPool

# The control database takes one write at a time: more threads would only wait for its lock.
WRITE_THREADS = 1
# Whoever waits for longer had better come again; most clients give up after 10 s.
WRITE_WAIT_S_MAX = 3.0

P = ParamSpec("P")
T = TypeVar("T")


class Lane(NamedTuple):
    """So many writes of a kind may be under way, and so many of them of one client."""

    places: int
    places_each: int


# A write takes 5 to 20 ms: all lanes together are done within the wait above, unless the database
# is held up. No client fills a lane alone, and what must not wait for any client has its own.
ORDINARY = Lane(64, 16)
ENDING = Lane(16, 4)
PLATFORM = Lane(32, 32)


class Place(NamedTuple):
    """Whose write it is, and which lane it takes."""

    lane: Lane
    owner: str


# Whoever opens a claim link has no key; no client_id is like this.
CLAIMS = Place(ORDINARY, "*claims")


def place_of(caller: Principal, *, ends: bool = False) -> Place:
    """Return the place for a write of this key; `ends` is said of one that ends a key's use."""
    if caller.client_id is None:
        return Place(PLATFORM, "*platform")
    return Place(ENDING if ends else ORDINARY, caller.client_id)


class Writes:
    """One thread, and lanes before it. Belongs to one event loop."""

    def __init__(self) -> None:
        places = sum(lane.places for lane in (ORDINARY, ENDING, PLATFORM))
        self._pool = BoundedPool("writes", WRITE_THREADS, places, wait_s_max=WRITE_WAIT_S_MAX)
        self._taken = Counter[Lane | Place]()

    async def run(self, place: Place, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a write and wait for it, as BoundedPool.run; Overloaded if its lane is full."""
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
