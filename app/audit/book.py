"""The chains of one database, read in portions while others write to it.

Rows are read as the driver gives them: what somebody wrote into them need not be of the type that
its column promises, and is to be told of, not to end the walk.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event, text

from app.audit.chain import CHAIN_STARTED, PLATFORM, Checkpoint, Event, Head, Link
from app.audit.verify import Row, Section, Unreadable

# Each portion is one short transaction: a long one would hold up the file's housekeeping.
PORTION_ROWS = 500
_FIRST_SEQ = -(2**63)

_TABLES = ("audit_events", "audit_heads", "audit_checkpoints")
_NAMES = " UNION ".join(f"SELECT DISTINCT chain FROM {table}" for table in _TABLES)
_COLUMNS = ", ".join(("chain", "seq", *Event._fields, "secret_id", "seal"))
_LINKS = (
    f"SELECT {_COLUMNS} FROM audit_events WHERE chain = :chain AND seq {{sign}} :after"
    " ORDER BY seq LIMIT :limit"
)
_CHECKPOINTS = (
    f"SELECT {', '.join(Checkpoint._fields)} FROM audit_checkpoints"
    " WHERE chain = :chain AND seq {sign} :after {upper} ORDER BY seq"
)
_HEAD = f"SELECT {', '.join(Head._fields)} FROM audit_heads WHERE chain = :chain"


class _Portion(NamedTuple):
    """Events, each with its number as it is stored, and what belongs to them."""

    links: list[tuple[Any, Row]]
    checkpoints: list[Checkpoint | Unreadable]
    head: list[Row]
    is_last: bool


class Book(NamedTuple):
    """A database and the name by which its chains are sealed."""

    name: str
    engine: Engine
    portion_rows: int = PORTION_ROWS

    def sections(self, chain: str | None = None) -> Iterator[Section]:
        """Give its chains, or one of them, each to be read to its end before the next."""
        if chain is not None:
            if chain in self._names() or self.announces(chain):
                yield Section(self.name, chain, self._rows(chain))
            return
        # Once more at the end: the platform's chain may have told of one that was not there yet.
        seen: set[object] = set()
        for _ in range(2):
            for name in self._names():
                if name not in seen:
                    yield self._section(name)
                seen.add(name)

    def announces(self, name: str, action: str = CHAIN_STARTED) -> bool:
        """Say whether the platform's chain tells of the beginning of another, or of a book."""
        wanted = text(
            "SELECT 1 FROM audit_events WHERE chain = :platform AND action = :action"
            " AND target = :name LIMIT 1"
        )
        values = {"name": name, "platform": PLATFORM, "action": action}
        with self.engine.connect() as connection:
            return connection.execute(wanted, values).first() is not None

    def seal_at(self, chain: str, seq: int) -> object:
        """Give the seal of an event; None if there is no such event."""
        wanted = text("SELECT seal FROM audit_events WHERE chain = :chain AND seq = :seq")
        with self.engine.connect() as connection:
            return connection.execute(wanted, {"chain": chain, "seq": seq}).scalar()

    def _names(self) -> list[object]:
        """List all chains in their order, at last what is no name."""
        with self.engine.connect() as connection:
            found = list(connection.execute(text(_NAMES)).scalars())
        return sorted(found, key=lambda name: (not _is_text(name), repr(name)))

    def _section(self, name: object) -> Section:
        if isinstance(name, str) and _is_text(name):
            return Section(self.name, name, self._rows(name))
        fault = Unreadable(0, "the name of the chain is no text")
        return Section(self.name, repr(name), iter([fault]))

    def _rows(self, chain: str) -> Iterator[Row]:
        sign, after = ">=", _FIRST_SEQ
        while True:
            with self.engine.connect() as connection:
                links, checkpoints, head, is_last = self._portion(connection, chain, sign, after)
            waiting = iter(checkpoints)
            checkpoint = next(waiting, None)
            for raw, row in links:
                yield row
                while checkpoint is not None and _is_up_to(checkpoint.seq, raw):
                    yield checkpoint
                    checkpoint = next(waiting, None)
            if checkpoint is not None:
                yield checkpoint
                yield from waiting
            if is_last:
                yield from head
                return
            sign, after = ">", links[-1][0]

    def _portion(self, connection: Connection, chain: str, sign: str, after: Any) -> _Portion:
        """Read events and the checkpoints up to the last of them, and at the end the head.

        All as of one moment: what is appended meanwhile comes with a head of its own.
        """
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        place = {"chain": chain, "after": after}
        wanted = text(_LINKS.format(sign=sign))
        found = connection.execute(wanted, {**place, "limit": self.portion_rows}).all()
        # What is no number can't be gone on from; that it is there is told, and is fault enough.
        is_last = len(found) < self.portion_rows or not isinstance(found[-1][1], int)
        upper = "" if is_last else "AND seq <= :last"
        bounds = place if is_last else {**place, "last": found[-1][1]}
        signed = connection.execute(text(_CHECKPOINTS.format(sign=sign, upper=upper)), bounds).all()
        head = connection.execute(text(_HEAD), {"chain": chain}).all() if is_last else []
        links = [(row[1], _link(tuple(row))) for row in found]
        return _Portion(
            links,
            [_checkpoint(tuple(row)) for row in signed],
            [_head(tuple(row)) for row in head],
            is_last,
        )


def read_as_it_is(engine: Engine) -> None:
    """Have text read that is no UTF-8, which SQLite alone lets somebody put there."""

    def on_connect(connection: Any, _record: Any) -> None:
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")

    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", on_connect)


def _is_text(name: object) -> bool:
    try:
        return isinstance(name, str) and bool(name.encode())
    except UnicodeEncodeError:
        return False


def _is_up_to(seq: object, last: object) -> bool:
    return isinstance(seq, int) and isinstance(last, int) and seq <= last


def _link(values: tuple[Any, ...]) -> Row:
    chain, seq, at, *texts, secret_id, seal = values
    moment = _moment(at)
    client_id = texts[2]
    named = [*texts[:2], *texts[3:], secret_id]
    if (
        moment is None
        or not isinstance(seq, int)
        or not isinstance(seal, bytes)
        or not all(isinstance(one, str) for one in named)
        or not isinstance(client_id, str | None)
    ):
        return Unreadable(seq, "is not what can have been written")
    return Link(chain, seq, Event(moment, *texts), secret_id, seal)


def _checkpoint(values: tuple[Any, ...]) -> Checkpoint | Unreadable:
    chain, seq, at, *rest = values
    moment = _moment(at)
    if moment is None or not isinstance(seq, int) or not all(isinstance(b, bytes) for b in rest):
        return Unreadable(seq, "its checkpoint is not what can have been written")
    return Checkpoint(chain, seq, moment, *rest)


def _head(values: tuple[Any, ...]) -> Row:
    head = Head(*values)
    are_bytes = isinstance(head.seal, bytes) and isinstance(head.head_seal, bytes)
    if not (isinstance(head.seq, int) and isinstance(head.secret_id, str) and are_bytes):
        return Unreadable(head.seq, "the end of the chain is not what can have been written")
    return head


def _moment(value: object) -> datetime | None:
    """Read a moment, which SQLite has as text; None for any other text than is written there."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is None or moment.strftime("%Y-%m-%d %H:%M:%S.%f") != value:
        return None
    return moment.replace(tzinfo=UTC)
