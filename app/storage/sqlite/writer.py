"""The writer process: owns every write and checkpoint of the day files.

    python -m app.storage.sqlite.writer DIRECTORY DEDUP_WINDOW_DAYS

Workers connect to its Unix socket. What has arrived while one commit ran is the next group: one
transaction, one fsync, then the answers. A lock on the directory lets only one writer live; it
lives as long as somebody is connected, whoever started it, so that no signal to a process group
and no death of a worker takes the store from the others.
"""

import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec

try:
    from uvloop import run as _run
except ImportError:  # where it has no wheel
    from asyncio import run as _run  # type: ignore[assignment]

from app.logs.batch import Batch, Receipt, StoredOutcome
from app.logs.identity import SLOT_MASK
from app.sqlite import sqlite3
from app.storage.sqlite.corruption import CorruptDay, damage_named, set_aside
from app.storage.sqlite.day import DayFile
from app.storage.sqlite.schema import (
    HOME,
    UnknownVersion,
    day_path,
    list_days,
    remove_day,
    remove_orphans,
    upgrade_day,
)
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
    Failed,
    Follow,
    FrameProtocol,
    Ping,
    Question,
    Receipted,
    Release,
    Retire,
    Rewrite,
    Scrub,
    Seal,
    Sealer,
    SetAside,
    Welcome,
    frame,
)

LOCK_NAME = "writer.lock"
# Without anybody connected: time for the first worker to come, or for another to take over.
IDLE_S_MAX = 0.1
START_S_MAX = 10.0
ALREADY_RUNNING = 3
SEALER_PAUSE_S = 1.0
# Faults of what a batch holds, not of the disk below.
_BATCH_FAULTS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    ValueError,
    OverflowError,
)


class DayFiles:
    """The open day files: the days that are written to, and those asked for record ids."""

    def __init__(self, directory: Path, dedup_window_days: int) -> None:
        self._directory = directory
        self._window = dedup_window_days
        self._days = set(list_days(directory))  # nobody else makes or removes any
        self._open: dict[int, DayFile] = {}
        remove_orphans(directory)
        for day, path in list_days(directory).items():
            inode = path.stat().st_ino
            try:
                with damage_named(day, inode):
                    upgrade_day(path)
            except CorruptDay:
                self.set_aside(day, inode)

    def get(self, day: int) -> DayFile:
        """Return the file of an arrival day, made if there is none."""
        file = self._open.get(day)
        if file is None:
            file = DayFile(day_path(self._directory, day), day, self.around)
            self._open[day] = file
            self._days.add(day)
            for past in [one for one in self._open if one < day]:
                if past < day - self._window - 1:
                    self._open.pop(past).close()
                else:
                    self._open[past].rest()
        return file

    def erase(self, asked: Erasing) -> Answer:
        """Do one step of an erasure in a file that there is."""
        if asked.day not in self._days:
            is_sealers = isinstance(asked, Rewrite | Scrub)
            return Done([asked.number]) if is_sealers else Erased(asked.number, [])
        if isinstance(asked, Retire):
            return self._retire(asked)
        file = self.get(asked.day)
        if isinstance(asked, Erase):
            return Erased(asked.number, file.erase(asked.client_id, asked.places))
        if isinstance(asked, EraseRest):
            return Erased(asked.number, [], more=file.erase_the_rest(asked.client_id))
        if isinstance(asked, Expire):
            return Erased(asked.number, *file.expire(asked))
        if isinstance(asked, Rewrite):
            done = file.rewrite(asked)
        else:
            done = file.scrub(asked.stale)
            if done and asked.day < max(self._open) - self._window - 1:
                self._open.pop(asked.day).close()
        return Done([asked.number]) if done else Failed(asked.number, "there is more to do")

    def seal(self, seal: Seal) -> bool:
        """Replace logs by sealed blocks of them; False if one has gone, or all of the day."""
        return seal.day in self._days and self.get(seal.day).seal(seal)

    def _retire(self, asked: Retire) -> Answer:
        """Unlink a file of which nothing is kept, once its usage is elsewhere, on disk."""
        file = self.get(asked.day)
        if not set(file.names()) <= set(asked.names):
            return Failed(asked.number, "something has arrived meanwhile")
        if not file.fold(self._directory):
            return Erased(asked.number, [], more=True)
        self._open.pop(asked.day).close()
        remove_day(day_path(self._directory, asked.day))
        self._days.discard(asked.day)
        return Erased(asked.number, [])

    def set_aside(self, day: int, inode: int) -> None:
        """Rename a damaged file; the day goes on with a new one, if with any."""
        self.drop()
        aside = set_aside(self._directory, day, inode)
        if aside is not None:
            self._days.discard(day)
            _set_up_journal()
            logging.getLogger(__name__).error(
                "a damaged day file is set aside, its logs are not served: %s", aside
            )

    def around(self, day: int) -> list[DayFile]:
        """Return the other files that may hold a record id of this day's window.

        The day after is one of them: around midnight workers and clocks disagree for a moment.
        """
        window = range(day - self._window, day + 2)
        return [self.get(one) for one in sorted(self._days) if one in window and one != day]

    def find_outcome(self, day: int, client_id: str, key: str) -> StoredOutcome | None:
        """Return what an Idempotency-Key led to in the last 24 h."""
        for one in (day, day - 1, day + 1):
            if one in self._days:
                stored = self.get(one).find_outcome(client_id, key)
                if stored is not None:
                    return stored
        return None

    def drop(self) -> None:
        """Let go of every file; the next use opens them anew, as after a fault it must."""
        while self._open:
            _, file = self._open.popitem()
            file.close()


