"""What is wrong with a key or a client, and with which of its fields. Pure.

A fault is the {index, field, detail} of errors.py; all are told at once, rather than one a try.
"""

import json
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from app.columns import utc_now
from app.errors import Invalid, fault
from app.journal import redacted
from app.keys.models import LIMIT_NAMES, ApiKey, Client
from app.keys.restrictions import (
    ENFORCE,
    cidrs_fault,
    countries_fault,
    hours_fault,
    mode_fault,
)
from app.keys.roles import ADMIN, ROLES, SCOPES
from app.keys.token import CLIENT_ID_PATTERN, ENVIRONMENTS, PREFIX_PATTERN

NAME_LENGTH_MAX = 255
# Shown in every list of keys: room for labels, not for documents.
METADATA_BYTES_MAX = 16 * 1024
METADATA_DEPTH_MAX = 20
DESCRIPTION_LENGTH_MAX = 4_096
DATASETS_MAX = 1_000
EMAIL_LENGTH_MAX = 254
RETENTION_DAYS_MAX = 36_500

# What requests call columns of another name.
_FIELDS = {"extra": "metadata", "require_signature": "signing", "signing_key": "signing"}

SLUG_DETAIL = f"must match {CLIENT_ID_PATTERN.pattern}"

# A dot-atom of RFC 5322 and a host name; the quoted forms, which nobody has, would need care.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")


def check_client(client: Client) -> None:
    """Raise Invalid, naming each bad column."""
    errors = [
        *_fault("client_id", _client_fault(client.client_id)),
        *_fault("name", _name_fault(client.name)),
        *_fault("contact_email", _email_fault(client.contact_email)),
        *_fault("retention_days", _retention_fault(client.retention_days)),
        *_fault("dataset_retention_days", _retentions_fault(client.dataset_retention_days)),
        *_fault("metadata", _metadata_fault(client.extra)),
    ]
    if errors:
        raise Invalid(errors)


def check_new_key(key: ApiKey, limits: Mapping[str, int | None], prefix: str | None = None) -> None:
    """Raise Invalid, naming each bad property that is asked for a new key."""
    errors = [*_faults(key), *_fault("prefix", _prefix_fault(prefix)), *limit_faults(limits)]
    if errors:
        raise Invalid(errors)


def check_key(key: ApiKey, changed: Collection[str]) -> None:
    """Raise Invalid, naming each bad one, for columns of a key that were changed."""
    names = {_FIELDS.get(name, name) for name in changed}
    errors = [one for one in _faults(key) if one["field"] in names]
    if errors:
        raise Invalid(errors)


