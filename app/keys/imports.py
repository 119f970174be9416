"""Keys that were made elsewhere: read out of a file, judged by their strength, stored.

Reading is pure. Its errors name entries by number and fields by name, and repeat nothing of what
stands there: in a file whose columns are mixed up, any field may hold the key.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, NamedTuple, TypedDict, Unpack
from uuid import UUID

import yaml
from sqlalchemy import Engine
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import Session, col, select

from app.errors import Conflict, Invalid
from app.keys.database import reading, writing
from app.keys.models import ApiKey
from app.keys.registry import (
    DATASETS_MAX,
    DESCRIPTION_LENGTH_MAX,
    IMPORTED,
    NAME_LENGTH_MAX,
    add_client,
    check_key,
    find_client,
    limit_faults,
)
from app.keys.roles import ADMIN, ROLES, SCOPES
from app.keys.token import CLIENT_ID_PATTERN, MalformedToken, display, parse, random_key_id
from app.keys.verifier import Peppers

# A header that carries more is refused before it is looked at: see keyring.
TOKEN_LENGTH_MAX = 512
# About 10,000 entries, whose argon2 takes two cores three minutes.
KEY_LIST_BYTES_MAX = 2 * 1024**2
# What NIST SP 800-131A asks of a secret; a key with less must be slow to guess.
STRENGTH_BITS_MIN = 112

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


class BadKeyList(ValueError):
    """The file as a whole cannot be read; the text is one line and holds nothing of the file."""


class StoredAlready(Conflict):
    """The same key is there; `key` is its row, for whoever may know whose it is."""

    def __init__(self, key: ApiKey) -> None:
        super().__init__("This key is stored already")
        self.key = key


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
    def properties(self) -> "ImportedProperties":
        """Give what is asked for the key, as `prepare_import` takes it."""
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


class KeyList(NamedTuple):
    """The good entries of a file, and what is wrong with the others."""

    entries: list[Entry]
    faults: list[EntryFault]


class ImportedProperties(TypedDict, total=False):
    """What a key may bring along from elsewhere, as in registry.KeyProperties."""

    description: str
    role: str | None
    scopes: Collection[str] | None
    allowed_datasets: Collection[str] | None
    limits: Mapping[str, int | None]
    expires_at: datetime | None
    is_active: bool


# Strength.


def is_weak(token: str) -> bool:
    """Say whether a key may be guessable: not of our format, or of fewer than 112 bits."""
    try:
        parsed = parse(token)
    except MalformedToken:
        return True
    return parsed is None or strength_bits(parsed.secret) < STRENGTH_BITS_MIN


def strength_bits(text: str) -> float:
    """Estimate the bits in a text from below, by what can be seen in it.

    Each place where the text does something new (no three characters are repeated there) counts
    with the entropy of its characters or of the steps between neighbours, whichever is lower: so
    `aaaa`, `abcd` and `abcabc` come to almost nothing, and 43 random base62 characters, which hold
    256 bits, to about 200 (the least of 60,000 made here: 173). It cannot see words or dates, nor
    a generator that was not random.
    """
    steps = [ord(b) - ord(a) for a, b in pairwise(text)]
    places = len({text[at : at + 3] for at in range(len(text) - 2)})
    return places * min(_entropy(text), _entropy(steps))


def make_verifier(peppers: Peppers, token: str, key_hasher: str) -> tuple[str, str | None]:
    """Make verifier and lookup tag: argon2id for what is weak, whatever `key_hasher` says."""
    if key_hasher == "argon2id" or is_weak(token):
        return peppers.make_argon2id(token), peppers.lookup_tag(token)
    return peppers.make_keyed(token), None


def token_fault(token: str) -> str | None:
    """Say why a text could never be accepted as a key."""
    if not token.isascii() or not token.isprintable() or token.strip() != token:
        return "must be printable ASCII without surrounding spaces"
    if not 0 < len(token) <= TOKEN_LENGTH_MAX:
        return f"must have 1 to {TOKEN_LENGTH_MAX} characters"
    try:
        parse(token)
    except MalformedToken as error:
        return f"is mistyped: {error}"
    return None


def _entropy(values: Sequence[object]) -> float:
    counts = Counter(values).values()
    return -sum(n / len(values) * math.log2(n / len(values)) for n in counts)


# Reading.


def read_key_list(raw: bytes, form: str) -> KeyList:
    """Read a file of keys, in one of FORMATS; raises BadKeyList."""
    if len(raw) > KEY_LIST_BYTES_MAX:
        raise BadKeyList(f"has more than {KEY_LIST_BYTES_MAX} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadKeyList("is not UTF-8 text") from None
    found = KeyList([], [])
    numbers: dict[object, int] = {}
    for number, row in enumerate(FORMATS[form](text), 1):
        entry, faults = _read_entry(number, row)
        token = row.get("key") if isinstance(row, dict) else None
        first = numbers.setdefault(token, number) if isinstance(token, str) else number
        if first != number:
            faults.append(EntryFault(number, "key", f"is the same as that of entry {first}"))
        if entry is not None and not faults:
            found.entries.append(entry)
        found.faults.extend(faults)
    return found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repeated names, which a dict would drop."""


