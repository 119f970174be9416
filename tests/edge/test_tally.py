"""Usage of what stores nothing: committed soon, and kept while the store is away."""

import asyncio
from typing import Any

from app.edge import tally as module
from app.edge.tally import Tally
from app.errors import StorageUnavailable
from app.keys.principal import UNLIMITED, Principal
from app.logs.batch import Batch, Receipt
from tests.support import DEADLINE_S


class FakeStore:
    """Takes batches, or is away."""

    def __init__(self) -> None:
        self.is_away = False
        self.taken: list[Batch] = []
        self.appended = asyncio.Event()

    async def append(self, batch: Batch) -> Receipt:
        """Take it after a turn of the loop, as a real store would."""
        await asyncio.sleep(0)
        if self.is_away:
            raise StorageUnavailable
        self.taken.append(batch)
        self.appended.set()
        return Receipt()

    def sums(self) -> tuple[int, int]:
        """Give all requests and denials."""
        return sum(b.requests for b in self.taken), sum(b.denied for b in self.taken)


def who(client_id: str | None = "acme", key_id: str = "key1") -> Principal:
    """Make a principal."""
    return Principal(
        id="",
        key_id=key_id,
        client_id=client_id,
        role="client",
        scopes=frozenset(),
        allowed_datasets=None,
        is_admin=client_id is None,
        key_limits=UNLIMITED,
        client_limits=UNLIMITED,
        expires_at_s=None,
        name="",
    )


def test_counts_are_gathered_and_committed_once() -> None:
    """Many counts of a key become one batch, and closing leaves none behind."""

    async def scenario() -> None:
        store: Any = FakeStore()
        tally = Tally(store)
        tally.start()
        for _ in range(5):
            tally.count(who(), requests=1)
            tally.count(who(), denied=2)
        tally.count(who(key_id="key2"), denied=1)
        tally.count(who(None), denied=1)
        await tally.aclose()
        assert store.sums() == (5, 11)
        assert len(store.taken) <= 4  # two keys, and perhaps two minutes
        assert all(not batch.rows for batch in store.taken)

    asyncio.run(scenario())


def test_counts_are_committed_without_being_asked(monkeypatch: Any) -> None:
    """While the service runs, counts reach the store by themselves."""
    monkeypatch.setattr(module, "FLUSH_S", 0.001)

    async def scenario() -> None:
        store: Any = FakeStore()
        tally = Tally(store)
        tally.start()
        tally.count(who(), requests=1)
        await asyncio.wait_for(store.appended.wait(), DEADLINE_S)
        await tally.aclose()

    asyncio.run(scenario())


def test_nothing_is_lost_while_the_store_is_away() -> None:
    """What can't be committed now is committed later, with what was counted meanwhile."""

    async def scenario() -> None:
        store: Any = FakeStore()
        store.is_away = True
        tally = Tally(store)
        for key_id in ("key1", "key2"):
            tally.count(who(key_id=key_id), requests=1)
        flushing = asyncio.create_task(tally.flush())
        await asyncio.sleep(0)
        tally.count(who(), requests=1, denied=1)  # between the attempt and its failure
        await flushing
        store.is_away = False
        await tally.aclose()
        assert store.sums() == (3, 1)

    asyncio.run(scenario())


def test_memory_is_bounded_while_the_store_is_away(monkeypatch: Any) -> None:
    """Beyond its bound the oldest counts are given up, not the process."""
    monkeypatch.setattr(module, "ENTRIES_MAX", 3)

    async def scenario() -> None:
        store: Any = FakeStore()
        tally = Tally(store)
        for n in range(9):
            tally.count(who(key_id=f"key{n}"), requests=1)
        await tally.aclose()
        assert [batch.key_id for batch in store.taken] == ["key6", "key7", "key8"]

    asyncio.run(scenario())
