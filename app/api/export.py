"""GET /api/v1/logs/export: a client's own logs, however many, as one stream in constant memory.

An export is a walk from page to page by place, as cursors make it: no log is skipped or repeated
while others arrive. Its end is the place of the newest log at the start, so that it has one.

Once the first byte is sent there is no status left to tell of a fault, so what goes wrong cuts the
connection off: a response without its end is what every client takes for broken.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Request, Response

from app.api.dependencies import Caller, Opened, authorize_again
from app.api.logs import SAFE, one_client, within_datasets
from app.api.openapi import EXPORT, EXPORT_FILTERS, documented
from app.api.services import Services
from app.edge.encoding import choose_encoding, open_encoder
from app.errors import LoggerError
from app.keys.principal import Principal
from app.logs.csv_text import COLUMNS, logs_as_csv, write_csv
from app.logs.identity import parse_id
from app.logs.query import ExportFormat, LogQuery, Portion, parse_export_query
from app.logs.store import LogStore

router = APIRouter(prefix="/api/v1/logs", tags=["logs"])

# A revoked key's export ends within a second.
KEY_CHECK_S = 0.5
# What is handed to the connection at a time: it is copied, and bounds what waits for a slow client.
SEND_BYTES_MAX = 256 * 1024
# For a client to take one of those; one at less than 5 KB/s is holding a place for nothing.
SEND_S_MAX = 60.0
MEDIA_TYPES: dict[ExportFormat, str] = {
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8; header=present",
}

log = structlog.get_logger(__name__)


@router.get(
    "/export",
    summary="Export your logs, oldest first",
    **documented(EXPORT, 403, 404, 422, parameters=EXPORT_FILTERS),
)
async def export_logs(request: Request, principal: Caller, opened: Opened) -> Response:
    """Stream all logs that match, as lines of JSON or as CSV; gzip or zstd if you accept them.

    Every log that was stored at the start is in it once. A stream that breaks off is not whole.
    """
    params = list(request.query_params.multi_items())
    client_id = one_client(principal, params, opened)
    others = [(name, value) for name, value in params if name != "client_id"]
    query, form = parse_export_query(client_id, others, time.time_ns() // 1000)
    query = within_datasets(principal, query)
    opened.exports.enter(client_id)
    try:
        query = await _ended(opened.store, query)
        first = await opened.store.portion(query)
    except BaseException:
        opened.exports.leave(client_id)
        raise
    return _Export(request, opened, principal, query, form, first)


class _Identified(msgspec.Struct):
    """A rendered log, of which the rest may hold numbers of any size."""

    id: str


_decode_id = msgspec.json.Decoder(_Identified).decode


async def _ended(store: LogStore, query: LogQuery) -> LogQuery:
    """End an ascending query at the newest log there is: it might never catch up with new ones."""
    if query.order == "desc":
        return query
    page = await store.page(LogQuery(query.client_id, limit=1))
    newest = parse_id(_decode_id(page.logs).id) if page.logs else None
    if newest is None:
        return query
    end = (newest.us, newest.ns + 1)
    return replace(query, end=end if query.end is None else min(end, query.end))


class _Export(Response):
    """The stream, and what ends it: its last log, a fault, the key's revocation, a client gone."""

    def __init__(  # noqa: PLR0913, PLR0917  # what `export_logs` found out
        self,
        request: Request,
        opened: Services,
        principal: Principal,
        query: LogQuery,
        form: ExportFormat,
        first: Portion,
    ) -> None:
        self._encoding = choose_encoding(",".join(request.headers.getlist("accept-encoding")))
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        headers = {
            **SAFE,
            "Content-Disposition": f'attachment; filename="{query.client_id}-logs-{now}.{form}"',
            "Vary": "Accept-Encoding",
        }
        if self._encoding:
            headers["Content-Encoding"] = self._encoding
        super().__init__(headers=headers, media_type=MEDIA_TYPES[form])
        del self.headers["content-length"]
        self._request = request
        self._opened = opened
        self._principal = principal
        self._query = query
        self._form = form
        self._first = first

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it, for as long as nothing ends it early."""
        try:
            await self._run(scope, receive, send)
        finally:
            self._opened.exports.leave(self._query.client_id)

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["state"]["is_head"]:
            await send({"type": "http.response.body"})
            return
        sending = asyncio.create_task(self._send(send))
        watches = [asyncio.create_task(self._watch_key()), asyncio.create_task(_hang_up(receive))]
        tasks = [sending, *watches]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if outcomes[0] is None or outcomes[2] is None:
            return  # all is sent, or nobody is there
        reasons = [one for one in outcomes if isinstance(one, Exception)]
        log.warning(
            "export cut off", request_id=self._request.state.request_id, reason=repr(reasons[0])
        )
        await scope["state"]["abort"]()

    async def _send(self, send: Any) -> None:
        async for piece in self._pieces():
            whole = memoryview(piece)
            for at in range(0, len(piece), SEND_BYTES_MAX):
                part = whole[at : at + SEND_BYTES_MAX]
                async with asyncio.timeout(SEND_S_MAX):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yield the stream; while a portion is on its way, the next one is read."""
        encoder = open_encoder(self._encoding)
        if self._form == "csv":
            yield encoder.compress(write_csv([COLUMNS]).encode())
        portion: Portion | None = self._first
        while portion is not None:
            ahead = self._ahead(portion)
            try:
                if self._form == "ndjson" and not self._encoding:
                    yield portion.lines
                else:
                    yield await asyncio.to_thread(self._render, encoder, portion.lines)
                portion = None if ahead is None else await ahead
            finally:
                if ahead is not None:
                    ahead.cancel()
        yield encoder.flush()

    def _ahead(self, portion: Portion) -> "asyncio.Task[Portion] | None":
        if portion.last_id is None:
            return None
        query = replace(self._query, after=parse_id(portion.last_id))
        return asyncio.create_task(self._read(query))

    async def _read(self, query: LogQuery) -> Portion:
        return await self._opened.store.portion(query)

    def _render(self, encoder: Any, lines: bytes) -> bytes:
        return bytes(encoder.compress(logs_as_csv(lines) if self._form == "csv" else lines))

    async def _watch_key(self) -> None:
        """Raise what a request of this key would now be answered with, once it would be refused."""
        while True:
            await asyncio.sleep(KEY_CHECK_S)
            principal = await authorize_again(self._request)
            if principal.allowed_datasets != self._principal.allowed_datasets:
                raise LoggerError("the key's datasets have changed")


async def _hang_up(receive: Any) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