def _json_rows(text: str) -> list[Any]:
    """Read a map of key to client_id."""
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, _Pairs):
        raise BadKeyList("is not a JSON map of key to client_id")
    return [{"key": key, "tenant": client_id} for key, client_id in pairs]


class _YamlLoader(yaml.SafeLoader):
    """Reads plain data, each name once; no aliases, by which a short text can stand for a huge one.

    Of a name that is there twice, `enabled` say, PyYAML would take the last.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem_mark=self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(
        self, node: yaml.MappingNode, *args: Any, **kwargs: Any
    ) -> dict[Any, Any]:
        """Refuse repeated names."""
        mapping = super().construct_mapping(node, *args, **kwargs)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(problem_mark=node.start_mark)
        return mapping


def _yaml_rows(text: str) -> list[Any]:
    """Read the list under `api_keys:`."""
    try:
        content = yaml.load(text, _YamlLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        # Its own text quotes the file.
        mark = error.problem_mark
        where = "" if mark is None else f" (at line {mark.line + 1})"
        raise BadKeyList(f"is not plain YAML{where}") from None
    except Exception:  # noqa: BLE001 (PyYAML fails as it happens at `!!int x` or an impossible date)
        raise BadKeyList("is not plain YAML") from None
    if not isinstance(content, dict) or list(content) != ["api_keys"]:
        raise BadKeyList("must have `api_keys:` at its top, and nothing else there")
    rows = content["api_keys"]
    if rows is not None and not isinstance(rows, list):
        raise BadKeyList("must have a list under `api_keys:`")
    return rows or []


def _csv_rows(text: str) -> list[Any]:
    """Read rows under a line of names."""
    try:
        lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        rows = [[cell.strip() for cell in line] for line in lines]
    except csv.Error:
        raise BadKeyList("is not CSV") from None
    names, *rows = [row for row in rows if any(row)] or [[]]
    names = [name.lower() for name in names]
    if not {"key", "tenant"} <= set(names):
        raise BadKeyList("must begin with a line of names, `key` and `tenant` among them")
    for place, name in enumerate(names, 1):
        if name not in FIELDS or name in names[: place - 1]:
            # Not repeated: without a line of names it may be a key.
            raise BadKeyList(f"column {place} must be another of {', '.join(FIELDS)}")
    # An absent value is an empty cell; one cell too many gets the name None.
    return [
        {name: cell for name, cell in zip([*names, None], row, strict=False) if cell}
        for row in rows
    ]


FORMATS: dict[str, Callable[[str], list[Any]]] = {
    "json": _json_rows,
    "yaml": _yaml_rows,
    "csv": _csv_rows,
}


# Entries.


class _BadField(Exception):
    """The detail of a fault."""


def _read_entry(number: int, row: object) -> tuple[Entry | None, list[EntryFault]]:
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
    near = get_close_matches(str(name).lower()[:32], FIELDS, 1)
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


# Storing.


def prepare_import(
    peppers: Peppers,
    token: str,
    *,
    client_id: str | None,
    name: str,
    key_hasher: str = "auto",
    **properties: Unpack[ImportedProperties],
) -> ApiKey:
    """Make the row of a key that was made elsewhere, or by another installation; not stored yet.

    Raises Invalid for what could never be accepted as a key, and for each bad property.
    """
    if detail := token_fault(token):
        raise Invalid.parameter("key", detail)
    parsed = parse(token)
    key_id = parsed.key_id if parsed else random_key_id()
    scopes, datasets = properties.get("scopes"), properties.get("allowed_datasets")
    key = ApiKey(
        key_id=key_id,
        # Of a guessable key no part may be shown.
        key_prefix=display(token) if parsed else f"{IMPORTED}{key_id}***",
        client_id=client_id,
        name=name,
        description=properties.get("description", ""),
        role=properties.get("role") or (ADMIN if client_id is None else "client"),
        scopes=None if scopes is None else sorted(set(scopes)),
        allowed_datasets=None if datasets is None else sorted(set(datasets)),
        expires_at=properties.get("expires_at"),
        is_active=properties.get("is_active", True),
        created_by="import",
    )
    check_key(key, ApiKey.model_fields)
    limits = properties.get("limits", {})
    if faults := limit_faults(limits):
        raise Invalid(faults)
    for limit_name, limit in limits.items():
        setattr(key, limit_name, limit)
    key.verifier, key.lookup_tag = make_verifier(peppers, token, key_hasher)
    return key


def import_key(  # noqa: PLR0913 (as registry.create_key)
    engine: Engine,
    peppers: Peppers,
    *,
    token: str,
    client_id: str | None,
    name: str,
    key_hasher: str = "auto",
    create_client: bool = False,
    **properties: Unpack[ImportedProperties],
) -> ApiKey:
    """Store a key that was made elsewhere, and its client if `create_client` asks for it.

    Raises StoredAlready if it is there, for whichever client: one text that opened two clients'
    logs would be decided by the order of rows. Raises Invalid as `prepare_import`, and NotFound
    for an unknown client.
    """
    if detail := token_fault(token):
        raise Invalid.parameter("key", detail)
    alike = _alike(peppers, token)
    seen = _check_new(engine, peppers, token, alike)
    key = prepare_import(
        peppers, token, client_id=client_id, name=name, key_hasher=key_hasher, **properties
    )
    # argon2 must not run while the write lock is held, so what was stored since the last look is
    # looked at without it, until there is nothing of the kind.
    while not _store(engine, key, alike, seen, create_client=create_client):
        seen = _check_new(engine, peppers, token, alike)
    return key


def check_new(engine: Engine, peppers: Peppers, token: str) -> None:
    """Raise StoredAlready if a key is stored already."""
    _check_new(engine, peppers, token, _alike(peppers, token))


def _alike(peppers: Peppers, token: str) -> ColumnElement[bool]:
    """Select the rows that this key may be."""
    tagged = col(ApiKey.lookup_tag).in_(peppers.lookup_tags(token))
    parsed = parse(token)
    return tagged if parsed is None else tagged | (col(ApiKey.key_id) == parsed.key_id)


def _check_new(
    engine: Engine, peppers: Peppers, token: str, alike: ColumnElement[bool]
) -> set[UUID]:
    parsed = parse(token)
    with reading(engine) as session:
        found = session.exec(select(ApiKey).where(alike)).all()
    for key in found:
        if (parsed and key.key_id == parsed.key_id) or peppers.verify(key.verifier or "", token):
            raise StoredAlready(key)
    return {key.id for key in found}


def _store(
    engine: Engine,
    key: ApiKey,
    alike: ColumnElement[bool],
    seen: set[UUID],
    *,
    create_client: bool,
) -> bool:
    with writing(engine) as session:
        if not set(session.exec(select(ApiKey.id).where(alike)).all()) <= seen:
            return False
        _see_client(session, key.client_id, create=create_client)
        session.add(key)
    return True


def _see_client(session: Session, client_id: str | None, *, create: bool) -> None:
    if client_id is None:
        return
    if create:
        add_client(session, client_id)
    else:
        find_client(session, client_id)
