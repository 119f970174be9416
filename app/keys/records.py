"""Reading what authentication needs of the control database: few columns, no ORM objects."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Engine, Select, bindparam, case, func, or_, select
from sqlmodel import col

from app.keys.database import translated_faults, writing
from app.keys.models import ApiKey, Client
from app.keys.principal import UNLIMITED, Limits, Principal
from app.keys.restrictions import ENFORCE, compiled
from app.keys.roles import ADMIN, effective_scopes
from app.keys.signing import Signing

# A statement of the live list: the interpreter is held for about 0.2 ms to take one apart.
LIVE_STEP_ROWS = 1_000
# Of the rows that the list holds, about: 50,000 as they mostly are. One with very many datasets may
# have 80 kB, and is read when it is used, so that no statement gives more than some MB either.
LIVE_BYTES_MAX = 32 * 1024**2
LIVE_ROW_LISTS_LENGTH_MAX = 2_000


class KeyRecord(NamedTuple):
    """The columns of a key that decide who it is."""

    id: UUID
    key_id: str
    client_id: str | None
    name: str
    role: str
    scopes: list[str] | None
    allowed_datasets: list[str] | None
    requests_per_minute: int | None
    logs_per_minute: int | None
    bytes_per_minute: int | None
    verifier: str | None
    lookup_tag: str | None
    is_active: bool
    expires_at: datetime | None
    grace_until: datetime | None
    deleted_at: datetime | None = None
    allowed_cidrs: list[str] | None = None
    allowed_countries: list[str] | None = None
    allowed_hours: dict[str, Any] | None = None
    restrictions_mode: str = ENFORCE
    require_signature: bool = False
    signature_algorithm: str | None = None
    signing_key: str | None = None

    @classmethod
    def of(cls, key: ApiKey) -> "KeyRecord":
        """Take the columns of a row, or of a key that has none."""
        return cls._make(getattr(key, field) for field in cls._fields)


class ClientRecord(NamedTuple):
    """The columns of a client that bear on its keys."""

    is_active: bool
    requests_per_minute: int | None
    logs_per_minute: int | None
    bytes_per_minute: int | None


class Candidate(NamedTuple):
    """A key that may be the caller's, and its client."""

    key: KeyRecord
    client: ClientRecord | None

    def is_usable(self) -> bool:
        """Say whether it may be used now, if it is the caller's."""
        key = self.key
        if not key.is_active or key.verifier is None or key.deleted_at is not None:
            return False
        expires_at_s = self.expires_at_s()
        if expires_at_s is not None and expires_at_s <= time.time():
            return False
        # A platform key has no client; any other needs a live one.
        if key.client_id is None:
            return key.role == ADMIN
        return self.client is not None and self.client.is_active and key.role != ADMIN

    def expires_at_s(self) -> float | None:
        """Give the end of its life, by its own date or by the grace of a rotation."""
        ends = [end.timestamp() for end in (self.key.expires_at, self.key.grace_until) if end]
        return min(ends, default=None)

    def principal(self, defaults: Limits) -> Principal:
        """Make the caller that this key stands for."""
        key = self.key
        client_limits = _limits(self.client, defaults) if self.client else UNLIMITED
        return Principal(
            id=str(key.id),
            key_id=key.key_id,
            client_id=key.client_id,
            role=key.role,
            scopes=effective_scopes(key.role, key.scopes),
            allowed_datasets=(
                None if key.allowed_datasets is None else frozenset(key.allowed_datasets)
            ),
            is_admin=key.role == ADMIN,
            key_limits=_limits(key, defaults).capped(client_limits),
            client_limits=client_limits,
            expires_at_s=self.expires_at_s(),
            name=key.name,
            own_limits=(
                key.requests_per_minute,
                key.logs_per_minute,
                key.bytes_per_minute,
            ),
            restrictions=compiled(
                key.allowed_cidrs,
                key.allowed_countries,
                key.allowed_hours,
                key.restrictions_mode,
            ),
            signing=_signing(key),
        )


