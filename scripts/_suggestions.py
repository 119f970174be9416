"""The least that keys need, as list_api_keys.py --suggest prints it."""

import json
import shlex
from typing import Any

from _wiring import ControlPlane, print_json

from app.activity.access import read_used
from app.activity.database import open_activity
from app.activity.privilege import Suggestion, generate_options, suggest
from app.keys.models import ApiKey
from app.keys.objects import iso_time


def print_suggestions(plane: ControlPlane, keys: list[ApiKey], *, as_json: bool) -> None:
    """Print what each key needs; raise StorageUnavailable if what they did cannot be read."""
    # The table of routes needs the web framework, which no other command does.
    from app.api.access import RULES  # noqa: PLC0415

    scopes = {f"{method} {path}": rule.scope for (method, path), rule in RULES.items()}
    activity = open_activity(plane.engine)
    try:
        found = [(key, suggest(key, read_used(activity, key.key_id), scopes)) for key in keys]
    finally:
        activity.dispose()
    if as_json:
        print_json({"suggestions": [_object(key, one) for key, one in found]})
        return
    days = plane.settings.access_kept_days
    for key, one in found:
        print(f"{key.key_prefix}  {key.name}")
        for line in _lines(key, one, days):
            print(f"    {line}")
    if not found:
        print("No keys.")


def _object(key: ApiKey, one: Suggestion | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "key_id": key.key_id,
        "client_id": key.client_id,
        "name": key.name,
        "requests": 0 if one is None else one.requests,
        "days": 0 if one is None else one.days,
    }
    if one is None:
        return {**shown, "patch": {}, "generate": None, "notes": ["it was not used"]}
    return {
        **shown,
        "from": iso_time(one.first_at),
        "to": iso_time(one.last_at),
        "patch": one.patch,
        "generate": None if key.client_id is None else generate_options(key, one),
        "notes": one.notes,
    }


def _lines(key: ApiKey, one: Suggestion | None, days: int) -> list[str]:
    if one is None:
        return [f"not used in the last {days} days: is it needed at all?"]
    span = f"{one.first_at:%Y-%m-%d} to {one.last_at:%Y-%m-%d}"
    lines = [f"learned from {one.requests} requests on {one.days} days, {span}"]
    if one.patch:
        lines.append(f"PATCH /api/v1/api-keys/{key.key_id} {json.dumps(one.patch)}")
        if key.client_id is not None:
            lines.append(f"or generate_api_key.py {shlex.join(generate_options(key, one))}")
    else:
        lines.append("nothing to take away")
    return lines + [f"note: {note}" for note in one.notes]
