"""A change of the register: by whom it may be made, and how workers tell that they know of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Engine, update
from sqlmodel import Session, col

from app.errors import InvalidKey
from app.keys.database import writing
from app.keys.models import ApiKey, Client, Generation
from app.keys.principal import Principal


@contextmanager
def writing_for(engine: Engine, asker: Principal | None) -> Iterator[Session]:
    """Write for a key that still is what it was when it asked; InvalidKey if it has ended since.

    In the same transaction, so that nothing is given by a key whose end was committed before.
    """
    with writing(engine) as session:
        row = None if asker is None else session.get(ApiKey, UUID(asker.id))
        if row is not None:  # a key of the settings has none
            client = None if row.client_id is None else session.get(Client, row.client_id)
            if not row.is_active or row.has_ended or (client and not client.is_active):
                raise InvalidKey
        yield session


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
