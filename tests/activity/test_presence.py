"""Workers that say what they know of the keys, and who waits for it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, select

from app.activity.database import open_activity
from app.activity.presence import FORGOTTEN_S, LIVE_S, Presence, await_dropped
from app.columns import utc_now
from app.keys.changes import advance
from app.keys.configured import ConfiguredKeys
from app.keys.database import embedded_url, open_engine, reading, upgrade, writing
from app.keys.keyring import Keyring
from app.keys.lifecycle import deactivate_key
from app.keys.models import Client, Generation, Worker
from app.keys.objects import iso_time
from app.keys.principal import UNLIMITED
from app.keys.registry import create_key
from app.keys.verifier import Peppers
from tests.support import BY, DEADLINE_S

T = TypeVar("T")
PEPPERS = Peppers(["the only secret of this test suite"])


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Engine]:
    """Give a migrated control database."""
    engine = open_engine(embedded_url(tmp_path))
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def activity(control: Engine) -> Iterator[Engine]:
    """Give the database that workers are listed in."""
    engine = open_activity(control)
    yield engine
    engine.dispose()


@contextmanager
def keyring_on(control: Engine) -> Iterator[Keyring]:
    """Open the keys of one worker."""
    keyring = Keyring(control, PEPPERS, UNLIMITED, ConfiguredKeys(PEPPERS, {}))
    try:
        yield keyring
    finally:
        keyring.close()


async def present(presence: Presence, scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario while a worker is present."""
    await presence.start()
    try:
        return await scenario
    finally:
        await presence.aclose()


async def until(happened: Callable[[], object]) -> None:
    """Wait until something is true; fail if it does not become so."""
    async with asyncio.timeout(DEADLINE_S):
        while not happened():  # noqa: ASYNC110  # what it waits for is in a database
            await asyncio.sleep(0.005)


def listed(activity: Engine) -> list[Worker]:
    """Read who is listed."""
    with reading(activity) as session:
        return list(session.exec(select(Worker)))


def enlist(activity: Engine, generation: int, *, seen_s_ago: float = 0.0) -> None:
    """List a worker that does nothing."""
    with writing(activity) as session:
        seen_at = utc_now() - timedelta(seconds=seen_s_ago)
        session.add(Worker(generation=generation, seen_at=seen_at))


def change(control: Engine) -> int:
    """Commit a change of keys."""
    with writing(control) as session:
        return _change(session)


def _change(session: Session) -> int:
    client_id = f"client-{session.get_one(Generation, 1).value}"
    session.add(Client(client_id=client_id, name="new"))
    return advance(session)


def test_a_worker_comes_and_goes(control: Engine, activity: Engine) -> None:
    """A worker is listed before its start ends, with what it knows, and not after its end."""
    generation = change(control)

    async def look() -> list[Worker]:
        return listed(activity)

    with keyring_on(control) as keyring:
        [worker] = asyncio.run(present(Presence(control, activity, keyring), look()))
    assert worker.generation == generation
    assert utc_now() - worker.seen_at < timedelta(seconds=DEADLINE_S)
    assert listed(activity) == []


def test_a_worker_stays_listed(control: Engine, activity: Engine) -> None:
    """A worker that nothing happens to says again and again that it lives."""

    async def look() -> None:
        await until(lambda: listed(activity))  # at once, unless the machine is very busy
        [first] = listed(activity)
        await until(lambda: listed(activity)[0].seen_at > first.seen_at)

    with keyring_on(control) as keyring:
        asyncio.run(present(Presence(control, activity, keyring), look()))


def test_a_revocation_is_confirmed(control: Engine, activity: Engine) -> None:
    """The receipt follows the moment at which no worker accepts the key, and counts them."""
    key, text = create_key(control, PEPPERS, by=BY, create_client=True, client_id="acme", name="n")

    async def revoke(keyrings: list[Keyring]) -> None:
        for keyring in keyrings:
            assert (await keyring.resolve(text)).key_id == key.key_id
        before = utc_now()
        generation = deactivate_key(control, key.key_id, by=BY).generation
        receipt = await asyncio.to_thread(
            await_dropped,
            control,
            activity,
            generation,
            is_served=True,
            timeout_s=DEADLINE_S,
        )
        assert receipt.effective_at is not None
        assert before < receipt.effective_at <= utc_now() + timedelta(milliseconds=1)
        assert (receipt.workers, receipt.unconfirmed) == (2, 0)
        # `recalled` looks at nothing but what is remembered.
        assert [keyring.recalled(keyring.digest(text)) for keyring in keyrings] == [None, None]

    with keyring_on(control) as one, keyring_on(control) as other:
        scenario = present(Presence(control, activity, other), revoke([one, other]))
        asyncio.run(present(Presence(control, activity, one), scenario))


class CountingKeys:
    """Keys that know which generation the last check could see."""

    def __init__(self, control: Engine) -> None:
        self.known = 0
        self._control = control
        self._changes = 0

    def check(self) -> int:
        """See every commit before this call."""
        with reading(self._control) as session:
            generation = session.get_one(Generation, 1).value
        self._changes += generation != self.known
        self.known = generation
        return self._changes


