"""How much each key was used, when last, and from where: the evidence that a rotation rests on."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Engine, Table, TextualSelect, case, delete, func, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col

from app.journal import redacted
from app.keys.database import reading, writing
from app.keys.models import KeySource, KeyUse

# What an operator can look through; who uses a key from more places at once is a finding by itself.
SOURCES_PER_KEY_MAX = 20
# The widths of the columns: PostgreSQL refuses what is longer.
_KEY_ID_LENGTH_MAX = 64
_SOURCE_IP_LENGTH_MAX = 45
_USER_AGENT_LENGTH_MAX = 255
# One statement of many rows: a thread that steps through rows beside a busy event loop waits for
# the interpreter's lock at each. Well below the 32,766 values that SQLite binds.
_ROWS_MAX = 500

_Item = TypeVar("_Item")


class Sighting(NamedTuple):
    """Uses of one key from one place, as the requests named it.

    Without address and user agent only the key's requests are counted.
    """

    key_id: str
    source_ip: str
    user_agent: str
    requests: int
    first_at: datetime
    last_at: datetime

    @property
    def has_source(self) -> bool:
        """Say whether it is known where they came from."""
        return bool(self.source_ip or self.user_agent)


def record(engine: Engine, sightings: Iterable[Sighting]) -> None:
    """Add to what is known of the use of keys, in one transaction; raise StorageUnavailable.

    Of each key the latest sources are kept.
    """
    by_source = _merged(sightings)
    by_key: dict[str, list[Sighting]] = {}
    for one in by_source:
        by_key.setdefault(one.key_id, []).append(one)
    # Of more sources than are kept only these would survive.
    kept = [one for ones in by_key.values() for one in _latest(ones)]
    with writing(engine) as session:
        # The keys' rows first, in the order of their ids: of two workers that write of the same
        # keys one waits, never both, and a key's sources are only written by who has its row.
        uses = [_use_row(by_key[key_id]) for key_id in sorted(by_key)]
        _write(session, KeyUse, uses, _added_use)
        _write(session, KeySource, [_source_row(one) for one in kept], _added_source)
        for key_ids in _chunks(sorted({one.key_id for one in kept})):
            _prune(session, key_ids)


def read_uses(engine: Engine, key_ids: Iterable[str]) -> dict[str, KeyUse]:
    """Return the use of each of these keys that was ever used."""
    found: dict[str, KeyUse] = {}
    with reading(engine) as session:
        for some in _chunks(list(key_ids)):
            rows = session.scalars(select(KeyUse).where(col(KeyUse.key_id).in_(some)))
            found.update((use.key_id, use) for use in rows)
    return found


def read_sources(engine: Engine, key_id: str, since: datetime | None = None) -> list[KeySource]:
    """Return where a key was used from, the latest first; with `since`, only from then on."""
    last_seen_at = col(KeySource.last_seen_at)
    wanted = select(KeySource).where(col(KeySource.key_id) == key_id)
    if since is not None:
        wanted = wanted.where(last_seen_at >= since)
    order = (last_seen_at.desc(), col(KeySource.source_ip), col(KeySource.user_agent))
    with reading(engine) as session:
        return list(session.scalars(wanted.order_by(*order)))


def _merged(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Cut all to what is stored and make one of what is the same: no row may be touched twice."""
    merged: dict[tuple[str, str, str], Sighting] = {}
    for one in map(_storable, sightings):
        other = merged.get(one[:3])
        if other is not None:
            one = one._replace(  # noqa: PLW2901  # what it is together with the other
                requests=one.requests + other.requests,
                first_at=min(one.first_at, other.first_at),
                last_at=max(one.last_at, other.last_at),
            )
        merged[one[:3]] = one
    return list(merged.values())


def _storable(one: Sighting) -> Sighting:
    # Some send a key as their user agent by mistake. It is looked for before the cut: of half a key
    # nobody can tell that it is one.
    user_agent = redacted(one.user_agent)
    return one._replace(
        key_id=one.key_id[:_KEY_ID_LENGTH_MAX],
        source_ip=_printable(one.source_ip[:_SOURCE_IP_LENGTH_MAX]),
        user_agent=_printable(user_agent[:_USER_AGENT_LENGTH_MAX]),
    )


def _latest(sightings: list[Sighting]) -> list[Sighting]:
    known = [one for one in sightings if one.has_source]
    known.sort(key=lambda one: one.last_at, reverse=True)
    return known[:SOURCES_PER_KEY_MAX]


