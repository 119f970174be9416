"""Checkpoints: how far a chain had grown, signed with Ed25519 (RFC 8032).

Each is stored, and written to the service's log as one line: whoever puts back an older state of
the database, checkpoints and all, has that line against them wherever the log was kept.
`cryptography` is imported by who signs or verifies alone: it costs a process 10 MB.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Engine, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from app.audit.chain import Checkpoint, checkpoint_text
from app.audit.models import AuditCheckpoint, AuditHead
from app.columns import utc_now

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEED_BYTES = 32
# What the line of the log is found by.
LOG_EVENT = "audit checkpoint"
# Where collectors put a line: Docker's files of JSON, fluentd and others, journald's export.
_WRAPPERS = ("log", "message", "MESSAGE")
# So many chains at a time: as many lines of log are written while nothing else is held.
_CHAINS_MAX = 500

log = structlog.get_logger(__name__)


class Signer:
    """Signs with the key of a seed of 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    @property
    def public_key(self) -> bytes:
        """Give the key to verify with, 32 bytes."""
        return self._key().public_key().public_bytes_raw()

    def sign(self, book: str, chain: str, seq: int, seal: bytes) -> Checkpoint:
        """Make the checkpoint of a chain that ends now with an event of this seal."""
        at = utc_now()
        signature = self._key().sign(checkpoint_text(book, chain, seq, at, seal))
        return Checkpoint(chain, seq, at, seal, self.public_key, signature)

    def _key(self) -> "Ed25519PrivateKey":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
            Ed25519PrivateKey,
        )

        return Ed25519PrivateKey.from_private_bytes(self._seed)


def is_signed(book: str, checkpoint: Checkpoint) -> bool:
    """Say whether a checkpoint's signature is that of the key it names."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PublicKey,
    )

    text = checkpoint_text(book, checkpoint.chain, checkpoint.seq, checkpoint.at, checkpoint.seal)
    try:
        key = Ed25519PublicKey.from_public_bytes(checkpoint.public_key)
        key.verify(checkpoint.signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def due(engine: Engine, before: datetime) -> list[AuditHead]:
    """Find ends of chains that grew since their last checkpoint, signed before a moment if any."""
    of_chain = col(AuditCheckpoint.chain) == col(AuditHead.chain)
    is_covered = (col(AuditCheckpoint.seq) >= col(AuditHead.seq)) | (
        col(AuditCheckpoint.at) >= before
    )
    wanted = select(AuditHead).where(~exists().where(of_chain, is_covered))
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(wanted.order_by(col(AuditHead.chain)).limit(_CHAINS_MAX)))


def store(session: Session, book: str, signer: Signer, heads: Iterable[AuditHead]) -> int:
    """Sign, store and log; return how many were new.

    What another process has signed meanwhile is left as it is, and not logged again.
    """
    insert: Any = (
        sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    )
    stored = 0
    for head in heads:
        signed = signer.sign(book, head.chain, head.seq, head.seal)
        statement = insert(AuditCheckpoint).values(**signed._asdict()).on_conflict_do_nothing()
        if session.connection().execute(statement).rowcount:
            stored += 1
            log.info(LOG_EVENT, book=book, **as_json(signed))
    return stored


def as_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """Give a checkpoint as a line of the log, or of an export, has it."""
    return {
        "chain": checkpoint.chain,
        "seq": checkpoint.seq,
        "at": checkpoint.at.isoformat(),
        "seal": checkpoint.seal.hex(),
        "public_key": checkpoint.public_key.hex(),
        "signature": checkpoint.signature.hex(),
    }


def of_json(line: dict[str, Any]) -> Checkpoint:
    """Read one back; raise ValueError, TypeError or KeyError for what is none."""
    at = datetime.fromisoformat(line["at"])
    if at.utcoffset() is None or type(line["seq"]) is not int or type(line["chain"]) is not str:
        raise ValueError("not a checkpoint")
    texts = (line[name] for name in ("seal", "public_key", "signature"))
    return Checkpoint(line["chain"], line["seq"], at, *map(bytes.fromhex, texts))


def logged(lines: Iterable[bytes]) -> Iterator[tuple[str, Checkpoint]]:
    """Find the checkpoints among the lines of the service's log, each with its book.

    The line may stand inside another one, behind a prefix or as a text in JSON, as collectors of
    logs write them.
    """
    for line in lines:
        if LOG_EVENT.encode() not in line:
            continue
        try:
            read = json.loads(line[line.index(b"{") :])
            read = next((json.loads(read[name]) for name in _WRAPPERS if name in read), read)
            if read["event"] == LOG_EVENT:
                yield str(read["book"]), of_json(read)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
