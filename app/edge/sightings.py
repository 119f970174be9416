"""Which keys were used, and from where: noted in memory, written every second.

Evidence, not accounts: what the usage of a client counts is committed with its logs
(app/edge/tally.py, app/logs/batch.py), this is lost with a `kill -9` of its last second.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from time import time

import structlog

from app.activity.uses import SOURCES_PER_KEY_MAX, Sighting
from app.errors import StorageUnavailable
from app.keys.principal import Principal

FLUSH_S = 1.0
LAST_FLUSH_S_MAX = 1.0  # a database that does not answer must not hold the stop
# The interpreter is held for 5 ms to write of so many keys; between two such portions it is left to
# requests, which piled up for 50 ms while 2,000 keys were written of in one go.
KEYS_PER_WRITE = 200
PAUSE_S = 0.02
# Beyond either, a key's requests are counted without their source: a client that invents a user
# agent for each request must not fill the memory, nor crowd out the sources of other keys.
SOURCES_MAX = 10_000
SOURCES_OF_KEY_MAX = 5 * SOURCES_PER_KEY_MAX
# As long as four bytes a character; the text is cut when it is written.
USER_AGENT_BYTES_MAX = 1020

# An address and a user agent, as the request had them.
Source = tuple[str, bytes]
_NO_SOURCE: Source = ("", b"")

log = structlog.get_logger(__name__)


class _Count:
    """How often, first and last."""

    __slots__ = ("first_s", "last_s", "requests")

    def __init__(self, requests: int, first_s: float, last_s: float) -> None:
        self.requests = requests
        self.first_s = first_s
        self.last_s = last_s


_Counts = dict[str, dict[Source, _Count]]


class Sightings:
    """Uses of keys that this process has seen and not written yet.

    `write` is called in a thread, a second's worth at a time; it raises StorageUnavailable to be
    given the same again.
    """

    def __init__(self, write: Callable[[list[Sighting]], None]) -> None:
        self._write = write
        self._counts: _Counts = {}
        self._sources = 0
        self._is_failing = False
        # A thread of its own: those of the loop's pool may all be waiting for something.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sightings")
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    def note(self, principal: Principal, source_ip: str, user_agent: bytes) -> None:
        """Count an authenticated request, which has just come."""
        self.count(principal.key_id, (source_ip, user_agent), time())

    def count(self, key_id: str, source: Source, at_s: float) -> None:
        """Count a request that came at a moment of the wall clock."""
        sources = self._counts.get(key_id)
        count = None if sources is None else sources.get(source)
        if count is None:
            self._add(key_id, source, _Count(1, at_s, at_s))
            return
        count.requests += 1
        count.last_s = at_s

    def _add(self, key_id: str, source: Source, new: _Count) -> None:
        sources = self._counts.setdefault(key_id, {})
        if len(source[1]) > USER_AGENT_BYTES_MAX:
            source = (source[0], source[1][:USER_AGENT_BYTES_MAX])
        known = sources.get(source)
        if known is None and (self._sources >= SOURCES_MAX or len(sources) >= SOURCES_OF_KEY_MAX):
            source = _NO_SOURCE
            known = sources.get(source)
        if known is None:
            sources[source] = new
            self._sources += 1
            return
        known.requests += new.requests
        known.first_s = min(known.first_s, new.first_s)
        known.last_s = max(known.last_s, new.last_s)

    async def _run(self) -> None:
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), FLUSH_S)
            is_last = self._stopping.is_set()
            await self.flush()

    async def flush(self) -> None:
        """Write what was counted, a portion at a time; keep what fails for the next time."""
        counts, self._counts, self._sources = self._counts, {}, 0
        rest = iter(counts.items())
        while portion := dict(islice(rest, KEYS_PER_WRITE)):
            if not await self._flush(portion):
                self._keep(dict(rest))
            elif len(portion) == KEYS_PER_WRITE and not self._stopping.is_set():
                await asyncio.sleep(PAUSE_S)

    async def _flush(self, counts: _Counts) -> bool:
        """Write a portion, or keep it; say whether it was written."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._write_all, counts)
        except StorageUnavailable as error:
            if not self._is_failing:  # once, not every second
                log.error("uses of keys are kept for the next time", reason=error.reason)  # noqa: TRY400
            self._keep(counts)
        except Exception:
            log.exception("uses of keys are kept for the next time")
            self._keep(counts)
        else:
            self._is_failing = False
            return True
        return False

    def _keep(self, counts: _Counts) -> None:
        self._is_failing = True
        for key_id, sources in counts.items():
            for source, count in sources.items():
                self._add(key_id, source, count)

    def _write_all(self, counts: _Counts) -> None:
        self._write(
            [
                Sighting(
                    key_id,
                    source_ip,
                    user_agent.decode("utf-8", "replace"),
                    count.requests,
                    _moment(count.first_s),
                    _moment(count.last_s),
                )
                for key_id, sources in counts.items()
                for (source_ip, user_agent), count in sources.items()
            ]
        )

    async def aclose(self) -> None:
        """Write the rest and stop."""
        self._stopping.set()
        if self._task is not None:
            # Not cancelled: of what a thread writes nobody would know whether it was written.
            await asyncio.wait([self._task], timeout=LAST_FLUSH_S_MAX)
        self._writer.shutdown(wait=False, cancel_futures=True)


def _moment(at_s: float) -> datetime:
    """Give a moment in whole milliseconds, as replies show it."""
    return datetime.fromtimestamp(int(at_s * 1000) / 1000, UTC)
