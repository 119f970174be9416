"""A worker's side of the writer process: starts it if nobody has, and finds it again when it dies.

While there is no writer every question fails at once with StorageUnavailable, and a question whose
answer was lost with a writer fails too: what it asked may or may not be on disk, and nobody was
told that it is.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog

from app.errors import StorageUnavailable
from app.logs.batch import Batch, Receipt, StoredOutcome
from app.logs.identity import ArrivalClock
from app.logs.store import ClaimHeld
from app.storage.sqlite.schema import HOME
from app.storage.sqlite.wire import (
    SOCKET_NAME,
    Answer,
    Append,
    Claim,
    Claimed,
    Committed,
    Done,
    Erase,
    Erased,
    EraseRest,
    Erasing,
    Expire,
    Follow,
    FrameProtocol,
    Key,
    Name,
    Ping,
    Receipted,
    Release,
    Retire,
    SetAside,
    Welcome,
    frame,
    short_path,
)

ANSWER_S_MAX = 10.0
FOLD_S_MAX = 1.0
# A process starts in a tenth of this, but on a machine that has better things to do.
START_S_MAX = 10.0
RETRY_S_MIN, RETRY_S_MAX = 0.02, 0.5
# What may wait to be read by a writer that is stopped or stuck in its disk. Requests give up and
# their senders come back: without a bound each would leave its batch here once more.
BACKLOG_BYTES_MAX = 64 * 1024**2

_PLAIN = Receipt()

log = structlog.get_logger(__name__)


class WriterClient:
    """Asks the writer process; supervises it from the side of its user."""

    def __init__(
        self, directory: Path, dedup_window_days: int, clock: ArrivalClock, answer_s_max: float
    ) -> None:
        self._directory = directory
        self._command = (
            *(sys.executable, "-m", "app.storage.sqlite.writer"),
            *(str(directory.resolve()), str(dedup_window_days)),
        )
        self._clock = clock
        self._answer_s_max = answer_s_max
        self._claimed: set[tuple[str, str]] = set()
        self._asked: dict[int, tuple[asyncio.Future[Any], float]] = {}
        self._number = 0
        self._followed: dict[str, asyncio.Future[None]] = {}
        self._transport: asyncio.Transport | None = None
        self._welcomed = asyncio.Event()
        self._lost = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect, starting the writer if need be; raise StorageUnavailable if it can't be."""
        self._tasks = [
            asyncio.create_task(self._stay_connected()),
            asyncio.create_task(self._give_up_on_late_answers()),
        ]
        try:
            await asyncio.wait_for(self._welcomed.wait(), START_S_MAX)
        except TimeoutError:
            await self.aclose()
            raise StorageUnavailable("the writer process does not start") from None

    async def aclose(self) -> None:
        """Say good-bye; wait for the writer to fold its files if it is ours and the last."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()
        self._fail_all("closed")
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), FOLD_S_MAX)
            except TimeoutError:
                log.info("the writer process lives on")  # for other workers, or to finish

    def append(self, batch: Batch) -> asyncio.Future[Receipt]:
        """Send a batch off at once; the future is done when it is on disk."""
        return self._ask(lambda number: Append(number, batch))

    def next_commit(self, client_id: str) -> asyncio.Future[None]:
        """Wait for the next logs of a client; see LogStore.next_commit."""
        followed = self._followed.get(client_id)
        if followed is None or followed.done():
            followed = self._followed[client_id] = asyncio.get_running_loop().create_future()
            self._send(Follow(client_id))
        return followed

    def set_aside(self, day: int, inode: int) -> None:
        """Have the writer put a damaged file aside."""
        self._send(SetAside(day, inode))

    def erase(self, day: int, client_id: str, places: list[Key] | None) -> asyncio.Future[Erased]:
        """Delete logs of a client from a day's file; None: a part of what it has beside logs."""
        if places is None:
            return self._ask(lambda number: EraseRest(number, day, client_id))
        return self._ask(lambda number: Erase(number, day, client_id, places))

    def expire(
        self,
        day: int,
        client_id: str,
        datasets: list[str | None],
        places: list[Key],
        *,
        keeps_ids: bool,
    ) -> asyncio.Future[Erased]:
        """Delete expired logs of a client, and its rejected records of these datasets."""
        return self._ask(lambda number: Expire(number, day, client_id, datasets, places, keeps_ids))

    def retire(self, day: int, names: list[Name]) -> asyncio.Future[Erased]:
        """Do a step to unlink a day's file, in which nothing is but what has these names."""
        return self._ask(lambda number: Retire(number, day, names))

    async def ping(self) -> None:
        """Return when the writer answers."""
        await self._ask(Ping)

    @asynccontextmanager
    async def claim(self, client_id: str, key: str) -> AsyncIterator[StoredOutcome | None]:
        """Hold an Idempotency-Key; see LogStore.claim."""
        name = (client_id, key)
        # The writer knows only which worker holds a key, and a new writer not even that: two
        # requests of one worker are told apart here.
        if name in self._claimed:
            raise ClaimHeld
        self._claimed.add(name)
        try:
            answer = await self._ask(lambda number: Claim(number, client_id, key))
            assert isinstance(answer, Claimed)  # noqa: S101
            if not answer.granted:
                raise ClaimHeld
            if answer.stored is None:
                yield None
                return
        finally:
            self._claimed.discard(name)
            # Also if no answer came, in time or at all: it follows the claim on the same socket.
            self._send(Release(client_id, key))
        yield answer.stored  # which no longer changes: there is nothing to hold

    def _ask(
        self, question: Callable[[int], Append | Claim | Ping | Erasing]
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            future.set_exception(StorageUnavailable("no writer process"))
            return future
        if self._transport.get_write_buffer_size() > BACKLOG_BYTES_MAX:
            future.set_exception(StorageUnavailable("the writer process is too far behind"))
            return future
        self._number += 1
        self._send(question(self._number))
        self._asked[self._number] = (future, time.monotonic())
        return future

    def _send(self, message: Append | Claim | Ping | Release | Follow | SetAside | Erasing) -> None:
        if self._transport is not None:
            self._transport.write(frame(message))

    def _answered(self, answer: Answer) -> None:
        if isinstance(answer, Done):
            for number in answer.numbers:
                self._settle(number, _PLAIN)
        elif isinstance(answer, Welcome):
            self._clock.slot = answer.slot
            self._welcomed.set()
            # This writer has not been told of them, and the one before may have died untold.
            self._tell_followers(list(self._followed))
        elif isinstance(answer, Receipted):
            self._settle(answer.number, answer.receipt)
        elif isinstance(answer, Claimed | Erased):
            self._settle(answer.number, answer)
        elif isinstance(answer, Committed):
            self._tell_followers(answer.client_ids)
        else:
            log.error("the writer could not store", reason=answer.reason)
            asked = self._asked.pop(answer.number, None)
            if asked is not None and not asked[0].done():
                asked[0].set_exception(StorageUnavailable(answer.reason))

    def _settle(self, number: int, answer: Receipt | Claimed | Erased) -> None:
        asked = self._asked.pop(number, None)
        # A request that the end of the server cancelled waits no more; its logs are stored all
        # the same.
        if asked is not None and not asked[0].done():
            asked[0].set_result(answer)

    def _tell_followers(self, client_ids: list[str]) -> None:
        for client_id in client_ids:
            followed = self._followed.pop(client_id, None)
            if followed is not None and not followed.done():
                followed.set_result(None)

    def _fail_all(self, reason: str) -> None:
        asked, self._asked = self._asked, {}
        for future, _ in asked.values():
            if not future.done():
                future.set_exception(StorageUnavailable(reason))

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        retry_s = RETRY_S_MIN
        while True:
            self._lost.clear()
            try:
                with short_path(self._directory) as directory:
                    await loop.create_unix_connection(
                        lambda: _Link(self), str(directory / SOCKET_NAME)
                    )
            except OSError:
                await self._start_writer()
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_S_MAX)
                continue
            retry_s = RETRY_S_MIN
            await self._lost.wait()
            log.warning("the writer process is gone")

    async def _start_writer(self) -> None:
        """Start a writer unless ours still runs; of two that race, the loser leaves at once."""
        if self._process is not None and self._process.returncode is None:
            return
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                cwd=HOME,
                start_new_session=True,
            )
        except OSError as error:  # no memory or no process left now: there may be soon
            log.error("the writer process does not start", reason=repr(error))  # noqa: TRY400

    async def _give_up_on_late_answers(self) -> None:
        """Fail what waits too long: a writer that is stopped, not dead, must not hold requests."""
        while True:
            await asyncio.sleep(self._answer_s_max / 10)
            late = time.monotonic() - self._answer_s_max
            for number, (future, asked_at) in list(self._asked.items()):
                if asked_at > late:
                    break  # they stand in the order of asking
                del self._asked[number]
                if not future.done():
                    future.set_exception(StorageUnavailable("the writer process does not answer"))

    def connected(self, transport: asyncio.Transport) -> None:
        """Begin to use a connection."""
        self._transport = transport

    def disconnected(self) -> None:
        """Fail all that was asked: the answers are lost."""
        self._transport = None
        self._welcomed.clear()
        self._fail_all("the writer process is gone")
        self._lost.set()


class _Link(FrameProtocol):
    """The connection of one writer's life."""

    def __init__(self, client: WriterClient) -> None:
        super().__init__(msgspec.msgpack.Decoder(Answer).decode, client._answered)  # noqa: SLF001
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.connected(cast("asyncio.Transport", transport))  # uvloop's is none by class

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._client.disconnected()
