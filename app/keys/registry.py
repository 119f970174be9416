"""The register of clients and keys: made, found, listed.

Public functions own their transaction; those that take a session are steps of a larger one.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Required, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, delete
from sqlmodel import Session, col, select

from app.errors import Invalid, InvalidKey, NotFound, fault
from app.keys.authority import check_reach, check_role, check_within, narrow
from app.keys.database import reading, writing
from app.keys.models import LIMIT_NAMES, ApiKey, Client, CreatedOnce, utc_now
from app.keys.objects import RotationPolicy
from app.keys.principal import Principal
from app.keys.roles import ADMIN, ROLES, SCOPES
from app.keys.token import (
    CLIENT_ID_PATTERN,
    PREFIX_ADMIN,
    PREFIX_LIVE,
    PREFIX_PATTERN,
    PREFIX_TEST,
    mint,
)
from app.keys.verifier import Peppers

ENVIRONMENTS = {"live": PREFIX_LIVE, "test": PREFIX_TEST}
NAME_LENGTH_MAX = 255
# Shown in every list of keys: room for labels, not for documents.
METADATA_BYTES_MAX = 16 * 1024
METADATA_DEPTH_MAX = 20
DESCRIPTION_LENGTH_MAX = 4_096
DATASETS_MAX = 1_000
EMAIL_LENGTH_MAX = 254
DUE_DAYS_MAX = 36_500
RETENTION_DAYS_MAX = 36_500

# What stands for the text of a key that was made elsewhere, of which nothing may be shown.
IMPORTED = "imported_"

# How long an Idempotency-Key of a creation is remembered.
ONCE_WINDOW = timedelta(hours=24)

_SLUG_DETAIL = f"must match {CLIENT_ID_PATTERN.pattern}"


class KeyProperties(TypedDict, total=False):
    """What a new key may be given.

    Without client_id it is the platform's: role admin, and no other. `limits` names some of
    LIMIT_NAMES, 0 = unlimited, None = the default. `prefix` replaces the environment's.
    """

    client_id: Required[str | None]
    name: Required[str]
    description: str
    environment: str
    role: str | None
    scopes: Collection[str] | None
    allowed_datasets: Collection[str] | None
    limits: Mapping[str, int | None] | None
    metadata: dict[str, Any] | None
    expires_at: datetime | None
    prefix: str | None
    created_by: str | None


def add_client(session: Session, client_id: str, *, name: str | None = None) -> Client:
    """Find the client, or make it, in the caller's transaction; Invalid for no client_id."""
    client = session.get(Client, client_id)
    if client is None:
        if not CLIENT_ID_PATTERN.fullmatch(client_id):
            raise Invalid.parameter("client_id", _SLUG_DETAIL)
        client = Client(client_id=client_id, name=name or client_id)
        session.add(client)
        session.flush()
    return client


class Once(NamedTuple):
    """An Idempotency-Key of a creation, whose it is, and the digest of what was asked."""

    owner: str
    idempotency_key: str
    digest: bytes


def create_key(
    engine: Engine,
    peppers: Peppers,
    *,
    key_hasher: str = "auto",
    create_client: bool = False,
    asker: Principal | None = None,
    **properties: Unpack[KeyProperties],
) -> tuple[ApiKey, str]:
    """Make a key and give its text, which is nowhere stored.

    Raises Invalid, naming each bad field, NotFound for an unknown client unless `create_client`
    asks to make it, and Forbidden for what is beyond the asker.
    """
    key, text = new_key(peppers, key_hasher, asker=asker, **properties)
    with writing_for(engine, asker) as session:
        _add_key(session, key, create_client=create_client)
    return key, text


def create_key_once(  # noqa: PLR0913 (as create_key)
    engine: Engine,
    peppers: Peppers,
    once: Once,
    *,
    key_hasher: str = "auto",
    create_client: bool = False,
    asker: Principal | None = None,
    **properties: Unpack[KeyProperties],
) -> tuple[ApiKey, str | None]:
    """Make a key as `create_key` does, or find what the same request made: then without a text."""
    # First of all: what was fine then need not be now, an expiry in the near future for one.
    with reading(engine) as session:
        made = _made_before(session, once)
    if made is not None:
        return made, None
    key, text = new_key(peppers, key_hasher, asker=asker, **properties)
    with writing_for(engine, asker) as session:
        _forget_old(session)
        made = _made_before(session, once)
        if made is not None:
            return made, None
        _add_key(session, key, create_client=create_client)
        session.flush()  # so that the row below can name it
        session.add(CreatedOnce(**once._asdict(), api_key_id=key.id))
    return key, text


