"""Where routes read keys, clients and what is known of them: a place in the queue for each.

Not in the loop's own threads: whoever reads lists without end waits for its like alone, not before
the logs and claim links of others; and as with writes, no client takes the places of all.
"""

from app.api.writes import PLATFORM_OWNER
from app.keys.principal import Principal
from app.pool import Lane, LanedPool, Place

# Pages are rendered beside the event loop, under one interpreter: while two threads did nothing
# else, a log took 124 ms, beside one of them 32 ms.
READ_THREADS = 1
READ_WAIT_S_MAX = 3.0
# A full page takes some 100 ms: what one client may ask for at a time is read within a second.
READING = Lane(64, 8)
PLATFORM_READING = Lane(16, 16)

# One row of one key takes 1 ms.
USE_THREADS = 1
USE_WAIT_S_MAX = 1.0
TELLING = Lane(64, 8)
PLATFORM_TELLING = Lane(32, 32)


def reading_of(caller: Principal) -> Place:
    """Return the place for a read of this key."""
    if caller.client_id is None:
        return Place(PLATFORM_READING, PLATFORM_OWNER)
    return Place(READING, caller.client_id)


def telling_of(caller: Principal) -> Place:
    """Return the place for a look at the use of one key."""
    if caller.client_id is None:
        return Place(PLATFORM_TELLING, PLATFORM_OWNER)
    return Place(TELLING, caller.client_id)


class Reads(LanedPool):
    """A thread for pages and single rows, and lanes before it."""

    def __init__(self) -> None:
        super().__init__(
            "reads", READ_THREADS, (READING, PLATFORM_READING), wait_s_max=READ_WAIT_S_MAX
        )


class UseReads(LanedPool):
    """A thread for how one key is used, which no page stands before.

    What has been changed is told of its change by a reply that has this in it: it must wait for
    nobody's pages, and goes out without, rather than not at all.
    """

    def __init__(self) -> None:
        super().__init__(
            "use_reads",
            USE_THREADS,
            (TELLING, PLATFORM_TELLING),
            wait_s_max=USE_WAIT_S_MAX,
        )
