"""What the routes of the control and query plane stand on."""

from dataclasses import dataclass

from sqlalchemy import Engine

from app.edge.auth import Authenticator
from app.edge.limits import Limiter
from app.edge.sightings import Sightings
from app.edge.tally import Tally
from app.keys.objects import RotationPolicy
from app.keys.verifier import Peppers
from app.logs.query import Cursors
from app.logs.store import LogStore


@dataclass(frozen=True, slots=True)
class Services:
    """Opened by the lifespan, one of each a process."""

    authenticator: Authenticator
    limiter: Limiter
    tally: Tally
    sightings: Sightings
    store: LogStore
    cursors: Cursors
    engine: Engine
    activity: Engine
    peppers: Peppers
    key_hasher: str
    rotation_policy: RotationPolicy
