"""What writes in the background: what it keeps, and what it gives up."""

import asyncio

from structlog.testing import capture_logs

from app.edge import metrics
from app.edge.background import TRIES_MAX, BackgroundWriter
from app.errors import StorageUnavailable


class Book:
    """Takes lines, or fails as it is told."""

    def __init__(self) -> None:
        self.faults: list[Exception] = []
        self.tries = 0
        self.is_written = False

    def write(self) -> None:
        """Write."""
        self.tries += 1
        if self.faults:
            raise self.faults.pop(0)
        self.is_written = True


async def flushed(book: Book, times: int) -> list[bool]:
    """Try to write seven lines so often; say each time whether they need not be kept."""

    async def flush() -> None:
        """Leave it to the test."""

    writer = BackgroundWriter("lines", flush, 1.0)
    done = [await writer.write(book.write, 7) for _ in range(times)]
    await writer.aclose()
    return done


def test_what_fails_for_no_known_reason_is_given_up() -> None:
    """A batch that can't be written is tried a few times, and then counted, and told, as lost."""
    book = Book()
    book.faults = [ZeroDivisionError() for _ in range(TRIES_MAX)]
    before = metrics.evidence_lost._value.get()  # noqa: SLF001  # the library has no other way
    with capture_logs() as logs:
        done = asyncio.run(flushed(book, TRIES_MAX + 1))
    assert done == [False] * (TRIES_MAX - 1) + [True, True]
    assert book.is_written
    assert [one.get("count") for one in logs] == [None] * (TRIES_MAX - 1) + [7]
    assert logs[-1]["event"] == "lines are lost"
    assert metrics.evidence_lost._value.get() == before + 7  # noqa: SLF001


def test_a_database_that_is_away_is_waited_for() -> None:
    """However long it takes, nothing is given up for that, and it is told of once."""
    book = Book()
    book.faults = [StorageUnavailable("away") for _ in range(3 * TRIES_MAX)]
    with capture_logs() as logs:
        done = asyncio.run(flushed(book, 3 * TRIES_MAX + 1))
    assert done == [False] * (3 * TRIES_MAX) + [True]
    assert [one["event"] for one in logs] == ["lines are kept for the next time"]
