"""What management requests may say, as msgspec Structs: absent and null are two things.

An unknown name is refused: a misspelt limit would be none.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.errors import Invalid
from app.keys.faults import limit_faults
from app.keys.models import LIMIT_NAMES
from app.keys.registry import DUE_DAYS_MAX
from app.keys.roles import ADMIN

PAGE_ITEMS = 100
PAGE_ITEMS_MAX = 1_000

Moment = Annotated[datetime, Meta(tz=True)]
Limits = dict[str, int | None]


class SigningKeyForm(Struct, forbid_unknown_fields=True):
    """What a key is to sign its requests with."""

    algorithm: Literal["hmac-sha256", "ed25519"]
    # PEM, or base64 of its 32 bytes.
    public_key: str | None = None


class KeyCreate(Struct, forbid_unknown_fields=True):
    """POST /api/v1/api-keys."""

    client_id: str | None = None
    name: str | UnsetType = UNSET
    description: str = ""
    environment: str = "live"
    role: str | None = None
    scopes: list[str] | None = None
    allowed_datasets: list[str] | None = None
    limits: Limits | None = None
    metadata: dict[str, Any] | None = None
    expires_at: Moment | None = None
    prefix: str | None = None
    allowed_cidrs: list[str] | None = None
    allowed_countries: list[str] | None = None
    allowed_hours: dict[str, Any] | None = None
    restrictions_mode: str | None = None
    require_signature: bool | None = None
    signing: SigningKeyForm | None = None


class KeyPatch(Struct, forbid_unknown_fields=True):
    """PATCH /api/v1/api-keys/{id}."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    expires_at: Moment | UnsetType | None = UNSET
    role: str | UnsetType = UNSET
    scopes: list[str] | UnsetType | None = UNSET
    allowed_datasets: list[str] | UnsetType | None = UNSET
    limits: Limits | UnsetType | None = UNSET
    is_active: bool | UnsetType = UNSET
    allowed_cidrs: list[str] | UnsetType | None = UNSET
    allowed_countries: list[str] | UnsetType | None = UNSET
    allowed_hours: dict[str, Any] | UnsetType | None = UNSET
    restrictions_mode: str | UnsetType = UNSET
    require_signature: bool | UnsetType = UNSET
    signing: SigningKeyForm | UnsetType | None = UNSET


class KeyRotate(Struct, forbid_unknown_fields=True):
    """POST /api/v1/api-keys/{id}/rotate."""

    grace_seconds: int | None = None


class Nothing(Struct, forbid_unknown_fields=True):
    """A request that says all in its path."""


class KeyList(Struct, forbid_unknown_fields=True):
    """The query of GET /api/v1/api-keys."""

    client_id: str | None = None
    include_inactive: bool = False
    due: Annotated[int, Meta(ge=0, le=DUE_DAYS_MAX)] | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS
    cursor: str | None = None


class ClientCreate(Struct, forbid_unknown_fields=True):
    """POST /api/v1/clients."""

    client_id: str
    name: str | UnsetType = UNSET
    contact_email: str | None = None
    is_active: bool = True
    retention_days: int | None = None
    dataset_retention_days: dict[str, int] | None = None
    limits: Limits | None = None
    metadata: dict[str, Any] | None = None


class ClientPatch(Struct, forbid_unknown_fields=True):
    """PATCH /api/v1/clients/{client_id}."""

    name: str | UnsetType = UNSET
    contact_email: str | UnsetType | None = UNSET
    is_active: bool | UnsetType = UNSET
    retention_days: int | UnsetType | None = UNSET
    dataset_retention_days: dict[str, int] | UnsetType | None = UNSET
    limits: Limits | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class ClientList(Struct, forbid_unknown_fields=True):
    """The query of GET /api/v1/clients."""

    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS
    cursor: str | None = None


class AccessList(Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The query of GET /api/v1/audit/access."""

    key_id: str | None = None
    from_: str | None = None
    to: str | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS
    cursor: str | None = None


def columns(form: Struct) -> dict[str, Any]:
    """Return what a form sets, by the name of the column; Invalid for limits that can't be.

    But for a signing key, which is to be made first.
    """
    asked = {
        name: value
        for name in form.__struct_fields__
        if (value := getattr(form, name)) is not UNSET and name not in {"limits", "signing"}
    }
    if "metadata" in asked:
        asked["extra"] = asked.pop("metadata") or {}
    limits: Limits | UnsetType | None = getattr(form, "limits", UNSET)
    if limits is UNSET:
        return asked
    if limits is None:
        return asked | dict.fromkeys(LIMIT_NAMES)
    if faults := limit_faults(limits):
        raise Invalid(faults)
    return asked | limits


def check_countries(form: KeyCreate | KeyPatch, *, known: bool) -> None:
    """Refuse to restrict a key to countries where no database tells which one an address is in."""
    if not known and form.allowed_countries not in (UNSET, None):  # lists
        raise Invalid.parameter("allowed_countries", "needs the setting GEOIP_DATABASE")


def as_properties(form: KeyCreate, client_id: str | None) -> dict[str, Any]:
    """Return the properties of a new key, as registry.KeyProperties names them.

    `client_id` is the client of whoever asks, for a form that names none. What the key signs with
    is not among them: it is to be made first.
    """
    properties = msgspec.structs.asdict(form)
    del properties["signing"]
    if form.client_id is None:
        properties["client_id"] = client_id
    if form.name is UNSET:
        properties["name"] = properties["client_id"] or ADMIN
    return properties
