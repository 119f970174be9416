"""One key as it stands in a file: its fields, read and judged. Pure.

What is wrong is told by the entry's number and the field's name, without a word of what stands
there: in a file whose columns are mixed up, any field may hold the key.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from difflib import get_close_matches
from typing import Any, NamedTuple, TypedDict

from app.keys.faults import DATASETS_MAX, DESCRIPTION_LENGTH_MAX, NAME_LENGTH_MAX
from app.keys.roles import ADMIN, ROLES, SCOPES
from app.keys.token import CLIENT_ID_PATTERN, token_fault

FIELDS = (
    *("key", "role", "tenant", "description", "rate_limit", "expires_at", "enabled"),
    *("allowed_datasets", "permissions"),
)
# The short words of common key files for scopes.
PERMISSIONS = {scope: scope for scope in SCOPES} | {
    "read": "logs:read",
    "write": "logs:write",
    "query": "logs:query",
    "usage": "usage:read",
    "manage": "keys:manage",
    "audit": "audit:read",
}

_WORDS = re.compile(r"[;,\s]+")
_RATE = re.compile(r"([0-9]{1,18})(?:\s*/\s*(?:m|min|minute))?")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class ImportedProperties(TypedDict, total=False):
    """What a key may bring along from elsewhere, as in registry.KeyProperties."""

    description: str
    role: str | None
    scopes: Collection[str] | None
    allowed_datasets: Collection[str] | None
    limits: Mapping[str, int | None]
    expires_at: datetime | None
    is_active: bool


class EntryFault(NamedTuple):
    """What is wrong with one entry, counted from 1."""

    number: int
    field: str
    detail: str

    def __str__(self) -> str:
        return f"entry {self.number}: {self.field} {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key of a file, without client_id the platform's; None = what the role or service gives."""

    number: int
    token: str = field(repr=False)
    client_id: str | None
    role: str
    description: str = ""
    scopes: Sequence[str] | None = None
    allowed_datasets: Sequence[str] | None = None
    requests_per_minute: int | None = None
    expires_at: datetime | None = None
    is_active: bool = True

    @property
    def properties(self) -> ImportedProperties:
        """Give what is asked for the key, as imports.py takes it."""
        return {
            "description": self.description,
            "role": self.role,
            "scopes": self.scopes,
            "allowed_datasets": self.allowed_datasets,
            "limits": {"requests_per_minute": self.requests_per_minute},
            "expires_at": self.expires_at,
            "is_active": self.is_active,
        }

    def name_or(self, default: str) -> str:
        """Give the description as a name of one line, if there is one."""
        return " ".join(self.description.split())[:NAME_LENGTH_MAX].strip() or default


class _BadField(Exception):
    """The detail of a fault."""


def read_entry(number: int, row: object) -> tuple[Entry | None, list[EntryFault]]:
    """Read an entry, or say all that is wrong with it."""
    if not isinstance(row, dict):
        return None, [EntryFault(number, "entry", f"must have fields: {', '.join(FIELDS)}")]
    faults = [
        EntryFault(number, f"field {place}", _unknown(name))
        for place, name in enumerate(row, 1)
        if name not in FIELDS
    ]
    values: dict[str, Any] = {}
    for name, read in _READERS.items():
        try:
            values[name] = None if row.get(name) is None else read(row[name])
        except _BadField as error:
            faults.append(EntryFault(number, name, str(error)))
    if values.get("key", "") is None:
        faults.append(EntryFault(number, "key", "is required"))
    if faults:
        return None, faults
    role = values["role"] or "client"
    if (role == ADMIN) != (values["tenant"] is None):
        detail = "must be absent with role admin, and is required with any other"
        return None, [EntryFault(number, "tenant", detail)]
    entry = Entry(
        number=number,
        token=values["key"],
        client_id=values["tenant"],
        role=role,
        description=values["description"] or "",
        scopes=values["permissions"],
        allowed_datasets=values["allowed_datasets"],
        requests_per_minute=values["rate_limit"],
        expires_at=values["expires_at"],
        is_active=values["enabled"] is not False,
    )
    return entry, []


def _unknown(name: object) -> str:
    near = get_close_matches(name.lower()[:32], FIELDS, 1) if isinstance(name, str) else []
    return f"is unknown: did you mean {near[0]}?" if near else f"is none of {', '.join(FIELDS)}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _BadField("must be text (put it in quotes)")
    return value


def _key(value: object) -> str:
    token = _text(value)
    if detail := token_fault(token):
        raise _BadField(detail)
    return token


def _role(value: object) -> str:
    if _text(value) not in ROLES:
        raise _BadField(f"must be one of {', '.join(ROLES)}")
    return _text(value)


def _slug(value: object) -> str:
    if not CLIENT_ID_PATTERN.fullmatch(_text(value)):
        raise _BadField(f"must match {CLIENT_ID_PATTERN.pattern}")
    return _text(value)


def _description(value: object) -> str:
    text = _text(value)
    if len(text) > DESCRIPTION_LENGTH_MAX or not "".join(text.split()).isprintable():
        raise _BadField(f"must have at most {DESCRIPTION_LENGTH_MAX} printable characters")
    return text


def _rate_limit(value: object) -> int:
    if isinstance(value, str) and (found := _RATE.fullmatch(value.strip().lower())):
        return int(found[1])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    raise _BadField("must be requests per minute, such as 100 or 100/minute; 0 = unlimited")


def _expires_at(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime.combine(moment, time())
        if isinstance(moment, datetime):
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # as any other value that is no time
    raise _BadField("must be a time, such as 2027-01-31T12:00:00Z or 2027-01-31")


def _enabled(value: object) -> bool:
    flag = _FLAGS.get(str(value).lower()) if isinstance(value, str | bool) else None
    if flag is None:
        raise _BadField("must be true or false")
    return flag


def _words(value: object) -> list[str]:
    words = _WORDS.split(value.strip()) if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _BadField("must be a list of words")
    # Empty could be meant as "none" or as "all": better asked than guessed.
    if not 0 < len(words) <= DATASETS_MAX:
        raise _BadField(f"must name 1 to {DATASETS_MAX}, or be absent")
    return words


def _datasets(value: object) -> list[str]:
    return sorted({_slug(word) for word in _words(value)})


def _permissions(value: object) -> list[str]:
    words = _words(value)
    if not PERMISSIONS.keys() >= set(words):
        raise _BadField(f"must be of {', '.join(sorted(PERMISSIONS))}")
    return sorted({PERMISSIONS[word] for word in words})


_READERS: dict[str, Callable[[object], Any]] = {
    "key": _key,
    "role": _role,
    "tenant": _slug,
    "description": _description,
    "rate_limit": _rate_limit,
    "expires_at": _expires_at,
    "enabled": _enabled,
    "allowed_datasets": _datasets,
    "permissions": _permissions,
}
