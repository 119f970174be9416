"""Checkpoints at work: one worker signs how far each chain of the audit has grown.

The worker is whoever holds the lock of a file: the others would only hold the 10 MB that signing
takes. On several hosts there is one on each, which does no harm: what one has signed, another finds
signed.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine

from app.audit.book import Book
from app.audit.chain import ACTIVITY, BOOK_STARTED, CONTROL, ChainKeys, Event
from app.audit.checkpoints import Signer, due, store
from app.audit.trail import append
from app.columns import utc_now
from app.errors import StorageUnavailable
from app.keys.database import translated_faults, writing
from app.leader import LeaderLock

# A chain that grows is signed once an hour: so much is the most that can be put back unseen.
EVERY_S = 3600
# Each wait is cut by up to a half, at random. What is younger than EVERY_S less a wait is left.
FIRST_S_MAX = 60.0
WAIT_S_MAX = 600.0
# Of the time that a server has to stop: the other chains are signed after the next start.
LAST_S_MAX = 1.5
LOCK_FILE = "audit.lock"

log = logging.getLogger(__name__)


def books_of(control: Engine, activity: Engine) -> tuple[Book, ...]:
    """Give the books of an installation: what refusals are written to is the last of them."""
    if activity is control:
        return (Book(CONTROL, control),)
    return Book(CONTROL, control), Book(ACTIVITY, activity)


def begin(books: Sequence[Book], keys: Callable[[str], ChainKeys]) -> None:
    """See that each book has begun, and that the first one tells of it, so that it would be missed.

    One that was removed begins once more, and the first one tells of that too. A book that can't be
    written begins another time.
    """
    for book in books:
        try:
            with translated_faults():
                has_begun = book.announces(book.name, BOOK_STARTED)
            for home in () if has_begun else dict.fromkeys((books[0], book)):
                with writing(home.engine) as session:
                    append(session, keys(home.name), [_begun(book.name)])
        except StorageUnavailable as error:
            log.warning("the audit's book %r cannot be begun: %s", book.name, error.reason)


def _begun(book: str) -> Event:
    return Event(utc_now(), BOOK_STARTED, "central-logger", None, book, "", "", "", "{}")


class Notary:
    """This worker's part in it."""

    def __init__(
        self,
        books: Sequence[Book],
        signer: Signer,
        directory: Path,
        first_s_max: float = FIRST_S_MAX,
    ) -> None:
        self._books = books
        self._signer = signer
        self._leads = LeaderLock(directory / LOCK_FILE)
        self._first_s_max = first_s_max
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="notary")

    def start(self) -> None:
        """Begin soon."""
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Sign what has grown, if it is this worker's turn, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # Not waited for at any price: while something else holds the database, it waits for that.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._sign(utc_now() + timedelta(days=1)), LAST_S_MAX)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._leads.close()

    def sign(self, before: datetime) -> int:
        """Sign the chains that grew since a checkpoint of before that moment; say how many."""
        if not self._leads.take():
            return 0
        signed = 0
        for book in self._books:
            with translated_faults():
                heads = due(book.engine, before)
            # Looked at first: to begin a write of nothing would hold up others.
            if heads:
                with writing(book.engine) as session:
                    signed += store(session, book.name, self._signer, heads)
        return signed

    async def _run(self) -> None:
        wait_s_max = self._first_s_max
        while True:
            await asyncio.sleep(wait_s_max * random.uniform(0.5, 1))  # noqa: S311  # no secret
            await self._sign(utc_now() - timedelta(seconds=EVERY_S - WAIT_S_MAX))
            wait_s_max = WAIT_S_MAX

    async def _sign(self, before: datetime) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.sign, before)
        except Exception:
            log.exception("the audit's checkpoints are signed another time")