def _use_row(sightings: list[Sighting]) -> dict[str, Any]:
    last = max(sightings, key=lambda one: (one.has_source, one.last_at))
    return {
        "key_id": last.key_id,
        "requests": sum(one.requests for one in sightings),
        "first_used_at": min(one.first_at for one in sightings),
        "last_used_at": max(one.last_at for one in sightings),
        "last_source_ip": last.source_ip,
        "last_user_agent": last.user_agent,
    }


def _source_row(one: Sighting) -> dict[str, Any]:
    return {
        "key_id": one.key_id,
        "source_ip": one.source_ip,
        "user_agent": one.user_agent,
        "requests": one.requests,
        "first_seen_at": one.first_at,
        "last_seen_at": one.last_at,
    }


def _write(
    session: Session,
    model: type[SQLModel],
    rows: list[dict[str, Any]],
    added: Callable[[Any, Any], dict[str, Any]],
) -> None:
    """Insert rows, or add them to those that are there.

    Each worker writes by itself and none of them in order, so the later moment wins, whoever comes
    first.
    """
    table: Table = model.__table__  # type: ignore[attr-defined]
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    for some in _chunks(rows):
        insert = (
            postgresql.insert(table).values(some)
            if is_postgresql
            else sqlite.insert(table).from_select(list(some[0]), _as_one_value(table, some))
        )
        session.execute(
            insert.on_conflict_do_update(
                index_elements=list(table.primary_key), set_=added(table.c, insert.excluded)
            )
        )


def _as_one_value(table: Table, rows: list[dict[str, Any]]) -> TextualSelect:
    """Give rows to SQLite as one JSON text: the statement is then compiled once for all.

    Compiling one of as many values took 100 ms of the interpreter a thousand rows, beside the
    event loop.
    """
    names = list(rows[0])
    cells = [[_sqlite_value(row[name]) for name in names] for row in rows]
    columns = ", ".join(f"value ->> {place}" for place in range(len(names)))
    # Without a WHERE the ON that follows would be read as that of a join.
    source = text(f"SELECT {columns} FROM json_each(:rows) WHERE true")
    return source.bindparams(rows=json.dumps(cells)).columns(*(table.c[name] for name in names))


def _sqlite_value(value: Any) -> Any:
    """Write a moment as SQLAlchemy does for SQLite."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}" if isinstance(value, datetime) else value


# What becomes of each column that is not the row's name, of the row that is there and a new one.


def _added_source(old: Any, new: Any) -> dict[str, Any]:
    return {
        "requests": old.requests + new.requests,
        "first_seen_at": _earlier(old.first_seen_at, new.first_seen_at),
        "last_seen_at": _later(old.last_seen_at, new.last_seen_at),
    }


def _added_use(old: Any, new: Any) -> dict[str, Any]:
    # What came from nowhere that is known does not hide where the last one came from.
    is_known = (new.last_source_ip != "") | (new.last_user_agent != "")
    is_shown = is_known & (new.last_used_at >= old.last_used_at)
    return {
        "requests": old.requests + new.requests,
        "first_used_at": _earlier(old.first_used_at, new.first_used_at),
        "last_used_at": _later(old.last_used_at, new.last_used_at),
        "last_source_ip": case((is_shown, new.last_source_ip), else_=old.last_source_ip),
        "last_user_agent": case((is_shown, new.last_user_agent), else_=old.last_user_agent),
    }


def _earlier(one: Any, other: Any) -> Any:
    return case((other < one, other), else_=one)


def _later(one: Any, other: Any) -> Any:
    return case((other > one, other), else_=one)


def _prune(session: Session, key_ids: Sequence[str]) -> None:
    """Forget all but the latest sources of each of these keys."""
    name = (col(KeySource.key_id), col(KeySource.source_ip), col(KeySource.user_agent))
    place = func.row_number().over(
        partition_by=name[0], order_by=(col(KeySource.last_seen_at).desc(), *name[1:])
    )
    ranked = select(*name, place.label("place")).where(name[0].in_(key_ids)).subquery()
    beyond = select(*list(ranked.c)[:3]).where(ranked.c.place > SOURCES_PER_KEY_MAX)
    session.execute(
        delete(KeySource).where(tuple_(*name).in_(beyond)),
        execution_options={"synchronize_session": False},
    )


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _chunks(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    rest = iter(items)
    while some := list(islice(rest, _ROWS_MAX)):
        yield some
