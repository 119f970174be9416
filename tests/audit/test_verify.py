"""Whatever was changed in a real database, or in an export of one, is found."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.audit.chain import ACTIVITY
from app.audit.export import Damaged, Export, write_export
from app.audit.trail import append
from app.audit.verify import Fault, Row, Section
from app.keys.database import writing
from app.keys.sealing import chain_keys
from app.sqlite import sqlite3
from tests.audit import books
from tests.audit.books import (
    PUBLIC_KEYS,
    SECRETS,
    changed,
    checker,
    faults,
    new_database,
    opened,
)

# 45 events and the beginnings of two chains.
EVENTS = 47
COLUMNS = {
    "audit_events": (
        *("chain", "seq", "at", "action", "actor", "client_id", "target", "source_ip"),
        *("user_agent", "request_id", "detail", "secret_id", "seal"),
    ),
    "audit_heads": ("chain", "seq", "seal", "secret_id", "head_seal"),
    "audit_checkpoints": ("chain", "seq", "at", "seal", "public_key", "signature"),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the file of a database with an audit."""
    return books.make(tmp_path_factory.mktemp("audit"))


def test_an_untouched_database_holds(stored: Path) -> None:
    """All is counted and nothing complained of, also of one chain alone."""
    check = checker()
    with opened(stored) as book:
        assert list(check.check(book.sections())) == []
    assert (check.events, check.chains) == (EVENTS, 3)
    assert faults(stored, "acme") == []


values = st.one_of(
    st.none(),
    st.integers(-5, 50),
    st.floats(allow_nan=False),
    st.binary(max_size=40),
    st.text(max_size=10),
    st.sampled_from(["*", "acme", "beta-2", "2026-06-01 12:00:00.000001", "2026-06-01"]),
)


def _rows(connection: sqlite3.Connection, table: str) -> list[Any]:
    names = ", ".join(f"typeof({name}), CAST({name} AS BLOB)" for name in COLUMNS[table])
    return connection.execute(f"SELECT {names} FROM {table} ORDER BY rowid").fetchall()


def _mutate(connection: sqlite3.Connection, table: str, draw: st.DataObject) -> None:
    """Do one thing to one row; sqlite3.IntegrityError for what the database itself refuses."""
    rowids = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]
    rowid, other = (draw.draw(st.sampled_from(rowids)) for _ in range(2))
    name = draw.draw(st.sampled_from(COLUMNS[table]))
    ways = ["set", "copy from", "swap", "insert", "not utf-8"]
    # Of a checkpoint's removal only copies of it tell: see the test of the log.
    ways += [] if table == "audit_checkpoints" else ["delete"]
    way = draw.draw(st.sampled_from(ways))
    if way == "delete":
        connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
    elif way == "set":
        value = draw.draw(values)
        connection.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (value, rowid))
    elif way == "not utf-8":
        connection.execute(
            f"UPDATE {table} SET {name} = CAST(x'ff41' AS TEXT) WHERE rowid = ?", (rowid,)
        )
    elif way == "copy from":
        connection.execute(
            f"UPDATE {table} SET {name} = (SELECT {name} FROM {table} WHERE rowid = ?)"
            " WHERE rowid = ?",
            (other, rowid),
        )
    elif way == "swap":
        # Everything but their places in the chain.
        names = [one for one in COLUMNS[table] if one not in {"chain", "seq"}]
        read = f"SELECT {', '.join(names)} FROM {table} WHERE rowid = ?"
        write = f"UPDATE {table} SET {', '.join(f'{one} = ?' for one in names)} WHERE rowid = ?"
        one, two = (connection.execute(read, (r,)).fetchone() for r in (rowid, other))
        connection.execute(write, (*one, other))
        connection.execute(write, (*two, rowid))
    else:
        rest = [one for one in COLUMNS[table] if one not in {"chain", "seq"}]
        chain = draw.draw(st.sampled_from(["*", "acme", "beta-2", "gamma", ""]))
        connection.execute(
            f"INSERT INTO {table} ({', '.join(COLUMNS[table])})"
            f" SELECT ?, ?, {', '.join(rest)} FROM {table} WHERE rowid = ?",
            (chain, draw.draw(st.integers(-3, 60)), rowid),
        )


@settings(max_examples=100)
@given(st.data(), st.sampled_from(sorted(COLUMNS)), st.integers(1, 3))
def test_any_change_of_rows_is_found(
    stored: Path, draw: st.DataObject, table: str, times: int
) -> None:
    """One to three writes to rows of any table, whatever they set, remove or insert, are found."""

    def change(connection: sqlite3.Connection) -> None:
        before = _rows(connection, table)
        try:
            for _ in range(times):
                _mutate(connection, table, draw)
        except (sqlite3.IntegrityError, sqlite3.OperationalError):
            assume(False)
        assume(_rows(connection, table) != before)

    assert faults(changed(stored, change))


def _only(found: list[Fault]) -> Fault:
    (fault,) = found
    return fault


