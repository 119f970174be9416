"""POST /api/v1/query: counts and measures of logs, as a table in JSON or CSV."""

import time
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from app.activity.access import ALL_DATASETS
from app.api.body import read_json
from app.api.dependencies import ALL_CLIENTS, Opened, client_asked
from app.api.logs import SAFE, within_datasets
from app.api.openapi import BODY_FAULTS, QUERY, TABLE, documented
from app.errors import Invalid
from app.logs.aggregation import parse_aggregation
from app.logs.csv_text import write_csv

router = APIRouter(prefix="/api/v1/query", tags=["logs"])

CSV = "text/csv"


@router.post(
    "",
    summary="Count and measure your logs",
    **documented(TABLE, *BODY_FAULTS, 403, 404, body=QUERY),
)
async def query_logs(request: Request, opened: Opened) -> Response:
    """Return a table, one row a group, in JSON; or in CSV, if `Accept` says `text/csv`.

    An error is a log with the status FAILED, FAILURE or ERROR. Percentiles are exact, between two
    logs interpolated. A row's `time` is the start of its bucket, in UTC.
    """
    asked = await read_json(request, dict[str, Any])
    client_id = client_asked(asked.caller, _client_named(request, asked.form), opened)
    query = parse_aggregation(
        None if client_id == ALL_CLIENTS else client_id, asked.form, time.time_ns() // 1000
    )
    request.state.access.datasets = query.filters.get("dataset", (ALL_DATASETS,))
    query = within_datasets(asked.caller, query)
    rows = await opened.store.aggregate(query)
    if _wants_csv(request):
        table = write_csv([query.columns, *rows])
        return Response(table, media_type=f"{CSV}; charset=utf-8", headers=SAFE)
    body = orjson.dumps({"columns": query.columns, "rows": rows})
    return Response(body, media_type="application/json", headers=SAFE)


def _client_named(request: Request, form: dict[str, Any]) -> str | None:
    """Return the client named in the body or, as on other routes, in the query string."""
    named = [*request.query_params.getlist("client_id"), form.get("client_id")]
    named = [one for one in named if one is not None]
    if not all(isinstance(one, str) for one in named):
        raise Invalid.parameter("client_id", "must be a string")
    if len(set(named)) > 1:
        raise Invalid.parameter("client_id", "is given twice")
    return named[0] if named else None


def _wants_csv(request: Request) -> bool:
    """Say whether CSV is accepted, and JSON not by name before it."""
    accepted = [
        one.partition(";")[0].strip() for one in request.headers.get("accept", "").split(",")
    ]
    return CSV in accepted and "application/json" not in accepted[: accepted.index(CSV)]
