"""What the routes of the control and query plane stand on."""

from dataclasses import dataclass

from sqlalchemy import Engine

from app.edge.auth import Authenticator
from app.edge.limits import Limiter
from app.edge.sightings import Sightings
from app.edge.tally import Tally
from app.keys.objects import RotationPolicy
from app.keys.verifier import Peppers
from app.logs.query import Cursors
from app.logs.store import LogStore
from app.pool import BoundedPool

# The control database takes one write at a time: more threads would only wait for its lock.
WRITE_THREADS = 1
# A write takes 5 to 20 ms: what is done within the wait below, unless the database is held up.
WRITES_QUEUE = 64
# Whoever waits for longer had better come again; most clients give up after 10 s.
WRITE_WAIT_S_MAX = 3.0


def open_writes() -> BoundedPool:
    """Open where routes write to the control database.

    Not in the loop's own threads: while another process holds the database, writes would take them
    all, and reads that nothing holds up would wait behind them.
    """
    return BoundedPool("writes", WRITE_THREADS, WRITES_QUEUE, wait_s_max=WRITE_WAIT_S_MAX)


@dataclass(frozen=True, slots=True)
class Services:
    """Opened by the lifespan, one of each a process."""

    authenticator: Authenticator
    limiter: Limiter
    tally: Tally
    sightings: Sightings
    store: LogStore
    cursors: Cursors
    engine: Engine
    writes: BoundedPool  # every write to the control database that a route makes
    activity: Engine
    peppers: Peppers
    key_hasher: str
    rotation_policy: RotationPolicy
