"""A real database with an audit in it, and what a check of it says."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from app.audit.book import Book, read_as_it_is
from app.audit.chain import CONTROL, PLATFORM, Event, detail_text
from app.audit.checkpoints import due, store
from app.audit.trail import append
from app.audit.verify import Checker, Fault
from app.keys.database import embedded_url, open_engine, sqlite_engine, upgrade, writing
from app.keys.sealing import chain_keys, signers
from app.sqlite import sqlite3

SECRETS = ["the present secret of these tests", "the former secret of these tests"]
FIRST = datetime(2026, 6, 1, 12, tzinfo=UTC)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
CHAINS = (PLATFORM, "acme", "beta-2")
PUBLIC_KEYS = [one.public_key for one in signers(SECRETS)]

Change = Callable[[sqlite3.Connection], object]


def event(number: int, client_id: str | None = "acme", action: str = "key.updated") -> Event:
    """Make an event that no other number has."""
    return Event(
        at=FIRST + timedelta(seconds=number),
        action=action,
        actor=f"actor {number}",
        client_id=client_id,
        target=f"target {number}",
        source_ip="192.0.2.7",
        user_agent="agent / 1.0 ü",
        request_id=f"{number:024x}",
        detail=detail_text({"name": [None, f"name {number}"]}),
    )


def fill(session: Session, numbers: range, secrets: list[str], book: str = CONTROL) -> None:
    """Append events to each chain in turn."""
    clients = [None if chain == PLATFORM else chain for chain in CHAINS]
    append(session, chain_keys(secrets, book), [event(n, clients[n % 3]) for n in numbers])


def sign(engine: Engine, book: str = CONTROL, secrets: list[str] = SECRETS) -> int:
    """Sign the ends of all chains that grew."""
    with writing(engine) as session:
        return store(session, book, signers(secrets)[0], due(engine, FAR))


@contextmanager
def new_database(directory: Path) -> Iterator[Engine]:
    """Open a new database."""
    engine = open_engine(embedded_url(directory))
    upgrade(engine)
    yield engine
    engine.dispose()


def make(directory: Path, book: str = CONTROL) -> Path:
    """Make a database whose chains are of two secrets, with checkpoints of both."""
    with new_database(directory) as engine:
        for numbers, secrets in ((range(20), SECRETS[1:]), (range(20, 40), SECRETS)):
            with writing(engine) as session:
                fill(session, numbers, secrets, book)
            assert sign(engine, book, secrets) == len(CHAINS)
        with writing(engine) as session:
            fill(session, range(40, 45), SECRETS, book)
    path = directory / "control.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # so that the file is all of it
    return path


def changed(path: Path, change: Change) -> Path:
    """Give a copy of a database that somebody has written to."""
    copy = path.with_name("changed.db")
    shutil.copyfile(path, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        change(connection)
    return copy


@contextmanager
def opened(path: Path, book: str = CONTROL) -> Iterator[Book]:
    """Open a database as the command does; its portions are small."""
    engine = sqlite_engine(path)
    read_as_it_is(engine)
    yield Book(book, engine, portion_rows=4)
    engine.dispose()


def checker(*, secrets: list[str] = SECRETS, **options: Any) -> Checker:
    """Give a check with all secrets."""
    return Checker(partial(chain_keys, secrets), PUBLIC_KEYS, **options)


def faults(path: Path, chain: str | None = None) -> list[Fault]:
    """Check a database, or a chain of it."""
    with opened(path) as book:
        return list(checker(is_whole=chain is None).check(book.sections(chain)))