class Connection(FrameProtocol):
    """One worker."""

    def __init__(self, writer: "Writer") -> None:
        super().__init__(msgspec.msgpack.Decoder(Question).decode, self._question)
        self._writer = writer
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet a worker."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self.send(Welcome(self._writer.welcome(self)))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget it."""
        self._transport = None
        self._writer.farewell(self)

    def send(self, answer: Answer) -> None:
        """Answer, unless the worker has gone: then nobody was told, and nobody relies on it."""
        if self._transport is not None:
            self._transport.write(frame(answer))

    def _question(self, question: Question) -> None:
        if isinstance(question, Append):
            self._writer.append(self, question)
        elif isinstance(question, Claim):
            self._writer.claim(self, question)
        elif isinstance(question, Release):
            self._writer.release(self, (question.client_id, question.key))
        elif isinstance(question, Follow):
            self._writer.follow(self, question.client_id)
        elif isinstance(question, Seal):
            self._writer.seal(self, question)
        elif isinstance(question, SetAside):
            self._writer.set_aside(question.day, question.inode)
        elif isinstance(question, Erasing):
            self._writer.erase(self, question)
        elif isinstance(question, Sealer):
            self._writer.admit_sealer(self)
        else:
            self._writer.ping(self, question)


class Writer:
    """Groups appends of all connections and commits them."""

    def __init__(self, files: DayFiles, today: Callable[[], int]) -> None:
        self._files = files
        self._today = today
        self._pending: list[tuple[Connection, Append]] = []
        self._claims: dict[tuple[str, str], Connection] = {}
        # By client: workers that were told of all its commits, and whether each waits for the next.
        self._followers: dict[str, dict[Connection, bool]] = {}
        self._connections: set[Connection] = set()
        self._next_slot = int.from_bytes(os.urandom(2), "big")
        self._broken = False
        self._idle: asyncio.TimerHandle | None = None
        self.used = asyncio.Event()
        self.finished = asyncio.Event()
        self._wait_for_workers(START_S_MAX)

    def welcome(self, connection: Connection) -> int:
        """Take in a worker and give it a slot that no other one has now."""
        if self._idle is not None:
            self._idle.cancel()
        self._connections.add(connection)
        self.used.set()
        self._next_slot = (self._next_slot + 1) & SLOT_MASK
        return self._next_slot

    def farewell(self, connection: Connection) -> None:
        """Forget a worker and what it claimed.

        What it sent is still committed, but not under a claim: that is free for another now.
        """
        self._connections.discard(connection)
        self._claims = {key: one for key, one in self._claims.items() if one is not connection}
        for followers in self._followers.values():
            followers.pop(connection, None)
        self._followers = {one: left for one, left in self._followers.items() if left}
        if not self._connections:
            self._wait_for_workers(IDLE_S_MAX)

    def admit_sealer(self, connection: Connection) -> None:
        """Count a connection no longer as a worker's: for the sealer alone there is no need to be.

        It is started by the first worker's welcome, so that there has been one.
        """
        self.farewell(connection)

    def _wait_for_workers(self, seconds: float) -> None:
        self._idle = asyncio.get_running_loop().call_later(seconds, self.finished.set)

    def claim(self, connection: Connection, claim: Claim) -> None:
        """Give an Idempotency-Key to one request at a time, or to any what it led to before."""
        name = (claim.client_id, claim.key)
        if name in self._claims:
            connection.send(Claimed(claim.number, granted=False, stored=None))
            return
        try:
            stored = self._files.find_outcome(self._today(), claim.client_id, claim.key)
        except (sqlite3.Error, OSError) as error:
            self._distrust(error)
            connection.send(Failed(claim.number, repr(error)))
            return
        if stored is None:
            self._claims[name] = connection
        connection.send(Claimed(claim.number, granted=True, stored=stored))

    def release(self, connection: Connection, name: tuple[str, str]) -> None:
        """Take a claim back from its holder."""
        if self._claims.get(name) is connection:
            del self._claims[name]

    def follow(self, connection: Connection, client_id: str) -> None:
        """Tell a worker of the client's next commit, or at once of those since it was last told."""
        followers = self._followers.setdefault(client_id, {})
        if connection in followers:
            followers[connection] = True
        else:
            followers[connection] = False
            connection.send(Committed([client_id]))

    def ping(self, connection: Connection, ping: Ping) -> None:
        """Answer; after a write has failed, by trying another one."""
        if self._broken:
            try:
                self._files.get(self._today()).try_write()
            except (sqlite3.Error, OSError) as error:
                self._distrust(error)
                connection.send(Failed(ping.number, repr(error)))
                return
            self._broken = False
        connection.send(Done([ping.number]))

    def seal(self, connection: Connection, seal: Seal) -> None:
        """Replace logs by sealed blocks of them."""
        try:
            sealed = self._files.seal(seal)
        except (sqlite3.Error, OSError) as error:
            self._distrust(error)
            connection.send(Failed(seal.number, repr(error)))
            return
        connection.send(Done([seal.number]) if sealed else Failed(seal.number, "logs have gone"))

    def erase(self, connection: Connection, asked: Erasing) -> None:
        """Do one step of an erasure."""
        try:
            answer = self._files.erase(asked)
        except (sqlite3.Error, OSError) as error:
            self._distrust(error)
            answer = Failed(asked.number, repr(error))
        connection.send(answer)

    def _distrust(self, error: Exception) -> None:
        """Trust no open file after a fault: no space, no permission, a bad disk."""
        self._files.drop()
        if isinstance(error, CorruptDay):
            self.set_aside(error.day, error.inode)

    def set_aside(self, day: int, inode: int) -> None:
        """Go on without a damaged file."""
        self._files.set_aside(day, inode)

    def append(self, connection: Connection, append: Append) -> None:
        """Put a batch into the next group."""
        if not self._pending:
            # Runs after the loop has read every socket that is ready: all of that is one group.
            asyncio.get_running_loop().call_soon(self._commit)
        self._pending.append((connection, append))

    def _commit(self) -> None:
        group, self._pending = self._pending, []
        by_day: dict[int, list[tuple[Connection, Append]]] = {}
        for connection, append in group:
            if self._lost_claim(connection, append.batch):
                connection.send(Failed(append.number, "the claim is another's now"))
            else:
                by_day.setdefault(append.batch.day, []).append((connection, append))
        for day, asked in by_day.items():
            self._commit_day(day, asked)

    def _lost_claim(self, connection: Connection, batch: Batch) -> bool:
        """Say whether a claim was given by a writer that has died since: it protects nothing."""
        claimed = batch.idempotency
        if claimed is None:
            return False
        return self._claims.get((batch.client_id, claimed.key)) is not connection

    def _commit_day(self, day: int, asked: list[tuple[Connection, Append]]) -> None:
        try:
            receipts = self._files.get(day).commit([append.batch for _, append in asked])
        except _BATCH_FAULTS as error:
            if len(asked) == 1:
                self._fail(asked, error)
                return
            for one in asked:  # a batch that can't be stored must not fail its neighbours
                self._commit_day(day, [one])
        except (sqlite3.Error, OSError) as error:
            self._distrust(error)
            self._broken = True
            self._fail(asked, error)
        else:
            self._broken = False
            self._answer(asked, receipts)
            if self._followers:
                self._tell_followers({one.batch.client_id for _, one in asked if one.batch.rows})

    def _fail(self, asked: list[tuple[Connection, Append]], error: Exception) -> None:
        for connection, append in asked:
            connection.send(Failed(append.number, repr(error)))

    def _answer(self, asked: list[tuple[Connection, Append]], receipts: list[Receipt]) -> None:
        plain: dict[Connection, list[int]] = {}
        for (connection, append), receipt in zip(asked, receipts, strict=True):
            claimed = append.batch.idempotency
            if claimed is not None:
                # Not when Release comes: a repeat through another worker may come before it.
                del self._claims[append.batch.client_id, claimed.key]
            if receipt.duplicates:
                connection.send(Receipted(append.number, receipt))
            else:
                plain.setdefault(connection, []).append(append.number)
        for connection, numbers in plain.items():
            connection.send(Done(numbers))

    def _tell_followers(self, client_ids: set[str]) -> None:
        told: dict[Connection, list[str]] = {}
        for client_id in client_ids & self._followers.keys():
            for connection, waits in self._followers.pop(client_id).items():
                if waits:
                    told.setdefault(connection, []).append(client_id)
                    self._followers.setdefault(client_id, {})[connection] = False
        for connection, followed in told.items():
            connection.send(Committed(followed))


