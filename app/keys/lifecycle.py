"""The life of a key after its creation: changed, rotated, switched off and on, deleted.

Each function is one transaction, or a part of its caller's, with the record of what `by` has
changed. What may end a key's use returns the generation that every worker has to have seen before
that is true everywhere: see app/activity/presence.py.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlmodel import Session

from app.columns import utc_now
from app.errors import Conflict, Invalid
from app.keys.authority import (
    check_change,
    check_life,
    check_role,
    check_within,
    shorten,
)
from app.keys.changes import Author, advance, changes_of, writing_for
from app.keys.clients import action_of
from app.keys.faults import check_key
from app.keys.models import LIMIT_NAMES, ApiKey
from app.keys.principal import UNLIMITED, Principal
from app.keys.records import Candidate, KeyRecord
from app.keys.registry import IMPORTED, check_room, find_key, give_token
from app.keys.restrictions import ENFORCE
from app.keys.signing import HMAC_SHA256, NewSecret
from app.keys.verifier import Peppers

# Long enough to change a workflow by hand on the next working day.
GRACE_S_DEFAULT = 24 * 3600
GRACE_S_MAX = 90 * 24 * 3600

# What a rotated key takes over; everything else is new, or came from the rotation.
_INHERITED = (
    *("client_id", "name", "description", "environment", "role", "scopes", "allowed_datasets"),
    *("extra", "allowed_cidrs", "allowed_countries", "allowed_hours", "restrictions_mode"),
    *("require_signature", "signature_algorithm", "signing_key"),
    *LIMIT_NAMES,
)


class KeyChange(NamedTuple):
    """A key after a change, and the generation of it."""

    key: ApiKey
    generation: int


class Rotation(NamedTuple):
    """A new key, its text, which is nowhere stored, and the key that it takes over from.

    `signing_secret` is its own; None for a key that has none.
    """

    key: ApiKey
    text: str
    old: ApiKey
    generation: int
    signing_secret: str | None = None


def update_key(
    engine: Engine, id_or_key_id: str, changes: Mapping[str, Any], *, by: Author
) -> KeyChange:
    """Set columns of a key; Invalid names each bad one, Forbidden what is beyond the asker."""
    with writing_for(engine, by) as (session, principal):
        key = find_key(session, id_or_key_id, principal)
        check_role(principal, changes.get("role"))
        defaults = UNLIMITED if by.asker is None else by.asker.defaults
        before = Candidate(KeyRecord.of(key), None).principal(defaults)
        was_off = not key.is_active or key.has_ended
        given_until, signed_with = key.expires_at, key.signing_key
        for name, value in changes.items():
            setattr(key, name, value)
        if not key.is_restricted and "restrictions_mode" not in changes:
            key.restrictions_mode = ENFORCE  # not to be lying in wait for the next restriction
        if key.is_active:
            key.quarantined_at = None
        check_key(key, changed=changes)
        if key.grace_until is not None:
            key.grace_until = _earlier(key.grace_until, key.expires_at)
        is_on = key.is_active and not key.has_ended
        # Who replaces what a key signs with takes the key over, if it has the key's text as well.
        is_taken = None not in {signed_with, key.signing_key} and signed_with != key.signing_key
        is_revived = was_off and is_on
        check_change(principal, before, key, revived=is_revived or is_taken)
        if is_revived:
            check_room(session, key.client_id, by=by, is_rotated=key.rotated_to is not None)
        if key.expires_at != given_until:
            # By itself: the grace that ends the key sooner goes when its rotation is undone.
            check_life(principal, key.expires_at, given_until)
        if changes.get("is_active") and key.has_ended:
            raise Conflict("The key has expired")
        return _changed(session, key, by)


def replace_key(  # noqa: PLR0913  # see create_key
    session: Session,
    peppers: Peppers,
    id_or_key_id: str,
    *,
    grace_s: int = GRACE_S_DEFAULT,
    by: Author,
    asker: Principal | None,
    key_hasher: str = "auto",
    created_by: str | None = None,
    new_secret: NewSecret | None = None,
) -> Rotation:
    """Make a key that takes over from another, which works on for the grace and then stops.

    The new one has the same properties, and a life as long as the old one was given, but none
    beyond the asker's; and a signing secret of its own, by `new_secret`, or the same public key.
    Raises Conflict for a key that was rotated already, is inactive or has ended, Forbidden for one
    that may do more than the asker or outlives it. In the caller's transaction, in which `by` is
    the `asker`.
    """
    if not 0 <= grace_s <= GRACE_S_MAX:
        raise Invalid.parameter("grace_seconds", f"must be 0 to {GRACE_S_MAX}")
    old = find_key(session, id_or_key_id, asker)
    now = utc_now()
    if grace_s:
        check_room(session, old.client_id, by=by, is_rotated=True)
    if old.rotated_to is not None:
        raise Conflict("The key has been rotated already")
    if not old.is_active or old.has_ended:
        raise Conflict("The key is inactive or has expired")
    # With the life that the old one has: to shorten only the new one's would let a key that is
    # about to end put one of its own in place of one that is not. A key that rotates itself passes,
    # and gets what is left of its own life: by a new life it would never end.
    check_within(asker, old)
    key = ApiKey(
        key_id="",
        key_prefix="",
        **{name: getattr(old, name) for name in _INHERITED},
        created_at=now,
        created_by=created_by,
        rotated_from=old.id,
    )
    if old.expires_at is not None:
        key.expires_at = old.expires_at
        with suppress(OverflowError):  # an end in the year 9999 stands for none, and stays
            key.expires_at = now + (old.expires_at - old.created_at)
    shorten(asker, key)
    secret = _renew_secret(key, new_secret)
    text = give_token(key, _prefix(old), peppers, key_hasher)
    session.add(key)
    session.flush()  # so that the old one can name it
    old.rotated_to = key.id
    old.grace_until = _earlier(now + timedelta(seconds=grace_s), old.expires_at)
    generation = advance(session)
    detail = {"rotated_to": [None, key.key_id], "grace_until": [None, old.grace_until]}
    by.record(
        session, "key.rotated", old, {**detail, "expires_at": [old.expires_at, key.expires_at]}
    )
    return Rotation(key, text, old, generation, secret)


def undo_rotation(engine: Engine, rotation: Rotation, *, by: Author) -> None:
    """Switch the new key off, and let the old one go on as if there had been no rotation.

    For a new key that reached nobody: its owner would be locked out at the end of the grace.
    """
    with writing_for(engine, by) as (session, _):
        new = find_key(session, rotation.key.key_id)
        old = find_key(session, rotation.old.key_id)
        detail = {"rotated_to": [new.key_id, None], "grace_until": [old.grace_until, None]}
        new.is_active = False
        old.rotated_to = old.grace_until = None
        advance(session)
        by.record(session, "key.rotation_undone", old, detail)


def deactivate_key(engine: Engine, id_or_key_id: str, *, by: Author) -> KeyChange:
    """Switch a key off, at once and everywhere; one that is off stays so. NotFound if unknown."""
    return update_key(engine, id_or_key_id, {"is_active": False}, by=by)


def quarantine_key(engine: Engine, key_id: str, *, by: Author) -> KeyChange:
    """Switch a key off for suspicion. NotFound if unknown.

    One that is off stays as it is: it is not to look as if it only waited for an activation.
    """
    with writing_for(engine, by) as (session, principal):
        key = find_key(session, key_id, principal)
        if key.is_active:
            key.is_active, key.quarantined_at = False, utc_now()
        return _changed(session, key, by)


def delete_key(engine: Engine, id_or_key_id: str, *, by: Author) -> KeyChange:
    """Wipe a key's verifier and signing key for good; the row stays, for the audit.

    Of a key that was made elsewhere its tag stays too, 16 bits under the server's secret: nothing
    else would tell that it ended if the settings have the same text.
    """
    with writing_for(engine, by) as (session, principal):
        key = find_key(session, id_or_key_id, principal)
        key.is_active = False
        key.verifier = key.signing_key = None
        if not key.key_prefix.startswith(IMPORTED):
            key.lookup_tag = None
        key.deleted_at = utc_now()
        return _changed(session, key, by, action="key.deleted")


def _changed(session: Session, key: ApiKey, by: Author, *, action: str | None = None) -> KeyChange:
    """Write a changed key, and the record of it; nothing at all of one that is as it was."""
    changed = changes_of(key)
    generation = advance(session)
    if changed:
        by.record(session, action or action_of("key", changed), key, changed)
    return KeyChange(key, generation)


def _renew_secret(key: ApiKey, new_secret: NewSecret | None) -> str | None:
    """Give a key another signing secret if it has one; its owner alone knows a private key."""
    if key.signature_algorithm != HMAC_SHA256:
        return None
    assert new_secret is not None  # noqa: S101  # whoever rotates such a key brings it
    made = new_secret()
    key.signing_key = made.stored
    return made.secret


def _prefix(key: ApiKey) -> str | None:
    """Return what stood before the client and the id in a key's text; None if it was not ours."""
    if key.key_prefix.startswith(IMPORTED):
        return None
    shown = key.key_prefix.removesuffix(f"_{key.key_id}***")
    return shown if key.client_id is None else shown.removesuffix(f"_{key.client_id}")


def _earlier(one: datetime, other: datetime | None) -> datetime:
    return one if other is None else min(one, other)
