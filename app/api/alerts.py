"""GET /api/v1/alerts: suspicious activity, newest first."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta, Struct

from app.api.body import read_query
from app.api.dependencies import Caller, Opened, client_or_all
from app.api.forms import PAGE_ITEMS, PAGE_ITEMS_MAX
from app.api.openapi import documented
from app.api.pages import moment_asked, open_place, render_page
from app.api.reads import reading_of
from app.api.schemas import ALERT_LIST, ALERT_PAGE
from app.api.throttle import limited
from app.errors import Invalid
from app.protect.alert_list import AlertFilter, as_object, read_alerts
from app.protect.models import Alert
from app.protect.threats import RULES

router = APIRouter(prefix="/api/v1/alerts", tags=["audit"])


class AlertList(Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The query of GET /api/v1/alerts."""

    client_id: str | None = None
    from_: str | None = None
    to: str | None = None
    rule: str | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS
    cursor: str | None = None


class _Place(Struct, array_like=True):
    """An alert that was shown, and the bounds of its list: `from=-1h` moves between pages."""

    at: datetime
    alert_id: UUID
    since: datetime | None
    until: datetime | None


@router.get(
    "",
    summary="List alerts",
    **documented(ALERT_PAGE, 403, 404, 422, parameters=ALERT_LIST),
)
@limited
async def list_alerts(request: Request, caller: Caller, opened: Opened) -> Response:
    """List suspicious activity, newest first.

    What goes on is one alert, with a `count` and `last_at`. A client's own key reads what concerns
    its client's keys; what concerns an address alone is the platform's.
    """
    query = read_query(request, AlertList)
    if query.rule is not None and query.rule not in RULES:
        raise Invalid.parameter("rule", f"is none of {', '.join(RULES)}")
    client_id = client_or_all(caller, query.client_id, opened)
    bound = ["alerts", client_id, query.rule, query.from_, query.to]
    wanted = AlertFilter(client_id, rule=query.rule, limit=query.limit + 1)
    if query.cursor is None:
        wanted = wanted._replace(
            start=moment_asked("from", query.from_), end=moment_asked("to", query.to)
        )
    else:
        place = open_place(opened.cursors, bound, query.cursor, _Place)
        after = (place.at, place.alert_id)
        wanted = wanted._replace(start=place.since, end=place.until, after=after)

    def cursor_of(alert: Alert) -> str:
        last = _Place(alert.at, alert.alert_id, wanted.start, wanted.end)
        return opened.cursors.seal_place(bound, msgspec.msgpack.encode(last))

    def render() -> bytes:
        found = read_alerts(opened.activity, wanted)
        return render_page("alerts", found, query.limit, show=as_object, cursor_of=cursor_of)

    # To the last byte in the thread, as lists of keys are.
    body = await opened.reads.run(reading_of(caller), render)
    return Response(body, media_type="application/json")
