"""Nonces that signed requests have used up, in activity.db: for all workers, across restarts."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Engine, bindparam, delete, text
from sqlmodel import col

from app.columns import UtcDateTime
from app.keys.database import writing
from app.protect.models import Nonce

PRUNE_EVERY_S = 60.0

_INSERT = text(
    "INSERT INTO nonces (key_id, nonce, expires_at) VALUES (:key_id, :nonce, :expires_at)"
    " ON CONFLICT DO NOTHING"
).bindparams(bindparam("expires_at", type_=UtcDateTime()))


class SpentNonce(NamedTuple):
    """A nonce, whose it is, and until when a signature with it could be accepted."""

    key_id: str
    nonce: str
    expires_at_s: float


class Nonces:
    """The nonces of all keys."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prune_at = 0.0

    def burn(self, used: Sequence[SpentNonce]) -> list[bool]:
        """Use nonces up, and say of each whether it was new; raise StorageUnavailable.

        One transaction; a thread's work. A power cut may lose the last of them, nothing else does.
        """
        with writing(self._engine) as session:
            connection = session.connection()
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + PRUNE_EVERY_S
                connection.execute(delete(Nonce).where(col(Nonce.expires_at) < datetime.now(UTC)))
            return [
                connection.execute(
                    _INSERT,
                    {
                        "key_id": one.key_id,
                        "nonce": one.nonce,
                        "expires_at": datetime.fromtimestamp(one.expires_at_s, UTC),
                    },
                ).rowcount
                == 1
                for one in used
            ]
