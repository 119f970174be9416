"""The detector: one worker reads the evidence every few seconds and records what the rules find.

The worker is whoever holds the lock of a file, as for the audit's checkpoints. Nothing about its
place is stored: it begins with the evidence of the last minutes, of which nothing is recorded twice
(alerts.py). What can't be recorded now is kept, and recorded later.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from app.columns import utc_now
from app.errors import StorageUnavailable
from app.keys.principal import ANONYMOUS
from app.leader import LeaderLock
from app.protect.alerts import AlertLog
from app.protect.evidence import (
    REFUSALS_PER_READ,
    Place,
    Sources,
    Used,
    read_habits,
    read_refusals,
    read_used,
    read_usual,
)
from app.protect.messenger import Messenger
from app.protect.threats import (
    Attempts,
    Finding,
    Habits,
    Thresholds,
    Use,
    judge_spike,
    judge_use,
)

EVERY_S = 2.0
# Of a core, whatever there is to judge. A thousand keys in use take 10 ms each time.
SHARE_MAX = 0.05
# Refusals are written twice a second by each worker; what is younger may not be all.
SETTLED_S = 1.5
# Uses are written every two seconds, of the minute in which they were.
LATE_MINUTES = 1
# Of what was before this detector; a new one comes after a restart, within seconds.
FIRST_MINUTES = 5
PRUNE_EVERY_S = 3600.0
# Keys whose habits are held, at 1 to 50 kB each; the others' are read when they are used.
HABITS_MAX = 20_000
FINDINGS_MAX = 10_000
LOCK_FILE = "detector.lock"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Minute:
    """What was judged already of a minute."""

    judged: set[Used] = field(default_factory=set)
    spiked: set[str] = field(default_factory=set)


class Detector:
    """This worker's part in it; `messenger` works where the detector does.

    `lost` is told how many findings are given up, where they come faster than they are recorded.
    """

    def __init__(  # noqa: PLR0913  # what it reads, judges by, writes to, and elects itself by
        self,
        sources: Sources,
        thresholds: Thresholds,
        alerts: AlertLog,
        messenger: Messenger,
        *,
        directory: Path,
        lost: Callable[[int], object],
        every_s: float = EVERY_S,
        findings_max: int = FINDINGS_MAX,
    ) -> None:
        self._sources = sources
        self._thresholds = thresholds
        self._alerts = alerts
        self._messenger = messenger
        self._leads = LeaderLock(directory / LOCK_FILE)
        self._lost = lost
        self._every_s = every_s
        self._findings_max = findings_max
        self._attempts = Attempts(thresholds)
        self._minutes: dict[int, _Minute] = {}
        self._habits: dict[str, Habits] = {}
        self._findings: list[Finding] = []
        self._prune_at_s = time.monotonic()
        self._is_failing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="detector")
        self._task: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        """Go to where the evidence begins that a former detector may not have judged."""
        first_minutes = max(FIRST_MINUTES, self._thresholds.window_minutes)
        self._place = Place(utc_now() - timedelta(minutes=first_minutes), "")
        self._since_minute = int(time.time() // 60) - FIRST_MINUTES

    def start(self) -> None:
        """Begin soon."""
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Stop; what is not judged yet is judged by the next one."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._messenger.aclose()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._leads.close()

    def detect(self) -> None:
        """Judge what has come since the last time; raise StorageUnavailable."""
        self._judge_refusals()
        self._judge_uses()
        if (excess := len(self._findings) - self._findings_max) > 0:
            del self._findings[:excess]
            log.error("findings are lost: the oldest, which could not be recorded", count=excess)
            self._lost(excess)
        while self._findings:
            self._alerts.record(self._findings[:1])
            del self._findings[0]
        if time.monotonic() >= self._prune_at_s:
            self._alerts.prune()
            self._prune_at_s = time.monotonic() + PRUNE_EVERY_S

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        took_s = 0.0
        while True:
            await asyncio.sleep(max(self._every_s, took_s / SHARE_MAX))
            try:
                was_elected = self._leads.is_held
                if self._leads.take():
                    if not was_elected:  # it may have waited for days
                        self._begin()
                        self._messenger.start()
                    took_s = await loop.run_in_executor(self._thread, self._detect)
                self._is_failing = False
            except StorageUnavailable as error:
                if not self._is_failing:  # once, not every time
                    log.error("threats are looked for later", reason=error.reason)  # noqa: TRY400
                self._is_failing = True
            except Exception:
                log.exception("threats are looked for later")

    def _detect(self) -> float:
        """Detect, and say how much of a core that took, in seconds."""
        started_s = time.thread_time()
        self.detect()
        return time.thread_time() - started_s

    def _judge_refusals(self) -> None:
        until = datetime.fromtimestamp(time.time() - SETTLED_S, UTC)
        while True:
            refused, place = read_refusals(self._sources.activity, self._place, until)
            self._findings += self._attempts.judge(refused)
            self._place = place
            if len(refused) < REFUSALS_PER_READ:
                return

    def _judge_uses(self) -> None:
        now_minute = int(time.time() // 60)
        rows = read_used(self._sources.activity, self._since_minute)
        new: list[Used] = []
        requests: dict[tuple[int, str], int] = {}
        for row in rows:
            if row.key_id == ANONYMOUS:
                continue
            name = (row.minute, row.key_id)
            requests[name] = requests.get(name, 0) + row.requests
            minute = self._minutes.setdefault(row.minute, _Minute())
            what = row._replace(requests=0)
            if what not in minute.judged:
                new.append(what)
        self._read_habits(new)
        for use in _uses_of(new):
            habits = self._habits[use.key_id]
            self._findings += judge_use(use, habits, self._thresholds, self._sources.country)
        for what in new:
            self._minutes[what.minute].judged.add(what)
        self._judge_spikes(requests, rows)
        self._since_minute = now_minute - LATE_MINUTES
        for minute_done in [one for one in self._minutes if one < self._since_minute]:
            del self._minutes[minute_done]

    def _judge_spikes(self, requests: dict[tuple[int, str], int], rows: list[Used]) -> None:
        floor = self._thresholds.spike_floor
        if not floor:
            return
        for (minute, key_id), count in requests.items():
            spiked = self._minutes[minute].spiked
            if count < floor or key_id in spiked:
                continue
            start = minute - self._thresholds.spike_hours * 60
            usual = read_usual(self._sources.activity, key_id, start, minute)
            of_key = [row for row in rows if (row.minute, row.key_id) == (minute, key_id)]
            busiest = sorted(of_key, key=lambda row: row.requests, reverse=True)
            addresses = tuple(dict.fromkeys(row.source_ip for row in busiest if row.source_ip))
            use = Use(key_id, minute, addresses, ())
            habits = self._habits.get(key_id) or Habits()
            found = judge_spike(use, habits.client_id, count, usual, self._thresholds)
            if found is not None:
                spiked.add(key_id)
                self._findings.append(found)

    def _read_habits(self, new: list[Used]) -> None:
        """See that the habits of these keys are known, as they were before."""
        used = dict.fromkeys(row.key_id for row in new)
        unknown = [key_id for key_id in used if key_id not in self._habits]
        if unknown:
            missing = set(unknown)
            first = min(row.minute for row in new if row.key_id in missing)
            self._habits |= read_habits(self._sources, unknown, first)
        for key_id in used:  # the latest stand last
            self._habits[key_id] = self._habits.pop(key_id)
        for key_id in list(self._habits)[: -max(HABITS_MAX, len(used))]:
            del self._habits[key_id]


def _uses_of(rows: Iterable[Used]) -> list[Use]:
    """Put together what is of one key and minute, the earliest first."""
    places: dict[tuple[int, str], tuple[dict[str, None], dict[str, None]]] = {}
    for row in rows:
        addresses, datasets = places.setdefault((row.minute, row.key_id), ({}, {}))
        if row.source_ip:
            addresses[row.source_ip] = None
        if row.dataset and row.got:
            datasets[row.dataset] = None
    return [
        Use(key_id, minute, tuple(addresses), tuple(datasets))
        for (minute, key_id), (addresses, datasets) in sorted(places.items())
    ]
