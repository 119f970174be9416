"""GET /api/v1/audit: what was done and what was refused, newest first."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime
from heapq import merge
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta, Struct

from app.api.body import read_query
from app.api.dependencies import Caller, Opened, client_or_all
from app.api.forms import PAGE_ITEMS, PAGE_ITEMS_MAX
from app.api.openapi import documented
from app.api.pages import moment_asked, open_place, render_page
from app.api.reads import reading_of
from app.api.schemas import AUDIT_LIST, AUDIT_PAGE
from app.api.services import Services
from app.api.throttle import limited
from app.audit.models import AuditEvent
from app.audit.trail import EventFilter, select_events
from app.keys.database import reading, streamed
from app.keys.objects import iso_time

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

# Of a book that comes before or behind another: any name of a chain is between the two.
_FIRST, _LAST = "", "~"


class AuditList(Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The query of GET /api/v1/audit."""

    client_id: str | None = None
    from_: str | None = None
    to: str | None = None
    action: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS
    cursor: str | None = None


class _Place(Struct, array_like=True):
    """An event that was shown, and the bounds of its list: `from=-1h` moves between pages."""

    at: datetime
    book: str
    chain: str
    seq: int
    since: datetime | None
    until: datetime | None


class _Found(NamedTuple):
    """An event, first what it is sorted by."""

    at: datetime
    book: str
    chain: str
    seq: int
    row: AuditEvent


@router.get(
    "",
    summary="Read the audit",
    **documented(AUDIT_PAGE, 403, 404, 422, parameters=AUDIT_LIST),
)
@limited
async def list_events(request: Request, caller: Caller, opened: Opened) -> Response:
    """List what was done and what was refused, newest first.

    A client's own key reads what concerns its client. `chain` and `seq` are the event's place in
    its chain, by which `central-logger audit verify` names it.
    """
    query = read_query(request, AuditList)
    chain = client_or_all(caller, query.client_id, opened)
    bound = ["audit", chain, query.action, query.from_, query.to]
    if query.cursor is None:
        place = None
        wanted = EventFilter(chain, moment_asked("from", query.from_), moment_asked("to", query.to))
    else:
        place = open_place(opened.cursors, bound, query.cursor, _Place)
        wanted = EventFilter(chain, place.since, place.until)
    wanted = wanted._replace(action=query.action, limit=query.limit + 1)

    def cursor_of(found: _Found) -> str:
        last = _Place(*found[:4], wanted.since, wanted.until)
        return opened.cursors.seal_place(bound, msgspec.msgpack.encode(last))

    def render() -> bytes:
        with ExitStack() as stack:
            return render_page(
                "events",
                _read(opened, wanted, place, stack),
                query.limit,
                show=lambda found: _shown(found.row),
                cursor_of=cursor_of,
            )

    # To the last byte in the thread, as lists of keys are.
    body = await opened.reads.run(reading_of(caller), render)
    return Response(body, media_type="application/json")


def _read(
    opened: Services, wanted: EventFilter, place: _Place | None, stack: ExitStack
) -> Iterator[_Found]:
    """Read all books together, for as long as `stack` holds them open."""
    lists = []
    for book in opened.books:
        after = None
        if place is not None:
            behind = _LAST if book.name < place.book else _FIRST
            is_same = book.name == place.book
            after = (place.at, place.chain if is_same else behind, place.seq if is_same else 0)
        session = stack.enter_context(reading(book.engine))
        rows = streamed(session, select_events(wanted._replace(after=after)))
        lists.append(_found(book.name, stack.enter_context(closing(rows))))
    return merge(*lists, key=lambda one: one[:4], reverse=True)


def _found(book: str, rows: Iterable[AuditEvent]) -> Iterator[_Found]:
    return (_Found(row.at, book, row.chain, row.seq, row) for row in rows)


def _shown(row: AuditEvent) -> dict[str, Any]:
    try:
        detail = json.loads(row.detail)
    except ValueError:  # somebody wrote into the row; `audit verify` says so
        detail = {"unreadable": row.detail}
    return {
        "at": iso_time(row.at),
        "action": row.action,
        "actor": row.actor,
        "client_id": row.client_id,
        "target": row.target,
        "source_ip": row.source_ip,
        "user_agent": row.user_agent,
        "request_id": row.request_id,
        "detail": detail,
        "chain": row.chain,
        "seq": row.seq,
    }
