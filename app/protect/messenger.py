"""Alerts are told: by webhook, and by mail to ALERT_MAIL_TO.

Each alert is told to each reader once. What fails is tried again, after a restart too, for GIVE_UP.
Who took an alert and did not answer in time, or just before this process ended, gets it twice, and
can tell: by its `Idempotency-Key`, or the mail's Message-ID.
"""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from functools import partial
from typing import NamedTuple, Protocol
from uuid import UUID

import structlog
from sqlalchemy import Engine

from app.columns import utc_now
from app.delivery.smtp import Mail, Mailbox, NotSent, send
from app.errors import StorageUnavailable
from app.protect.alert_list import as_object, summary
from app.protect.deliveries import NotTold, Recipient, mark_told, read_pending
from app.protect.models import Alert

LOOK_S = 2.0
# Doubled at each failure in a row, and cut by up to a half at random.
BACKOFF_S = 1.0
BACKOFF_S_MAX = 300.0
_SEVEN_BITS = SMTP.clone(cte_type="7bit")

log = structlog.get_logger(__name__)


class Channel(Protocol):
    """A way to tell people of an alert."""

    @property
    def name(self) -> str:
        """Name it, as `told` does."""

    @property
    def readers(self) -> Sequence[str]:
        """Name whom it tells, each by itself; one empty name where it tells one alone."""

    async def tell(self, alert: Alert, reader: str) -> None:
        """Tell one of its readers of an alert, without a name all of them; raise NotTold."""


class MailChannel:
    """Sends alerts by mail, each in a thread of its own."""

    name = "mail"

    def __init__(
        self, smtp_url: str, sender: Mailbox, to: Sequence[Mailbox], timeout_s: float
    ) -> None:
        self._smtp_url = smtp_url
        self._sender = sender
        self._to = {one.address: one for one in to}
        self._timeout_s = timeout_s

    @property
    def readers(self) -> Sequence[str]:
        """Give the addresses."""
        return list(self._to)

    async def tell(self, alert: Alert, reader: str) -> None:
        """Do what Channel says."""
        for to in [self._to[reader]] if reader else self._to.values():
            mail = compose(alert, self._sender, to)
            try:
                await _in_daemon(partial(send, mail, self._smtp_url, self._timeout_s))
            except NotSent as error:
                raise NotTold(str(error)) from None


def _in_daemon(work: Callable[[], None]) -> "asyncio.Future[None]":
    """Do something in a thread that no stop waits for, as it does for an executor's.

    A mail server may take its time for each answer; a server that stops has less.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(fault: Exception | None) -> None:
        if done.done():  # nobody waits for it any more
            return
        if fault is None:
            done.set_result(None)
        else:
            done.set_exception(fault)

    def run() -> None:
        fault: Exception | None = None
        try:
            work()
        except Exception as error:  # noqa: BLE001  # told to whoever waits
            fault = error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, fault)

    threading.Thread(target=run, name="alert-mail", daemon=True).start()
    return done


def compose(alert: Alert, sender: Mailbox, to: Mailbox) -> Mail:
    """Write the mail about an alert; nothing in its head comes from outside."""
    headers = {
        "Subject": f"Logger alert: {alert.rule} ({alert.severity})",
        "From": sender.header,
        "To": to.header,
        "Date": format_datetime(utc_now()),
        # The same each time: who gets it again can tell.
        "Message-ID": f"<alert-{alert.alert_id}@{sender.domain}>",
        "Auto-Submitted": "auto-generated",
    }
    body = EmailMessage(policy=_SEVEN_BITS)
    body.set_content(f"{summary(alert)}\n\n{json.dumps(as_object(alert), indent=2)}\n")
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return Mail(sender, to, head.encode("ascii") + body.as_bytes())


class _Backoff(NamedTuple):
    """How often a channel failed in a row, and when it is tried again (monotonic, s)."""

    failures: int = 0
    next_s: float = 0.0


class Messenger:
    """Tells of alerts that wait for it, by each channel by itself; to be run by one worker."""

    def __init__(
        self,
        engine: Engine,
        channels: Sequence[Channel],
        look_s: float = LOOK_S,
        backoff_s: float = BACKOFF_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._channels = {one.name: one for one in channels}
        self._look_s = look_s
        self._backoff_s = backoff_s
        self._clock = clock
        self._backoffs = {name: _Backoff() for name in self._channels}
        # How often what waits was tried in vain, by alert and reader: what is never taken must not
        # be before all others.
        self._tries: dict[str, dict[tuple[UUID, str], int]] = {name: {} for name in self._channels}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._run(one)) for one in self._channels.values()]

    async def aclose(self) -> None:
        """Stop; what is not told yet is told after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, channel: Channel) -> None:
        while True:
            try:
                await self._tell_all(channel)
            except StorageUnavailable as error:
                log.warning("alerts are told another time", reason=error.reason)
            except Exception:
                log.exception("alerts are told another time")
            left_s = self._backoffs[channel.name].next_s - self._clock()
            await asyncio.sleep(max(left_s, self._look_s))

    async def _tell_all(self, channel: Channel) -> None:
        """Tell of all that waits for a channel, until it fails."""
        pending = await asyncio.to_thread(read_pending, self._engine, channel.name)
        readers = {*channel.readers, ""}
        waiting = [(alert, reader) for alert, reader in pending if reader in readers]
        before = self._tries[channel.name]
        names = [(alert.alert_id, reader) for alert, reader in waiting]
        tries = self._tries[channel.name] = {one: before.get(one, 0) for one in names}
        for alert, reader in sorted(waiting, key=lambda one: tries[one[0].alert_id, one[1]]):
            try:
                await channel.tell(alert, reader)
            except NotTold as error:
                tries[alert.alert_id, reader] += 1
                self._failed(alert.alert_id, channel.name, str(error))
                return
            self._backoffs[channel.name] = _Backoff()
            recipient = Recipient(channel.name, reader)
            await asyncio.to_thread(mark_told, self._engine, alert.alert_id, recipient)

    def _failed(self, alert_id: UUID, name: str, reason: str) -> None:
        failures = self._backoffs[name].failures + 1
        wait_s = min(self._backoff_s * 2 ** min(failures - 1, 20), BACKOFF_S_MAX)
        wait_s *= random.uniform(0.5, 1)  # noqa: S311  # no secret
        self._backoffs[name] = _Backoff(failures, self._clock() + wait_s)
        log.warning("an alert was not told", channel=name, alert_id=str(alert_id), reason=reason)
