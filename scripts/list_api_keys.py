"""List API keys, never more of them than their public part."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from _wiring import control_plane, print_json, run
from sqlalchemy import Engine

from app.activity.uses import read_sources, read_uses
from app.keys.database import open_activity
from app.keys.models import ApiKey, KeyUse, utc_now
from app.keys.objects import RotationPolicy, key_object, source_objects
from app.keys.registry import KeyFilter, list_keys

COLUMNS = ("KEY", "CLIENT", "NAME", "ROLE", "STATUS", "CREATED", "EXPIRES", "LAST USED")


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", metavar="ID", help="only this client's")
    parser.add_argument("--include-inactive", action="store_true", help="revoked ones too")
    parser.add_argument(
        "--due",
        type=int,
        metavar="DAYS",
        help="only those that end or are due for rotation within DAYS, or have been",
    )
    parser.add_argument("--json", action="store_true", help='print {"api_keys": [...]}')
    arguments = parser.parse_args()
    with control_plane() as plane:
        settings = plane.settings
        policy = RotationPolicy(settings.rotation_days_live, settings.rotation_days_test)
        keys = list_keys(plane.engine, KeyFilter(arguments.client, arguments.include_inactive))
        if arguments.due is not None:
            keys = [key for key in keys if policy.is_due(key, arguments.due)]
        activity = open_activity(plane.engine)
        try:
            uses = read_uses(activity, [key.key_id for key in keys])
            if arguments.json:
                shown = [_object(key, policy, uses.get(key.key_id), activity) for key in keys]
                print_json({"api_keys": shown})
                return
        finally:
            activity.dispose()
    if keys:
        print(_table([COLUMNS, *(_row(key, uses.get(key.key_id)) for key in keys)]))
    else:
        print("No keys.")


def _object(
    key: ApiKey, policy: RotationPolicy, use: KeyUse | None, activity: Engine
) -> dict[str, Any]:
    """Show a key, and of one in grace where it is still used from: these have to change."""
    shown = key_object(key, policy, use)
    if _is_in_grace(key):
        shown["sources"] = source_objects(read_sources(activity, key.key_id))
    return shown


def _is_in_grace(key: ApiKey) -> bool:
    end = key.ends_at
    return key.grace_until is not None and key.is_active and end is not None and end > utc_now()


def _row(key: ApiKey, use: KeyUse | None) -> tuple[str, ...]:
    end = key.ends_at
    return (
        key.key_prefix,
        key.client_id or "(platform)",
        key.name,
        key.role,
        _status(key),
        f"{key.created_at:%Y-%m-%d}",
        "never" if end is None else f"{end:%Y-%m-%d}",
        "never" if use is None else _minute(use.last_used_at),
    )


def _status(key: ApiKey) -> str:
    end = key.ends_at
    if not key.is_active:
        return "inactive"
    if end is not None and _is_in_grace(key):
        return f"in grace until {_minute(end)}"
    if key.rotated_to is not None:
        return "rotated"
    return "expired" if end is not None and end <= utc_now() else "active"


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    run(main)
