"""Addresses that are blocked: their failed authentications get a 429 for a while."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog
from sqlalchemy import Engine, select
from sqlmodel import col

from app.columns import utc_now
from app.errors import StorageUnavailable
from app.keys.database import reading
from app.protect.models import AddressBlock

# A block is in force in every worker within this and the time of a read.
LOOK_S = 1.0

log = structlog.get_logger(__name__)


class Failures(Protocol):
    """How often each party has failed to authenticate (app/edge/limits.py)."""

    async def count(self, source: str) -> int:
        """Count a failure; or count nothing, and return the seconds until one will fit."""


class Blocks:
    """The blocks as this worker knows them, in front of what counts failures.

    Those are counted when a key was checked and found wrong: a good one is never refused.
    """

    def __init__(self, engine: Engine, failures: Failures, look_s: float = LOOK_S) -> None:
        self._engine = engine
        self._failures = failures
        self._look_s = look_s
        self._until_s: dict[str, float] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blocks")
        self._task: asyncio.Task[None] | None = None

    async def count(self, source: str) -> int:
        """Do what Failures says; the failures of who is blocked cost nothing, and never fit."""
        left_s = self._until_s.get(source, 0.0) - time.time()
        return int(left_s) + 1 if left_s > 0 else await self._failures.count(source)

    def start(self) -> None:
        """Begin to look for them."""
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Look no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        is_failing = False
        while True:
            try:
                self._until_s = await loop.run_in_executor(self._thread, self._read)
                is_failing = False
            except StorageUnavailable as error:
                if not is_failing:  # once, not every second
                    log.error("blocks are those known before", reason=error.reason)  # noqa: TRY400
                is_failing = True
            except Exception:
                log.exception("blocks are those known before")
            await asyncio.sleep(self._look_s)

    def _read(self) -> dict[str, float]:
        wanted = select(col(AddressBlock.address), col(AddressBlock.until))
        with reading(self._engine) as session:
            rows = session.execute(wanted.where(col(AddressBlock.until) > utc_now())).all()
        return {address: until.timestamp() for address, until in rows}
