"""GET /api/v1/usage: what was sent, stored, refused and denied."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.dependencies import ALL_CLIENTS, Caller, Opened, client_asked
from app.api.openapi import USAGE, documented
from app.errors import Invalid
from app.logs.batch import USAGE_COUNTERS
from app.logs.query import MINUTES, USAGE_GROUPS, UsageQuery, UsageRow
from app.logs.selection import parse_bound
from app.logs.timestamp import US_PER_MINUTE, BadTime, format_instant

router = APIRouter(prefix="/api/v1/usage", tags=["usage"])


@router.get("", summary="Read your usage", **documented(USAGE, 403, 404, 422))
async def read_usage(  # noqa: PLR0913, PLR0917  # each is one parameter of the query string
    principal: Caller,
    opened: Opened,
    client_id: Annotated[str | None, Query(description="With an admin key; `*` for all.")] = None,
    from_: Annotated[str | None, Query(alias="from", description="RFC 3339, or `-7d`.")] = None,
    to: Annotated[str | None, Query(description="RFC 3339, exclusive; rounded to minutes.")] = None,
    group_by: Annotated[str, Query(description="key, dataset, hour or day.")] = "day",
) -> dict[str, Any]:
    """Return usage by group, and in total; the usage of stored logs is exact.

    A key that is limited to some datasets sees what was counted for those, in every group.
    """
    group = next((one for one in USAGE_GROUPS if one == group_by), None)
    if group is None:
        raise Invalid.parameter("group_by", f"must be one of {', '.join(USAGE_GROUPS)}")
    client = client_asked(principal, client_id, opened)
    rows = await opened.store.usage(
        UsageQuery(
            client_id=None if client == ALL_CLIENTS else client,
            group_by=group,
            start_minute=minute_asked("from", from_),
            end_minute=minute_asked("to", to, ceiling=True),
            datasets=principal.allowed_datasets,
        )
    )
    totals = [sum(column) for column in zip(*(row.counts for row in rows), strict=True)]
    return {
        "usage": [_row(group, row, names_client=client == ALL_CLIENTS) for row in rows],
        "totals": dict(zip(USAGE_COUNTERS, totals or [0] * len(USAGE_COUNTERS), strict=True)),
    }


def minute_asked(name: str, text: str | None, *, ceiling: bool = False) -> int | None:
    """Read a bound of time as a minute since 1970; raise Invalid for what is none."""
    if text is None:
        return None
    try:
        us, _ = parse_bound(text, time.time_ns() // 1000)
    except BadTime as error:
        raise Invalid.parameter(name, str(error)) from None
    return -(-us // US_PER_MINUTE) if ceiling else us // US_PER_MINUTE


def _row(group: str, row: UsageRow, *, names_client: bool) -> dict[str, Any]:
    name: str | int = row.group
    if group in MINUTES:
        name = format_instant(int(row.group) * US_PER_MINUTE)
        name = name[:10] if group == "day" else name
    client = {"client_id": row.client_id} if names_client else {}
    return {**client, group: name, **dict(zip(USAGE_COUNTERS, row.counts, strict=True))}
