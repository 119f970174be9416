"""One worker signs the audit's checkpoints."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event

from app.activity.notary import Notary, books_of
from app.audit.checkpoints import Signer
from app.audit.models import AuditCheckpoint, AuditEvent, AuditHead
from app.audit.trail import append
from app.keys.database import writing
from app.keys.sealing import chain_keys
from tests.audit import books
from tests.audit.books import CHAINS, FAR, SECRETS, fill
from tests.support import eventually

SIGNER = Signer(bytes(32))


@pytest.fixture(autouse=True)
def _no_audit(engine: Engine) -> None:
    with writing(engine) as session:
        for table in (AuditEvent, AuditHead, AuditCheckpoint):
            session.execute(delete(table))


def _count(engine: Engine) -> int:
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT count(*) FROM audit_checkpoints").scalar_one()
    return int(found)


def _grow(engine: Engine, numbers: range = range(3)) -> None:
    with writing(engine) as session:
        fill(session, numbers, SECRETS)


def test_one_of_several_signs(engine: Engine, tmp_path: Path) -> None:
    """Who holds the lock signs; when it has gone, by whatever end, another one does."""
    books = books_of(engine, engine)
    one, other = (Notary(books, SIGNER, tmp_path) for _ in range(2))
    _grow(engine)
    assert one.sign(FAR) == len(CHAINS)
    _grow(engine, range(3, 6))
    assert other.sign(FAR) == 0
    asyncio.run(one.aclose())
    assert _count(engine) == 2 * len(CHAINS)
    _grow(engine, range(6, 9))
    assert other.sign(FAR) == len(CHAINS)
    asyncio.run(other.aclose())


def test_nothing_new_is_not_written(engine: Engine, tmp_path: Path) -> None:
    """A look at chains that are signed writes nothing: a write would empty every cache of keys."""
    notary = Notary(books_of(engine, engine), SIGNER, tmp_path)
    _grow(engine)
    notary.sign(FAR)
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2].split()[0])

    event.listen(engine, "before_cursor_execute", note)
    assert notary.sign(FAR) == 0
    assert notary.sign(datetime.now(UTC)) == 0
    event.remove(engine, "before_cursor_execute", note)
    assert set(statements) <= {"BEGIN", "SELECT"}
    asyncio.run(notary.aclose())


def test_it_begins_by_itself(engine: Engine, tmp_path: Path) -> None:
    """A new chain is signed soon after the start."""
    _grow(engine)

    async def scenario() -> None:
        notary = Notary(books_of(engine, engine), SIGNER, tmp_path, first_s_max=0.01)
        notary.start()
        await asyncio.to_thread(eventually, lambda: _count(engine), len(CHAINS).__eq__)
        await notary.aclose()

    asyncio.run(scenario())


def test_a_database_that_is_held_holds_up_no_stop(engine: Engine, tmp_path: Path) -> None:
    """At a stop it signs if it can at once, and leaves it for the next start if not."""
    _grow(engine)
    notary = Notary(books_of(engine, engine), SIGNER, tmp_path)
    began = datetime.now(UTC)
    with writing(engine):
        asyncio.run(notary.aclose())
        assert (datetime.now(UTC) - began).total_seconds() < 4
    assert _count(engine) in {0, len(CHAINS)}


def test_chains_hold_on_either_database(engine: Engine) -> None:
    """Writers of old and new chains at one time all get their place, and every seal holds."""
    (book,) = books_of(engine, engine)

    def write(number: int) -> None:
        with writing(engine) as session:
            ours = (books.event(number, f"client-{number % 5}"), books.event(number, None))
            append(session, chain_keys(SECRETS), ours)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(20)))
    sign = books.sign(engine)
    check = books.checker()
    assert list(check.check(book.sections())) == []
    assert (check.events, check.chains, sign) == (45, 6, 6)
