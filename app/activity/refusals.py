"""Refusals as they are told to the audit. Pure.

Of a kind of refusal there is one event at once and, after the minute, one for the repeats: a flood
is counted, not repeated.
"""

from collections import Counter
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple

from app.activity.reasons import VARIOUS, Diagnosis, explanation
from app.activity.rows import storable_address, storable_agent
from app.audit.chain import Event, detail_text
from app.keys.shape import Presented

DENIED = "denied"
# Whom an event names where nobody was authenticated and no key was named.
UNKNOWN = "unknown"
# Kinds of refusals that a worker tells of in a minute, of one party and of all: events are never
# pruned, and a flood from everywhere must not fill the disk. Beyond either they are told together.
KINDS_OF_PARTY_MAX = 100
KINDS_MAX = 300


class Refusal(NamedTuple):
    """A request that was refused.

    `party` is who is told apart by address. `reason` is empty where the state of the key says more,
    and then `presented` is its credential, or `key_id` that of a caller who lost it on the way.
    `detail` is what the caller was told, if it is not the same for all.
    """

    at_s: float
    request_id: str
    status: int
    endpoint: str
    party: str
    source_ip: str
    user_agent: str
    reason: str = ""
    detail: str = ""
    presented: Presented | None = None
    key_id: str | None = None
    client_id: str | None = None


class Repeats(NamedTuple):
    """Refusals that are only counted: the first of them, and the last."""

    first: Refusal
    times: int
    last_request_id: str
    last_at_s: float

    @classmethod
    def of(cls, refusal: Refusal) -> "Repeats":
        """Count a refusal alone."""
        return cls(refusal, 1, refusal.request_id, refusal.at_s)

    def explained(self) -> "Repeats":
        """Let go of the credential: the reason has been found."""
        if self.first.presented is None:
            return self
        return self._replace(first=self.first._replace(presented=None))

    def plus(self, other: "Repeats") -> "Repeats":
        """Count these and others."""
        first = min(self.first, other.first, key=lambda one: one.at_s)
        last = other if other.last_at_s >= self.last_at_s else self
        return Repeats(first, self.times + other.times, last.last_request_id, last.last_at_s)


class _Kind(NamedTuple):
    """What makes refusals repeats of each other."""

    party: str
    reason: str
    key_id: str | None
    endpoint: str


class Telling(NamedTuple):
    """What a minute's events have told of, and what has come since of the same kinds."""

    minute: int = 0
    told: dict[_Kind, tuple[Repeats, Diagnosis] | None] = {}  # noqa: RUF012  # never changed

    @property
    def has_repeats(self) -> bool:
        """Say whether there is something left to tell."""
        return any(self.told.values())

    def after(
        self, counted: list[tuple[Repeats, Diagnosis]], minute: int, *, is_last: bool = False
    ) -> tuple["Telling", list[Event]]:
        """Give what follows on these refusals, and the events that tell of them now.

        `is_last` leaves nothing for the end of the minute.
        """
        told = dict(self.told)
        events: list[Event] = []
        if minute != self.minute:
            events, told = _events_of(told), {}
        new: dict[_Kind, tuple[Repeats, Diagnosis]] = {}
        parties = Counter(kind.party for kind in told)
        for repeats, diagnosis in counted:
            kind = _kind(repeats.first, diagnosis)
            if kind not in told and kind not in new:
                # What concerns a key that is there is not to be hidden by a flood of what does not.
                share = 1 if diagnosis.client_id is None else 2
                if len(told) + len(new) >= share * KINDS_MAX:
                    kind = _Kind("", VARIOUS, None, "")
                elif parties[kind.party] >= share * KINDS_OF_PARTY_MAX:
                    kind = _Kind(kind.party, VARIOUS, None, "")
            if kind not in told and kind not in new:
                parties[kind.party] += 1
            since = told if kind in told else new
            found = Diagnosis(VARIOUS) if kind.reason == VARIOUS else diagnosis
            before = since.get(kind)
            since[kind] = (repeats if before is None else before[0].plus(repeats), found)
        events += [_event(*one) for one in new.values()]
        told |= dict.fromkeys(new)
        if is_last:
            events += _events_of(told)
            told = dict.fromkeys(told)
        return Telling(minute, told), events


def _events_of(told: dict[_Kind, tuple[Repeats, Diagnosis] | None]) -> list[Event]:
    return [_event(*one) for one in told.values() if one is not None]


def _kind(refusal: Refusal, diagnosis: Diagnosis) -> _Kind:
    return _Kind(refusal.party, diagnosis.reason, diagnosis.of_key, refusal.endpoint)


def _event(repeats: Repeats, diagnosis: Diagnosis) -> Event:
    first = repeats.first
    is_one = diagnosis.reason != VARIOUS
    detail = {
        "reason": diagnosis.reason,
        "explanation": explanation(diagnosis.reason, first.detail if is_one else ""),
        "status": first.status,
        # A key that was named is not one that was authenticated.
        "authenticated": first.status != HTTPStatus.UNAUTHORIZED and first.key_id is not None,
        "key_id": diagnosis.key_id,
        "count": repeats.times,
        "first_request_id": first.request_id,
        "last_request_id": repeats.last_request_id,
        "first_at": moment(first.at_s).isoformat(timespec="milliseconds"),
        "last_at": moment(repeats.last_at_s).isoformat(timespec="milliseconds"),
    }
    return Event(
        at=moment(first.at_s),
        action=DENIED,
        actor=diagnosis.key_id or UNKNOWN,
        client_id=diagnosis.client_id,
        target=first.endpoint,
        source_ip=storable_address(first.source_ip),
        user_agent=storable_agent(first.user_agent),
        request_id=first.request_id,
        detail=detail_text(detail),
    )


def moment(at_s: float) -> datetime:
    """Give a moment in whole milliseconds, as replies show it."""
    return datetime.fromtimestamp(int(at_s * 1000) / 1000, UTC)
