"""Which keys were used, and from where: noted in memory, written every second.

Evidence, not accounts: what the usage of a client counts is committed with its logs
(app/edge/tally.py, app/logs/batch.py), this is lost with a `kill -9` of its last second.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from time import time

from app.activity.uses import SOURCES_PER_KEY_MAX, Sighting
from app.edge.background import BackgroundWriter
from app.keys.principal import Principal

FLUSH_S = 1.0
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
        self._writer = BackgroundWriter("uses of keys", self.flush, FLUSH_S)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    async def aclose(self) -> None:
        """Write the rest and stop."""
        await self._writer.aclose()

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

    async def flush(self) -> None:
        """Write what was counted, a portion at a time; keep what fails for the next time."""
        counts, self._counts, self._sources = self._counts, {}, 0
        rest = iter(counts.items())
        while portion := dict(islice(rest, KEYS_PER_WRITE)):
            if not await self._writer.write(partial(self._write_all, portion), len(portion)):
                self._keep(portion)
                self._keep(dict(rest))
            elif len(portion) == KEYS_PER_WRITE and not self._writer.is_stopping:
                await asyncio.sleep(PAUSE_S)

    def _keep(self, counts: _Counts) -> None:
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


def _moment(at_s: float) -> datetime:
    """Give a moment in whole milliseconds, as replies show it."""
    return datetime.fromtimestamp(int(at_s * 1000) / 1000, UTC)
