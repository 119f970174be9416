"""Claim links: a key waits behind a link, is shown to whoever comes first with it, and is gone.

The token of a link is made like a key, `cl_claim_{12 public id}{43 secret}{6 checksum}`, so that
it is told from a typing error without a look at the database, and redacted where keys are. The
database holds the key under AES-256-GCM. The cipher's key comes from the token's secret alone, so
neither the database nor the server's own secret opens it; the name of the row comes from the secret
as well, by another label. Who knows a public id and guesses at the secret thus finds nothing, the
same before and after the link was used, and uses nothing up.
"""

from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import msgspec
from sqlalchemy import Engine, update
from sqlmodel import Session, col

from app.columns import utc_now
from app.errors import Gone, NotFound
from app.keys.aead import KEY_BYTES, seal, unseal
from app.keys.changes import Author
from app.keys.database import reading, writing
from app.keys.models import ApiKey, Claim, Client
from app.keys.token import MalformedToken, ParsedToken, base62, mint, parse
from app.keys.verifier import hkdf_sha256

# Who opens a link, as the audit has it: it takes no key.
BY_LINK = "claim link"
# A long weekend: mailed on Friday, opened on Monday.
TTL_S = 72 * 3600

_PREFIX = "cl_claim"
_TAG_BYTES = 14
_TAG_LENGTH = 19  # base62 digits that hold 14 bytes
_USED_UP = {"sealed": None}


class Claimed(NamedTuple):
    """What a link gives: a key, its text, and the URL of the service that it is for."""

    key: ApiKey
    text: str
    url: str


def add_claim(  # noqa: PLR0913 (what is given, and by whom)
    session: Session, key: ApiKey, text: str, url: str, *, by: Author, ttl_s: float = TTL_S
) -> str:
    """Store a key's text, sealed, for whoever comes first; give the token of the link.

    In the caller's transaction, which may have made the key.
    """
    now = utc_now()
    token = mint(_PREFIX, None).text
    parsed = _parse(token)
    claim_id = _row_id(parsed)
    content = msgspec.json.encode({"text": text, "url": url})
    # What nobody came for in time need not lie here, not even sealed.
    session.connection().execute(
        update(Claim)
        .where(col(Claim.expires_at) <= now, col(Claim.sealed).is_not(None))
        .values(_USED_UP)
    )
    session.flush()  # a key of this transaction, so that the row below can name it
    claim = Claim(
        claim_id=claim_id,
        api_key_id=key.id,
        sealed=seal(_cipher_key(parsed.secret), content, claim_id.encode()),
        expires_at=now + timedelta(seconds=ttl_s),
        created_at=now,
    )
    session.add(claim)
    by.record(session, "claim.created", key, {"expires_at": claim.expires_at})
    return token


def withdraw_claim(engine: Engine, token: str, *, by: Author) -> None:
    """Use a link up that reached nobody."""
    claim_id = _row_id(_parse(token))
    with writing(engine) as session:
        claim = session.get(Claim, claim_id)
        if claim is None:
            return
        claim.sealed = None
        key = session.get_one(ApiKey, claim.api_key_id)
        by.record(session, "claim.withdrawn", key, {"expires_at": claim.expires_at})


def check_open(engine: Engine, token: str) -> None:
    """Raise what `claim` would raise, and change nothing."""
    with reading(engine) as session:
        _find(session, _parse(token))


def claim(engine: Engine, token: str, *, by: Author) -> Claimed:
    """Give the key behind a link, once; of two that race one gets it.

    Raises NotFound for an unknown token, Gone for one that was used or has expired, or whose key
    does not work.
    """
    parsed = _parse(token)
    with writing(engine) as session:
        row, key = _find(session, parsed)
        content = _open(parsed.secret, row)
        taken = session.connection().execute(
            update(Claim)
            .where(col(Claim.claim_id) == row.claim_id, col(Claim.claimed_at).is_(None))
            .values(**_USED_UP, claimed_at=utc_now())
        )
        # SQLite lets one writer in at a time; elsewhere two may have read the row before this.
        if taken.rowcount != 1:
            raise Gone
        by.record(session, "claim.opened", key, {"created_at": row.created_at})
    return Claimed(key, content["text"], content["url"])


def is_well_formed(token: str) -> bool:
    """Say whether it may be the token of a link, without a look at the database."""
    with suppress(NotFound):
        return bool(_parse(token))
    return False


def _parse(token: str) -> ParsedToken:
    try:
        parsed = parse(token)
    except MalformedToken:
        raise NotFound from None
    if parsed is None:
        raise NotFound
    return parsed


def _find(session: Session, parsed: ParsedToken) -> tuple[Claim, ApiKey]:
    row = session.get(Claim, _row_id(parsed))
    if row is None:
        raise NotFound
    key = session.get(ApiKey, row.api_key_id)
    if row.sealed is None or row.expires_at <= utc_now() or not _is_usable(session, key):
        raise Gone
    assert key is not None  # noqa: S101  # a claim refers to its key
    return row, key


def _is_usable(session: Session, key: ApiKey | None) -> bool:
    """Say whether the key works now: any other is not worth showing."""
    if key is None or not key.is_active or key.verifier is None:
        return False
    if key.has_ended:
        return False
    if key.client_id is None:
        return True
    client = session.get(Client, key.client_id)
    return client is not None and client.is_active


def _row_id(parsed: ParsedToken) -> str:
    tag = hkdf_sha256(parsed.secret.encode(), b"central-logger claim row", _TAG_BYTES)
    return f"{parsed.key_id}.{base62(int.from_bytes(tag), _TAG_LENGTH)}"


def _open(secret: str, row: Claim) -> dict[str, str]:
    content = unseal(_cipher_key(secret), row.sealed or b"", row.claim_id.encode())
    if content is None:  # somebody changed the row, or moved it: nothing of ours is there
        raise NotFound
    return msgspec.json.decode(content, type=dict[str, str])


def _cipher_key(secret: str) -> bytes:
    return hkdf_sha256(secret.encode(), b"central-logger claim", KEY_BYTES)
