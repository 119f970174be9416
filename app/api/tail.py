"""GET /api/v1/logs/tail: a client's new logs as Server-Sent Events, as soon as they are stored.

    id: <opaque>            where to resume, as Last-Event-ID
    data: <the log>         the object of GET /api/v1/logs, on one line

A stream that the service ends says why before it closes: `event: end`, `data: {"reason": …}`.
"""

import asyncio
import time
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from app.api.dependencies import Caller, Opened, authorize_again
from app.api.logs import SAFE, one_client, within_datasets
from app.api.openapi import TAIL, TAIL_FILTERS, documented
from app.edge.auth import Authenticator
from app.errors import Invalid, LoggerError, Unavailable
from app.keys.principal import Principal
from app.logs.place import Place, Places
from app.logs.selection import parse_selection
from app.logs.tail import SLOW, UNAVAILABLE, Tail

router = APIRouter(prefix="/api/v1/logs", tags=["logs"])

HEADERS = {
    **SAFE,
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}
# Less than the minute after which most proxies take a silent connection for dead.
HEARTBEAT_S = 15.0
# How long a reader should wait before it comes again, ms.
RETRY = b"retry: 1000\n"
# A revoked key's stream ends within a second: it is seen after half of one at the latest, and who
# does not take the last words soon is hung up on.
KEY_CHECK_S = 0.5
LAST_WORDS_S_MAX = 0.3
# All else of a key is looked at anew so often.
KEY_CHECK_FULL_S = 10.0
# For a slow reader to take what was queued for it.
DRAIN_S_MAX = 30.0

REVOKED = "key revoked"
CHANGED = "key changed"


@router.get("/tail", summary="Follow your logs", **documented(TAIL, 403, 404, 422, **TAIL_FILTERS))
async def tail_logs(request: Request, principal: Caller, opened: Opened) -> Response:
    """Stream each log that matches once it is stored, whatever its executed_at.

    Begins now, or after the event that `Last-Event-ID` names, without gap or repeat; the filters
    may differ from those of before. Comments keep the connection alive.
    """
    params = list(request.query_params.multi_items())
    client_id = one_client(principal, params, opened)
    own = {"client_id", "last_event_id"}
    others = [(name, value) for name, value in params if name not in own]
    after = _resumed(request, params, client_id, opened.tails.places)
    selection = within_datasets(principal, parse_selection(others, time.time_ns() // 1000))
    tail = await opened.tails.open(client_id, selection, after)
    return TailResponse(tail, KeyCheck(request, principal, opened.authenticator))


def _resumed(
    request: Request, params: list[tuple[str, str]], client_id: str, places: Places
) -> Place | None:
    """Return the place after the last event that the reader has, if it names one.

    The header wins: a browser that comes again sends it, with the address of the first time.
    """
    named = {value for name, value in params if name == "last_event_id"}
    if len(named) > 1:
        raise Invalid.parameter("last_event_id", "is given twice")
    last_id = request.headers.get("last-event-id") or (named.pop() if named else "")
    try:
        return places.open(client_id, last_id) if last_id else None
    except ValueError as error:
        raise Invalid.parameter("last_event_id", str(error)) from None


class KeyCheck:
    """Whether the caller of a request may go on; most of the time by a look at what has changed."""

    def __init__(
        self, request: Request, principal: Principal, authenticator: Authenticator
    ) -> None:
        self._request = request
        self._principal = principal
        self._authenticator = authenticator
        self._changes = -1
        self._full_at = 0.0

    async def fault(self) -> str | None:
        """Return why it may not, or None."""
        changes = self._authenticator.check_keys()
        expires_at_s = self._principal.expires_at_s
        if (
            changes == self._changes
            and time.monotonic() < self._full_at + KEY_CHECK_FULL_S
            # Its hours end without any change.
            and self._principal.restrictions is None
            and (expires_at_s is None or time.time() < expires_at_s)
        ):
            return None
        try:
            principal = await authorize_again(self._request)
        except Unavailable:
            return UNAVAILABLE
        except LoggerError:
            return REVOKED
        if principal.allowed_datasets != self._principal.allowed_datasets:
            return CHANGED
        self._principal = principal
        self._changes, self._full_at = changes, time.monotonic()
        return None


class TailResponse(Response):
    """The stream of a tail, until its reader goes or it is ended."""

    def __init__(self, tail: Tail, key: KeyCheck, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._tail = tail
        self._key = key
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["state"]["is_head"]:
                await send({"type": "http.response.body"})
            else:
                await self._run(scope, receive, send)
        finally:
            self._tail.close()

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        sending = asyncio.create_task(self._send(send))
        checking = asyncio.create_task(self._check_key())
        gone = asyncio.create_task(_gone(receive))
        tasks = {sending, checking, gone}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and not gone.done():
                checking.result()
                await self._end(sending, gone)
            if not sending.done() and not gone.done():
                await scope["state"]["abort"]()
            elif sending.done():
                sending.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, *either: asyncio.Task[None]) -> None:
        """Leave a reader some time to take what is left, which may become less meanwhile."""
        until = time.monotonic() + DRAIN_S_MAX
        while self._tail.reason == SLOW and time.monotonic() < until:
            self._stop_for(await self._key.fault())
            await asyncio.wait(either, timeout=KEY_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
            if any(task.done() for task in either):
                return
        await asyncio.wait(either, timeout=LAST_WORDS_S_MAX, return_when=asyncio.FIRST_COMPLETED)

    async def _check_key(self) -> None:
        """Return once the stream is to end."""
        while self._tail.reason is None:
            self._stop_for(await self._key.fault())
            try:
                await asyncio.wait_for(self._tail.ended.wait(), KEY_CHECK_S)
            except TimeoutError:
                continue

    def _stop_for(self, fault: str | None) -> None:
        if fault is not None:
            self._tail.end(fault)

    async def _send(self, send: Any) -> None:
        tail = self._tail

        async def write(part: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": more})

        # An id without data is no event, but a reader resumes from it as from any.
        last_id = tail.last_id
        await write(b"%bid: %b\n\n" % (RETRY, last_id.encode()))
        sent_at = time.monotonic()
        while tail.reason is None or tail.pending:
            await tail.wait(sent_at + self._heartbeat_s - time.monotonic())
            if tail.pending:
                self._stop_for(await self._key.fault())
            if tail.pending:
                await write(tail.take())
            elif time.monotonic() < sent_at + self._heartbeat_s:
                continue
            elif tail.last_id == last_id:
                await write(b": heartbeat\n\n")
            else:  # it has seen logs that do not match, which need not be read again
                last_id = tail.last_id
                await write(b": heartbeat\nid: %b\n\n" % last_id.encode())
            sent_at = time.monotonic()
        reason = orjson.dumps({"reason": tail.reason})
        await write(b"event: end\nid: %b\ndata: %b\n\n" % (tail.last_id.encode(), reason))
        await write(b"", more=False)


async def _gone(receive: Any) -> None:
    """Return when the reader has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
