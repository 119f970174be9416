"""Requests of one plain log each, decoded and committed together once a turn of the event loop.

A request spends most of its time on code that is cold again by the time the next one comes. What
many requests of one turn have in common (decoding, building rows, a batch for the store, a wait for
its receipt) is therefore done once for all of them. Nobody waits for company: a group is what
a turn and one more look at the sockets hold, and a lone request is a group of one.

Only what is plain takes this way: a record that needs a second look, or has an id of its own, is
handed back to be stored by itself, so that there is one place for every fault.
"""

import asyncio
import time
from collections.abc import Iterable
from copy import copy
from functools import partial
from typing import NamedTuple

from app.edge import metrics
from app.errors import StorageUnavailable
from app.keys.principal import Principal
from app.logs.batch import Batch, Receipt
from app.logs.decode import decode_singles
from app.logs.identity import ARRIVAL_MASK, SLOT_BITS, format_id, received_us
from app.logs.record import LogRecord
from app.logs.rows import Rows, build_rows
from app.logs.store import LogStore
from app.logs.timestamp import US_PER_MINUTE, format_instant

# Beyond this a body's own decoding outweighs what is shared.
SINGLE_BYTES_MAX = 16 * 1024


class _Waiting(NamedTuple):
    principal: Principal
    client_id: str
    body: bytes
    stored: "asyncio.Future[bytes | None]"


class _Group(NamedTuple):
    """Logs on their way to the store; `arrival` is the first of the run that they got."""

    members: list[_Waiting]
    built: Rows
    batch: Batch
    arrival: int


def is_candidate(body: bytes, bytes_max: int) -> bool:
    """Say whether a body may be one plain log: an object from its first to its last byte."""
    return len(body) <= bytes_max and body[:1] == b"{" and body[-1:] == b"}"


class Singles:
    """Gathers requests over a turn of the loop."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []
        self._commits: set[asyncio.Future[Receipt]] = set()

    def join(
        self, principal: Principal, client_id: str, body: bytes
    ) -> "asyncio.Future[bytes | None]":
        """Store a candidate with the others of this turn.

        The future gives the reply once the log is on disk, or None for a body that has to be
        stored by itself; it raises what LogStore.append raises.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # After one more look at the sockets: nothing to a lone request, and larger groups took
            # a tenth off a busy worker's CPU.
            loop.call_soon(loop.call_soon, self._store_all)
        stored: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append(_Waiting(principal, client_id, body, stored))
        return stored

    def _store_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            for members, records in _grouped(waiting):
                self._send_off(members, records)
        except Exception as error:
            _fail(waiting, error)
            raise

    def _send_off(self, members: list[_Waiting], records: list[LogRecord]) -> None:
        """Hand a group to the store; every member gets an answer, whatever happens."""
        day, arrival = self._store.clock.take(len(records))
        built = build_rows([*records], members[0].principal.allowed_datasets, arrival)
        for index, _ in built.rejections:
            _hand_back(members[index])
        if not built.rows:
            return
        group = _Group(members, built, _batch(members, built, day, arrival), arrival)
        commit = asyncio.ensure_future(self._store.append(group.batch))
        self._commits.add(commit)
        commit.add_done_callback(partial(self._committed, group, time.perf_counter()))

    def _committed(
        self, group: "_Group", started: float, commit: "asyncio.Future[Receipt]"
    ) -> None:
        self._commits.discard(commit)
        if commit.cancelled():
            _fail(group.members, StorageUnavailable("the service stops"))
        elif (error := commit.exception()) is not None:
            _fail(group.members, error)
        else:
            metrics.count_commit(group.batch, commit.result(), time.perf_counter() - started)
            _tell(group)


def _grouped(waiting: list[_Waiting]) -> Iterable[tuple[list[_Waiting], list[LogRecord]]]:
    """Decode all and group them as they may be stored; hand back what has to be stored by itself.

    A batch is of one key and one dataset, since usage is counted by them; and of one principal,
    not only of its key: a request that was slow to arrive may have been authenticated before the
    key's datasets were narrowed, and another after it.
    """
    groups: dict[tuple[int, str, str | None], tuple[list[_Waiting], list[LogRecord]]] = {}
    for one, record in zip(waiting, decode_singles([one.body for one in waiting]), strict=True):
        if record is None or record.id is not None:
            _hand_back(one)
            continue
        name = (id(one.principal), one.client_id, record.dataset)
        members, records = groups.setdefault(name, ([], []))
        members.append(one)
        records.append(record)
    return groups.values()


def _batch(members: list[_Waiting], built: Rows, day: int, arrival: int) -> Batch:
    rejected = {index for index, _ in built.rejections}
    return Batch(
        client_id=members[0].client_id,
        key_id=members[0].principal.key_id,
        day=day,
        minute=received_us(day, arrival) // US_PER_MINUTE,
        rows=built.rows,
        series=built.series,
        requests=len(built.rows),
        bytes=sum(len(one.body) for i, one in enumerate(members) if i not in rejected),
    )


def _tell(group: _Group) -> None:
    """Answer those whose logs are on disk; nothing in the reply needs escaping."""
    members, day, client_id = group.members, group.batch.day, group.batch.client_id
    for us, seq, *_ in group.built.rows:
        # The rows are sorted by time; a row's arrival tells whose it is.
        stored = members[((seq & ARRIVAL_MASK) - group.arrival) >> SLOT_BITS].stored
        if not stored.done():  # a member whose request was given up is stored all the same
            log_id, received_at = format_id(us, day, seq), format_instant(received_us(day, seq))
            reply = f'{{"id":"{log_id}","client_id":"{client_id}","received_at":"{received_at}"}}'
            stored.set_result(reply.encode())


def _hand_back(one: _Waiting) -> None:
    if not one.stored.done():  # its request may have been given up, which is no matter of others
        one.stored.set_result(None)


def _fail(members: list[_Waiting], error: BaseException) -> None:
    for one in members:
        if not one.stored.done():
            # Each its own: an exception grows a traceback wherever it is raised.
            one.stored.set_exception(copy(error))