def limit_faults(limits: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Return the faults of limits as they are asked for, by name."""
    faults = []
    for name, limit in limits.items():
        if name not in LIMIT_NAMES:
            faults += _fault(f"limits.{name}", f"must be one of {', '.join(LIMIT_NAMES)}")
        elif limit is not None and not 0 <= limit < 1 << 63:
            faults += _fault(f"limits.{name}", "must be 0 (unlimited) or more")
    return faults


def is_mail_address(text: str) -> bool:
    """Say whether a text is one mail address, and so fit for a mail's header."""
    if "=?" in text:  # an encoded word (RFC 2047), which mail programs read as something else
        return False
    return len(text) <= EMAIL_LENGTH_MAX and _ADDRESS.fullmatch(text) is not None


def _fault(field: str, detail: str | None) -> list[dict[str, Any]]:
    return [fault(field, detail)] if detail else []


def _faults(key: ApiKey) -> list[dict[str, Any]]:
    return [
        *_fault("client_id", _client_fault(key.client_id)),
        *_fault("name", _name_fault(key.name)),
        *_fault("description", _description_fault(key.description)),
        *_fault("environment", _one_of(key.environment, ENVIRONMENTS)),
        *_fault("role", _one_of(key.role, ROLES) or _reach_fault(key)),
        *_fault("scopes", _scopes_fault(key.scopes)),
        *_fault("allowed_datasets", _datasets_fault(key.allowed_datasets)),
        *_fault("metadata", _metadata_fault(key.extra)),
        *_fault("expires_at", _expiry_fault(key.expires_at)),
        *_fault("allowed_cidrs", cidrs_fault(key.allowed_cidrs)),
        *_fault("allowed_countries", countries_fault(key.allowed_countries)),
        *_fault("allowed_hours", hours_fault(key.allowed_hours)),
        *_fault("restrictions_mode", mode_fault(key.restrictions_mode) or _idle_mode_fault(key)),
        *_fault("signing", _signing_fault(key)),
    ]


def _idle_mode_fault(key: ApiKey) -> str | None:
    # Else it would lie in wait for the first restriction, which then held nothing.
    if key.is_restricted or key.restrictions_mode == ENFORCE:
        return None
    return "takes allowed_cidrs, allowed_countries or allowed_hours beside it"


def _signing_fault(key: ApiKey) -> str | None:
    is_missing = key.require_signature and key.signing_key is None
    return "is required with require_signature" if is_missing else None


def _email_fault(address: str | None) -> str | None:
    return None if address is None or is_mail_address(address) else "must be one mail address"


def _retention_fault(days: int | None) -> str | None:
    if days is None or 1 <= days <= RETENTION_DAYS_MAX:
        return None
    return f"must be 1 to {RETENTION_DAYS_MAX} days, or null for ever"


def _retentions_fault(days_of: dict[str, int] | None) -> str | None:
    for dataset, days in (days_of or {}).items():
        if not CLIENT_ID_PATTERN.fullmatch(dataset):
            return f"{SLUG_DETAIL}: {dataset!r}"
        if detail := _retention_fault(days):
            return detail
    return _datasets_fault(list(days_of)) if days_of else None


def _one_of(value: object, allowed: Collection[str]) -> str | None:
    return None if value in allowed else f"must be one of {', '.join(allowed)}"


def _client_fault(client_id: str | None) -> str | None:
    if client_id is None or CLIENT_ID_PATTERN.fullmatch(client_id):
        return None
    return SLUG_DETAIL


def _name_fault(name: str) -> str | None:
    # isprintable: a line break would get into mail headers and logs.
    if name.strip() and len(name) <= NAME_LENGTH_MAX and name.isprintable():
        return _secret_fault(name)
    return f"must have 1 to {NAME_LENGTH_MAX} printable characters"


def _description_fault(description: str) -> str | None:
    if len(description) <= DESCRIPTION_LENGTH_MAX and "\0" not in description:
        return _secret_fault(description)
    return f"must have at most {DESCRIPTION_LENGTH_MAX} characters, none of them NUL"


def _secret_fault(text: str) -> str | None:
    """Refuse what is stored and shown as it is, should somebody paste a key there."""
    return None if redacted(text) == text else "must not hold an API key"


def _reach_fault(key: ApiKey) -> str | None:
    if (key.role == ADMIN) == (key.client_id is None):
        return None
    return "admin is the role of keys without client_id, and of no others"


def _scopes_fault(scopes: list[str] | None) -> str | None:
    unknown = sorted(set(scopes or ()) - SCOPES)
    return f"unknown: {', '.join(unknown)}" if unknown else None


def _datasets_fault(datasets: list[str] | None) -> str | None:
    if datasets is None:
        return None
    # Empty could be meant as "none" or as "all": better asked than guessed.
    if not 0 < len(datasets) <= DATASETS_MAX:
        return f"must name 1 to {DATASETS_MAX} datasets, or be absent for all"
    bad = [dataset for dataset in datasets if not CLIENT_ID_PATTERN.fullmatch(dataset)]
    return f"{SLUG_DETAIL}: {bad[0]!r}" if bad else None


def _depth(value: Any) -> int:
    """Count the levels of a JSON value, as far as one beyond what is allowed."""
    level, depth = [value], 0
    while level and depth <= METADATA_DEPTH_MAX:
        depth += 1
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = inner
    return depth


def _metadata_fault(metadata: dict[str, Any]) -> str | None:
    # Encoders give up at a depth that depends on who calls them: after the row is stored, perhaps.
    if _depth(metadata) > METADATA_DEPTH_MAX:
        return f"must be nested at most {METADATA_DEPTH_MAX} deep"
    try:
        text = json.dumps(metadata)
    except (TypeError, ValueError):
        return "must be a JSON object"
    if len(text) > METADATA_BYTES_MAX:
        return f"must be at most {METADATA_BYTES_MAX} bytes"
    return _secret_fault(text)


def _expiry_fault(expires_at: datetime | None) -> str | None:
    if expires_at is None:
        return None
    if expires_at.tzinfo is None:
        return "must have a time zone"
    try:
        expires_at.astimezone(UTC)
    except OverflowError:
        return "must be a time before the year 10000 in UTC"
    return None if expires_at > utc_now() else "must be in the future"


def _prefix_fault(prefix: str | None) -> str | None:
    if prefix is None or PREFIX_PATTERN.fullmatch(prefix):
        return None
    return f"must match {PREFIX_PATTERN.pattern}"
