"""The register of keys: made, found, listed.

Public functions own their transaction; those that take a session are steps of a larger one.
"""

import re
from collections.abc import Collection, Generator, Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple, Required, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, delete, func
from sqlmodel import Session, col, select

from app.columns import utc_now
from app.errors import Conflict, Elsewhere, Invalid, NotFound, fault
from app.keys.authority import check_reach, check_role, check_within, must_sign, narrow
from app.keys.changes import Author, changes_of, writing_for
from app.keys.clients import add_client, find_client
from app.keys.database import reading
from app.keys.faults import check_new_key
from app.keys.models import ApiKey, CreatedOnce
from app.keys.objects import RotationPolicy
from app.keys.principal import Principal
from app.keys.restrictions import ENFORCE
from app.keys.roles import ADMIN
from app.keys.signing import NO_SIGNING_KEY, NewSigningKey
from app.keys.strength import make_verifier
from app.keys.token import ENVIRONMENTS, PREFIX_ADMIN, mint
from app.keys.verifier import Peppers

DUE_DAYS_MAX = 36_500

# What stands for the text of a key that was made elsewhere, of which nothing may be shown.
IMPORTED = "imported_"

# Of a list, at a time: a key has 80 kB at most.
PORTION_KEYS = 50

# How long an Idempotency-Key of a creation is remembered.
ONCE_WINDOW = timedelta(hours=24)


class KeyProperties(TypedDict, total=False):
    """What a new key may be given.

    Without client_id it is the platform's: role admin, and no other. `limits` names some of
    LIMIT_NAMES, 0 = unlimited, None = the default. `prefix` replaces the environment's.
    `require_signature` None = as whoever asks.
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
    allowed_cidrs: list[str] | None
    allowed_countries: list[str] | None
    allowed_hours: dict[str, Any] | None
    restrictions_mode: str | None
    require_signature: bool | None
    signing: NewSigningKey | None
    prefix: str | None
    created_by: str | None


class Once(NamedTuple):
    """An Idempotency-Key of a creation, whose it is, and the digest of what was asked."""

    owner: str
    idempotency_key: str
    digest: bytes

    @property
    def stored_key(self) -> str:
        """Give what is stored in place of the Idempotency-Key: some send an API key as that."""
        return blake2b(self.idempotency_key.encode(), digest_size=32).hexdigest()


def create_key(  # noqa: PLR0913 (its parts, and who asks in which way)
    engine: Engine,
    peppers: Peppers,
    *,
    key_hasher: str = "auto",
    by: Author,
    create_client: bool = False,
    once: Once | None = None,
    **properties: Unpack[KeyProperties],
) -> tuple[ApiKey, str]:
    """Make a key and give its text, which is nowhere stored.

    Or find the key that the same request made, as `once` tells: then the text is empty. Raises
    Invalid, naming each bad field, NotFound for an unknown client unless `create_client` asks to
    make it, Forbidden for what is beyond the asker, and Conflict if that key was deleted since, or
    there are too many.
    """
    with writing_for(engine, by) as (session, principal):
        return make_key(
            session,
            peppers,
            key_hasher=key_hasher,
            by=by,
            asker=principal,
            create_client=create_client,
            once=once,
            **properties,
        )


def make_key(  # noqa: PLR0913  # see create_key
    session: Session,
    peppers: Peppers,
    *,
    key_hasher: str = "auto",
    by: Author,
    asker: Principal | None,
    create_client: bool = False,
    once: Once | None = None,
    **properties: Unpack[KeyProperties],
) -> tuple[ApiKey, str]:
    """Do the same in the caller's transaction, in which `by` is the `asker`."""
    if once is not None:
        # First of all: what was fine then need not be now, an expiry soon after for one.
        _forget_old(session)
        made = _made_before(session, once)
        if made is not None:
            return made, ""
    # In the transaction although argon2, if it has to be, takes its time: what may be given is
    # known only here.
    key, text = new_key(peppers, key_hasher, asker=asker, **properties)
    add_key(session, key, by=by, create_client=create_client)
    if once is not None:
        row = once._replace(idempotency_key=once.stored_key)
        session.add(CreatedOnce(**row._asdict(), api_key_id=key.id))
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
    role = properties.get("role")
    check_role(asker, role)
    prefix = properties.get("prefix")
    limits = properties.get("limits") or {}
    scopes = properties.get("scopes")
    datasets = properties.get("allowed_datasets")
    mode = properties.get("restrictions_mode")
    signs, signing = properties.get("require_signature"), properties.get("signing")
    key = ApiKey(
        key_id="",
        key_prefix="",
        client_id=client_id,
        name=properties["name"],
        description=properties.get("description", ""),
        environment=properties.get("environment", "live"),
        role=(ADMIN if client_id is None else "client") if role is None else role,
        scopes=None if scopes is None else sorted(set(scopes)),
        allowed_datasets=None if datasets is None else sorted(set(datasets)),
        extra=properties.get("metadata") or {},
        expires_at=properties.get("expires_at"),
        allowed_cidrs=properties.get("allowed_cidrs"),
        allowed_countries=properties.get("allowed_countries"),
        allowed_hours=properties.get("allowed_hours"),
        restrictions_mode=ENFORCE if mode is None else mode,
        require_signature=must_sign(asker) if signs is None else signs,
        **(NO_SIGNING_KEY if signing is None else signing.columns()),
        created_by=properties.get("created_by"),
    )
    check_new_key(key, limits, prefix)
    for name, limit in limits.items():
        setattr(key, name, limit)
    narrow(
        asker,
        key,
        is_role_asked=properties.get("role") is not None,
        is_mode_asked=mode is not None,
    )
    check_within(asker, key)
    return key, give_token(key, prefix, peppers, key_hasher)