class Live(NamedTuple):
    """The keys that could be used at all: what is not among them is garbage, without a read.

    A row is its verifier, a space, and text for `Records.candidate`, or empty where it has to be
    read.
    """

    rows: Mapping[str, str]  # by key_id
    lookup_tags: frozenset[str]


class Retag(NamedTuple):
    """A verifier and its tag under the current pepper, in place of `old`."""

    id: UUID
    old: str
    verifier: str
    lookup_tag: str | None


_CLIENT_COLUMNS = [Client.__table__.c[name] for name in ClientRecord._fields]  # type: ignore[attr-defined]
_CANDIDATES: Select[Any] = select(
    *(ApiKey.__table__.c[name] for name in KeyRecord._fields),  # type: ignore[attr-defined]
    *_CLIENT_COLUMNS,
).outerjoin(Client, col(Client.client_id) == col(ApiKey.client_id))
_BY_ID = _CANDIDATES.where(col(ApiKey.id) == bindparam("id"))
_BY_KEY_ID = _CANDIDATES.where(col(ApiKey.key_id) == bindparam("key_id"))
_BY_TAGS = _CANDIDATES.where(
    col(ApiKey.lookup_tag).in_(bindparam("tags", expanding=True))
).order_by(col(ApiKey.created_at), col(ApiKey.key_id))
_CLIENT: Select[Any] = select(*_CLIENT_COLUMNS).where(
    col(Client.client_id) == bindparam("client_id")
)


def _live(line: ColumnElement[str]) -> Select[Any]:
    """Give the statement of the next live keys: the last one's id, the tags, a line of each.

    One row: stepping through thousands would have each step fight the event loop for the GIL.
    """
    key_id, lookup_tag = col(ApiKey.key_id), col(ApiKey.lookup_tag)
    step = (
        select(key_id, lookup_tag, line.label("line"))
        .outerjoin(Client, col(Client.client_id) == col(ApiKey.client_id))
        .where(col(ApiKey.is_active), col(ApiKey.verifier).is_not(None))
        .where(col(ApiKey.deleted_at).is_(None))
        .where(key_id > bindparam("after"))
        .order_by(key_id)
        .limit(LIVE_STEP_ROWS)
        .subquery()
    )
    columns: list[ColumnElement[Any]] = [
        func.max(step.c.key_id),
        func.aggregate_strings(step.c.lookup_tag, ","),
        func.aggregate_strings(step.c.line, "\n"),
    ]
    return select(*columns)


_LIVE_IDS = _live(col(ApiKey.key_id) + " ")
# What JSON makes of SQLite's values is what the driver would give; JSON text has no line breaks. A
# verifier has none either, nor spaces, unless somebody wrote it into the row.
_LISTS = ("scopes", "allowed_datasets", "allowed_cidrs", "allowed_countries", "allowed_hours")
_LISTS_LENGTH: Any = sum(
    func.coalesce(func.length(col(getattr(ApiKey, name))), 0) for name in _LISTS
)
_IS_ODD = col(ApiKey.verifier).bool_op("GLOB")("*[^!-~]*")
_LIVE_ROWS = _live(
    col(ApiKey.key_id)
    + " "
    + case(
        (or_(_IS_ODD, _LISTS_LENGTH > LIVE_ROW_LISTS_LENGTH_MAX), ""),
        else_=col(ApiKey.verifier) + " " + func.json_array(*_CANDIDATES.selected_columns),
    )
)