def test_nothing_is_reported_before_it_was_seen(control: Engine, activity: Engine) -> None:
    """However changes fall, no worker reports a generation that its last check came before."""
    keys = CountingKeys(control)
    stop = threading.Event()

    def keep_changing() -> None:
        while not stop.is_set():
            change(control)

    async def compare() -> None:
        changing = asyncio.create_task(asyncio.to_thread(keep_changing))
        try:
            reports: set[int] = set()
            while len(reports) < 40:
                # No other coroutine runs between these two: what is known cannot grow meanwhile.
                [worker] = listed(activity)
                assert worker.generation <= keys.known
                reports.add(worker.generation)
                await asyncio.sleep(0)
        finally:
            stop.set()
            await changing

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await present(Presence(control, activity, keys), compare())

    asyncio.run(bounded())


class LateKeys(CountingKeys):
    """Keys that change between the reading of a generation and the check that follows it."""

    def __init__(self, control: Engine) -> None:
        super().__init__(control)
        self._engine = control
        self.checks = 0

    def check(self) -> int:
        """Change the keys just before the second check."""
        self.checks += 1
        if self.checks == 2:
            change(self._engine)
        return super().check()


def test_a_change_between_the_steps_comes_round_again(control: Engine, activity: Engine) -> None:
    """A change that only the check behind the reading saw is reported all the same."""
    change(control)
    keys = LateKeys(control)

    async def look() -> None:
        await until(lambda: [one.generation for one in listed(activity)] == [2])

    asyncio.run(present(Presence(control, activity, keys), look()))


def test_a_worker_that_does_not_confirm(control: Engine, activity: Engine) -> None:
    """A live worker that reports nothing is named, and then nothing is proven."""
    generation = change(control)
    enlist(activity, generation - 1)
    enlist(activity, generation)
    receipt = await_dropped(control, activity, generation, is_served=False, timeout_s=0.05)
    assert receipt.ms >= 50
    assert receipt.as_object() == {
        "effective_at": None,
        "workers": 1,
        "ms": receipt.ms,
        "unconfirmed": 1,
    }


def test_without_workers(control: Engine, activity: Engine) -> None:
    """Where nobody accepts keys a change is in force at once; the dead are not waited for."""
    generation = change(control)
    enlist(activity, generation - 1, seen_s_ago=LIVE_S + 0.1)
    receipt = await_dropped(control, activity, generation, is_served=False)
    assert receipt.effective_at is not None
    assert receipt.as_object() == {
        "effective_at": iso_time(receipt.effective_at),
        "workers": 0,
        "ms": receipt.ms,
        "unconfirmed": 0,
    }


def test_an_empty_list_proves_nothing_where_there_are_workers(
    control: Engine, activity: Engine
) -> None:
    """While a server runs, workers that can't be seen are not taken for absent ones."""
    generation = change(control)
    enlist(activity, generation, seen_s_ago=LIVE_S + 0.1)
    receipt = await_dropped(control, activity, generation, is_served=True, timeout_s=0.05)
    assert (receipt.effective_at, receipt.workers, receipt.unconfirmed) == (None, 0, 1)


def test_the_dead_are_forgotten(control: Engine, activity: Engine) -> None:
    """Whoever was killed is taken off the list by a worker that lives."""
    enlist(activity, 0, seen_s_ago=FORGOTTEN_S + 1)
    enlist(activity, 0, seen_s_ago=FORGOTTEN_S - DEADLINE_S)

    async def look() -> int:
        return len(listed(activity))

    with keyring_on(control) as keyring:
        assert asyncio.run(present(Presence(control, activity, keyring), look())) == 2


def test_a_generation_to_come(control: Engine, activity: Engine) -> None:
    """Who waits before the commit is told of the mistake."""
    with pytest.raises(ValueError, match="after its commit"):
        await_dropped(control, activity, change(control) + 1, is_served=False)


def test_a_broken_list(control: Engine, activity: Engine, tmp_path: Path) -> None:
    """A list that cannot be used stops no worker and no revocation; nothing is proven then."""
    (tmp_path / "activity.db").write_bytes(b"not a database" * 1000)

    async def revoke() -> None:
        generation = change(control)
        receipt = await asyncio.to_thread(
            await_dropped, control, activity, generation, is_served=True
        )
        assert (receipt.effective_at, receipt.workers, receipt.unconfirmed) == (None, 0, 1)

    with keyring_on(control) as keyring:
        asyncio.run(present(Presence(control, activity, keyring), revoke()))


def test_a_list_that_is_removed(control: Engine, activity: Engine, tmp_path: Path) -> None:
    """A worker enters the new list by itself, and then confirms what changes."""

    async def look() -> None:
        (tmp_path / "activity.db").unlink()
        await until(lambda: len(listed(activity)) == 1)
        receipt = await asyncio.to_thread(
            await_dropped, control, activity, change(control), is_served=True, timeout_s=DEADLINE_S
        )
        assert (receipt.workers, receipt.unconfirmed) == (1, 0)

    with keyring_on(control) as keyring:
        asyncio.run(present(Presence(control, activity, keyring), look()))


def test_a_report_that_fails_is_made_again(
    control: Engine, activity: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A change whose report could not be written is reported later, though nothing else changes."""

    async def look() -> None:
        with writing(activity) as session:
            session.connection().exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE UPDATE ON workers "
                "BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        generation = change(control)
        await until(lambda: "changes of keys are not confirmed" in caplog.text)
        assert listed(activity)[0].generation < generation
        with writing(activity) as session:
            session.connection().exec_driver_sql("DROP TRIGGER refuse")
        await until(lambda: listed(activity)[0].generation == generation)

    with keyring_on(control) as keyring:
        asyncio.run(present(Presence(control, activity, keyring), look()))
