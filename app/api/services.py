"""What the routes of the control and query plane stand on."""

from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import Engine

from app.api.reads import Reads, UseReads
from app.api.writes import Writes
from app.audit.book import Book
from app.audit.chain import ChainKeys
from app.edge.gate import Gate
from app.edge.tally import Tally
from app.errors import Overloaded, RateLimited
from app.keys.objects import RotationPolicy
from app.keys.verifier import Peppers
from app.logs.query import Cursors
from app.logs.store import LogStore
from app.logs.tail import Tails
from app.pool import BoundedPool
from app.protect.signing_keys import SigningKeys

# Each reads ahead and renders in a thread: a few of them keep the loop's threads free for pages.
EXPORTS_MAX = 4
# Of one client, so that another one finds a place.
EXPORTS_PER_CLIENT_MAX = 2
EXPORT_RETRY_S = 5
# A receipt waits for the slowest worker, and must not be refused: the key has been switched off.
RECEIPT_THREADS = 8
RECEIPTS_QUEUED_MAX = 10_000


class Exports:
    """Who exports now: each export holds some portions in memory, and takes turns at the reading.

    Without a bound the pages of others would wait behind them.
    """

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    def enter(self, client_id: str) -> None:
        """Begin an export; raise RateLimited for one too many of a client, Overloaded of all."""
        if self._running[client_id] >= EXPORTS_PER_CLIENT_MAX:
            raise RateLimited(["exports"], EXPORT_RETRY_S)
        if self._running.total() >= EXPORTS_MAX:
            raise Overloaded
        self._running[client_id] += 1

    def leave(self, client_id: str) -> None:
        """End one."""
        self._running[client_id] -= 1
        if not self._running[client_id]:
            del self._running[client_id]


def open_receipts() -> BoundedPool:
    """Open the threads that wait for workers."""
    return BoundedPool("receipts", RECEIPT_THREADS, RECEIPTS_QUEUED_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services(Gate):
    """Opened by the lifespan, one of each a process."""

    tally: Tally
    store: LogStore
    cursors: Cursors
    tails: Tails
    engine: Engine
    seals: ChainKeys  # of what is done
    books: tuple[Book, ...]  # the audit's
    reads: Reads  # of keys and clients
    use_reads: UseReads  # of the use of one key
    writes: Writes  # every write to the control database that a route makes
    receipts: BoundedPool  # which wait for workers
    activity: Engine
    peppers: Peppers
    signing_keys: SigningKeys
    key_hasher: str
    rotation_policy: RotationPolicy
    keys_per_client_max: int  # 0 = any number
    exports: Exports = field(default_factory=Exports)
