"""Threads for work that must not pile up."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from app.errors import Overloaded
from app.pool import BoundedPool
from tests.support import DEADLINE_S


class Gate:
    """Work that begins, and ends when a test lets it."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.opened = threading.Event()
        self.done: list[str] = []

    def pass_through(self, name: str) -> str:
        """Begin, wait, and be done."""
        self.begun.release()
        assert self.opened.wait(DEADLINE_S)
        self.done.append(name)
        return name


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Give a gate, which is open in the end."""
    gate = Gate()
    yield gate
    gate.opened.set()


async def begin(pool: BoundedPool, gate: Gate, name: str) -> asyncio.Task[str]:
    """Give work to the pool, and wait until a thread has begun with it."""
    task = asyncio.create_task(pool.run(gate.pass_through, name))
    await asyncio.to_thread(gate.begun.acquire)
    return task


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario, for as long as a test may take at most."""
    asyncio.run(asyncio.wait_for(scenario, DEADLINE_S))


def test_what_has_no_place_is_refused(gate: Gate) -> None:
    """So many work, so many wait, the next is refused; a place that is left is free again."""
    pool = BoundedPool("test", 1, 2)

    async def scenario() -> None:
        first = await begin(pool, gate, "first")
        waiting = [asyncio.create_task(pool.run(gate.pass_through, name)) for name in "ab"]
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(Overloaded):
                await pool.run(gate.pass_through, "refused")
        gate.opened.set()
        assert await asyncio.gather(first, *waiting) == ["first", "a", "b"]
        again = [pool.run(gate.pass_through, name) for name in "cde"]
        assert await asyncio.gather(*again) == ["c", "d", "e"]

    run(scenario())
    assert gate.done == ["first", "a", "b", "c", "d", "e"]
    pool.close()


def test_what_waits_too_long_is_never_done(gate: Gate) -> None:
    """Whoever waits for longer than allowed is refused, and it is not done later."""
    pool = BoundedPool("test", 1, 2, wait_s_max=0.05)

    async def scenario() -> None:
        first = await begin(pool, gate, "first")
        for _ in range(5):  # each gives its place back
            with pytest.raises(Overloaded):
                await pool.run(gate.pass_through, "late")
        gate.opened.set()
        # It had begun: however long it takes, its result is given.
        assert await first == "first"
        assert await pool.run(gate.pass_through, "next") == "next"

    run(scenario())
    assert gate.done == ["first", "next"]
    pool.close()


def test_a_caller_that_goes_away(gate: Gate) -> None:
    """What had not begun is then not done, and what had is done whole."""
    pool = BoundedPool("test", 1, 1)

    async def scenario() -> None:
        first = await begin(pool, gate, "begun")
        waiting = asyncio.create_task(pool.run(gate.pass_through, "waiting"))
        await asyncio.sleep(0)
        for task in (waiting, first):
            task.cancel()
        await asyncio.wait([waiting, first])
        assert waiting.cancelled()
        assert first.cancelled()
        gate.opened.set()
        assert await pool.run(gate.pass_through, "next") == "next"

    run(scenario())
    assert gate.done == ["begun", "next"]
    pool.close()


def test_a_fault_is_the_callers_own() -> None:
    """What the work raises is raised, and its place is free."""
    pool = BoundedPool("test", 1, 0)

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await pool.run(lambda: 1 // 0)

    run(scenario())
    pool.close()
