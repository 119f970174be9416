"""API_KEYS_FILE: keys in a file that may change at any time."""

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from app.errors import StorageUnavailable
from app.keys.configured import KEYS_FILE, ConfiguredKeys
from app.keys.database import StartRefused
from app.keys.entry import Entry
from app.keys.key_list import BadKeyList, read_key_list

# A change is in force after two looks at most, of the 5 s that it may take.
FILE_POLL_S = 1.0
# About 4,500 keys: with two workers on two cores, both busy otherwise, a revocation among them took
# 3.9 s and as many new ones 4.7 s; of twice as many 6.3 and 7.6 s.
FILE_BYTES_MAX = 512 * 1024
# The coarsest clock of a file system: what was written so lately may be written again unseen.
FILE_CLOCK_S = 2.0

log = logging.getLogger(__name__)


class KeysFile:
    """API_KEYS_FILE: read at the start, then followed.

    A content that cannot be used leaves the last good one in force, and is complained of once. The
    file is looked at in a thread: a disk may be slow, and argon2 is. New keys that need argon2 are
    taken over as they get through it, and between those steps the file is looked at as ever.
    """

    def __init__(self, path: str | Path, poll_s: float = FILE_POLL_S) -> None:
        self._path = Path(path)
        self._poll_s = poll_s
        # What stat said of the content that was read last; None: to be read again in any case.
        self._stat: tuple[int, ...] | None = None
        self._is_settling = False
        self._is_undone = False
        self._digest = b""  # of that content, which holds keys and is not kept
        self._complaints: set[str] = set()  # of that content, each made once
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys-file")
        self._task: asyncio.Task[None] | None = None

    def read(self) -> list[Entry]:
        """Read it; raises StartRefused, in one line without any text of a key."""
        try:
            content = self._read()
        except OSError as error:
            raise StartRefused(f"{KEYS_FILE}: {error.strerror}") from error
        self._digest = blake2b(content).digest()
        return _entries(content)

    def follow(
        self,
        configured: ConfiguredKeys,
        take_over: Callable[[ConfiguredKeys], None],
        see_clients: Callable[[frozenset[str]], None],
    ) -> None:
        """Have what the file says from now on taken over, on this event loop.

        `see_clients` is called in the thread, to make what clients are not there yet.
        """
        self._task = asyncio.create_task(self._follow(configured, take_over, see_clients))

    async def aclose(self) -> None:
        """Follow it no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _follow(
        self,
        configured: ConfiguredKeys,
        take_over: Callable[[ConfiguredKeys], None],
        see_clients: Callable[[frozenset[str]], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        seen_clients = configured.client_ids
        pause_s = self._poll_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._poll_s
            try:
                changed = await loop.run_in_executor(self._thread, self._next, configured)
                if changed is not None:
                    # Before any clients are made: what is gone from the file ends at once, whether
                    # or not the database can be written.
                    configured = changed
                    take_over(configured)
                    counts = len(configured), len(configured.waiting)
                    log.info("%s: %d keys in force, %d to be hashed", KEYS_FILE, *counts)
                if not configured.client_ids <= seen_clients:
                    await loop.run_in_executor(self._thread, see_clients, configured.client_ids)
                    seen_clients = configured.client_ids
                    self._complaints.clear()
                if configured.waiting:
                    pause_s = 0
            except StorageUnavailable as error:
                self._complain(f"{KEYS_FILE}: new clients cannot be made yet: {error.reason}")
            except Exception as error:  # noqa: BLE001 (whatever it is, it is tried again)
                self._stat, self._is_undone = None, True
                self._complain(f"{KEYS_FILE} cannot be taken over yet: {type(error).__name__}")

    def _complain(self, complaint: str) -> None:
        if complaint not in self._complaints:
            log.error("%s", complaint)
        self._complaints.add(complaint)

    def _next(self, configured: ConfiguredKeys) -> ConfiguredKeys | None:
        """Give the keys of a changed file, else more of those that wait; None if nothing is new."""
        try:
            changed = self._reread(configured)
        except (StartRefused, OSError) as error:
            self._complain(f"{error}; the keys read from {KEYS_FILE} before remain in force")
            changed = None
        if changed is None and configured.waiting:
            return configured.with_waiting(self._poll_s)
        return changed

    def _reread(self, configured: ConfiguredKeys) -> ConfiguredKeys | None:
        """Give the keys of a changed file; None if there is nothing new in it."""
        if _identity(os.stat(self._path)) == self._stat:  # noqa: PTH116 (as in watch.py)
            self._is_settling = False
            return None
        # Whoever is writing it gets until the next look to finish, and not longer.
        self._is_settling = not self._is_settling
        if self._is_settling:
            return None
        content = self._read()
        digest = blake2b(content).digest()
        if digest != self._digest:
            self._digest = digest
            self._complaints.clear()
        elif not self._is_undone:
            return None
        self._is_undone = False
        return configured.with_file(_entries(content))

    def _read(self) -> bytes:
        # Not to wait for whoever would write into a pipe of that name.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise StartRefused(f"{KEYS_FILE}: is not a file")
            content = file.read(FILE_BYTES_MAX + 1)
        changes_s = found.st_mtime, found.st_ctime
        is_settled = all(abs(time.time() - at_s) > FILE_CLOCK_S for at_s in changes_s)
        self._stat = _identity(found) if is_settled else None
        return content


def _identity(found: os.stat_result) -> tuple[int, ...]:
    # The last of them is the system's own: a file's times can be set back, this one can't.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _entries(content: bytes) -> list[Entry]:
    try:
        entries, faults = read_key_list(content, "yaml", FILE_BYTES_MAX)
    except BadKeyList as error:
        raise StartRefused(f"{KEYS_FILE}: {error}") from None
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise StartRefused(f"{KEYS_FILE}: {faults[0]}{more}")
    return entries
