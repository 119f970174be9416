"""List API keys, never more of them than their public part."""

import re
import sys
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from _suggestions import print_suggestions
from _wiring import control_plane, known_client, open_parser, print_json, run, text_table
from sqlalchemy import Engine

from app.activity.database import open_activity
from app.activity.uses import read_sources, read_uses
from app.columns import utc_now
from app.errors import StorageUnavailable
from app.keys.models import ApiKey, KeySource, KeyUse
from app.keys.objects import UNKNOWN_USE, RotationPolicy, key_object, source_objects
from app.keys.registry import DUE_DAYS_MAX, KeyFilter, list_keys
from app.keys.restrictions import REPORT

COLUMNS = ("KEY", "CLIENT", "NAME", "ROLE", "STATUS", "CREATED", "EXPIRES", "ONLY", "LAST USED")


def main() -> None:
    """Print a table, or JSON."""
    parser = open_parser(__doc__, 'print {"api_keys": [...]}')
    parser.add_argument("--client", metavar="ID", help="only this client's")
    parser.add_argument("--include-inactive", action="store_true", help="revoked ones too")
    parser.add_argument(
        "--due",
        type=_days,
        metavar="DAYS",
        help="only those that end or are due for rotation within DAYS, or have been",
    )
    parser.add_argument(
        "--suggest",
        action="store_true",
        help="the least that each key needs, learned from what it did; with --json"
        ' {"suggestions": [...]}',
    )
    arguments = parser.parse_args()
    with control_plane() as plane:
        due = None
        if arguments.due is not None:
            due = (plane.rotation_policy, utc_now() + timedelta(days=arguments.due))
        if arguments.client is not None:
            known_client(plane, arguments.client)
        keys = list_keys(plane.engine, KeyFilter(arguments.client, arguments.include_inactive, due))
        if arguments.suggest:
            print_suggestions(plane, keys, as_json=arguments.json)
            return
        evidence = _read_evidence(plane.engine, keys)
    if arguments.json:
        print_json({"api_keys": [_object(key, plane.rotation_policy, evidence) for key in keys]})
    elif keys:
        print(text_table([COLUMNS, *(_row(key, evidence) for key in keys)]))
    else:
        print("No keys.")


def _days(text: str) -> int:
    if not (re.fullmatch("[0-9]{1,9}", text) and int(text) <= DUE_DAYS_MAX):
        raise ArgumentTypeError(f"not a number of days from 0 to {DUE_DAYS_MAX}: {text!r}")
    return int(text)


class Evidence(NamedTuple):
    """What is known of the use of keys, by key_id; nothing at all if `is_known` is false."""

    is_known: bool
    uses: dict[str, KeyUse]
    sources: dict[str, list[KeySource]]  # of keys in grace: what still uses them has to change


def _read_evidence(control: Engine, keys: list[ApiKey]) -> Evidence:
    activity = open_activity(control)
    try:
        uses = read_uses(activity, [key.key_id for key in keys])
        in_grace = [key.key_id for key in keys if _is_in_grace(key)]
        sources = {key_id: read_sources(activity, key_id) for key_id in in_grace}
    except StorageUnavailable as error:
        return _no_evidence(error)
    finally:
        activity.dispose()
    return Evidence(is_known=True, uses=uses, sources=sources)


def _no_evidence(error: StorageUnavailable) -> Evidence:
    """Go on without: keys have to be found in an emergency above all."""
    print(f"Warning: the uses of keys cannot be read: {error.reason}", file=sys.stderr)
    return Evidence(is_known=False, uses={}, sources={})


def _object(key: ApiKey, policy: RotationPolicy, evidence: Evidence) -> dict[str, Any]:
    use = evidence.uses.get(key.key_id) if evidence.is_known else UNKNOWN_USE
    shown = key_object(key, policy, use)
    if key.key_id in evidence.sources:
        shown["sources"] = source_objects(evidence.sources[key.key_id])
    return shown


def _is_in_grace(key: ApiKey) -> bool:
    return key.grace_until is not None and key.is_active and not key.has_ended


def _row(key: ApiKey, evidence: Evidence) -> tuple[str, ...]:
    end = key.ends_at
    use = evidence.uses.get(key.key_id)
    unused = "never" if evidence.is_known else "unknown"
    return (
        key.key_prefix,
        key.client_id or "(platform)",
        key.name,
        key.role,
        _status(key),
        f"{key.created_at:%Y-%m-%d}",
        "never" if end is None else f"{end:%Y-%m-%d}",
        _restricted(key),
        unused if use is None else _minute(use.last_used_at),
    )


def _status(key: ApiKey) -> str:
    end = key.ends_at
    if not key.is_active:
        return "inactive"
    if end is not None and _is_in_grace(key):
        return f"in grace until {_minute(end)}"
    if key.rotated_to is not None:
        return "rotated"
    return "expired" if key.has_ended else "active"


def _restricted(key: ApiKey) -> str:
    """Say by what a key is restricted; --json has all of it."""
    named = {
        "addresses": key.allowed_cidrs,
        "countries": key.allowed_countries,
        "hours": key.allowed_hours,
    }
    found = ",".join(name for name, value in named.items() if value is not None)
    if found and key.restrictions_mode == REPORT:
        return f"{found} (report)"
    return found or "-"


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%MZ}"


if __name__ == "__main__":
    run(main)
