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
from typing import NamedTuple, Protocol

from app.edge import metrics
from app.edge.auth import Authenticator
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
# The store commits one group while the next is decoded: with all of 64 connections in one group,
# worker and store waited for each other a third of the time.
GROUP_MAX = 16


class Member(Protocol):
    """A request of a group: one of the three is called once, in the end."""

    principal: Principal
    client_id: str
    body: bytes

    def stored(self, reply: bytes, dataset: str) -> None:
        """Learn that the log is on disk, in which dataset, and what to tell the client."""

    def handed_back(self) -> None:
        """Learn that the log has to be stored by itself."""

    def failed(self, error: BaseException) -> None:
        """Learn that the log may not be on disk; the error is that of LogStore.append."""


class Stored(NamedTuple):
    """What the client is to be told of its log, and the dataset that it is in."""

    reply: bytes
    dataset: str


class _Awaited:
    """A request whose task waits."""

    __slots__ = ("body", "client_id", "principal", "reply")

    def __init__(self, principal: Principal, client_id: str, body: bytes) -> None:
        self.principal = principal
        self.client_id = client_id
        self.body = body
        self.reply: asyncio.Future[Stored | None] = asyncio.get_running_loop().create_future()

    # A task that was given up waits no more; its log is stored all the same.

    def stored(self, reply: bytes, dataset: str) -> None:
        if not self.reply.done():
            self.reply.set_result(Stored(reply, dataset))

    def handed_back(self) -> None:
        if not self.reply.done():
            self.reply.set_result(None)

    def failed(self, error: BaseException) -> None:
        if not self.reply.done():
            # Each its own: an exception grows a traceback wherever it is raised.
            self.reply.set_exception(copy(error))


class _Group(NamedTuple):
    """Logs on their way to the store; `arrival` is the first of the run that they got."""

    members: list[Member]
    built: Rows
    batch: Batch
    arrival: int


def is_candidate(body: bytes, bytes_max: int) -> bool:
    """Say whether a body may be one plain log: an object from its first to its last byte."""
    return len(body) <= bytes_max and body[:1] == b"{" and body[-1:] == b"}"


class Singles:
    """Gathers requests over a turn of the loop."""

    def __init__(self, store: LogStore, authenticator: Authenticator) -> None:
        self._store = store
        self._authenticator = authenticator
        self._waiting: list[Member] = []
        self._key_changes = 0
        self._commits: set[asyncio.Future[Receipt]] = set()

    def join(
        self, principal: Principal, client_id: str, body: bytes
    ) -> "asyncio.Future[Stored | None]":
        """Store a candidate with the others of this turn.

        The future gives the reply once the log is on disk, or None for a body that has to be
        stored by itself; it raises what LogStore.append raises.
        """
        member = _Awaited(principal, client_id, body)
        self.add(member)
        return member.reply

    def add(self, member: Member) -> None:
        """Store a candidate with the others of this turn."""
        if not self._waiting:
            self._key_changes = self._authenticator.key_changes
            asyncio.get_running_loop().call_soon(self._store_all)
        self._waiting.append(member)
        if len(self._waiting) >= GROUP_MAX:
            self._store_all()

    def _store_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:  # they were many, and are under way
            return
        if self._authenticator.check_keys() != self._key_changes:
            for member in waiting:
                member.handed_back()
            return
        try:
            for members, records in _grouped(waiting):
                self._send_off(members, records)
        except Exception as error:
            _fail(waiting, error)
            raise

    def _send_off(self, members: list[Member], records: list[LogRecord]) -> None:
        """Hand a group to the store; every member gets an answer, whatever happens."""
        day, arrival = self._store.clock.take(len(records))
        built = build_rows([*records], members[0].principal.allowed_datasets, arrival)
        for index, _ in built.rejections:
            members[index].handed_back()
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


def _grouped(waiting: list[Member]) -> Iterable[tuple[list[Member], list[LogRecord]]]:
    """Decode all and group them as they may be stored; hand back what has to be stored by itself.

    A batch is of one key and one dataset, since usage is counted by them; and of one principal,
    not only of its key: a request that was slow to arrive may have been authenticated before the
    key's datasets were narrowed, and another after it.
    """
    groups: dict[tuple[int, str, str | None], tuple[list[Member], list[LogRecord]]] = {}
    for one, record in zip(waiting, decode_singles([one.body for one in waiting]), strict=True):
        if record is None or record.id is not None:
            one.handed_back()
            continue
        name = (id(one.principal), one.client_id, record.dataset)
        members, records = groups.setdefault(name, ([], []))
        members.append(one)
        records.append(record)
    return groups.values()


def _batch(members: list[Member], built: Rows, day: int, arrival: int) -> Batch:
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
    dataset = group.built.series[0][0]  # it is the same for all
    for us, seq, *_ in group.built.rows:
        # The rows are sorted by time; a row's arrival tells whose it is.
        member = members[((seq & ARRIVAL_MASK) - group.arrival) >> SLOT_BITS]
        log_id, received_at = format_id(us, day, seq), format_instant(received_us(day, seq))
        reply = f'{{"id":"{log_id}","client_id":"{client_id}","received_at":"{received_at}"}}'
        member.stored(reply.encode(), dataset)


def _fail(members: list[Member], error: BaseException) -> None:
    for member in members:
        member.failed(error)
