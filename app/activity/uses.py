"""How much each key was used, when last, and from where: the evidence that a rotation rests on."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine, case, delete, func, select, tuple_
from sqlmodel import Session, col

from app.activity.rows import (
    KEY_ID_LENGTH_MAX,
    chunks,
    storable_address,
    storable_agent,
    upsert,
)
from app.keys.database import reading, writing
from app.keys.models import KeySource, KeyUse

# What an operator can look through; who uses a key from more places at once is a finding by itself.
SOURCES_PER_KEY_MAX = 20


class Sighting(NamedTuple):
    """Uses of one key from one place, as the requests named it.

    Without address and user agent only the key's requests are counted.
    """

    key_id: str
    source_ip: str
    user_agent: str
    requests: int
    first_at: datetime
    last_at: datetime

    @property
    def has_source(self) -> bool:
        """Say whether it is known where they came from."""
        return bool(self.source_ip or self.user_agent)


def record(engine: Engine, sightings: Iterable[Sighting]) -> None:
    """Add to what is known of the use of keys, in one transaction; raise StorageUnavailable.

    Of each key the latest sources are kept.
    """
    by_source = _merged(sightings)
    by_key: dict[str, list[Sighting]] = {}
    for one in by_source:
        by_key.setdefault(one.key_id, []).append(one)
    # Of more sources than are kept only these would survive.
    kept = [one for ones in by_key.values() for one in _latest(ones)]
    with writing(engine) as session:
        # The keys' rows first, in the order of their ids: of two workers that write of the same
        # keys one waits, never both, and a key's sources are only written by who has its row.
        uses = [_use_row(by_key[key_id]) for key_id in sorted(by_key)]
        upsert(session, KeyUse, uses, _added_use)
        upsert(session, KeySource, [_source_row(one) for one in kept], _added_source)
        for key_ids in chunks(sorted({one.key_id for one in kept})):
            _prune(session, key_ids)


def read_uses(engine: Engine, key_ids: Iterable[str]) -> dict[str, KeyUse]:
    """Return the use of each of these keys that was ever used."""
    found: dict[str, KeyUse] = {}
    with reading(engine) as session:
        for some in chunks(list(key_ids)):
            rows = session.scalars(select(KeyUse).where(col(KeyUse.key_id).in_(some)))
            found.update((use.key_id, use) for use in rows)
    return found


def read_sources(engine: Engine, key_id: str, since: datetime | None = None) -> list[KeySource]:
    """Return where a key was used from, the latest first; with `since`, only from then on."""
    last_seen_at = col(KeySource.last_seen_at)
    wanted = select(KeySource).where(col(KeySource.key_id) == key_id)
    if since is not None:
        wanted = wanted.where(last_seen_at >= since)
    order = (last_seen_at.desc(), col(KeySource.source_ip), col(KeySource.user_agent))
    with reading(engine) as session:
        return list(session.scalars(wanted.order_by(*order)))


def _merged(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Cut all to what is stored and make one of what is the same: no row may be touched twice."""
    merged: dict[tuple[str, str, str], Sighting] = {}
    for one in map(_storable, sightings):
        other = merged.get(one[:3])
        if other is not None:
            one = one._replace(  # noqa: PLW2901  # what it is together with the other
                requests=one.requests + other.requests,
                first_at=min(one.first_at, other.first_at),
                last_at=max(one.last_at, other.last_at),
            )
        merged[one[:3]] = one
    return list(merged.values())


def _storable(one: Sighting) -> Sighting:
    return one._replace(
        key_id=one.key_id[:KEY_ID_LENGTH_MAX],
        source_ip=storable_address(one.source_ip),
        user_agent=storable_agent(one.user_agent),
    )


def _latest(sightings: list[Sighting]) -> list[Sighting]:
    known = [one for one in sightings if one.has_source]
    known.sort(key=lambda one: one.last_at, reverse=True)
    return known[:SOURCES_PER_KEY_MAX]


def _use_row(sightings: list[Sighting]) -> dict[str, Any]:
    last = max(sightings, key=lambda one: (one.has_source, one.last_at))
    return {
        "key_id": last.key_id,
        "requests": sum(one.requests for one in sightings),
        "first_used_at": min(one.first_at for one in sightings),
        "last_used_at": max(one.last_at for one in sightings),
        "last_source_ip": last.source_ip,
        "last_user_agent": last.user_agent,
    }


def _source_row(one: Sighting) -> dict[str, Any]:
    return {
        "key_id": one.key_id,
        "source_ip": one.source_ip,
        "user_agent": one.user_agent,
        "requests": one.requests,
        "first_seen_at": one.first_at,
        "last_seen_at": one.last_at,
    }


# Each worker writes by itself and none of them in order, so the later moment wins, whoever comes
# first.


def _added_source(old: Any, new: Any) -> dict[str, Any]:
    return {
        "requests": old.requests + new.requests,
        "first_seen_at": _earlier(old.first_seen_at, new.first_seen_at),
        "last_seen_at": _later(old.last_seen_at, new.last_seen_at),
    }


def _added_use(old: Any, new: Any) -> dict[str, Any]:
    # What came from nowhere that is known does not hide where the last one came from.
    is_known = (new.last_source_ip != "") | (new.last_user_agent != "")
    is_shown = is_known & (new.last_used_at >= old.last_used_at)
    return {
        "requests": old.requests + new.requests,
        "first_used_at": _earlier(old.first_used_at, new.first_used_at),
        "last_used_at": _later(old.last_used_at, new.last_used_at),
        "last_source_ip": case((is_shown, new.last_source_ip), else_=old.last_source_ip),
        "last_user_agent": case((is_shown, new.last_user_agent), else_=old.last_user_agent),
    }


def _earlier(one: Any, other: Any) -> Any:
    return case((other < one, other), else_=one)


def _later(one: Any, other: Any) -> Any:
    return case((other > one, other), else_=one)


def _prune(session: Session, key_ids: Sequence[str]) -> None:
    """Forget all but the latest sources of each of these keys."""
    name = (col(KeySource.key_id), col(KeySource.source_ip), col(KeySource.user_agent))
    place = func.row_number().over(
        partition_by=name[0], order_by=(col(KeySource.last_seen_at).desc(), *name[1:])
    )
    ranked = select(*name, place.label("place")).where(name[0].in_(key_ids)).subquery()
    beyond = select(*list(ranked.c)[:3]).where(ranked.c.place > SOURCES_PER_KEY_MAX)
    session.execute(
        delete(KeySource).where(tuple_(*name).in_(beyond)),
        execution_options={"synchronize_session": False},
    )