def give_token(key: ApiKey, prefix: str | None, peppers: Peppers, key_hasher: str) -> str:
    """Mint the text of a new key and set the columns that come from it."""
    if prefix is None:
        prefix = PREFIX_ADMIN if key.client_id is None else ENVIRONMENTS[key.environment]
    token = mint(prefix, key.client_id)
    key.key_id, key.key_prefix = token.key_id, token.display
    key.verifier, key.lookup_tag = make_verifier(peppers, token.text, key_hasher)
    return token.text


def add_key(
    session: Session,
    key: ApiKey,
    *,
    by: Author,
    create_client: bool,
    action: str = "key.created",
) -> None:
    """Store the row that `new_key` made, in the caller's transaction; raises as `create_key`."""
    if key.client_id is not None:
        if create_client:
            add_client(session, key.client_id, by=by)
        else:
            find_client(session, key.client_id)
    check_room(session, key.client_id, by=by)
    session.add(key)
    made = changes_of(key)
    session.flush()  # so that other rows of the transaction can name it
    by.record(session, action, key, made)


def check_room(
    session: Session, client_id: str | None, *, by: Author, is_rotated: bool = False
) -> None:
    """Raise Conflict if a client (None: the platform) has as many keys in use as it may.

    Every worker reads all keys in use after each change. Those in the grace of their rotation are
    counted by themselves: who has as many keys as may be must still be able to replace each.
    """
    if not by.keys_max:
        return
    now, rotated_to = utc_now(), col(ApiKey.rotated_to)
    in_use = [
        col(ApiKey.client_id) == client_id,
        col(ApiKey.is_active),
        col(ApiKey.deleted_at).is_(None),
        col(ApiKey.expires_at).is_(None) | (col(ApiKey.expires_at) > now),
        col(ApiKey.grace_until).is_(None) | (col(ApiKey.grace_until) > now),
        rotated_to.is_not(None) if is_rotated else rotated_to.is_(None),
    ]
    with session.no_autoflush:  # as it was before
        found = session.exec(select(func.count()).select_from(ApiKey).where(*in_use)).one()
    if found >= by.keys_max:
        what = "in the grace of their rotation" if is_rotated else "in use"
        raise Conflict(
            f"There are {found} keys {what}, and no more than {by.keys_max} may be: "
            "deactivate or delete those that are not needed"
        )


def _forget_old(session: Session) -> None:
    forgotten = utc_now() - ONCE_WINDOW
    session.execute(delete(CreatedOnce).where(col(CreatedOnce.created_at) < forgotten))


def _made_before(session: Session, once: Once) -> ApiKey | None:
    """Find what the same request made.

    Invalid if another one used its Idempotency-Key; Conflict if there is nothing left to show, and
    to make another key is not what a repeat asks for.
    """
    made = session.get(CreatedOnce, (once.owner, once.stored_key))
    if made is None or made.created_at < utc_now() - ONCE_WINDOW:
        return None
    if made.digest != once.digest:
        detail = "was used with another body"
        raise Invalid([fault("Idempotency-Key", detail)], f"Idempotency-Key {detail}")
    key = session.get(ApiKey, made.api_key_id)
    if key is not None and key.deleted_at is not None:
        raise Conflict("The key that was made with this Idempotency-Key has been deleted")
    return key


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
    return [key for some in key_portions(engine, wanted, asker=asker) for key in some]


def key_portions(
    engine: Engine, wanted: KeyFilter, *, asker: Principal | None = None
) -> Generator[list[ApiKey], None, None]:
    """Give the same as of one moment, some at a time: a thousand keys may have 80 MB."""
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
    # By their ids first: to sort whole rows would be to read them all.
    selected = select(id_).where(*conditions).order_by(created_at, id_).limit(wanted.limit)
    with reading(engine) as session:
        ids = session.exec(selected).all()
        for first in range(0, len(ids), PORTION_KEYS):
            some = ids[first : first + PORTION_KEYS]
            found = {key.id: key for key in session.exec(select(ApiKey).where(id_.in_(some)))}
            yield [found[one] for one in some]


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

    NotFound if there is none or it was deleted; Elsewhere for whoever sees its own client's alone.
    """
    with reading(engine) as session:
        return find_key(session, id_or_key_id, asker)


def find_key(session: Session, id_or_key_id: str, asker: Principal | None = None) -> ApiKey:
    """Do the same in the caller's transaction.

    Another client's key is left to the database, which finds it as little as one that is not there:
    neither the refusal nor its time tells which of the two it is.
    """
    conditions: list[Any] = [col(ApiKey.deleted_at).is_(None)]
    absent = NotFound()
    if asker is not None and asker.client_id is not None:
        conditions.append(col(ApiKey.client_id) == asker.client_id)
        absent = Elsewhere()
    named = col(ApiKey.key_id) == id_or_key_id
    # A public id has 12 characters and a UUID 32 or more, so none is taken for the other.
    if re.fullmatch(r"[0-9a-fA-F-]{32,36}", id_or_key_id):
        try:
            named = col(ApiKey.id) == UUID(id_or_key_id)
        except ValueError:
            raise absent from None
    key = session.exec(select(ApiKey).where(named, *conditions)).first()
    if key is None:
        raise absent
    return key


def any_key(session: Session, *, role: str | None = None) -> bool:
    """Say whether any key was ever made here, revoked and deleted ones included, or of one role."""
    wanted = select(ApiKey.id).limit(1)
    if role is not None:
        wanted = wanted.where(col(ApiKey.role) == role)
    return session.exec(wanted).first() is not None
