"""Why a request was refused: the exact reason, and one line for the people who ask. Pure.

The caller is told what the contract says and nothing else: "Invalid API key" has one body for all.
"""

from datetime import datetime
from typing import NamedTuple

from app.keys import shape
from app.keys.models import ApiKey
from app.keys.records import KeyRecord
from app.keys.roles import ADMIN
from app.keys.shape import Presented
from app.keys.verifier import is_argon2

WRONG_SECRET = "wrong_secret"  # noqa: S105  # a reason
# How a key may have ended.
DELETED, DEACTIVATED, QUARANTINED = "deleted", "deactivated", "quarantined"
EXPIRED, GRACE_OVER = "expired", "grace_over"
ENDED = frozenset((DELETED, DEACTIVATED, QUARANTINED, EXPIRED, GRACE_OVER))
# Of many requests that were only counted together.
VARIOUS = "various"
TOO_MANY_FAILURES = "too_many_failures"
RATE_LIMIT = "rate_limit_"
NOT_PERMITTED = "not_permitted"
OTHER_CLIENT = "other_client"
_UNKNOWN = ("unknown_key", "test_key_unknown")

# How the details of 403 begin, by reason.
_FORBIDDEN = {
    "dataset_not_allowed": "Not authorized for dataset",
    "scope_missing": "Requires scope",
    "admin_key_required": "Admin key required",
    "address_not_allowed": "Not allowed from this address",
    "country_not_allowed": "Not allowed from this country",
    "time_not_allowed": "Not allowed at this time",
    "signature_required": "Signature required",
    "signature_invalid": "Invalid signature",
}

EXPLANATIONS = {
    shape.NONE: "No key was sent: a proxy may have dropped the header X-API-Key.",
    shape.NOT_UNDERSTOOD: "The header Authorization carries no key in a form that is understood.",
    shape.TWO: "X-API-Key and Authorization carry two keys that differ.",
    shape.NOT_ASCII: "The key holds characters beyond ASCII: it was copied with something else.",
    shape.TOO_LONG: "The text is longer than a key: something was added to it.",
    shape.MALFORMED: "The key fails its checksum: it was mistyped, or changed on its way.",
    shape.TRUNCATED: "The key was cut off: it begins like one of this service and is too short.",
    shape.SHOWN_FORM: "This is the short form that lists show (***), not the key itself.",
    shape.FOREIGN: "The text is not of the form of this service's keys, nor one that was imported.",
    "unknown_key": "The key is well-formed, and none of this server: another server's, or made up.",
    "test_key_unknown": "A test key that this server has not: it may be another environment's.",
    WRONG_SECRET: "There is a key of this id, but its secret is another one.",
    "secret_key_changed": "The key was made under a SECRET_KEY that the server does not have now.",
    DELETED: "The key has been deleted.",
    DEACTIVATED: "The key has been deactivated (revoked).",
    QUARANTINED: "The key was quarantined for suspicious activity: look, then activate it.",
    EXPIRED: "The key has expired.",
    GRACE_OVER: "The key was rotated, and the grace of the old one is over: use the new one.",
    "client_deactivated": "The key's client is deactivated, so none of its keys works.",
    "unusable": "The key's role does not go with its client: look at its row.",
    "valid_by_now": "The key was refused and is valid now: it was changed at about the same time.",
    TOO_MANY_FAILURES: "Too many wrong keys came from this address within a minute.",
    "dataset_not_allowed": "The dataset is not among the key's allowed_datasets.",
    "scope_missing": "Neither the key's role nor its scopes allow it.",
    "admin_key_required": "The route is for keys of the platform.",
    "address_not_allowed": "The address is not within the key's allowed_cidrs.",
    "country_not_allowed": "The address is not of the key's allowed_countries, or of none known.",
    "time_not_allowed": "It is outside the key's allowed_hours.",
    "signature_required": "The key requires signed requests, and this one was not signed.",
    "signature_invalid": "The request's signature is not that of the key's signing key.",
    NOT_PERMITTED: "The key may not do this.",
    OTHER_CLIENT: "What was asked for is not one of the client's own: another's, or not there.",
    VARIOUS: "Too many different refusals at a time to tell them apart; they are counted together.",
}


