"""Events appended to their chains and read back, in the caller's transaction."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from app.audit.chain import CHAIN_STARTED, GENESIS, PLATFORM, ChainKeys, Event, detail_text
from app.audit.models import AuditEvent, AuditHead
from app.columns import utc_now
from app.journal import redacted

# The widths of the columns: PostgreSQL refuses what is longer.
_LENGTHS = {
    "action": 64,
    "actor": 255,
    "target": 255,
    "source_ip": 45,
    "user_agent": 255,
    "request_id": 64,
}


def append(session: Session, keys: ChainKeys, events: Iterable[Event]) -> None:
    """Seal events behind those that are there; of one chain, in the order given.

    A chain's head is taken for writing first, so of two transactions one waits for the other. The
    first event of a client's chain is announced in the platform's.
    """
    chains: dict[str, list[Event]] = {}
    for event in events:
        chains.setdefault(event.chain, []).append(_fitted(event))
    heads: dict[str, AuditHead] = {}
    if _absent(session, chains.keys() - {PLATFORM}):
        heads[PLATFORM] = _take(session, PLATFORM)
        # Looked at again behind the lock: another transaction may have started one meanwhile.
        started = [_started(chain) for chain in _absent(session, chains.keys() - {PLATFORM})]
        chains[PLATFORM] = started + chains.get(PLATFORM, [])
    # In the order of their names, the platform's first: of two transactions that seal the same
    # chains none waits for one that waits for it.
    for chain in sorted(chains):
        head = heads.get(chain) or _take(session, chain)
        _extend(session, keys, head, chains[chain])


def _absent(session: Session, chains: Collection[str]) -> list[str]:
    found = session.scalars(select(col(AuditHead.chain)).where(col(AuditHead.chain).in_(chains)))
    return sorted(set(chains) - set(found))


def _started(chain: str) -> Event:
    nothing = detail_text({})
    return Event(utc_now(), CHAIN_STARTED, "central-logger", None, chain, "", "", "", nothing)


def _take(session: Session, chain: str) -> AuditHead:
    """Hold a chain's head until the end of the transaction; that of a new chain is made."""
    insert: Any = (
        sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    )
    nothing = {"seq": 0, "seal": GENESIS, "secret_id": "", "head_seal": b""}
    session.connection().execute(
        insert(AuditHead).values(chain=chain, **nothing).on_conflict_do_nothing()
    )
    wanted = select(AuditHead).where(col(AuditHead.chain) == chain).with_for_update()
    return session.scalars(wanted.execution_options(populate_existing=True)).one()


def _extend(session: Session, keys: ChainKeys, head: AuditHead, events: Sequence[Event]) -> None:
    for event in events:
        head.seq += 1
        head.seal = keys.seal(keys.current, head.seal, head.chain, head.seq, event)
        row = AuditEvent(chain=head.chain, seq=head.seq, seal=head.seal, **event._asdict())
        row.secret_id = keys.current
        session.add(row)
    head.secret_id = keys.current
    head.head_seal = keys.seal_head(keys.current, head.chain, head.seq, head.seal)
    session.flush()  # for who appends to the same chain next, in the same transaction


def _fitted(event: Event) -> Event:
    """Cut texts to the widths of their columns; what is sealed is what is stored.

    What looks like a key is taken out before the cut: of half a key nobody can tell that it is one.
    """
    texts = event._asdict()
    return event._replace(
        **{name: redacted(texts[name])[:length] for name, length in _LENGTHS.items()},
        at=event.at.replace(microsecond=event.at.microsecond // 1000 * 1000),
    )


class EventFilter(NamedTuple):
    """Which events to read: of a chain (None: all), of a time, of an action; newest first.

    `after` continues behind an event's at, chain and seq.
    """

    chain: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    action: str | None = None
    after: tuple[datetime, str, int] | None = None
    limit: int = 100


def read_events(session: Session, wanted: EventFilter) -> list[AuditEvent]:
    """Read events, newest first."""
    return list(session.scalars(select_events(wanted)))


def select_events(wanted: EventFilter) -> Select[Any]:
    """Write the statement that reads them."""
    at, chain, seq = col(AuditEvent.at), col(AuditEvent.chain), col(AuditEvent.seq)
    conditions: list[Any] = []
    if wanted.chain is not None:
        conditions.append(chain == wanted.chain)
    if wanted.since is not None:
        conditions.append(at >= wanted.since)
    if wanted.until is not None:
        conditions.append(at < wanted.until)
    if wanted.action is not None:
        conditions.append(col(AuditEvent.action) == wanted.action)
    if wanted.after is not None:
        last_at, last_chain, last_seq = wanted.after
        # The first of these, which the others imply, is what an index can be asked for.
        conditions += [
            at <= last_at,
            (at < last_at) | (chain < last_chain) | ((chain == last_chain) & (seq < last_seq)),
        ]
    return (
        select(AuditEvent)
        .where(*conditions)
        .order_by(at.desc(), chain.desc(), seq.desc())
        .limit(wanted.limit)
    )
