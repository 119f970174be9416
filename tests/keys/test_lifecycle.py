"""A key after its creation: what the tests of the routes that change it do not reach."""

import pytest
from sqlalchemy import Engine

from app.errors import NotFound
from app.keys.lifecycle import deactivate_key, delete_key, quarantine_key
from app.keys.registry import create_key, get_key
from app.keys.verifier import Peppers
from tests.support import BY


@pytest.fixture
def key_id(engine: Engine, peppers: Peppers) -> str:
    """Make a key, and name it."""
    key, _ = create_key(engine, peppers, by=BY, client_id="acme", name="n", create_client=True)
    return key.key_id


def test_a_quarantine(engine: Engine, key_id: str) -> None:
    """A key that is quarantined is off and says since when; the next time changes nothing."""
    first = quarantine_key(engine, key_id, by=BY)
    assert not first.key.is_active
    assert first.key.quarantined_at is not None
    again = quarantine_key(engine, key_id, by=BY)
    assert again.generation == first.generation
    assert again.key.quarantined_at == first.key.quarantined_at


def test_what_is_revoked_is_not_quarantined(engine: Engine, key_id: str) -> None:
    """A key that was revoked does not look as if it only waited for an activation."""
    revoked = deactivate_key(engine, key_id, by=BY)
    assert quarantine_key(engine, key_id, by=BY).generation == revoked.generation
    assert get_key(engine, key_id).quarantined_at is None
    delete_key(engine, key_id, by=BY)
    with pytest.raises(NotFound):
        quarantine_key(engine, key_id, by=BY)
