"""The evidence that threats are told by, read from activity.db: refusals, uses, habits of keys."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Engine, func, select, tuple_
from sqlmodel import col

from app.activity.reasons import ENDED, TOO_MANY_FAILURES
from app.activity.rows import chunks
from app.addresses import network_of
from app.audit.models import Denial
from app.keys.database import reading
from app.keys.models import ApiKey, KeyAccess, KeySource, KeyUse
from app.protect.threats import MINUTES_PER_DAY, Habits, Refused

REFUSALS_PER_READ = 5_000
_UNAUTHENTICATED = 401


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the evidence is; `configured` gives the keys of the settings, which have no row."""

    control: Engine
    activity: Engine
    access_kept_days: int
    configured: Callable[[], Sequence[ApiKey]] = tuple
    country: Callable[[str], str | None] | None = None


class Place(NamedTuple):
    """A refusal in the order in which they are read."""

    at: datetime
    request_id: str


def read_refusals(engine: Engine, after: Place, until: datetime) -> tuple[list[Refused], Place]:
    """Read what was refused for its key, the oldest first, and where to go on.

    No more than REFUSALS_PER_READ; as many say that there are more.
    """
    name = (col(Denial.at), col(Denial.request_id))
    columns = (col(Denial.reason), col(Denial.source_ip), col(Denial.key_id), col(Denial.client_id))
    wanted = (
        select(*name, *columns)
        .where(tuple_(*name) > tuple_(*after), col(Denial.at) >= after.at, col(Denial.at) <= until)
        # Whose key fails once too often gets a 429: it is a failure still.
        .where(
            (col(Denial.status) == _UNAUTHENTICATED)
            | col(Denial.reason).in_([TOO_MANY_FAILURES, *sorted(ENDED)])
        )
        .order_by(*name)
        .limit(REFUSALS_PER_READ)
    )
    with reading(engine) as session:
        rows = session.execute(wanted).all()
    refused = [Refused(row[0].timestamp(), *row[2:]) for row in rows]
    return refused, Place(*rows[-1][:2]) if rows else after


class Used(NamedTuple):
    """Requests of a key in a minute that had this in common; `got` says that they succeeded."""

    key_id: str
    minute: int
    source_ip: str
    dataset: str
    got: bool
    requests: int


def read_used(engine: Engine, since_minute: int) -> list[Used]:
    """Read what keys did from a minute on, the earliest minute first."""
    minute, got = col(KeyAccess.minute), col(KeyAccess.outcome).like("2%")
    columns = (
        *(col(KeyAccess.key_id), minute, col(KeyAccess.source_ip), col(KeyAccess.dataset)),
        got,
    )
    wanted = select(*columns, func.sum(KeyAccess.requests)).where(minute >= since_minute)
    with reading(engine) as session:
        rows = session.execute(wanted.group_by(*columns).order_by(minute))
        return [
            Used(key_id, at, source_ip, dataset, bool(is_got), int(requests))
            for key_id, at, source_ip, dataset, is_got, requests in rows
        ]


def read_usual(engine: Engine, key_id: str, start_minute: int, end_minute: int) -> list[int]:
    """Read the requests of a key in each minute of a time in which there were any."""
    minute = col(KeyAccess.minute)
    wanted = (
        select(func.sum(KeyAccess.requests))
        .where(col(KeyAccess.key_id) == key_id, minute >= start_minute, minute < end_minute)
        .group_by(minute)
    )
    with reading(engine) as session:
        return [int(one) for one in session.scalars(wanted)]


def read_habits(sources: Sources, key_ids: Iterable[str], before: int) -> dict[str, Habits]:
    """Read what keys did before a minute, of all that is kept."""
    found = {key_id: Habits() for key_id in key_ids}
    for key in sources.configured():
        if key.key_id in found:
            found[key.key_id].client_id = key.client_id
    observed = _observed_since(sources.activity, before)
    oldest = before - sources.access_kept_days * MINUTES_PER_DAY
    for some in chunks(list(found)):
        _add_owners(sources.control, some, found, observed)
        _add_uses(sources.activity, some, found, before, oldest)
        _add_accesses(sources.activity, some, found, before)
    return found


def _observed_since(activity: Engine, before: int) -> int:
    """Give the minute since which uses are on record at all: the file may be a new one."""
    with reading(activity) as session:
        first = session.scalar(select(func.min(col(KeyUse.first_used_at))))
    return before if first is None else min(before, _minute(first))


def _add_owners(
    control: Engine, key_ids: list[str], found: dict[str, Habits], observed: int
) -> None:
    columns = (col(ApiKey.key_id), col(ApiKey.client_id), col(ApiKey.created_at))
    with reading(control) as session:
        for key_id, client_id, created_at in session.execute(
            select(*columns).where(columns[0].in_(key_ids))
        ):
            # One that is made and never used sleeps too.
            habits = found[key_id]
            habits.client_id = client_id
            habits.last_minute = max(_minute(created_at), observed)


def _add_uses(
    activity: Engine, key_ids: list[str], found: dict[str, Habits], before: int, oldest: int
) -> None:
    """Add what is known of a key for all of its life: its first use, and its latest sources."""
    start = datetime.fromtimestamp(before * 60, UTC)
    first = (col(KeyUse.key_id), col(KeyUse.first_used_at))
    source = (col(KeySource.key_id), col(KeySource.source_ip))
    with reading(activity) as session:
        uses = session.execute(select(*first).where(first[0].in_(key_ids), first[1] < start)).all()
        sources = session.execute(
            select(*source).where(source[0].in_(key_ids), col(KeySource.first_seen_at) < start)
        ).all()
    for key_id, first_used_at in uses:
        habits = found[key_id]
        habits.first_minute = _minute(first_used_at)
        # When it was used last is not known yet: no later than all that is kept.
        habits.last_minute = max(habits.first_minute, oldest)
    for key_id, source_ip in sources:
        _add_network(found[key_id], source_ip)


def _add_accesses(
    activity: Engine, key_ids: list[str], found: dict[str, Habits], before: int
) -> None:
    key_id, minute = col(KeyAccess.key_id), col(KeyAccess.minute)
    is_wanted = (key_id.in_(key_ids), minute < before)
    by_source = (key_id, col(KeyAccess.source_ip))
    by_dataset = (key_id, col(KeyAccess.dataset))
    with reading(activity) as session:
        sources = session.execute(
            select(*by_source, func.min(minute), func.max(minute))
            .where(*is_wanted)
            .group_by(*by_source)
        ).all()
        datasets = session.execute(
            select(*by_dataset)
            .where(*is_wanted, col(KeyAccess.outcome).like("2%"), by_dataset[1] != "")
            .distinct()
        ).all()
    for name, source_ip, first, last in sources:
        habits = found[name]
        known = habits.first_minute
        habits.first_minute = first if known is None else min(known, first)
        habits.last_minute = max(last, habits.last_minute or 0)
        _add_network(habits, source_ip)
    for name, dataset in datasets:
        found[name].datasets.add(dataset)


def _add_network(habits: Habits, source_ip: str) -> None:
    network = network_of(source_ip)
    if network is not None:
        habits.networks.setdefault(network, source_ip)


def _minute(moment: datetime) -> int:
    return int(moment.timestamp() // 60)
