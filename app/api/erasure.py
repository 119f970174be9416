"""DELETE /api/v1/clients/{client_id}/logs: what the platform erases of a client's logs."""

import time
from typing import Any

import structlog
from fastapi import APIRouter, Request

from app.api.author import author_of
from app.api.dependencies import Caller, Opened
from app.api.logs import within_datasets
from app.api.openapi import ERASED, ERASURE_FILTERS, documented
from app.api.reads import reading_of
from app.api.throttle import limited
from app.api.writes import place_of
from app.errors import Invalid, Overloaded, StorageUnavailable, fault
from app.keys import clients
from app.logs.selection import parse_selection
from app.logs.timestamp import format_instant

router = APIRouter(prefix="/api/v1/clients", tags=["clients"])
log = structlog.get_logger(__name__)


@router.delete(
    "/{client_id}/logs",
    summary="Erase a client's logs",
    **documented(ERASED, 403, 404, 422, parameters=ERASURE_FILTERS),
)
@limited
async def erase_logs(
    request: Request, client_id: str, caller: Caller, opened: Opened
) -> dict[str, Any]:
    """Erase what the filters choose; without any, dead letters and replies to repeat as well.

    A key of some datasets erases in these alone, as if they had been named.
    What was stored before the request is gone when it is answered. Usage stays. A request that
    failed or broke off may have erased some: send it again for the rest.
    """
    await opened.reads.run(
        reading_of(caller), clients.get_client, opened.engine, client_id, asker=caller
    )
    params = list(request.query_params.multi_items())
    # An empty one is more likely a variable that was not set than what is meant to be erased.
    empty = [fault(name, "must not be empty") for name, value in params if not value.strip()]
    if empty:
        raise Invalid(empty)
    selection = within_datasets(caller, parse_selection(params, time.time_ns() // 1000))
    by, place = author_of(request, opened, caller), place_of(caller)
    filters = {"filters": selection.as_params()}
    # Before anything is erased: what can't be recorded is not done.
    await opened.writes.run(place, clients.begin_erasure, opened.engine, client_id, filters, by=by)
    erased = await opened.store.erase(client_id, selection)
    log.info("logs erased", client_id=client_id, by=caller.key_id, logs=erased.logs)
    receipt = {
        "erased": erased.logs,
        "from": None if erased.first is None else format_instant(*erased.first),
        "to": None if erased.last is None else format_instant(*erased.last),
        "erased_at": format_instant(time.time_ns() // 1000),
        "digest": erased.digest,
    }
    try:
        await opened.writes.run(
            place, clients.end_erasure, opened.engine, client_id, receipt, by=by
        )
    except (StorageUnavailable, Overloaded):
        # Done is done, and a repeat would have another receipt: that there was one is recorded.
        log.exception("the receipt of an erasure is not in the audit", **receipt)
    return receipt