def _lock(directory: Path) -> TextIO | None:
    held = (directory / LOCK_NAME).open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        return None
    return held


async def _serve(directory: Path, dedup_window_days: int) -> None:
    asyncio.get_running_loop().set_exception_handler(_die)
    files = DayFiles(directory, dedup_window_days)
    writer = Writer(files, lambda: int(time.time() // 86_400))
    # Relative to the directory: a Unix socket's path may not be longer than about 100 bytes.
    os.chdir(directory)
    Path(SOCKET_NAME).unlink(missing_ok=True)  # noqa: ASYNC240  # nobody waits yet
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: Connection(writer), SOCKET_NAME
    )
    sealing = asyncio.create_task(_keep_sealing(directory, writer.used))
    await writer.finished.wait()
    server.close()
    sealing.cancel()
    await asyncio.gather(sealing, return_exceptions=True)
    files.drop()


async def _keep_sealing(directory: Path, used: asyncio.Event) -> None:
    """Have a sealer at work; one that can't start, or dies, is followed by another."""
    await used.wait()
    command = (sys.executable, "-m", "app.storage.sqlite.sealer", str(directory))
    while True:
        # Before the first one too: nothing is lost by it, and a start has better things to do.
        await asyncio.sleep(SEALER_PAUSE_S)
        with suppress(OSError):  # no memory or no process left now: there may be soon
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, cwd=HOME
            )
            try:
                await process.wait()
            except asyncio.CancelledError:
                process.kill()  # no file is folded while it reads from it
                await process.wait()
                raise


def _die(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End at the unexpected: the workers start a new writer from what is on disk."""
    try:
        _set_up_journal()
        loop.default_exception_handler(context)
    finally:
        os._exit(1)


def _set_up_journal() -> None:
    """Send what is logged from now on where the workers' logs go, in their form.

    Only at the end, for the last words: all that imports would be a fifth of the writer's memory.
    """
    from app.journal import set_up  # noqa: PLC0415

    set_up("info")


def main() -> int:
    """Run until nobody is connected any more."""
    directory, dedup_window_days = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    os.umask(0o077)
    # The workers drain on these; the writer ends when the last of them has said good-bye.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        held = _lock(directory)
        if held is None:
            return ALREADY_RUNNING
        _run(_serve(directory, dedup_window_days))
    except UnknownVersion as error:
        _set_up_journal()
        logging.getLogger(__name__).error("the writer process ends: %s", error)  # noqa: TRY400
        return 1
    except Exception:
        _set_up_journal()
        logging.getLogger(__name__).exception("the writer process ends")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
