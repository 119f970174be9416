"""What keys did: counted in memory by the minute, within bounds, and written by and by."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pytest

from app.activity.access import Access
from app.edge.accesses import DATASETS_MAX, ROWS_MAX, ROWS_OF_KEY_MAX, Accesses
from app.errors import StorageUnavailable
from tests.support import DEADLINE_S

ENDPOINT = "POST /api/v1/logs"
SOURCE = ("192.0.2.1", b"curl")


class Written:
    """Takes what is written, or fails as told; also the clock."""

    def __init__(self) -> None:
        self.accesses: list[Access] = []
        self.fault: Exception | None = None
        self.now_s = 6_000.0

    def is_due(self) -> bool:
        """Have nothing to do by itself."""
        return False

    def write(self, accesses: Collection[Access]) -> None:
        """Write."""
        if self.fault is not None:
            raise self.fault
        self.accesses += accesses

    def requests(self) -> int:
        """Sum what was written."""
        return sum(one.requests for one in self.accesses)


@pytest.fixture
def written() -> Written:
    """Give what stands for the database."""
    return Written()


@contextmanager
def on_a_loop() -> Iterator[asyncio.Runner]:
    """Give a loop."""
    with asyncio.Runner() as runner:
        yield runner


async def opened(written: Written) -> Accesses:
    """Open what is under test."""
    return Accesses(written, lambda: written.now_s)


def count(accesses: Accesses, written: Written, key_id: str = "k", dataset: str = "d") -> None:
    """Count a request that was answered now."""
    accesses.count((key_id, ENDPOINT, dataset, SOURCE, "201"), written.now_s)


def test_a_row_is_a_minutes(written: Written) -> None:
    """What is the same in a minute is one row, written piece by piece, and a new one after it."""
    with on_a_loop() as loop:
        accesses = loop.run(opened(written))
        count(accesses, written)
        count(accesses, written)
        loop.run(accesses.flush())
        loop.run(accesses.flush())
        count(accesses, written)
        written.now_s += 60
        count(accesses, written)
        loop.run(accesses.flush())
        loop.run(accesses.aclose())
    expected = [(100, 2), (100, 1), (101, 1)]
    assert [(one.minute, one.requests) for one in written.accesses] == expected
    assert written.accesses[0] == Access(
        "k", 100, ENDPOINT, "d", "192.0.2.1", "curl", "201", requests=2
    )


def test_a_request_counts_for_each_dataset(written: Written) -> None:
    """Of several datasets each has a row, of none there is one without, of many the first few."""
    with on_a_loop() as loop:
        accesses = loop.run(opened(written))
        for datasets in (["b", "a"], [], [f"{n:02}" for n in range(2 * DATASETS_MAX)]):
            accesses.count_all("k", ENDPOINT, datasets, SOURCE, "201")
        loop.run(accesses.flush())
        loop.run(accesses.aclose())
    names = ["a", "b", "", *(f"{n:02}" for n in range(DATASETS_MAX))]
    assert [one.dataset for one in written.accesses] == names


def test_invented_datasets_and_places_are_bounded(written: Written) -> None:
    """A key that invents them has so many rows a minute, loses no count, and hides no other key."""
    with on_a_loop() as loop:
        accesses = loop.run(opened(written))
        for number in range(3 * ROWS_OF_KEY_MAX):
            count(accesses, written, "noisy", f"d{number}")
            if number % 50 == 0:
                loop.run(accesses.flush())
        count(accesses, written, "quiet")
        loop.run(accesses.flush())
        loop.run(accesses.aclose())
    assert written.requests() == 3 * ROWS_OF_KEY_MAX + 1
    noisy = {(one.dataset, one.source_ip) for one in written.accesses if one.key_id == "noisy"}
    assert len(noisy) == ROWS_OF_KEY_MAX + 1
    assert ("", "") in noisy
    assert written.accesses[-1].dataset == "d"


def test_memory_is_bounded(written: Written) -> None:
    """Beyond so many rows in all, requests are counted without dataset and place."""
    with on_a_loop() as loop:
        accesses = loop.run(opened(written))
        keys = ROWS_MAX // ROWS_OF_KEY_MAX + 10
        for number in range(keys * ROWS_OF_KEY_MAX):
            count(accesses, written, f"k{number % keys}", f"d{number}")
        loop.run(accesses.flush())
        loop.run(accesses.aclose())
    assert written.requests() == keys * ROWS_OF_KEY_MAX
    assert len(written.accesses) <= ROWS_MAX + keys


@pytest.mark.parametrize("fault", [StorageUnavailable("away"), ZeroDivisionError()])
def test_a_failing_database_loses_nothing(written: Written, fault: Exception) -> None:
    """What could not be written is written the next time, under its own minute."""
    with on_a_loop() as loop:
        accesses = loop.run(opened(written))
        written.fault = fault
        count(accesses, written)
        loop.run(accesses.flush())
        written.now_s += 60
        count(accesses, written)
        loop.run(accesses.flush())
        written.fault = None
        loop.run(accesses.flush())
        loop.run(accesses.aclose())
    assert [(one.minute, one.requests) for one in written.accesses] == [(100, 1), (101, 1)]


def test_the_rest_is_written_at_the_stop(written: Written) -> None:
    """What is counted is written by itself, with the stop at the latest."""

    async def scenario() -> None:
        accesses = await opened(written)
        accesses.start()
        count(accesses, written)
        await asyncio.wait_for(accesses.aclose(), DEADLINE_S)

    asyncio.run(scenario())
    assert written.requests() == 1
