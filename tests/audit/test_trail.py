"""Events appended in a transaction, and read back."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import Session

from app.audit.book import Book
from app.audit.chain import CHAIN_STARTED, CONTROL, PLATFORM, Event
from app.audit.trail import EventFilter, append, read_events
from app.keys.database import reading, writing
from app.keys.sealing import chain_keys
from app.keys.token import mint
from tests.audit.books import FIRST, SECRETS, checker, event

KEYS = chain_keys(SECRETS)


def add(engine: Engine, *events: Event) -> None:
    """Append events in a transaction of their own."""
    with writing(engine) as session:
        append(session, KEYS, events)


def found(engine: Engine, **wanted: Any) -> list[tuple[str, int, str]]:
    """Read events: chain, number, actor."""
    with reading(engine) as session:
        return [(e.chain, e.seq, e.actor) for e in read_events(session, EventFilter(**wanted))]


def check_holds(engine: Engine) -> None:
    """Check all seals."""
    assert list(checker().check(Book(CONTROL, engine).sections())) == []


def test_each_chain_counts_by_itself(engine: Engine) -> None:
    """Events stand in the chain of their client in the order given, which the platform's tells."""
    add(engine, event(1), event(2, None), event(3))
    add(engine, event(4), event(5, "beta"))
    assert found(engine, chain="acme") == [
        *(("acme", 3, "actor 4"), ("acme", 2, "actor 3"), ("acme", 1, "actor 1"))
    ]
    assert len(found(engine, chain=PLATFORM, action=CHAIN_STARTED)) == 2
    check_holds(engine)


def test_what_is_rolled_back_leaves_no_trace(engine: Engine) -> None:
    """An event is there with the change that it tells of, or not at all."""
    add(engine, event(1))

    def fail(session: Session) -> None:
        append(session, KEYS, [event(2), event(3, "beta")])
        raise RuntimeError

    with pytest.raises(RuntimeError), writing(engine) as session:
        fail(session)
    assert [actor for _, _, actor in found(engine, chain="acme")] == ["actor 1"]
    add(engine, event(4))
    check_holds(engine)


def test_several_may_be_appended_in_one_transaction(engine: Engine) -> None:
    """Steps of one transaction each find the end that the one before has left."""
    with writing(engine) as session:
        for number in range(5):
            append(session, KEYS, [event(number)])
    assert [seq for _, seq, _ in found(engine, chain="acme")] == [5, 4, 3, 2, 1]
    check_holds(engine)


def test_of_many_writers_none_is_lost(engine: Engine) -> None:
    """Threads that append to old and new chains at one time all do, and every seal holds."""

    def write(number: int) -> None:
        add(engine, event(number, f"client-{number % 3}"), event(number, None))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(24)))
    assert len(found(engine, limit=100)) == 24 * 2 + 3
    check_holds(engine)


def test_pages_neither_skip_nor_repeat(engine: Engine) -> None:
    """Page by page, events of one moment included, each is read once, newest first."""
    add(engine, *(event(n // 4, f"c{n % 5}")._replace(actor=str(n)) for n in range(40)))
    pages: list[str] = []
    after = None
    while True:
        with reading(engine) as session:
            rows = read_events(session, EventFilter(action="key.updated", after=after, limit=7))
        if not rows:
            break
        pages += [row.actor for row in rows]
        after = (rows[-1].at, rows[-1].chain, rows[-1].seq)
    assert sorted(map(int, pages)) == list(range(40))
    assert [int(actor) // 4 for actor in pages] == [n // 4 for n in reversed(range(40))]


def test_bounds_of_time_are_half_open(engine: Engine) -> None:
    """From a moment on, and before another."""
    add(engine, *(event(n) for n in range(5)))
    bounds = {"since": FIRST + timedelta(seconds=1), "until": FIRST + timedelta(seconds=3)}
    assert [actor for *_, actor in found(engine, **bounds)] == ["actor 2", "actor 1"]


def test_texts_are_cut_to_their_columns_and_hold_no_key(engine: Engine) -> None:
    """A long or secret text is sealed as it is stored: cut, the key taken out before the cut."""
    key = mint("cl_live", "acme").text
    long = event(1)._replace(user_agent="x " * 115 + key, target="t" * 999, actor=key)
    add(engine, long)
    with reading(engine) as session:
        (row,) = read_events(session, EventFilter(chain="acme"))
    assert (len(row.target), row.actor) == (255, "[key redacted]")
    assert key[:30] not in row.user_agent
    check_holds(engine)
