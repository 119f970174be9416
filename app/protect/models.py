"""The rows of what watches and protects; on embedded storage in activity.db."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, Text
from sqlmodel import Field, Relationship, SQLModel

from app.columns import UtcDateTime


class AlertDelivery(SQLModel, table=True):
    """How it stands with telling one reader of an alert by one channel; see deliveries.py."""

    __tablename__ = "alert_deliveries"

    alert_id: UUID = Field(foreign_key="alerts.alert_id", ondelete="CASCADE", primary_key=True)
    channel: str = Field(primary_key=True, max_length=16)
    # A mail address; empty where the channel has one reader, or all of its readers are meant.
    reader: str = Field(primary_key=True, max_length=254)
    state: str = Field(max_length=16, index=True)


class Alert(SQLModel, table=True):
    """What a rule has found; while it goes on it is one alert that counts."""

    __tablename__ = "alerts"

    alert_id: UUID = Field(default_factory=uuid4, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    last_at: datetime = Field(sa_type=UtcDateTime)
    count: int = Field(sa_type=BigInteger)
    rule: str = Field(max_length=64)
    severity: str = Field(max_length=16)
    action: str = Field(max_length=32)
    client_id: str | None = Field(default=None, max_length=63)
    key_id: str | None = Field(default=None, max_length=64)
    source_ip: str = Field(max_length=45)
    detail: str = Field(sa_type=Text)
    # Read with the alert: whoever shows it says who was told.
    deliveries: list[AlertDelivery] = Relationship(
        sa_relationship_kwargs={"lazy": "selectin", "passive_deletes": True}
    )


class AddressBlock(SQLModel, table=True):
    """A party, an address or a network, whose failed authentications get 429 for a while.

    A good key works from there all the same.
    """

    __tablename__ = "address_blocks"

    address: str = Field(primary_key=True, max_length=64)
    until: datetime = Field(sa_type=UtcDateTime)
    alert_id: UUID


class Nonce(SQLModel, table=True):
    """A nonce that a key's signed request has used up."""

    __tablename__ = "nonces"

    key_id: str = Field(primary_key=True, max_length=64)
    nonce: str = Field(primary_key=True, max_length=128)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
