"""What evidence of all kinds shares: texts cut to their columns, rows written many at once."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Table, TextualSelect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel

from app.journal import redacted

# The widths of the columns: PostgreSQL refuses what is longer.
KEY_ID_LENGTH_MAX = 64
SOURCE_IP_LENGTH_MAX = 45
USER_AGENT_LENGTH_MAX = 255
# One statement of many rows: a thread that steps through rows beside a busy event loop waits for
# the interpreter's lock at each. Well below the 32,766 values that SQLite binds.
_ROWS_MAX = 500

_Item = TypeVar("_Item")
# What becomes of each column that is not the row's name, of the row that is there and a new one.
Added = Callable[[Any, Any], dict[str, Any]]


def storable_address(address: str) -> str:
    """Cut an address to its column."""
    return _printable(address[:SOURCE_IP_LENGTH_MAX])


def storable_agent(user_agent: str) -> str:
    """Cut a user agent to its column.

    Some send a key as their user agent by mistake. It is looked for before the cut: of half a key
    nobody can tell that it is one.
    """
    return _printable(redacted(user_agent)[:USER_AGENT_LENGTH_MAX])


def storable_text(text: str) -> str:
    """Take out of a text what no column may hold: keys, and what PostgreSQL refuses."""
    return _printable(redacted(text))


def upsert(
    session: Session, model: type[SQLModel], rows: list[dict[str, Any]], added: Added | None
) -> None:
    """Insert rows, or add them to those that are there; without `added` those stay as they are.

    No row may be in `rows` twice.
    """
    table: Table = model.__table__  # type: ignore[attr-defined]
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    for some in chunks(rows):
        insert = (
            postgresql.insert(table).values(some)
            if is_postgresql
            else sqlite.insert(table).from_select(list(some[0]), _as_one_value(table, some))
        )
        names = list(table.primary_key)
        session.execute(
            insert.on_conflict_do_nothing(index_elements=names)
            if added is None
            else insert.on_conflict_do_update(
                index_elements=names, set_=added(table.c, insert.excluded)
            )
        )


def chunks(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Give items in portions for a statement each."""
    rest = iter(items)
    while some := list(islice(rest, _ROWS_MAX)):
        yield some


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


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
