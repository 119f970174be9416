"""GET /api/v1/logs and /api/v1/logs/{id}: a client's own logs, and nobody else's."""

import time
from dataclasses import replace
from typing import TypeVar

import orjson
from fastapi import APIRouter, Request, Response

from app.api.dependencies import ALL_CLIENTS, Caller, Opened, client_asked
from app.api.openapi import (
    LOG_FILTERS,
    LOG_PAGE,
    LOG_RECORD,
    REJECTED_FILTERS,
    REJECTED_PAGE,
    documented,
)
from app.api.services import Services
from app.errors import Forbidden, Invalid, NotFound
from app.keys.principal import Principal
from app.logs.dead_letters import parse_rejected_query
from app.logs.identity import parse_id
from app.logs.query import LogQuery, parse_log_query
from app.logs.selection import Selection

S = TypeVar("S", bound=Selection)
router = APIRouter(prefix="/api/v1/logs", tags=["logs"])

# Stored text is served as data: no browser may take it for a page.
SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@router.get(
    "",
    summary="Read your logs, newest first",
    **documented(LOG_PAGE, 400, 403, 404, 422, parameters=LOG_FILTERS),
)
async def list_logs(request: Request, principal: Caller, opened: Opened) -> Response:
    """Return one page; `next_cursor` continues it, without gap or repeat, while logs arrive."""
    params = list(request.query_params.multi_items())
    client_id = one_client(principal, params, opened)
    query = parse_log_query(
        client_id,
        [(name, value) for name, value in params if name != "client_id"],
        time.time_ns() // 1000,
        opened.cursors,
    )
    # A cursor belongs to what was asked, not to what the key narrows it to.
    page = await opened.store.page(within_datasets(principal, query))
    cursor = None if page.last_id is None else opened.cursors.seal(query, page.last_id)
    body = b'{"logs":[%b],"next_cursor":%b}' % (page.logs.encode(), orjson.dumps(cursor))
    return Response(body, media_type="application/json", headers=SAFE)


@router.get(
    "/rejected",
    summary="Read your rejected records, newest first",
    **documented(REJECTED_PAGE, 403, 404, 422, parameters=REJECTED_FILTERS),
)
async def list_rejected(request: Request, principal: Caller, opened: Opened) -> Response:
    """Return one page of what was refused, as it was sent, and why."""
    params = list(request.query_params.multi_items())
    client_id = one_client(principal, params, opened)
    named = [(name, value) for name, value in params if name != "client_id"]
    now_us = time.time_ns() // 1000
    query = parse_rejected_query(client_id, named, now_us, opened.cursors)
    page = await opened.store.rejected(within_datasets(principal, query))
    cursor = None if page.last_id is None else opened.cursors.seal(query, page.last_id)
    body = b'{"rejected":[%b],"next_cursor":%b}' % (page.logs.encode(), orjson.dumps(cursor))
    return Response(body, media_type="application/json", headers=SAFE)


@router.get("/{log_id}", summary="Read one log", **documented(LOG_RECORD, 403, 404, 422))
async def get_log(log_id: str, request: Request, principal: Caller, opened: Opened) -> Response:
    """Return the same object as in the list; another client's log is not found."""
    place = parse_id(log_id)
    client_id = one_client(principal, request.query_params.multi_items(), opened)
    if place is None:
        raise NotFound
    query = within_datasets(principal, LogQuery(client_id, log_id=place))
    page = await opened.store.page(query)
    if not page.logs:
        raise NotFound
    return Response(page.logs.encode(), media_type="application/json", headers=SAFE)


def one_client(principal: Principal, params: list[tuple[str, str]], opened: Services) -> str:
    """Return the one client whose logs are asked for: the key's own, or the one an admin names."""
    named = [value for name, value in params if name == "client_id"]
    if len(set(named)) > 1:
        raise Invalid.parameter("client_id", "is given twice")
    client_id = client_asked(principal, named[0] if named else None, opened)
    if client_id == ALL_CLIENTS:
        raise Invalid.parameter("client_id", "must name one client")
    return client_id


def within_datasets(principal: Principal, query: S) -> S:
    """Narrow a query to the datasets that the key may read."""
    allowed = principal.allowed_datasets
    if allowed is None:
        return query
    asked = query.filters.get("dataset")
    for dataset in asked or ():
        if dataset not in allowed:
            raise Forbidden(f"Not authorized for dataset '{dataset}'")
    return replace(query, filters={**query.filters, "dataset": asked or tuple(sorted(allowed))})
