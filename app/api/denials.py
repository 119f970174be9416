"""/api/v1/audit/denials and /access: why a request was refused, and what each key did."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import closing
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from app.activity.access import (
    AccessQuery,
    Place,
    client_key_ids,
    each_access,
    place_of,
)
from app.activity.denials import read_denial
from app.api.body import read_query
from app.api.dependencies import Caller, Opened
from app.api.forms import AccessList, Nothing
from app.api.openapi import documented
from app.api.pages import render_page
from app.api.reads import reading_of
from app.api.schemas import ACCESS_LIST, ACCESS_PAGE, DENIAL
from app.api.services import Services
from app.api.throttle import limited
from app.api.usage import minute_asked
from app.errors import Invalid, NotFound
from app.keys.models import KeyAccess
from app.keys.objects import iso_time
from app.keys.principal import Principal
from app.logs.timestamp import US_PER_MINUTE, format_instant

# Of the ids that the service makes, and of the column.
REQUEST_ID_LENGTH_MAX = 64

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])


@router.get(
    "/denials/{request_id}",
    summary="Say why a request was refused",
    **documented(DENIAL, 403, 404, 422),
)
@limited
async def show_denial(
    request: Request, request_id: str, caller: Caller, opened: Opened
) -> dict[str, Any]:
    """Return the exact reason of a 401, 403 or 429, which its caller is not told.

    It is there within 2 seconds, for some weeks; a flood from one place is counted, not kept one by
    one. A client's own key finds what concerns its client.
    """
    read_query(request, Nothing)
    if len(request_id) > REQUEST_ID_LENGTH_MAX:
        raise NotFound
    denial = await opened.reads.run(reading_of(caller), read_denial, opened.activity, request_id)
    if denial is None or caller.client_id not in {None, denial.client_id}:
        raise NotFound
    return {
        "request_id": denial.request_id,
        "at": iso_time(denial.at),
        "status": denial.status,
        "reason": denial.reason,
        "explanation": denial.explanation,
        "client_id": denial.client_id,
        "key_id": denial.key_id,
        "endpoint": denial.endpoint,
        "source_ip": denial.source_ip,
        "user_agent": denial.user_agent,
    }


@router.get(
    "/access",
    summary="List what keys did, minute by minute",
    **documented(ACCESS_PAGE, 403, 404, 422, parameters=ACCESS_LIST),
)
@limited
async def list_access(request: Request, caller: Caller, opened: Opened) -> Response:
    """Return the latest minutes first.

    A request that touches several datasets counts for each; `*` stands for all that the key may
    read. Of a key that is used from very many places at once the rest is without dataset and place.
    """
    query = read_query(request, AccessList)
    wanted = AccessQuery(
        key_ids=await _key_ids(caller, query.key_id, opened),
        start_minute=minute_asked("from", query.from_),
        end_minute=minute_asked("to", query.to, ceiling=True),
        after=None if query.cursor is None else _opened(query.cursor),
        limit=query.limit + 1,
    )

    def render() -> bytes:
        with closing(each_access(opened.activity, wanted)) as found:
            return render_page("access", found, query.limit, show=_shown, cursor_of=_cursor)

    body = await opened.reads.run(reading_of(caller), render)
    return Response(body, media_type="application/json")


async def _key_ids(caller: Principal, asked: str | None, opened: Services) -> list[str] | None:
    """Give the keys whose rows may be shown, of those that are asked for; None: all."""
    if caller.client_id is None:
        return None if asked is None else [asked]
    configured = [
        key.key_id
        for key in opened.authenticator.configured_keys()
        if key.client_id == caller.client_id
    ]
    stored = await opened.reads.run(
        reading_of(caller), client_key_ids, opened.engine, caller.client_id
    )
    own = {*stored, *configured}
    if asked is None:
        return sorted(own)
    if asked not in own:
        raise NotFound
    return [asked]


def _shown(row: KeyAccess) -> dict[str, Any]:
    return {
        "minute": format_instant(row.minute * US_PER_MINUTE),
        "key_id": row.key_id,
        "endpoint": row.endpoint,
        "dataset": row.dataset,
        "source_ip": row.source_ip,
        "user_agent": row.user_agent,
        "outcome": row.outcome,
        "requests": row.requests,
    }


def _cursor(row: KeyAccess) -> str:
    return urlsafe_b64encode(json.dumps(place_of(row)).encode()).decode().rstrip("=")


def _opened(cursor: str) -> Place:
    """Read a cursor; where it leads says nothing of what may be seen there."""
    try:
        text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        place: Place = msgspec.json.decode(text, type=Place)
    except (ValueError, msgspec.MsgspecError):
        raise Invalid.parameter("cursor", "is not a cursor of this list") from None
    return place
