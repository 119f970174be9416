"""The rows of the control database: clients and their keys."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, Text
from sqlmodel import Field, SQLModel

from app.columns import Json, UtcDateTime, utc_now

# The columns that clients and keys have for their limits.
LIMIT_NAMES = ("requests_per_minute", "logs_per_minute", "bytes_per_minute")


class Client(SQLModel, table=True):
    """A tenant. `client_id` never changes: logs and usage carry it."""

    __tablename__ = "clients"

    client_id: str = Field(primary_key=True, max_length=63)
    name: str = Field(max_length=255)
    contact_email: str | None = Field(default=None, max_length=254)
    is_active: bool = True
    retention_days: int | None = None
    # {dataset: days}; what it does not name has `retention_days`.
    dataset_retention_days: dict[str, int] | None = Field(default=None, sa_type=Json)
    # NULL = the service's default, 0 = unlimited.
    requests_per_minute: int | None = Field(default=None, sa_type=BigInteger)
    logs_per_minute: int | None = Field(default=None, sa_type=BigInteger)
    bytes_per_minute: int | None = Field(default=None, sa_type=BigInteger)
    # `metadata` is taken by SQLAlchemy on every mapped class, hence the other attribute name.
    extra: dict[str, Any] = Field(
        default_factory=dict, sa_type=Json, sa_column_kwargs={"name": "metadata"}
    )
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class ApiKey(SQLModel, table=True):
    """A key of a client, or of the platform where `client_id` is NULL.

    When it was last used is not kept here: a write at each use would tell every worker that keys
    changed, and empty its cache. That belongs to the usage counts.
    """

    __tablename__ = "api_keys"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    key_id: str = Field(unique=True, max_length=64)
    key_prefix: str = Field(max_length=255)
    client_id: str | None = Field(
        default=None, foreign_key="clients.client_id", index=True, max_length=63
    )
    name: str = Field(max_length=255)
    description: str = Field(default="", sa_type=Text)
    environment: str = Field(default="live", max_length=16)
    role: str = Field(max_length=32)
    # NULL = those of the role.
    scopes: list[str] | None = Field(default=None, sa_type=Json)
    # NULL = all.
    allowed_datasets: list[str] | None = Field(default=None, sa_type=Json)
    # NULL = the service's default, 0 = unlimited; never above the client's either way.
    requests_per_minute: int | None = Field(default=None, sa_type=BigInteger)
    logs_per_minute: int | None = Field(default=None, sa_type=BigInteger)
    bytes_per_minute: int | None = Field(default=None, sa_type=BigInteger)
    extra: dict[str, Any] = Field(
        default_factory=dict, sa_type=Json, sa_column_kwargs={"name": "metadata"}
    )
    allowed_cidrs: list[str] | None = Field(default=None, sa_type=Json)
    allowed_countries: list[str] | None = Field(default=None, sa_type=Json)
    allowed_hours: dict[str, Any] | None = Field(default=None, sa_type=Json)
    require_signature: bool = False
    # `report`: what addresses, countries and hours would refuse is only reported.
    restrictions_mode: str = Field(default="enforce", max_length=16)
    # What requests are signed with: see app/protect/signing_keys.py.
    signature_algorithm: str | None = Field(default=None, max_length=16)
    signing_key: str | None = Field(default=None, sa_type=Text)

    # NULL once deleted: nothing can then match, whatever the other columns say.
    verifier: str | None = Field(default=None, max_length=255)
    # Only argon2id verifiers have one: see verifier.Peppers.lookup_tags, and lifecycle.delete_key.
    lookup_tag: str | None = Field(default=None, index=True, max_length=32)

    is_active: bool = True
    # Set by what watches for abuse, and taken back by whoever activates the key.
    quarantined_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    created_by: str | None = Field(default=None, max_length=255)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    # Set on the old key by a rotation: it stops by itself then.
    grace_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    rotated_to: UUID | None = Field(default=None, foreign_key="api_keys.id")
    rotated_from: UUID | None = Field(default=None, foreign_key="api_keys.id")
    deleted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)

    @property
    def is_restricted(self) -> bool:
        """Say whether it may be used from some addresses, countries or at some hours alone."""
        columns = (self.allowed_cidrs, self.allowed_countries, self.allowed_hours)
        return any(column is not None for column in columns)

    @property
    def ends_at(self) -> datetime | None:
        """Give the end of its life, by its own date or by the grace of a rotation."""
        return min((end for end in (self.expires_at, self.grace_until) if end), default=None)

    @property
    def has_ended(self) -> bool:
        """Say whether its life is over."""
        return self.ends_at is not None and self.ends_at <= utc_now()


class CreatedOnce(SQLModel, table=True):
    """What an Idempotency-Key made: a repeat gets the same API key's object, and no second key.

    `owner` is the client whose key asked, or `*` for the platform. Of the Idempotency-Key a digest
    is kept.
    """

    __tablename__ = "created_once"

    owner: str = Field(primary_key=True, max_length=63)
    idempotency_key: str = Field(primary_key=True, max_length=255)
    digest: bytes
    api_key_id: UUID = Field(foreign_key="api_keys.id")
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class Claim(SQLModel, table=True):
    """A key on its way to its owner, who has the link: see app/delivery/claims.py.

    `sealed` is NULL once it was claimed; nothing here opens it while it is not.
    """

    __tablename__ = "claims"

    claim_id: str = Field(primary_key=True, max_length=32)
    api_key_id: UUID = Field(foreign_key="api_keys.id")
    sealed: bytes | None = None
    expires_at: datetime = Field(sa_type=UtcDateTime)
    claimed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class Generation(SQLModel, table=True):
    """One row: a number that grows with each change whose arrival in every worker is waited for."""

    __tablename__ = "generation"

    id: int = Field(default=1, primary_key=True)
    value: int = Field(default=0, sa_type=BigInteger)


# What is written all the time. On embedded storage these tables are used in a file of their own,
# activity.db: a write to control.db tells every worker that keys may have changed.


class KeyUse(SQLModel, table=True):
    """How much a key was used, and the last time."""

    __tablename__ = "key_uses"

    key_id: str = Field(primary_key=True, max_length=64)
    requests: int = Field(sa_type=BigInteger)
    first_used_at: datetime = Field(sa_type=UtcDateTime)
    last_used_at: datetime = Field(sa_type=UtcDateTime)
    last_source_ip: str = Field(max_length=45)
    last_user_agent: str = Field(max_length=255)


class KeySource(SQLModel, table=True):
    """Where a key is used from: the latest few of each key."""

    __tablename__ = "key_sources"

    key_id: str = Field(primary_key=True, max_length=64)
    source_ip: str = Field(primary_key=True, max_length=45)
    user_agent: str = Field(primary_key=True, max_length=255)
    requests: int = Field(sa_type=BigInteger)
    first_seen_at: datetime = Field(sa_type=UtcDateTime)
    last_seen_at: datetime = Field(sa_type=UtcDateTime)


class KeyAccess(SQLModel, table=True):
    """What a key did in a minute (Unix time / 60 s): where, from where, and with what outcome."""

    __tablename__ = "key_access"

    key_id: str = Field(primary_key=True, max_length=64)
    minute: int = Field(primary_key=True, sa_type=BigInteger, index=True)
    endpoint: str = Field(primary_key=True, max_length=255)
    dataset: str = Field(primary_key=True, max_length=63)
    source_ip: str = Field(primary_key=True, max_length=45)
    user_agent: str = Field(primary_key=True, max_length=255)
    outcome: str = Field(primary_key=True, max_length=16)
    requests: int = Field(sa_type=BigInteger)


class Worker(SQLModel, table=True):
    """A process that accepts keys, and the last generation of them that it knows of."""

    __tablename__ = "workers"

    worker_id: UUID = Field(default_factory=uuid4, primary_key=True)
    generation: int = Field(sa_type=BigInteger)
    seen_at: datetime = Field(sa_type=UtcDateTime)
