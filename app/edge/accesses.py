"""What each key does: counted when a request is answered, written every few seconds.

Evidence like the uses of keys (sightings.py), in more detail: which endpoint, which dataset, with
what outcome. A row is a minute's, so it may be written to more than once.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from time import time
from typing import Protocol

from app.activity.access import Access
from app.edge.background import BackgroundWriter
from app.edge.sightings import USER_AGENT_BYTES_MAX, Source

FLUSH_S = 2.0
# Rows of a minute, of one key and of all: beyond either, requests are counted without the dataset
# and the source, which are the caller's to invent.
ROWS_OF_KEY_MAX = 100
ROWS_MAX = 20_000
# Of one request that touches several.
DATASETS_MAX = 16
# Rows that a write takes at a time.
ROWS_PER_WRITE = 500

_NOWHERE: Source = ("", b"")
# key_id, endpoint, dataset, source, outcome.
What = tuple[str, str, str, Source, str]


class Log(Protocol):
    """Where accesses are written, in a thread; it raises StorageUnavailable to be asked again."""

    def is_due(self) -> bool:
        """Say whether there is something to do though there were no accesses."""

    def write(self, accesses: Collection[Access]) -> None:
        """Add to what is there."""


@dataclass(slots=True)
class Pending:
    """A request of the control plane that is being answered; who knows better sets `datasets`."""

    accesses: "Accesses"
    key_id: str
    endpoint: str
    source: Source
    datasets: Collection[str] = ()

    def answered(self, status: int) -> None:
        """Count it."""
        self.accesses.count_all(self.key_id, self.endpoint, self.datasets, self.source, str(status))


class Accesses:
    """Accesses that this process has counted; `log` writes them."""

    def __init__(self, log: Log, clock: Callable[[], float] = time) -> None:
        self._log = log
        self._clock = clock
        self._minute = 0
        self._minute_end_s = 0.0
        # Of this minute, with what is written of it already as 0: a row's name is taken once.
        self._counts: dict[What, int] = {}
        self._rows_of_key = Counter[str]()
        # Of the minutes before, and what could not be written.
        self._former: list[Access] = []
        self._writer = BackgroundWriter("accesses of keys", self.flush, FLUSH_S)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    async def aclose(self) -> None:
        """Write the rest and stop."""
        await self._writer.aclose()

    def count(self, what: What, at_s: float) -> None:
        """Count a request, which has just been answered; `at_s` is now, or a little before."""
        if at_s >= self._minute_end_s:
            self._turn()
        try:
            self._counts[what] += 1
        except KeyError:
            self._add(what)

    def count_all(
        self, key_id: str, endpoint: str, datasets: Collection[str], source: Source, outcome: str
    ) -> None:
        """Count a request once for each dataset that it touches."""
        at_s = self._clock()
        for dataset in sorted(datasets)[:DATASETS_MAX] or ("",):
            self.count((key_id, endpoint, dataset, source, outcome), at_s)

    def _add(self, what: What) -> None:
        key_id, endpoint, dataset, source, outcome = what
        if len(source[1]) > USER_AGENT_BYTES_MAX:
            source = (source[0], source[1][:USER_AGENT_BYTES_MAX])
        name = (key_id, endpoint, dataset, source, outcome)
        if name not in self._counts and (
            len(self._counts) >= ROWS_MAX or self._rows_of_key[key_id] >= ROWS_OF_KEY_MAX
        ):
            name = (key_id, endpoint, "", _NOWHERE, outcome)
        if name not in self._counts:
            self._rows_of_key[key_id] += 1
        self._counts[name] = self._counts.get(name, 0) + 1

    def _turn(self) -> None:
        """Begin a minute."""
        self._former += self._taken()
        self._counts = {}
        self._rows_of_key.clear()
        self._minute = int(self._clock() // 60)
        self._minute_end_s = (self._minute + 1) * 60.0

    def _taken(self) -> list[Access]:
        """Take what is counted and not written."""
        taken = [
            Access(
                *(key_id, self._minute, endpoint, dataset, source[0]),
                *(source[1].decode("utf-8", "replace"), outcome, requests),
            )
            for (key_id, endpoint, dataset, source, outcome), requests in self._counts.items()
            if requests
        ]
        self._counts = dict.fromkeys(self._counts, 0)
        return taken

    async def flush(self) -> None:
        """Write what was counted; keep what fails for the next time."""
        waiting, self._former = self._former + self._taken(), []
        if not waiting and self._log.is_due():
            await self._writer.write(partial(self._log.write, []), 0)
        for start in range(0, len(waiting), ROWS_PER_WRITE):
            portion = waiting[start : start + ROWS_PER_WRITE]
            if not await self._writer.write(partial(self._log.write, portion), len(portion)):
                self._former = (waiting[start:] + self._former)[:ROWS_MAX]
                return
