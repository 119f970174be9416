"""What follows when a key of this service was found in a log: it is told, and may be stopped."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import structlog

from app.errors import InvalidKey, LoggerError
from app.protect.self_scan import FoundKey

REPORT_S = 60.0
# Keys that are remembered as told of; a flood of others makes us forget the ones told of first.
REMEMBERED_MAX = 10_000
# A body may hold thousands, made up to be looked into. Those with an id that no key in use has are
# told apart by a look at a list, and so many of them named in the log at a time.
AT_ONCE_MAX = 100
# What is beyond this is only counted.
WAITING_MAX = 10_000

# How a key is shown ends, by its key_id.
_SHOWN_END = b"***"
_SHOWN = re.compile(rb"([0-9A-Za-z]{12})\*\*\*")

log = structlog.get_logger(__name__)


class Findings:
    """Tells of found keys: each once a minute, since a workflow logs the same line again and again.

    `live_of` says which key_ids are of keys in use, and `verify` who a key is, as the methods of
    Keyring do. Anybody can make up a text with a right
    checksum and the key_id of another, which is public: so only a key that opens something is
    handed to `found(key_id, sender)` and `quarantine(key_id)`, which runs in a thread.
    """

    def __init__(
        self,
        verify: Callable[[str], Any],
        live_of: Callable[[Collection[str]], Awaitable[Collection[str]]],
        *,
        found: Callable[[str, str], None],
        quarantine: Callable[[str], object] | None = None,
    ) -> None:
        self._verify = verify
        self._live_of = live_of
        self._found = found
        self._quarantine = quarantine
        self._told: dict[bytes, float] = {}
        self._waiting: list[_Told] = []
        self._task: asyncio.Task[None] | None = None

    def report_all(
        self, found: Sequence[FoundKey], sender: str, logs: Iterable[tuple[bytes, str | None]]
    ) -> None:
        """Tell of the keys that were in the logs of one request: each log's text and dataset.

        The texts are those in which the keys were replaced already.
        """
        by_id: dict[bytes, dict[str, FoundKey]] = {}
        for key in found:
            by_id.setdefault(key.key_id.encode(), {})[key.text] = key
        for text, dataset in logs:
            if _SHOWN_END in text:
                for key_id in _SHOWN.findall(text):
                    for key in by_id.pop(key_id, {}).values():
                        self.report(key, sender, dataset)

    def report(self, key: FoundKey, sender: str, dataset: str | None) -> None:
        """Tell of a key that client `sender` sent in a log of `dataset` (None: not known)."""
        name = blake2b(key.text.encode(), digest_size=16).digest()
        now = time.monotonic()
        is_told = self._told.get(name, 0.0) > now
        # What is to be stopped is stopped each time: it may have been activated since.
        if len(self._waiting) >= WAITING_MAX or (is_told and self._quarantine is None):
            return
        self._told.pop(name, None)
        if len(self._told) >= REMEMBERED_MAX:
            del self._told[next(iter(self._told))]
        self._told[name] = now + REPORT_S
        self._waiting.append(_Told(key, sender, dataset))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow_all())

    async def _follow_all(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting, []
                await self._follow_some(some)
        finally:
            self._task = None

    async def _follow_some(self, some: list["_Told"]) -> None:
        """Look into those that may be of keys in use, all of them, and tell of some others."""
        try:
            live = await self._live_of({one.key.key_id for one in some})
        except LoggerError:  # it can't be said now; the next minute's finding will tell
            for one in some[:AT_ONCE_MAX]:
                _tell(one, is_live=None)
            return
        others = [one for one in some if one.key.key_id not in live]
        for one in others[:AT_ONCE_MAX]:
            _tell(one, is_live=False)
        worthy = [one for one in some if one.key.key_id in live]
        for at in range(0, len(worthy), AT_ONCE_MAX):
            part = worthy[at : at + AT_ONCE_MAX]
            followed = [self._follow(one, is_first=at == 0) for one in part]
            await asyncio.gather(*followed, return_exceptions=True)

    async def _follow(self, one: "_Told", *, is_first: bool) -> None:
        key, sender, _ = one
        is_live: bool | None = True
        try:
            await self._verify(key.text)
        except InvalidKey:
            is_live = False
        except LoggerError:  # it can't be said now; the next minute's finding will tell
            is_live = None
        if is_live or is_first:
            _tell(one, is_live=is_live)
        if not is_live:
            return
        self._found(key.key_id, sender)
        if self._quarantine is None:
            return
        try:
            await asyncio.to_thread(self._quarantine, key.key_id)
        except LoggerError as error:  # a static key, which only its settings can switch off
            told = "a found key could not be stopped"
            log.warning(told, key_id=key.key_id, reason=error.detail)
        else:
            log.warning("a found key was stopped", key_id=key.key_id)

    async def aclose(self) -> None:
        """Finish what was begun: a key that is to be stopped is stopped."""
        while self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _Told(NamedTuple):
    """A key that was found, who sent it, and in a log of which dataset."""

    key: FoundKey
    sender: str
    dataset: str | None


def _tell(one: _Told, *, is_live: bool | None) -> None:
    log.warning(
        "a key of this service was found in a log, and taken out",
        key_id=one.key.key_id,
        sender=one.sender,
        dataset=one.dataset,
        is_live=is_live,
    )