def new_key(
    peppers: Peppers,
    key_hasher: str,
    *,
    asker: Principal | None = None,
    **properties: Unpack[KeyProperties],
) -> tuple[ApiKey, str]:
    """Make the row of a key and its text, without storing anything."""
    client_id = properties["client_id"]
    check_reach(asker, client_id)
    check_role(asker, properties.get("role"))
    prefix = properties.get("prefix")
    limits = properties.get("limits") or {}
    scopes = properties.get("scopes")
    datasets = properties.get("allowed_datasets")
    key = ApiKey(
        key_id="",
        key_prefix="",
        client_id=client_id,
        name=properties["name"],
        description=properties.get("description", ""),
        environment=properties.get("environment", "live"),
        role=properties.get("role") or (ADMIN if client_id is None else "client"),
        scopes=None if scopes is None else sorted(set(scopes)),
        allowed_datasets=None if datasets is None else sorted(set(datasets)),
        extra=properties.get("metadata") or {},
        expires_at=properties.get("expires_at"),
        created_by=properties.get("created_by"),
    )
    errors = [*_faults(key), *_fault("prefix", _prefix_fault(prefix)), *limit_faults(limits)]
    if errors:
        raise Invalid(errors)
    for name, limit in limits.items():
        setattr(key, name, limit)
    narrow(asker, key, is_role_asked=properties.get("role") is not None)
    check_within(asker, key)
    return key, give_token(key, prefix, peppers, key_hasher)


def give_token(key: ApiKey, prefix: str | None, peppers: Peppers, key_hasher: str) -> str:
    """Mint the text of a new key and set the columns that come from it."""
    if prefix is None:
        prefix = PREFIX_ADMIN if key.client_id is None else ENVIRONMENTS[key.environment]
    token = mint(prefix, key.client_id)
    key.key_id, key.key_prefix = token.key_id, token.display
    _set_verifier(key, token.text, peppers, key_hasher)
    return token.text


@contextmanager
def writing_for(engine: Engine, asker: Principal | None) -> Iterator[Session]:
    """Write for a key that still is what it was when it asked; InvalidKey if it has ended since.

    In the same transaction, so that nothing is given by a key whose end was committed before.
    """
    with writing(engine) as session:
        row = None if asker is None else session.get(ApiKey, UUID(asker.id))
        if row is not None:  # a key of the settings has none
            client = None if row.client_id is None else find_client(session, row.client_id)
            if not row.is_active or row.has_ended or (client and not client.is_active):
                raise InvalidKey
        yield session


def _add_key(session: Session, key: ApiKey, *, create_client: bool) -> None:
    if key.client_id is not None:
        if create_client:
            add_client(session, key.client_id)
        else:
            find_client(session, key.client_id)
    session.add(key)


def _forget_old(session: Session) -> None:
    forgotten = utc_now() - ONCE_WINDOW
    session.execute(delete(CreatedOnce).where(col(CreatedOnce.created_at) < forgotten))


def _made_before(session: Session, once: Once) -> ApiKey | None:
    """Find what the same request made; Invalid if another one used its Idempotency-Key."""
    made = session.get(CreatedOnce, (once.owner, once.idempotency_key))
    if made is None or made.created_at < utc_now() - ONCE_WINDOW:
        return None
    if made.digest != once.digest:
        detail = "was used with another body"
        raise Invalid([fault("Idempotency-Key", detail)], f"Idempotency-Key {detail}")
    return session.get(ApiKey, made.api_key_id)


class KeyFilter(NamedTuple):
    """Which keys to list; deleted ones are remembered but never listed.

    `due` leaves those that end, or should be rotated, by a moment; `after` continues a list behind
    a key's created_at and id.
    """

    client_id: str | None = None
    include_inactive: bool = False
    due: tuple[RotationPolicy, datetime] | None = None
    after: tuple[datetime, UUID] | None = None
    limit: int | None = None


ACTIVE = KeyFilter()


def list_keys(
    engine: Engine, wanted: KeyFilter = ACTIVE, *, asker: Principal | None = None
) -> list[ApiKey]:
    """List keys, oldest first; of a client's own key only its client's."""
    if asker is not None and asker.client_id is not None:
        wanted = wanted._replace(client_id=wanted.client_id or asker.client_id)
        check_reach(asker, wanted.client_id)
    conditions: list[Any] = [col(ApiKey.deleted_at).is_(None)]
    if wanted.client_id is not None:
        conditions.append(col(ApiKey.client_id) == wanted.client_id)
    if not wanted.include_inactive:
        conditions.append(col(ApiKey.is_active))
    if wanted.due is not None:
        conditions.append(_is_due(*wanted.due))
    created_at, id_ = col(ApiKey.created_at), col(ApiKey.id)
    if wanted.after is not None:
        at, last = wanted.after
        conditions.append((created_at > at) | ((created_at == at) & (id_ > last)))
    selected = select(ApiKey).where(*conditions).order_by(created_at, id_).limit(wanted.limit)
    with reading(engine) as session:
        return list(session.exec(selected).all())


def _is_due(policy: RotationPolicy, by: datetime) -> ColumnElement[bool]:
    """Say in SQL what RotationPolicy.due_at and ApiKey.ends_at say of one key."""
    due = (col(ApiKey.expires_at) <= by) | (col(ApiKey.grace_until) <= by)
    for environment, days in (("live", policy.live_days), ("test", policy.test_days)):
        if days:
            due |= (
                col(ApiKey.rotated_to).is_(None)
                & (col(ApiKey.environment) == environment)
                & (col(ApiKey.created_at) <= by - timedelta(days=days))
            )
    return due