def test_a_changed_event_is_named(stored: Path) -> None:
    """The fault names book, chain and event, once."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE audit_events SET actor = 'x' WHERE chain = 'acme' AND seq = 9")

    fault = _only(faults(changed(stored, change)))
    assert str(fault) == "control: chain 'acme', event 9: was changed, or put in"
    assert _only(faults(changed(stored, change), "acme")) == fault
    assert faults(changed(stored, change), "beta-2") == []


def test_no_fault_tells_a_terminal_what_to_do(stored: Path) -> None:
    """What was put in place of a number, a name or a secret's id is never shown raw."""
    evil = "\x1b[2J\u202e\n"

    def change(connection: sqlite3.Connection) -> None:
        for table in ("audit_events", "audit_heads", "audit_checkpoints"):
            row = f"(SELECT min(rowid) FROM {table} WHERE chain = 'acme')"
            connection.execute(f"UPDATE {table} SET seq = ? WHERE rowid = {row}", (evil,))
            row = f"(SELECT max(rowid) FROM {table} WHERE chain = 'beta-2')"
            connection.execute(f"UPDATE {table} SET chain = ? WHERE rowid = {row}", (evil,))
        connection.execute("UPDATE audit_events SET secret_id = ? WHERE seq = 3", (evil * 999,))

    told = [str(fault) for fault in faults(changed(stored, change))]
    told.append(str(Fault(evil, evil, b"\x1b", "is wrong")))
    assert any(r"event '\x1b[2J" in line for line in told)
    assert all(line.isprintable() and len(line) < 1000 for line in told)


def test_another_form_of_a_moment_is_told(stored: Path) -> None:
    """A time written otherwise is the same to us, but not to the order in which pages are read."""

    def change(connection: sqlite3.Connection) -> None:
        wanted = "UPDATE audit_events SET at = replace(at, ' ', 'T') WHERE actor = 'actor 4'"
        assert connection.execute(wanted).rowcount == 1

    assert faults(changed(stored, change))


def test_a_tail_that_is_cut_off_is_told_by_the_head(stored: Path) -> None:
    """Events that are gone from the end of a chain are missed by its head."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM audit_events WHERE chain = 'acme' AND seq > 14")

    assert _only(faults(changed(stored, change))).reason == "cut off: the end was sealed at 15"


def test_an_older_end_is_told_by_the_checkpoint(stored: Path, tmp_path: Path) -> None:
    """A tail cut off together with its head, an older one put back, is missed by a checkpoint."""
    young = tmp_path / "young"
    young.mkdir()
    with new_database(young) as engine:
        with writing(engine) as session:
            books.fill(session, range(20), SECRETS[1:])
        with engine.connect() as connection:
            wanted = "SELECT * FROM audit_heads WHERE chain = 'acme'"
            found = connection.exec_driver_sql(wanted).one()
    head = tuple(found)

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM audit_events WHERE chain = 'acme' AND seq > ?", (head[1],))
        connection.execute("DELETE FROM audit_heads WHERE chain = 'acme'")
        connection.execute("INSERT INTO audit_heads VALUES (?, ?, ?, ?, ?)", head)

    assert "one was signed at" in _only(faults(changed(stored, change))).reason


def test_what_is_appended_during_a_check_is_no_fault(tmp_path: Path) -> None:
    """Chains that grow, or begin, between any two steps of a check hold as all do."""
    path = books.make(tmp_path)
    with opened(path) as book:
        check = checker(announces=lambda _, chain: book.announces(chain))
        numbers = iter(range(100, 200))

        def append_meanwhile() -> None:
            number = next(numbers)
            with writing(book.engine) as session:
                fresh = books.event(number, f"{'abz'[number % 3]}-{number}")
                append(session, chain_keys(SECRETS), [fresh, books.event(number)])

        def growing(section: Section) -> Section:
            def rows() -> Iterator[Row]:
                for place, row in enumerate(section.rows):
                    if place < 3:
                        append_meanwhile()
                    yield row

            return section._replace(rows=rows())

        sections = (growing(one) if one.chain in books.CHAINS else one for one in book.sections())
        assert list(check.check(sections)) == []
    assert check.chains > len(books.CHAINS)


@pytest.mark.parametrize("chain", ["acme", "*"])
def test_a_whole_chain_that_is_gone_is_missed(stored: Path, chain: str) -> None:
    """A chain without a row left is known of by the platform's, and that one by all others."""

    def change(connection: sqlite3.Connection) -> None:
        for table in COLUMNS:
            connection.execute(f"DELETE FROM {table} WHERE chain = ?", (chain,))

    reasons = {fault.reason for fault in faults(changed(stored, change))}
    if chain == "acme":
        assert reasons == {"the whole chain is missing"}
        assert faults(changed(stored, change), "acme")
    else:
        assert reasons == {"its beginning is not in the platform's chain"}


def test_a_chain_of_another_book_is_told(tmp_path: Path) -> None:
    """The audit of one database can't stand for that of another."""
    path = books.make(tmp_path, ACTIVITY)
    with opened(path, ACTIVITY) as book:
        assert list(checker().check(book.sections())) == []
    assert faults(path)


