"""What every request with a key passes, on the hot path and on the routes alike."""

from dataclasses import dataclass

from app.edge.accesses import Accesses
from app.edge.auth import Authenticator
from app.edge.denials import Denials
from app.edge.guard import Guard
from app.edge.limits import Limiter
from app.edge.sightings import Sightings
from app.edge.signed import Signatures


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Who calls, whether it may, and what is noted of that; one of each a process.

    Those who stand on it inherit it: a part of theirs would cost each request one more lookup.
    """

    authenticator: Authenticator
    guard: Guard
    signatures: Signatures
    limiter: Limiter
    sightings: Sightings
    accesses: Accesses
    denials: Denials