def get_key(engine: Engine, id_or_key_id: str, *, asker: Principal | None = None) -> ApiKey:
    """Find a key by its UUID or its public id.

    NotFound if there is none, it was deleted, or it is not the asker's to see.
    """
    with reading(engine) as session:
        key = find_key(session, id_or_key_id)
    check_reach(asker, key.client_id)
    return key


def find_key(session: Session, id_or_key_id: str) -> ApiKey:
    """Do the same in the caller's transaction."""
    named = col(ApiKey.key_id) == id_or_key_id
    # A public id has 12 characters and a UUID 32 or more, so none is taken for the other.
    if re.fullmatch(r"[0-9a-fA-F-]{32,36}", id_or_key_id):
        try:
            named = col(ApiKey.id) == UUID(id_or_key_id)
        except ValueError:
            raise NotFound from None
    key = session.exec(select(ApiKey).where(named, col(ApiKey.deleted_at).is_(None))).first()
    if key is None:
        raise NotFound
    return key


def find_client(session: Session, client_id: str) -> Client:
    """Find a client in the caller's transaction; NotFound if there is none."""
    client = session.get(Client, client_id)
    if client is None:
        raise NotFound
    return client


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


def check_key(key: ApiKey, changed: Collection[str]) -> None:
    """Raise Invalid, naming each bad one, for columns of a key that were changed."""
    names = {"metadata" if name == "extra" else name for name in changed}
    errors = [one for one in _faults(key) if one["field"] in names]
    if errors:
        raise Invalid(errors)


def any_key(session: Session, *, role: str | None = None) -> bool:
    """Say whether any key was ever made here, revoked and deleted ones included, or of one role."""
    wanted = select(ApiKey.id).limit(1)
    if role is not None:
        wanted = wanted.where(col(ApiKey.role) == role)
    return session.exec(wanted).first() is not None


def _set_verifier(key: ApiKey, token: str, peppers: Peppers, key_hasher: str) -> None:
    if key_hasher == "argon2id":
        key.verifier = peppers.make_argon2id(token)
        key.lookup_tag = peppers.lookup_tag(token)
    else:
        key.verifier = peppers.make_keyed(token)


# Faults: {index, field, detail} of each bad field, all at once rather than one a try.


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
    ]


def _email_fault(address: str | None) -> str | None:
    # Printable above all: a line break would end a mail's header.
    if address is None or (
        len(address) <= EMAIL_LENGTH_MAX
        and address.isprintable()
        and re.fullmatch(r"[^@\s<>,;\"]+@[^@\s<>,;\"]+", address)
    ):
        return None
    return "must be one mail address"


def _retention_fault(days: int | None) -> str | None:
    if days is None or 1 <= days <= RETENTION_DAYS_MAX:
        return None
    return f"must be 1 to {RETENTION_DAYS_MAX} days, or null for ever"


def _retentions_fault(days_of: dict[str, int] | None) -> str | None:
    for dataset, days in (days_of or {}).items():
        if not CLIENT_ID_PATTERN.fullmatch(dataset):
            return f"{_SLUG_DETAIL}: {dataset!r}"
        if detail := _retention_fault(days):
            return detail
    return _datasets_fault(list(days_of)) if days_of else None


def _one_of(value: object, allowed: Collection[str]) -> str | None:
    return None if value in allowed else f"must be one of {', '.join(allowed)}"


def _client_fault(client_id: str | None) -> str | None:
    if client_id is None or CLIENT_ID_PATTERN.fullmatch(client_id):
        return None
    return _SLUG_DETAIL


def _name_fault(name: str) -> str | None:
    # isprintable: a line break would get into mail headers and logs.
    if name.strip() and len(name) <= NAME_LENGTH_MAX and name.isprintable():
        return None
    return f"must have 1 to {NAME_LENGTH_MAX} printable characters"


def _description_fault(description: str) -> str | None:
    if len(description) <= DESCRIPTION_LENGTH_MAX and "\0" not in description:
        return None
    return f"must have at most {DESCRIPTION_LENGTH_MAX} characters, none of them NUL"


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
    return f"{_SLUG_DETAIL}: {bad[0]!r}" if bad else None


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
        size = len(json.dumps(metadata))
    except (TypeError, ValueError):
        return "must be a JSON object"
    return None if size <= METADATA_BYTES_MAX else f"must be at most {METADATA_BYTES_MAX} bytes"


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


def limit_faults(limits: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Return the faults of limits as they are asked for, by name."""
    faults = []
    for name, limit in limits.items():
        if name not in LIMIT_NAMES:
            faults += _fault(f"limits.{name}", f"must be one of {', '.join(LIMIT_NAMES)}")
        elif limit is not None and not 0 <= limit < 1 << 63:
            faults += _fault(f"limits.{name}", "must be 0 (unlimited) or more")
    return faults