_INCONCLUSIVE = {WRONG_SECRET, "valid_by_now", shape.FOREIGN}


class Diagnosis(NamedTuple):
    """A reason, and the key and client that it concerns, if they are known."""

    reason: str
    key_id: str | None = None
    client_id: str | None = None

    @property
    def of_key(self) -> str | None:
        """Give the id of the key if it is there: ids that are made up cost nothing."""
        return None if self.reason in _UNKNOWN else self.key_id


class Suspect(NamedTuple):
    """A key that may be the one that was sent: its row, or its entry in the settings."""

    key: ApiKey | KeyRecord
    client_is_active: bool


def of_forbidden(detail: str) -> str:
    """Name the reason of a 403 by what its caller was told."""
    found = (reason for reason, start in _FORBIDDEN.items() if detail.startswith(start))
    return next(found, NOT_PERMITTED)


def of_limits(violated: list[str]) -> str:
    """Name the reason of a 429."""
    if "auth_failures" in violated:
        return TOO_MANY_FAILURES
    return RATE_LIMIT + "_and_".join(violated)


def explanation(reason: str, detail: str = "") -> str:
    """Explain a reason; `detail` is what the caller was told, where that says more."""
    if reason.startswith(RATE_LIMIT):
        what = reason.removeprefix(RATE_LIMIT).replace("_", " ")
        text = f"The limit of {what} was reached: the key's, its client's, or the route's."
    else:
        text = EXPLANATIONS[reason]
    return f"{text} ({detail})" if detail else text


def of_key(presented: Presented, suspects: list[Suspect], at: datetime) -> Diagnosis:
    """Say why a credential was not accepted at a moment, given the keys that it may be."""
    if not suspects:
        if presented.shape != shape.WELL_FORMED:
            return Diagnosis(presented.shape)
        reason = _UNKNOWN[presented.environment == "test"]
        return Diagnosis(reason, presented.key_id)
    diagnoses = [_of_suspect(one, presented, at) for one in suspects]
    # Of several with the same short tag, the one that tells of an end.
    return next((one for one in diagnoses if one.reason not in _INCONCLUSIVE), diagnoses[0])


def of_caller(suspect: Suspect | None, at: datetime) -> str:
    """Say why a caller who had been authenticated no longer was."""
    return DELETED if suspect is None else _fault(suspect, at)


def _of_suspect(suspect: Suspect, presented: Presented, at: datetime) -> Diagnosis:
    reason = _secret_fault(suspect.key, presented) or _fault(suspect, at)
    if presented.shape != shape.WELL_FORMED and reason == "valid_by_now":
        # The tags that it was found by are short: another text may have one of them as well.
        return Diagnosis(presented.shape)
    return Diagnosis(reason, suspect.key.key_id, suspect.key.client_id)


def _secret_fault(key: ApiKey | KeyRecord, presented: Presented) -> str | None:
    verifier = key.verifier
    if verifier is None:
        return DELETED
    if is_argon2(verifier):
        return None if key.lookup_tag in presented.proofs else WRONG_SECRET
    if verifier in presented.proofs:
        return None
    pepper = verifier.rpartition("$")[0]
    is_known = any(proof.startswith(f"{pepper}$") for proof in presented.proofs)
    return WRONG_SECRET if is_known else "secret_key_changed"


def _fault(suspect: Suspect, at: datetime) -> str:
    key = suspect.key
    if key.verifier is None:
        return DELETED
    if not key.is_active:
        quarantined = isinstance(key, ApiKey) and key.quarantined_at is not None
        return QUARANTINED if quarantined else DEACTIVATED
    end = min((one for one in (key.expires_at, key.grace_until) if one is not None), default=None)
    if end is not None and end <= at:
        # Whose grace was cut short by its own end has expired.
        return EXPIRED if end == key.expires_at else GRACE_OVER
    if not suspect.client_is_active:
        return "client_deactivated"
    return "valid_by_now" if (key.client_id is None) == (key.role == ADMIN) else "unusable"
