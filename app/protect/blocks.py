"""Addresses that are blocked: their failed authentications get a 429 for a while."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec
import structlog
from sqlalchemy import ColumnElement, Engine, Text, cast, func, select
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
        self._text = "{}"
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
        """Read them in one step, and parse them only if they are not those read before.

        Of 50,000, which are the most, the one takes 8 ms beside the event loop, the other 6 ms of
        it. Row by row it would wait for the interpreter's lock at each.
        """
        wanted = select(_as_object(self._engine)).where(col(AddressBlock.until) > utc_now())
        with reading(self._engine) as session:
            text = session.scalar(wanted) or "{}"
        if text == self._text:
            return self._until_s
        until_s = msgspec.json.decode(text, type=dict[str, float])
        self._text = text
        return until_s


def _as_object(engine: Engine) -> ColumnElement[str]:
    """Have SQL write one JSON object: until when each address is blocked, in Unix time (s)."""
    address, until = col(AddressBlock.address), col(AddressBlock.until)
    if engine.dialect.name == "postgresql":
        return cast(func.json_object_agg(address, func.extract("epoch", until)), Text)
    unix_s: ColumnElement[Any] = (func.julianday(until) - 2_440_587.5) * 86_400
    return func.json_group_object(address, unix_s)
