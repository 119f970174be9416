"""A change of the register: by whom it may be made, its record, and how workers learn of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Engine, inspect, update
from sqlmodel import Session, col

from app.audit.chain import ChainKeys, Event, detail_text
from app.audit.trail import append
from app.columns import utc_now
from app.errors import Forbidden, InvalidKey
from app.keys.authority import check_restrictions
from app.keys.database import writing
from app.keys.models import ApiKey, Client, Generation
from app.keys.principal import Limits, Principal
from app.keys.records import Candidate, KeyRecord, find_candidate, find_client
from app.keys.roles import MANAGEMENT

# What the record of a change leaves out: secrets, what is made of them, and what says no more than
# the record's own time.
UNRECORDED = frozenset({"verifier", "lookup_tag", "updated_at"})
# Of these it says that they changed, not what they were.
CONCEALED = frozenset({"signing_key"})


class Asker:
    """A key that asks for a change, and what it takes to see what it is when its turn has come.

    `configured` finds a key of the settings or of API_KEYS_FILE as it stands at the moment. Those
    have no row; whether this is one of them is what it was when it was authenticated, so a row that
    is gone is never taken for a key that has none.
    """

    def __init__(
        self,
        principal: Principal,
        defaults: Limits,
        configured: Callable[[UUID], KeyRecord | None],
    ) -> None:
        self.defaults = defaults
        self.key_id = principal.key_id
        self._id = UUID(principal.id)
        self._configured = configured
        self._authenticated = configured(self._id)

    def configured(self) -> KeyRecord | None:
        """Give what the settings say of it now; None for a stored key, and one that is gone."""
        return self._configured(self._id)

    def principal(self, session: Session) -> Principal:
        """Say who it is now; InvalidKey if it has ended, Forbidden if it no longer manages keys."""
        candidate = self._candidate(session)
        if candidate is None or not candidate.is_usable():
            raise InvalidKey
        principal = candidate.principal(self.defaults)
        if MANAGEMENT not in principal.scopes:
            raise Forbidden(f"Requires scope '{MANAGEMENT}'")
        return principal

    def _candidate(self, session: Session) -> Candidate | None:
        connection = session.connection()
        if self._authenticated is None:
            return find_candidate(connection, self._id)
        key = self.configured()
        # Its id is its place in the settings, where another key may stand by now.
        if key is None or key.verifier != self._authenticated.verifier:
            return None
        client = None if key.client_id is None else find_client(connection, key.client_id)
        return Candidate(key, client)


class Origin(NamedTuple):
    """Where a request came from, and its id; all empty for a command."""

    source_ip: str = ""
    user_agent: str = ""
    request_id: str = ""


NOWHERE = Origin()


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a change, from where, and what seals the record of it.

    Without an asker it is the operator, who may do everything, or the service itself: `name` says
    which command or what else. With one, its key_id stands in the record, and `restrict` holds it
    to its restrictions at the address of its origin, in any thread. `keys_max`: how many keys in
    use a client may have for it to make one more, 0 = any number.
    """

    seals: ChainKeys
    name: str = ""
    asker: Asker | None = None
    origin: Origin = NOWHERE
    restrict: Callable[[Principal, str], None] = check_restrictions
    keys_max: int = 0

    def __post_init__(self) -> None:
        assert self.actor  # noqa: S101  # nothing is done by nobody

    @property
    def actor(self) -> str:
        """Name who acts, as the record does."""
        return self.name if self.asker is None else self.asker.key_id

    def record(
        self,
        session: Session,
        action: str,
        target: ApiKey | Client,
        detail: Mapping[str, Any],
    ) -> None:
        """Add what was done to the audit, in the transaction in which it is done."""
        name = target.key_id if isinstance(target, ApiKey) else target.client_id
        event = Event(
            at=utc_now(),
            action=action,
            actor=self.actor,
            client_id=target.client_id,
            target=name,
            **self.origin._asdict(),
            detail=detail_text(detail),
        )
        append(session, self.seals, [event])


def changes_of(row: ApiKey | Client) -> dict[str, list[Any]]:
    """Give what was set since a row was read, or all of a new one: column, before and after.

    To be asked before the row is written, of which the next read in its transaction is enough.
    """
    state = inspect(row)
    changes: dict[str, list[Any]] = {}
    for attribute in state.mapper.column_attrs:
        name = attribute.columns[0].name
        history = state.attrs[attribute.key].history
        if name in UNRECORDED or not history.has_changes():
            continue
        before = history.deleted[0] if history.deleted else None
        after = history.added[0] if history.added else None
        if before == after:
            continue
        if name in CONCEALED:
            after = after and ("replaced" if before else "set")
            before = before and "set"
        changes[name] = [before, after]
    return changes


@contextmanager
def writing_for(engine: Engine, by: Author) -> Iterator[tuple[Session, Principal | None]]:
    """Write for a key, and say who it is in this transaction; None stays the operator.

    What it was when it asked does not count: a write may wait, and nothing may be given by a key
    with powers whose end was committed before, nor outside of its restrictions. Raises as
    `Asker.principal` and `check_restrictions`.
    """
    asker = by.asker
    with writing(engine) as session:
        if asker is None:
            yield session, None
            return
        session.connection()  # it waits here
        configured = asker.configured()
        principal = asker.principal(session)
        by.restrict(principal, by.origin.source_ip)
        yield session, principal
        # No lock of the database keeps the settings' keys from changing: looked at again at last.
        if asker.configured() != configured:
            raise InvalidKey


def advance(session: Session) -> int:
    """Return the generation of the change; the present one if nothing has changed.

    What is not written does not empty every worker's cache.
    """
    if session.new or any(session.is_modified(one) for one in session.dirty):
        session.connection().execute(
            update(Generation).where(col(Generation.id) == 1).values(value=Generation.value + 1)
        )
    row = session.get(Generation, 1)
    assert row is not None  # noqa: S101  # the migration made it
    return row.value