class Records:
    """The reads and the one write of authentication; StorageUnavailable if the database fails."""

    def __init__(
        self, engine: Engine, live_rows_max: int, live_bytes_max: int = LIVE_BYTES_MAX
    ) -> None:
        self._engine = engine
        self._live_bytes_max = live_bytes_max
        dialect = engine.dialect
        # Elsewhere JSON looks different; there the list holds the ids alone.
        self._live_rows_max = live_rows_max if dialect.name == "sqlite" else 0
        self._from_driver = [
            column.type.dialect_impl(dialect).result_processor(dialect, None)
            for column in _CANDIDATES.selected_columns
        ]

    def by_key_id(self, key_id: str) -> list[Candidate]:
        """Find the key of this public id: one or none."""
        return self._candidates(_BY_KEY_ID, key_id=key_id)

    def by_tags(self, tags: list[str]) -> list[Candidate]:
        """Find the keys that carry one of these lookup tags, oldest first."""
        return self._candidates(_BY_TAGS, tags=tags)

    def client(self, client_id: str) -> ClientRecord | None:
        """Find a client."""
        with translated_faults(), self._engine.connect() as connection:
            return find_client(connection, client_id)

    def live(self) -> Live:
        """Read which keys could be used at all, as of one moment, to be called in a thread."""
        rows: dict[str, str] = {}
        lookup_tags: set[str] = set()
        after: str | None = ""
        length = 0
        with translated_faults(), self._engine.connect() as connection:
            while after is not None:
                is_full = len(rows) >= self._live_rows_max or length > self._live_bytes_max
                statement = _LIVE_IDS if is_full else _LIVE_ROWS
                after, tags, lines = connection.execute(statement, {"after": after}).one()
                length += len(lines or "")
                lookup_tags.update(tags.split(",") if tags else ())
                rows.update(line.split(" ", 1) for line in (lines.split("\n") if lines else ()))
        return Live(rows, frozenset(lookup_tags))

    def candidate(self, row: str) -> Candidate:
        """Read the text of a row of the live list."""
        values = zip(json.loads(row), self._from_driver, strict=True)
        return _candidate([read(value) if read else value for value, read in values])

    def retag(self, retags: list[Retag]) -> None:
        """Write the new verifiers, each only where the old one still stands."""
        with writing(self._engine) as session:
            for retag in retags:
                # Not by id alone: a key deleted meanwhile must not get a verifier back.
                session.connection().execute(
                    ApiKey.__table__.update()  # type: ignore[attr-defined]
                    .where(col(ApiKey.id) == retag.id, col(ApiKey.verifier) == retag.old)
                    .values(verifier=retag.verifier, lookup_tag=retag.lookup_tag)
                )

    def _candidates(self, statement: Select[Any], **values: Any) -> list[Candidate]:
        with translated_faults(), self._engine.connect() as connection:
            rows = connection.execute(statement, values).all()
        return [_candidate(row) for row in rows]


def find_candidate(connection: Connection, id_: UUID) -> Candidate | None:
    """Find a stored key by its id, in the caller's transaction."""
    row = connection.execute(_BY_ID, {"id": id_}).first()
    return None if row is None else _candidate(row)


def find_client(connection: Connection, client_id: str) -> ClientRecord | None:
    """Find a client, in the caller's transaction."""
    row = connection.execute(_CLIENT, {"client_id": client_id}).first()
    return None if row is None else ClientRecord._make(row)


def _candidate(row: Sequence[Any]) -> Candidate:
    width = len(KeyRecord._fields)
    key = KeyRecord._make(row[:width])
    client = None if key.client_id is None else ClientRecord._make(row[width:])
    return Candidate(key, client)


def _signing(key: KeyRecord) -> Signing | None:
    if not key.require_signature and key.signing_key is None:
        return None
    return Signing(key.signature_algorithm, key.signing_key, key.require_signature)


def _limits(owner: KeyRecord | ClientRecord, defaults: Limits) -> Limits:
    own = (owner.requests_per_minute, owner.logs_per_minute, owner.bytes_per_minute)
    fallback = (
        defaults.requests_per_minute,
        defaults.logs_per_minute,
        defaults.bytes_per_minute,
    )
    return Limits(*(f if o is None else o for o, f in zip(own, fallback, strict=True)))