def test_a_secret_that_is_gone_is_told(stored: Path) -> None:
    """Events under a secret that is no longer here can't be vouched for, and it is said."""
    with opened(stored) as book:
        found = list(checker(secrets=SECRETS[:1]).check(book.sections()))
    assert found
    assert all("secret that is not here" in fault.reason for fault in found)


# Exports.


def _export(path: Path, client_id: str | None = None) -> bytes:
    file = BytesIO()
    with opened(path) as book:
        counts = write_export(
            file, book.sections(client_id), chain_keys(SECRETS), PUBLIC_KEYS, client_id
        )
    assert counts == ((EVENTS, 3) if client_id is None else (15, 1))
    return file.getvalue()


def _faults_of(content: bytes) -> list[Fault]:
    export = Export(BytesIO(content), lambda book: chain_keys(SECRETS, book))
    assert export.is_export
    check = checker(is_whole=export.is_whole)
    return [*check.check(export.sections()), *export.faults()]


@pytest.fixture(scope="module")
def exported(stored: Path) -> bytes:
    """Give an export of all."""
    return _export(stored)


def test_an_export_holds_by_itself(stored: Path, exported: bytes) -> None:
    """All of it, and a client's part alone, can be checked without the database."""
    assert _faults_of(exported) == []
    own = _export(stored, "acme")
    assert _faults_of(own) == []
    assert b"beta-2" not in own
    assert {json.loads(line)["kind"] for line in own.splitlines()} == {
        *("export", "event", "checkpoint", "head", "end")
    }


@settings(max_examples=150)
@given(st.data())
def test_any_change_of_an_export_is_found(exported: bytes, data: st.DataObject) -> None:
    """A line of an export changed, moved, doubled or taken out is found."""
    lines = exported.splitlines(keepends=True)
    at, to = (data.draw(st.integers(1, len(lines) - 1)) for _ in range(2))
    way = data.draw(st.sampled_from(["byte", "move", "double", "remove", "cut", "field"]))
    if way == "byte":
        place = data.draw(st.integers(0, len(lines[at]) - 1))
        byte = data.draw(st.integers(32, 126))
        lines[at] = lines[at][:place] + bytes([byte]) + lines[at][place + 1 :]
    elif way == "move":
        lines.insert(to, lines.pop(at))
    elif way == "double":
        lines.insert(to, lines[at])
    elif way == "remove":
        del lines[at]
    elif way == "cut":
        del lines[at:]
    else:
        line = json.loads(lines[at])
        line[data.draw(st.sampled_from(sorted(line)))] = data.draw(
            st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
        )
        lines[at] = json.dumps(line).encode() + b"\n"
    assume(b"".join(lines) != exported)
    # A digit in hex has two forms, and JSON has spaces: those of the last line say nothing else.
    *others, end = exported.splitlines(keepends=True)
    assume(lines[:-1] != others or not _says_the_same(lines[-1], end))
    assert _faults_of(b"".join(lines))


def _says_the_same(line: bytes, end: bytes) -> bool:
    try:
        one, other = json.loads(line), json.loads(end)
        seals = [bytes.fromhex(found.pop("seal")) for found in (one, other)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return seals[0] == seals[1] and all(one.get(name) == other[name] for name in other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("target", []), ("target", {}), ("actor", 5), ("client_id", ["x"])),
        *(("book", "\ud800"), ("chain", "\ud800"), ("secret_id", "\udcff"), ("book", None)),
        *(("at", "0001-01-01T00:00:00+14:00"), ("at", 5), ("seq", 10**400), ("seq", True)),
    ],
)
@pytest.mark.parametrize("kind", ["audit.chain_started", "checkpoint", "head"])
def test_no_value_ends_the_check(exported: bytes, kind: str, name: str, value: object) -> None:
    """A line with a value that we never write is a fault, which can be printed, and no more."""
    lines = [json.loads(line) for line in exported.splitlines()]
    line = next(one for one in lines if kind in {one["kind"], one.get("action")})
    line[name] = value
    found = _faults_of(b"".join(json.dumps(one).encode() + b"\n" for one in lines))
    assert name in line
    assert found
    assert all(str(fault).isprintable() for fault in found)


@pytest.mark.parametrize("change", [{"events": 5}, {"chains": None}, {"events": float(EVENTS)}])
def test_the_last_line_tells_how_much_there_is(exported: bytes, change: dict[str, Any]) -> None:
    """Whoever reads the last line alone reads of what is in the file."""
    *others, end = exported.splitlines(keepends=True)
    found = _faults_of(b"".join([*others, json.dumps(json.loads(end) | change).encode()]))
    assert "last line" in _only(found).reason


def test_a_damaged_row_is_not_exported(stored: Path) -> None:
    """An export is of what was written by us, or there is none."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE audit_events SET at = 'soon' WHERE chain = 'acme' AND seq = 2")

    path = changed(stored, change)
    with opened(path) as book, pytest.raises(Damaged, match="event 2"):
        write_export(BytesIO(), book.sections(), chain_keys(SECRETS), PUBLIC_KEYS)
