"""Shared windows in Redis, or in what speaks like it.

What is asked while a call is under way makes up the next: one call of one script, each decision in
it all or nothing. So calls keep their order, and many requests at once cost few of them.

A call that fails, or takes too long, opens the circuit: from then on nobody asks, everybody is told
at once to decide alone, and a task of its own tries until Redis answers again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import NoScriptError, RedisError

from app.edge import metrics
from app.edge.limits import WINDOW_S
from app.edge.shared_limits import NONE, Answer, Decision, Levels, SharedWindow

PREFIX = "central-logger:limits:"
# A window holds nothing that counts by then.
KEEP_S = WINDOW_S + 1
# One takes Redis some 5 µs, in which it does nothing else.
DECISIONS_A_CALL_MAX = 128
# A call costs us 80 µs: after one with so many decisions, the next one waits for company.
BUSY_DECISIONS = 8
COMPANY_S = 0.0005
CONNECT_S_MAX = 2.0
RETRY_S = 0.5
# A connection that is dead should be found so by us, not by a request.
IDLE_S = 15.0
# What this process slept through is not Redis' fault: its answer may lie there unread.
GRACE_S = 0.02

SCRIPT = Path(__file__).with_name("shared_limits.lua").read_bytes()
SCRIPT_SHA = sha1(SCRIPT, usedforsecurity=False).hexdigest()

# Asks for nothing, and is written all the same: a replica that may not write can't count.
PROBE = Decision([SharedWindow("probe", 0, 1)], NONE, NONE, NONE)

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[list[int]], list[list[int]], list[list[int]]]).decode

log = structlog.get_logger(__name__)


class RedisWindows:
    """Windows in one Redis server, by one connection of this process.

    `clock` gives the second that counts; None: Redis' own clock does, for all processes alike.
    """

    def __init__(
        self, url: str, timeout_s: float, clock: Callable[[], float] | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        pool: Any = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_connect_timeout=CONNECT_S_MAX,
            socket_timeout=None,  # the whole call has one
            socket_keepalive=True,
        )
        self._connection = pool.make_connection()
        self._waiting: deque[tuple[Decision, asyncio.Future[Answer | None] | None]] = deque()
        self._wanted = asyncio.Event()
        self.is_up = False  # whether it is asked
        self._is_told = False  # that it is not
        self._is_busy = False
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and begin to call; without Redis all goes on, and this process counts alone."""
        await self._try(CONNECT_S_MAX)
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Send what is left to be told, and stop."""
        self._is_stopping = True
        self._wanted.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=2 * self._timeout_s)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._release()
        await self._disconnect(nowait=False)

    async def ask(self, decision: Decision) -> Answer | None:
        """Do what Windows says."""
        answer = None
        if self.is_up:
            answered: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
            self._waiting.append((decision, answered))
            self._wanted.set()
            answer = await answered
        if answer is None:
            metrics.limits_alone.inc()
        return answer

    def tell(self, decision: Decision) -> None:
        """Do what Windows says."""
        if self.is_up:
            self._waiting.append((decision, None))
            self._wanted.set()

    async def _run(self) -> None:
        while not self._is_stopping or self._waiting:
            if not self.is_up:
                await asyncio.sleep(RETRY_S)
                await self._try(CONNECT_S_MAX)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._wanted.wait()
            self._wanted.clear()
            if not self._waiting:
                await self._try(self._timeout_s)
            while self._waiting:
                # Under load, company for a moment: fewer calls, each with more.
                await asyncio.sleep(COMPANY_S if self._is_busy else 0)
                await self._send()

    async def _try(self, timeout_s: float) -> None:
        """See whether Redis counts, and say so where that is news."""
        try:
            await self._decide([PROBE], timeout_s)
        except Exception as error:  # noqa: BLE001  # see _break
            await self._break(error)
            return
        self.is_up = True
        if self._is_told:
            self._is_told = False
            log.warning("limits are shared with the other workers again")

    async def _send(self) -> None:
        """Call once with as much as waits, and pass the answers on."""
        count = min(len(self._waiting), DECISIONS_A_CALL_MAX)
        self._is_busy = count >= BUSY_DECISIONS
        asked = [self._waiting.popleft() for _ in range(count)]
        try:
            answers = await self._decide([decision for decision, _ in asked], self._timeout_s)
        except Exception as error:  # noqa: BLE001  # see _break
            self._waiting.extendleft(reversed(asked))
            await self._break(error)
            return
        except asyncio.CancelledError:
            self._waiting.extendleft(reversed(asked))
            raise
        for (_, answered), answer in zip(asked, answers, strict=True):
            if answered is not None and not answered.done():
                answered.set_result(answer)

    async def _break(self, error: Exception) -> None:
        """Have all decide alone. Whatever it was, no request fails for a limit that can't be asked.

        What the call that failed has counted stays counted: nobody knows.
        """
        self.is_up = False
        self._release()
        if not self._is_told:
            self._is_told = True
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            log.warning("limits are counted by each worker alone", reason=reason[:200])
        await self._disconnect(nowait=True)

    def _release(self) -> None:
        while self._waiting:
            _, answered = self._waiting.popleft()
            if answered is not None and not answered.done():
                answered.set_result(None)

    async def _disconnect(self, *, nowait: bool) -> None:
        with suppress(RedisError, OSError, TimeoutError):
            await self._connection.disconnect(nowait=nowait)

    async def _decide(self, decisions: Sequence[Decision], timeout_s: float) -> list[Answer]:
        sets = {id(one.windows): one.windows for one in decisions}  # most have theirs in common
        set_at = {name: place for place, name in enumerate(sets, 1)}
        owners = dict.fromkeys(window.owner for windows in sets.values() for window in windows)
        owner_at = {owner: place for place, owner in enumerate(owners, 1)}
        now = 0 if self._clock is None else int(self._clock())
        flat = [_flat(windows, owner_at) for windows in sets.values()]
        asked = [
            (set_at[id(windows)], False if asks is None else asks, adds, backs)
            for windows, asks, adds, backs in decisions
        ]
        names = [PREFIX + owner for owner in owners]
        call = self._call(names, _encode((now, KEEP_S, flat, asked)))
        used, resets_s, waits_s = _decode(await _in_time(call, timeout_s))
        levels = dict(zip(sets, map(Levels, used, resets_s), strict=True))
        return [
            Answer(levels[id(one.windows)], waits)
            for one, waits in zip(decisions, waits_s, strict=True)
        ]

    async def _call(self, names: list[str], blob: bytes) -> bytes:
        connection = self._connection
        if not connection.is_connected or await connection.can_read():  # the end, or what is late
            await connection.disconnect(nowait=True)
            await connection.connect()
        arguments = (len(names), *names, blob)
        try:
            await connection.send_command("EVALSHA", SCRIPT_SHA, *arguments)
            reply: bytes = await connection.read_response()
        except NoScriptError:  # it was restarted, or told to forget its scripts
            await connection.send_command("EVAL", SCRIPT, *arguments)
            reply = await connection.read_response()
        return reply


async def _in_time(work: Awaitable[T], timeout_s: float) -> T:
    """Return what comes in time, or raise TimeoutError."""
    task = asyncio.ensure_future(work)
    try:
        for wait_s in (timeout_s, GRACE_S):
            await asyncio.wait([task], timeout=wait_s)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


def _flat(windows: Sequence[SharedWindow], owner_at: dict[str, int]) -> list[int]:
    """Give windows as the script reads them, which counts from 1."""
    return [
        number for owner, kind, limit in windows for number in (owner_at[owner], kind + 1, limit)
    ]
