"""The rows of the audit: chains of events, where they end, and what was signed of them.

What a change of keys leads to is written in the transaction of the change, to the control database.
Denials come all the time, and a write to control.db empties every worker's cache of keys: on
embedded storage they stand in the same tables of activity.db, in chains of their own.
"""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field, SQLModel

from app.columns import UtcDateTime


class AuditEvent(SQLModel, table=True):
    """A link of a chain: a client's, or the platform's where `chain` is `*`.

    `detail` is JSON text, so that what is sealed is what is stored. `seal` is a keyed hash over
    this event and the seal before it, under the secret of this id: see chain.py.
    """

    __tablename__ = "audit_events"
    # Pages are read by time, of one chain or of all.
    __table_args__ = (
        Index("ix_audit_events_at", "at"),
        Index("ix_audit_events_chain_at", "chain", "at"),
    )

    chain: str = Field(primary_key=True, max_length=63)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    at: datetime = Field(sa_type=UtcDateTime)
    action: str = Field(max_length=64)
    actor: str = Field(max_length=255)
    client_id: str | None = Field(default=None, max_length=63)
    target: str = Field(max_length=255)
    source_ip: str = Field(max_length=45)
    user_agent: str = Field(max_length=255)
    request_id: str = Field(max_length=64, index=True)
    detail: str = Field(sa_type=Text)
    secret_id: str = Field(max_length=16)
    seal: bytes


class AuditHead(SQLModel, table=True):
    """The last link of a chain, sealed by itself: events that are cut off its end are missed."""

    __tablename__ = "audit_heads"

    chain: str = Field(primary_key=True, max_length=63)
    seq: int = Field(sa_type=BigInteger)
    seal: bytes
    secret_id: str = Field(max_length=16)
    head_seal: bytes


class AuditCheckpoint(SQLModel, table=True):
    """How far a chain had grown at a moment, signed with Ed25519."""

    __tablename__ = "audit_checkpoints"

    chain: str = Field(primary_key=True, max_length=63)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    at: datetime = Field(sa_type=UtcDateTime)
    seal: bytes
    public_key: bytes
    signature: bytes


class Denial(SQLModel, table=True):
    """One refused request, by its id: which step refused it, and why. Kept for some days."""

    __tablename__ = "denials"

    request_id: str = Field(primary_key=True, max_length=64)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    status: int
    reason: str = Field(max_length=64)
    explanation: str = Field(sa_type=Text)
    client_id: str | None = Field(default=None, max_length=63)
    key_id: str | None = Field(default=None, max_length=64)
    endpoint: str = Field(max_length=255)
    source_ip: str = Field(max_length=45)
    user_agent: str = Field(max_length=255)
