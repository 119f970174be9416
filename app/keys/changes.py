"""A change of the register: by whom it may be made, and how workers tell that they know of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Engine, update
from sqlmodel import Session, col

from app.errors import Forbidden, InvalidKey
from app.keys.database import writing
from app.keys.models import Generation
from app.keys.principal import Limits, Principal
from app.keys.records import Candidate, KeyRecord, find_candidate, find_client
from app.keys.roles import MANAGEMENT


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


@contextmanager
def writing_for(engine: Engine, asker: Asker | None) -> Iterator[tuple[Session, Principal | None]]:
    """Write for a key, and say who it is in this transaction; None stays the operator.

    What it was when it asked does not count: a write may wait, and nothing may be given by a key
    with powers whose end was committed before. Raises as `Asker.principal`.
    """
    with writing(engine) as session:
        if asker is None:
            yield session, None
            return
        session.connection()  # it waits here
        configured = asker.configured()
        yield session, asker.principal(session)
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
