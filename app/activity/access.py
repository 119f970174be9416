"""What each key did, minute by minute: where, on which dataset, from where, with what outcome."""

import time
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
from sqlalchemy import Engine, delete, func, select, tuple_
from sqlmodel import col

from app.activity.rows import KEY_ID_LENGTH_MAX, storable_address, storable_agent, upsert
from app.keys.database import reading, streamed, writing
from app.keys.models import ApiKey, KeyAccess

# A read that names no dataset is of all that its key may read.
ALL_DATASETS = "*"
DATASET_LENGTH_MAX = 63
PRUNE_EVERY_S = 60.0
# Minutes that a step lets go of: so that it holds the database for a moment only.
PRUNE_MINUTES = 5
PRUNE_STEPS_MAX = 20
MINUTES_PER_DAY = 1440

# key_id, minute, endpoint, dataset, source_ip, user_agent, outcome: the name of a row.
Minute = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Place = tuple[str, Minute, str, str, str, str, str]
# By which rows are sorted: the latest minute first.
_ORDER = ("minute", "key_id", "endpoint", "dataset", "source_ip", "user_agent", "outcome")


class Access(NamedTuple):
    """Requests of a key in a minute (Unix time / 60 s) that had all of this in common."""

    key_id: str
    minute: int
    endpoint: str
    dataset: str
    source_ip: str
    user_agent: str
    outcome: str
    requests: int


class AccessLog:
    """Where one process writes accesses; used by one thread at a time."""

    def __init__(self, engine: Engine, kept_days: int) -> None:
        self._engine = engine
        self._kept_minutes = kept_days * MINUTES_PER_DAY
        self._prune_at_s = time.time() + PRUNE_EVERY_S

    def is_due(self) -> bool:
        """Say whether there is something to do though there were no accesses."""
        return time.time() >= self._prune_at_s

    def write(self, accesses: Iterable[Access]) -> None:
        """Add to what is there, in one transaction; raise StorageUnavailable."""
        merged: dict[Place, int] = {}
        for one in accesses:
            name = _storable(one)
            merged[name] = merged.get(name, 0) + one.requests
        if merged:
            # In the order of their names: of two workers that write the same ones one waits.
            fields = list(KeyAccess.model_fields)
            rows = [
                dict(zip(fields, (*name, merged[name]), strict=True)) for name in sorted(merged)
            ]
            with writing(self._engine) as session:
                upsert(session, KeyAccess, rows, _added)
        if self.is_due():
            self._prune_at_s = time.time() + PRUNE_EVERY_S
            self._prune()

    def _prune(self) -> None:
        """Let go of what has been kept for its time."""
        cutoff = int(time.time() // 60) - self._kept_minutes
        minute = col(KeyAccess.minute)
        for _ in range(PRUNE_STEPS_MAX):
            with reading(self._engine) as session:
                oldest = session.scalar(select(func.min(minute)))
            if oldest is None or oldest >= cutoff:
                return
            with writing(self._engine) as session:
                session.execute(
                    delete(KeyAccess).where(minute < min(cutoff, oldest + PRUNE_MINUTES)),
                    execution_options={"synchronize_session": False},
                )


@dataclass(frozen=True, slots=True)
class AccessQuery:
    """Which rows to read, of the latest minute first; of all keys without `key_ids`.

    `after` continues behind a row of that name.
    """

    key_ids: Collection[str] | None = None
    start_minute: int | None = None
    end_minute: int | None = None
    after: Place | None = None
    limit: int | None = None


def read_accesses(engine: Engine, wanted: AccessQuery) -> list[KeyAccess]:
    """Read what keys did."""
    return list(each_access(engine, wanted))


def each_access(engine: Engine, wanted: AccessQuery) -> Generator[KeyAccess, None, None]:
    """Give the same one by one; who stops before the end reads no more of it."""
    minute = col(KeyAccess.minute)
    name = [col(getattr(KeyAccess, field)) for field in _ORDER]
    conditions: list[Any] = []
    if wanted.key_ids is not None:
        conditions.append(col(KeyAccess.key_id).in_(wanted.key_ids))
    if wanted.start_minute is not None:
        conditions.append(minute >= wanted.start_minute)
    if wanted.end_minute is not None:
        conditions.append(minute < wanted.end_minute)
    if wanted.after is not None:
        key_id, at, *others = wanted.after
        conditions.append(tuple_(*name) < tuple_(at, key_id, *others))
    selected = select(KeyAccess).where(*conditions).order_by(*(one.desc() for one in name))
    with reading(engine) as session:
        yield from streamed(session, selected.limit(wanted.limit))


class Used(NamedTuple):
    """Requests of a key in an hour (Unix time / 3600 s) that had all of this in common."""

    endpoint: str
    dataset: str
    source_ip: str
    outcome: str
    hour: int
    requests: int


def read_used(engine: Engine, key_id: str) -> list[Used]:
    """Read all that is known of what a key did, by the hour."""
    columns = (
        *(col(KeyAccess.endpoint), col(KeyAccess.dataset), col(KeyAccess.source_ip)),
        *(col(KeyAccess.outcome), col(KeyAccess.minute) // 60),
    )
    wanted = select(*columns, func.sum(KeyAccess.requests)).where(col(KeyAccess.key_id) == key_id)
    with reading(engine) as session:
        return [Used._make(row) for row in session.execute(wanted.group_by(*columns))]


def client_key_ids(control: Engine, client_id: str) -> list[str]:
    """Name all keys that a client ever had, deleted ones included."""
    with reading(control) as session:
        wanted = select(col(ApiKey.key_id)).where(col(ApiKey.client_id) == client_id)
        return list(session.scalars(wanted))


def place_of(row: KeyAccess) -> Place:
    """Name a row."""
    return (
        *(row.key_id, row.minute, row.endpoint, row.dataset),
        *(row.source_ip, row.user_agent, row.outcome),
    )


def _storable(one: Access) -> Place:
    return (
        one.key_id[:KEY_ID_LENGTH_MAX],
        one.minute,
        one.endpoint,
        one.dataset[:DATASET_LENGTH_MAX],
        storable_address(one.source_ip),
        storable_agent(one.user_agent),
        one.outcome,
    )


def _added(old: Any, new: Any) -> dict[str, Any]:
    return {"requests": old.requests + new.requests}
