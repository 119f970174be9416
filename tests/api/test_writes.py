"""Places in the queue of writes: what a lane holds, and for whom."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from app.api.writes import CLAIMS, ENDING, ORDINARY, PLATFORM, Writes, place_of
from app.errors import Overloaded
from app.keys.principal import UNLIMITED, Principal
from app.pool import Place

ADMIN = Principal(
    id="",
    key_id="",
    client_id=None,
    role="admin",
    scopes=frozenset(),
    allowed_datasets=None,
    is_admin=True,
    key_limits=UNLIMITED,
    client_limits=UNLIMITED,
    expires_at_s=None,
    name="",
)


class Held:
    """A queue in which nothing moves until it is let go."""

    def __init__(self) -> None:
        self.writes = Writes()
        self.gate = threading.Event()
        self.tasks: list[asyncio.Task[bool]] = []

    async def ask(self, place: Place, count: int = 1) -> int:
        """Ask for so many writes; give how many were let in."""
        tasks = [
            asyncio.create_task(self.writes.run(place, self.gate.wait, 20)) for _ in range(count)
        ]
        await asyncio.sleep(0)  # each takes its place, or is refused, in its first step
        refused = [task for task in tasks if task.done()]
        for task in refused:
            assert isinstance(task.exception(), Overloaded)
        self.tasks += [task for task in tasks if task not in refused]
        return count - len(refused)

    async def let_go(self) -> None:
        """Have all that was let in done."""
        self.gate.set()
        assert all(await asyncio.gather(*self.tasks))


@pytest.fixture
def held() -> Iterator[Held]:
    """Give the queue."""
    held = Held()
    yield held
    held.gate.set()
    held.writes.close()


def of(client_id: str, *, ends: bool = False) -> Place:
    """Give the place of a write of a client's key."""
    return place_of(replace(ADMIN, client_id=client_id, is_admin=False), ends=ends)


def test_a_client_has_a_part_of_each_lane(held: Held) -> None:
    """One client takes its part of the places and no more, and another one finds its own."""

    async def main() -> None:
        for client_id in ("one", "two"):
            assert await held.ask(of(client_id), 160) == ORDINARY.places_each
            assert await held.ask(of(client_id, ends=True), 160) == ENDING.places_each
        await held.let_go()

    asyncio.run(main())


def test_lanes_do_not_take_each_others_places(held: Held) -> None:
    """Where all clients together have filled a lane, keys are ended and the platform writes on."""

    async def main() -> None:
        clients = ORDINARY.places // ORDINARY.places_each
        for number in range(clients):
            assert await held.ask(of(str(number)), 160) == ORDINARY.places_each
        assert await held.ask(of("late")) == await held.ask(CLAIMS) == 0
        assert await held.ask(of("late", ends=True)) == 1
        assert await held.ask(place_of(ADMIN), 160) == PLATFORM.places
        assert await held.ask(place_of(ADMIN, ends=True)) == 0
        await held.let_go()

    asyncio.run(main())


def test_a_place_is_free_again_whatever_came_of_it(held: Held) -> None:
    """Done, failed or given up, a write leaves its place to the next."""

    def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        assert await held.ask(of("one"), 160) == ORDINARY.places_each
        for task in held.tasks[1:]:  # the first has begun, and is waited for
            task.cancel()
        await asyncio.wait(held.tasks[1:])
        del held.tasks[1:]
        assert await held.ask(of("one"), 160) == ORDINARY.places_each - 1
        await held.let_go()
        for _ in range(ORDINARY.places):
            with pytest.raises(ZeroDivisionError):
                await held.writes.run(of("one"), fail)

    asyncio.run(main())
