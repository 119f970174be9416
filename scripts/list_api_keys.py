"""List API keys, never more of them than their public part."""

import argparse
from datetime import timedelta

from _wiring import control_plane, print_json, run

from app.keys.models import ApiKey, utc_now
from app.keys.objects import key_object
from app.keys.registry import list_keys

COLUMNS = ("KEY", "CLIENT", "NAME", "ROLE", "STATUS", "CREATED", "EXPIRES")


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", metavar="ID", help="only this client's")
    parser.add_argument("--include-inactive", action="store_true", help="revoked ones too")
    parser.add_argument(
        "--due", type=int, metavar="DAYS", help="only those that end within DAYS, or have ended"
    )
    parser.add_argument("--json", action="store_true", help='print {"api_keys": [...]}')
    arguments = parser.parse_args()
    with control_plane() as plane:
        keys = list_keys(
            plane.engine, arguments.client, include_inactive=arguments.include_inactive
        )
    if arguments.due is not None:
        keys = [key for key in keys if _is_due(key, arguments.due)]
    if arguments.json:
        print_json({"api_keys": [key_object(key) for key in keys]})
    elif keys:
        print(_table([COLUMNS, *(_row(key) for key in keys)]))
    else:
        print("No keys.")


def _is_due(key: ApiKey, days: int) -> bool:
    end = key.ends_at
    # In days, since a huge number of them has no date.
    return end is not None and (end - utc_now()) / timedelta(days=1) <= days


def _row(key: ApiKey) -> tuple[str, ...]:
    end = key.ends_at
    status = "active" if key.is_active else "inactive"
    if end is not None and end <= utc_now():
        status = "expired"
    return (
        key.key_prefix,
        key.client_id or "(platform)",
        key.name,
        key.role,
        status,
        f"{key.created_at:%Y-%m-%d}",
        "never" if end is None else f"{end:%Y-%m-%d}",
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    run(main)
