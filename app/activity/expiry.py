"""Retention at work: each worker now and then lets go of logs that have been kept for their time.

Workers need not agree on whose turn it is: what one has done, another finds done.
"""

import asyncio
import logging
import random
import time

from sqlalchemy import Engine

from app.keys.clients import list_with_retention
from app.logs.retention import Expired, Retention
from app.logs.store import LogStore

# Each is cut by up to a half, at random, so that workers take turns.
FIRST_S_MAX = 5.0
EVERY_S_MAX = 3600.0
RETRY_S_MAX = 60.0
S_PER_DAY = 86_400

log = logging.getLogger(__name__)


class Expiry:
    """This worker's part in it."""

    def __init__(
        self,
        engine: Engine,
        store: LogStore,
        first_s_max: float = FIRST_S_MAX,
        retry_s_max: float = RETRY_S_MAX,
    ) -> None:
        self._engine = engine
        self._store = store
        self._first_s_max = first_s_max
        self._retry_s_max = retry_s_max
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin soon."""
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Stop where it is: the rest is done another time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def expire(self) -> Expired:
        """Do what the clients' settings ask for now."""
        clients = await asyncio.to_thread(list_with_retention, self._engine)
        policies = {
            one.client_id: Retention(one.retention_days, one.dataset_retention_days or {})
            for one in clients
        }
        return await self._store.expire(policies, int(time.time() // S_PER_DAY))

    async def _run(self) -> None:
        wait_s_max = self._first_s_max
        while True:
            await asyncio.sleep(wait_s_max * random.uniform(0.5, 1))  # noqa: S311  # no secret
            try:
                expired = await self.expire()
                if expired != Expired():
                    log.info("expired: %d logs and %d whole days", expired.logs, expired.days)
                wait_s_max = EVERY_S_MAX
            except Exception:
                log.exception("expired logs are let go of another time")
                wait_s_max = self._retry_s_max
