"""Where routes write to the control database: one at a time, and a place in the queue for each.

Not in the loop's own threads: while another process holds the database, writes would take them all,
and reads that nothing holds up would wait behind them.
"""

from app.keys.principal import Principal
from app.pool import Lane, LanedPool, Place

# The control database takes one write at a time: more threads would only wait for its lock.
WRITE_THREADS = 1
# Whoever waits for longer had better come again; most clients give up after 10 s.
WRITE_WAIT_S_MAX = 3.0

# A write takes 5 to 20 ms: all lanes together are done within the wait above, unless the database
# is held up. No client fills a lane alone, and what must not wait for any client has its own.
ORDINARY = Lane(64, 16)
ENDING = Lane(16, 4)
PLATFORM = Lane(32, 32)

# Whoever opens a claim link has no key; no client_id is like this.
CLAIMS = Place(ORDINARY, "*claims")
PLATFORM_OWNER = "*platform"


def place_of(caller: Principal, *, ends: bool = False) -> Place:
    """Return the place for a write of this key; `ends` is said of one that ends a key's use."""
    if caller.client_id is None:
        return Place(PLATFORM, PLATFORM_OWNER)
    return Place(ENDING if ends else ORDINARY, caller.client_id)


class Writes(LanedPool):
    """One thread, and lanes before it."""

    def __init__(self) -> None:
        super().__init__(
            "writes", WRITE_THREADS, (ORDINARY, ENDING, PLATFORM), wait_s_max=WRITE_WAIT_S_MAX
        )
