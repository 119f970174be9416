"""Nonces that are used up."""

import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from app.activity.database import open_activity
from app.errors import StorageUnavailable
from app.keys.database import reading
from app.protect.models import Nonce
from app.protect.nonces import Nonces, SpentNonce

NONCE = "0123456789abcdef"


def used(key_id: str = "abc", nonce: str = NONCE, in_s: float = 60) -> SpentNonce:
    """Give a nonce that is kept for so long."""
    return SpentNonce(key_id, nonce, time.time() + in_s)


def count(activity: Engine) -> int:
    """Count what is kept."""
    with reading(activity) as session:
        return session.scalar(select(func.count()).select_from(Nonce)) or 0


def test_a_nonce_is_good_once(engine: Engine) -> None:
    """A nonce is new once for each key, within a transaction, in another one, after a restart."""
    activity = open_activity(engine)
    one = Nonces(activity)
    assert one.burn([used(), used(), used("abd"), used(nonce=NONCE.upper())]) == [
        *(True, False, True, True)
    ]
    assert one.burn([used()]) == [False]
    activity.dispose()
    activity = open_activity(engine)
    assert Nonces(activity).burn([used(), used("abe")]) == [False, True]
    activity.dispose()


def test_old_nonces_are_let_go_of(engine: Engine) -> None:
    """What no signature can use any more is not kept."""
    activity = open_activity(engine)
    one = Nonces(activity)
    one.burn([used(in_s=-1), used("abd", in_s=60)])
    assert count(activity) == 2
    Nonces(activity).burn([used("abe")])
    assert count(activity) == 2
    activity.dispose()


def test_no_nonce_is_new_unseen(engine: Engine, tmp_path: Path) -> None:
    """Where nonces can't be written none is called new."""
    (tmp_path / "activity.db").write_bytes(b"no database, but as long as one should be" * 100)
    activity = open_activity(engine)
    with pytest.raises(StorageUnavailable):
        Nonces(activity).burn([used()])
    activity.dispose()
