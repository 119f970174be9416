"""Report what each client sent and stored, or each key of one client.

Times are RFC 3339, a date in UTC, or how long ago as 7d or 12h.
"""

import math
import re
import time
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from _wiring import (
    ControlPlane,
    control_plane,
    known_client,
    open_parser,
    print_json,
    run,
    text_table,
)

from app.keys.clients import list_clients
from app.keys.models import LIMIT_NAMES, ApiKey, Client
from app.keys.principal import Limits
from app.keys.registry import KeyFilter, list_keys
from app.logs.batch import USAGE_COUNTERS
from app.logs.csv_text import write_csv
from app.logs.query import UsageQuery
from app.logs.selection import parse_bound
from app.logs.timestamp import US_PER_MINUTE, BadTime
from app.settings import Settings
from app.storage.sqlite.reader import SqliteReader

Report = list[dict[str, Any]]
# What counts against a limit and is in the store: a request may also be one that reads.
_LIMITED = ("logs", "bytes")


def main() -> None:
    """Print a table, CSV or JSON."""
    parser = open_parser(__doc__, 'print {"usage": [...], "totals": {...}}')
    parser.add_argument("--client", metavar="ID", help="the keys of this client")
    parser.add_argument("--from", dest="start", type=_minute, metavar="T", help="from this minute")
    parser.add_argument("--to", dest="end", type=_minute, metavar="T", help="before this minute")
    parser.add_argument("--csv", action="store_true", help="print CSV, with the columns of --json")
    arguments = parser.parse_args()
    if arguments.csv and arguments.json:
        parser.error("--csv and --json exclude each other")
    with control_plane() as plane:
        reader = SqliteReader(Path(plane.settings.data_dir) / "logs")
        try:
            within = (arguments.start, arguments.end)
            if arguments.client is None:
                report = _of_clients(plane, reader, within)
            else:
                report = _of_keys(plane, reader, arguments.client, within)
        finally:
            reader.close()
    if arguments.json:
        totals = {name: sum(row[name] for row in report) for name in USAGE_COUNTERS}
        print_json({"usage": report, "totals": totals})
    elif arguments.csv:
        print(_csv(report), end="")
    else:
        print(_table(report) if report else "No usage.")


def _minute(text: str) -> int:
    if re.fullmatch(r"\d+[smhdw]", text):
        text = f"-{text}"  # which argparse would take for an option
    elif re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        text = f"{text}T00:00:00Z"
    try:
        us, _ = parse_bound(text, time.time_ns() // 1000)
    except BadTime:
        raise ArgumentTypeError(
            f"not a time: {text!r} (examples: 2027-01-31T12:00:00Z, 2027-01-31, 7d)"
        ) from None
    return us // US_PER_MINUTE


def _of_clients(
    plane: ControlPlane, reader: SqliteReader, within: tuple[int | None, int | None]
) -> Report:
    clients = {client.client_id: client for client in list_clients(plane.engine)}
    used = _sums(reader, UsageQuery(None, "day", *within), by_group=False)
    stored = reader.stored_bytes(math.inf)
    now = time.time_ns() // 1000 // US_PER_MINUTE
    this_minute = _sums(reader, UsageQuery(None, "day", now), by_group=False)
    report = []
    for client_id in sorted(clients.keys() | used.keys() | stored.keys()):
        client = clients.get(client_id)
        counts = used.get(client_id, dict.fromkeys(USAGE_COUNTERS, 0))
        row = {
            "client_id": client_id,
            "name": client.name if client else None,
            **counts,
            "stored_bytes": stored.get(client_id, 0),
        }
        limits = _limits(plane.settings, client)
        report.append({**row, **_quotas(limits, this_minute.get(client_id, {}))})
    return report


def _of_keys(
    plane: ControlPlane,
    reader: SqliteReader,
    client_id: str,
    within: tuple[int | None, int | None],
) -> Report:
    client = known_client(plane, client_id)
    keys = {
        key.key_id: key
        for key in list_keys(plane.engine, KeyFilter(client.client_id, include_inactive=True))
    }
    used = _sums(reader, UsageQuery(client_id, "key", *within), by_group=True)
    now = time.time_ns() // 1000 // US_PER_MINUTE
    this_minute = _sums(reader, UsageQuery(client_id, "key", now), by_group=True)
    report = []
    for key_id in sorted(keys.keys() | used.keys()):
        key = keys.get(key_id)
        row = {
            "client_id": client_id,
            "key_id": key_id,
            "name": key.name if key else None,
            **used.get(key_id, dict.fromkeys(USAGE_COUNTERS, 0)),
        }
        limits = _limits(plane.settings, key).capped(_limits(plane.settings, client))
        report.append({**row, **_quotas(limits, this_minute.get(key_id, {}))})
    return report


def _sums(reader: SqliteReader, query: UsageQuery, *, by_group: bool) -> dict[str, dict[str, int]]:
    """Sum usage by client, or by the query's own group."""
    sums: dict[str, dict[str, int]] = {}
    for row in reader.usage(query, math.inf):
        name = str(row.group) if by_group else row.client_id
        total = sums.setdefault(name, dict.fromkeys(USAGE_COUNTERS, 0))
        for counter, count in zip(USAGE_COUNTERS, row.counts, strict=True):
            total[counter] += count
    return sums


def _limits(settings: Settings, owner: Client | ApiKey | None) -> Limits:
    """Give the limits of a client, or of a key by itself; the defaults where it has none."""
    own = [getattr(owner, name, None) for name in LIMIT_NAMES]
    defaults = [getattr(settings, f"default_{name}") for name in LIMIT_NAMES]
    return Limits(*(d if o is None else o for o, d in zip(own, defaults, strict=True)))


def _quotas(limits: Limits, this_minute: dict[str, int]) -> dict[str, int | None]:
    """Give the limits of logs and bytes, and what this minute leaves of them; None: no limit."""
    quotas: dict[str, int | None] = {}
    for name in _LIMITED:
        limit = getattr(limits, f"{name}_per_minute")
        quotas[f"{name}_per_minute"] = limit or None
        quotas[f"{name}_left"] = max(0, limit - this_minute.get(name, 0)) if limit else None
    return quotas


def _csv(report: Report) -> str:
    rows = [list(row.values()) for row in report]
    return write_csv([list(report[0]), *rows]) if report else ""


def _table(report: Report) -> str:
    head = [name.replace("_", " ").upper() for name in report[0]]
    rows = [tuple(_cell(name, value) for name, value in row.items()) for row in report]
    totals = [
        f"{sum(row[name] for row in report):,}" if name in USAGE_COUNTERS else ""
        for name in report[0]
    ]
    return text_table([tuple(head), *rows, ("total", *totals[1:])])


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "unlimited" if name.endswith(("_per_minute", "_left")) else "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    run(main)
