"""The sealer process: makes blocks of logs, beside the writer that it sends them to.

    python -m app.storage.sqlite.sealer DIRECTORY

The writer starts it and it ends with the writer. It only reads, at a low priority: what it has not
come to yet is read as it was written. Dying at any moment it leaves nothing half done.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import msgspec

from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_LOGS
from app.storage.sqlite.corruption import CorruptDay, damage_named
from app.storage.sqlite.erasing import WHOLE, build_rewrite, find_stale
from app.storage.sqlite.schema import day_path, list_days
from app.storage.sqlite.sealing import WAITING_LOGS, build_seals, find_full, find_span
from app.storage.sqlite.wire import (
    LENGTH_BYTES,
    SOCKET_NAME,
    Answer,
    Done,
    Rewrite,
    Scrub,
    Seal,
    Sealer,
    SetAside,
    frame,
    short_path,
)

NICENESS = 10
PAUSE_S = 1.0
# How many times the wait for a processor is left to those who were waited for: what arrives now
# comes before what is tidied up, for which there is a calmer moment.
DEFERENCE = 10
# Of the time, to look for work where there is none.
LOOKING_PART_MAX = 0.02
# How often days that are over are looked at again, for what came late.
PAST_EVERY_S = 3600.0
# Steps in a row to leave nothing of what was erased: 20 GB, or as long as readers are in the way.
SCRUBS_MAX = 10_000

_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class WriterGone(Exception):
    """The writer has closed the connection."""


class WriterLink:
    """A connection to the writer of a directory, asked one thing at a time."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            with short_path(directory) as path:
                self._socket.connect(str(path / SOCKET_NAME))
            self._socket.sendall(frame(Sealer()))
            self._receive()  # its welcome
        except BaseException:
            self._socket.close()
            raise

    def seal(self, seal: Seal) -> bool:
        """Say whether the writer did it; raise WriterGone."""
        return self.ask(seal)

    def ask(self, asked: Seal | Rewrite | Scrub) -> bool:
        """Say whether the writer did it; raise WriterGone."""
        self._socket.sendall(frame(asked))
        return isinstance(self._receive(), Done)

    def wait(self, seconds: float) -> None:
        """Let time pass; raise WriterGone as soon as it is."""
        if select.select([self._socket], [], [], seconds)[0]:
            raise WriterGone

    def set_aside(self, damage: CorruptDay) -> None:
        """Have a damaged file put aside."""
        self._socket.sendall(frame(SetAside(damage.day, damage.inode)))

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _receive(self) -> Answer:
        length = int.from_bytes(self._read(LENGTH_BYTES), "little")
        return _decoder.decode(self._read(length))

    def _read(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            part = self._socket.recv(size - len(received))
            if not part:
                raise WriterGone
            received += part
        return received


def seal_day(directory: Path, day: int, waiting_logs: int, link: WriterLink) -> bool:
    """Seal all logs of the clients of a day of which so many wait; say whether there were any."""
    return _within(directory, day, link, lambda db: _seal_clients(db, day, waiting_logs, link))


def tidy_day(directory: Path, day: int, link: WriterLink) -> bool:
    """Pack blocks anew of which something was erased, and leave nothing of it in the file.

    Say whether there was anything to do.
    """
    return _within(directory, day, link, lambda db: _tidy(db, day, link))


def _within(
    directory: Path, day: int, link: WriterLink, work: Callable[[sqlite3.Connection], bool]
) -> bool:
    """Work on a day file; have it put aside if it shows damage. Say whether anything was done."""
    path = day_path(directory, day).absolute()
    inode = path.stat().st_ino
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        with damage_named(day, inode):
            return work(db)
    except CorruptDay as damage:
        link.set_aside(damage)
        return False
    finally:
        db.close()


def _tidy(db: sqlite3.Connection, day: int, link: WriterLink) -> bool:
    stale = find_stale(db)
    if not stale:
        return False
    for id_, erasures in stale.items():
        rewrite = None if id_ & WHOLE == WHOLE else build_rewrite(db, day, id_, erasures)
        if rewrite is not None:
            _ask(link, rewrite)
    # A page of waiting logs may keep a copy of what was once in it, where rows have moved: there
    # must be none left. That is less than a day's sealing, and happens once an erasure.
    _seal_clients(db, day, 1, link)
    left = find_stale(db)
    if any(id_ & WHOLE != WHOLE for id_ in left):
        return True  # there were more erasures meanwhile: another time
    for _ in range(SCRUBS_MAX):
        if _ask(link, Scrub(0, day, left)):
            break
    return True


def _ask(link: WriterLink, asked: Rewrite | Scrub) -> bool:
    started = time.monotonic()
    done = link.ask(asked)
    link.wait(time.monotonic() - started)  # half of the writer's time at most
    return done


def _seal_clients(db: sqlite3.Connection, day: int, waiting_logs: int, link: WriterLink) -> bool:
    has_sealed = False
    for client in find_full(db, waiting_logs):
        with_rest = waiting_logs < BLOCK_LOGS
        span_us = inf if with_rest else find_span(db, client)
        seals = build_seals(db, day, client, span_us, with_rest=with_rest)
        while True:
            started, used = time.monotonic(), time.process_time()
            seal = next(seals, None)
            if seal is None:
                break
            # So long others had the processors that this would have used, or the disk.
            held_up_s = max(0.0, time.monotonic() - started - (time.process_time() - used))
            started = time.monotonic()
            if not link.seal(seal):
                break  # logs have gone, or the disk is full: another time
            has_sealed = True
            # Half of the writer's time at most, and far less of it while the machine is busy.
            link.wait(time.monotonic() - started + DEFERENCE * held_up_s)
    return has_sealed


def _run(directory: Path, link: WriterLink) -> None:
    past_at = 0.0
    past_until = 0
    while True:
        started = time.monotonic()
        today = int(time.time() // 86_400)
        is_past_due = today > past_until or started >= past_at
        has_worked = False
        for day, path in sorted(list_days(directory).items()):
            try:
                has_worked |= tidy_day(directory, day, link)
                if day >= today:
                    has_worked |= seal_day(directory, day, WAITING_LOGS, link)
                elif is_past_due:
                    has_worked |= seal_day(directory, day, 1, link)
            except (FileNotFoundError, sqlite3.OperationalError):
                if path.exists():
                    raise  # else all of its logs have expired meanwhile
        if is_past_due:
            past_at, past_until = started + PAST_EVERY_S, today
        link.wait(pause_s(time.monotonic() - started, has_worked=has_worked))


def pause_s(elapsed_s: float, *, has_worked: bool) -> float:
    """Return how long to wait after a look that took so long: where there was work, there is more.

    A look that found nothing is paid for with many times its time.
    """
    return PAUSE_S if has_worked else max(PAUSE_S, elapsed_s / LOOKING_PART_MAX)


def _yield_to_all() -> None:
    """Run only while nobody else wants to: what arrives comes before what is tidied up."""
    if hasattr(os, "SCHED_IDLE"):
        # A low priority is not enough: whoever wakes waits for it to be preempted, and its core
        # does not count as an idle one.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(NICENESS)


def main() -> int:
    """Run until the writer has gone."""
    directory = Path(sys.argv[1]).resolve()
    os.umask(0o077)
    _yield_to_all()
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # as the writer, with which it ends
    try:
        _run(directory, WriterLink(directory))
    except (WriterGone, ConnectionError):
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
