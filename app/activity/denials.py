"""Refused requests, each with its exact reason: written, told to the audit, and read back.

A row for each request by its id, for some days; and events in the audit's chains, which stay
(refusals.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from time import time
from typing import Any, Protocol

from sqlalchemy import Engine, delete, func, select
from sqlmodel import Session, col

from app.activity import reasons
from app.activity.reasons import Diagnosis, Suspect
from app.activity.refusals import Refusal, Repeats, Telling, moment
from app.activity.rows import chunks, storable_address, storable_agent, storable_text, upsert
from app.audit.chain import ChainKeys
from app.audit.models import Denial
from app.audit.trail import append
from app.keys.database import reading, writing
from app.keys.models import ApiKey, Client
from app.keys.records import KeyRecord

# Beyond it the oldest go, however few days they were kept: about 500 MB.
ROWS_MAX = 1_000_000
# Attempts with keys that are there get a row though they came in a flood, which is counted: so many
# in a write, of which there are two a second. Else whoever tries a key that ended could hide it.
ROWS_OF_REPEATS_MAX = 100
PRUNE_EVERY_S = 60.0
# A step holds the database for some 50 ms.
PRUNE_ROWS = 5_000
PRUNE_STEPS_MAX = 20


class Configured(Protocol):
    """The keys of the settings, which have no row."""

    @property
    def keys(self) -> Sequence[ApiKey]:
        """Give all of them."""

    def by_token_id(self, key_id: str) -> list[KeyRecord]:
        """Find those whose text has this public id."""

    def by_tags(self, tags: Iterable[str]) -> list[KeyRecord]:
        """Find those that carry one of these lookup tags."""


class DenialLog:
    """Where one process writes what it refused; used by one thread at a time."""

    def __init__(
        self,
        control: Engine,
        activity: Engine,
        chain_keys: ChainKeys,
        configured: Callable[[], Configured],
        kept_days: int,
    ) -> None:
        self._control = control
        self._activity = activity
        self._chain_keys = chain_keys
        self._configured = configured
        self._kept = timedelta(days=kept_days)
        self._telling = Telling()
        self._has_repeats = False
        self._prune_at_s = time() + PRUNE_EVERY_S

    def is_due(self) -> bool:
        """Say whether there is something to do though nothing was refused."""
        now_s = time()
        turned = int(now_s // 60) != self._telling.minute
        return (self._has_repeats and turned) or now_s >= self._prune_at_s

    def write(
        self, refusals: list[Refusal], repeats: list[Repeats], *, is_last: bool = False
    ) -> None:
        """Write a row of each refusal, and count the repeats, in one transaction.

        The first of those repeats that concern a key that is there gets a row as well, within
        ROWS_OF_REPEATS_MAX.
        `is_last` also tells what else would be told at the end of the minute. Raises
        StorageUnavailable; then nothing was written, and may be given again.
        """
        counted = [Repeats.of(one) for one in refusals] + repeats
        diagnoses = self._find([one.first for one in counted])
        found = [(one.explained(), why) for one, why in zip(counted, diagnoses, strict=True)]
        telling, events = self._telling.after(found, int(time() // 60), is_last=is_last)
        others = _attempts_on_keys(repeats, diagnoses[len(refusals) :])
        rows = [_row(*one) for one in [*zip(refusals, diagnoses, strict=False), *others]]
        if rows or events:
            with writing(self._activity) as session:
                upsert(session, Denial, rows, None)
                append(session, self._chain_keys, events)
        self._telling, self._has_repeats = telling, telling.has_repeats
        if time() >= self._prune_at_s and not is_last:
            self._prune_at_s = time() + PRUNE_EVERY_S
            self._prune()

    def _find(self, refusals: list[Refusal]) -> list[Diagnosis]:
        """Find the reasons, reading the rows of the keys that are named, whatever their state."""
        presented = [one.presented for one in refusals if one.presented is not None]
        key_ids = {one.key_id for one in presented if one.key_id is not None}
        lost = {one.key_id for one in refusals if not one.reason and one.key_id is not None}
        tags = {proof for one in presented if one.key_id is None for proof in one.proofs}
        if not (key_ids or lost or tags):
            return [_diagnosis(one, {}) for one in refusals]
        configured = self._configured()
        with reading(self._control) as session:
            stored = _stored(session, key_ids | lost, tags)
            keys: list[ApiKey | KeyRecord] = [*stored, *configured.by_tags(tags)]
            keys += [key for key in configured.keys if key.key_id in lost]
            for key_id in key_ids:
                keys += configured.by_token_id(key_id)
            owners = {key.client_id for key in keys if key.client_id is not None}
            active = _active_clients(session, owners)
        by_name: dict[str, list[Suspect]] = {}
        for key in keys:
            suspect = Suspect(key, key.client_id is None or key.client_id in active)
            by_name.setdefault(key.key_id, []).append(suspect)
            if key.lookup_tag is not None:
                by_name.setdefault(key.lookup_tag, []).append(suspect)
        for key_id in key_ids:  # those of the settings have a name that is not in their text
            for record in configured.by_token_id(key_id):
                by_name.setdefault(key_id, []).extend(by_name[record.key_id])
        return [_diagnosis(one, by_name) for one in refusals]

    def _prune(self) -> None:
        """Let go of what has been kept for its time, and of what is too much."""
        cutoff = datetime.fromtimestamp(time(), UTC) - self._kept
        oldest = select(col(Denial.request_id)).order_by(col(Denial.at))
        for _ in range(PRUNE_STEPS_MAX):
            with writing(self._activity) as session:
                rows = session.scalar(select(func.count()).select_from(Denial)) or 0
                wanted = oldest.limit(min(max(rows - ROWS_MAX, 0), PRUNE_ROWS))
                if rows <= ROWS_MAX:
                    wanted = oldest.where(col(Denial.at) < cutoff).limit(PRUNE_ROWS)
                done: Any = session.execute(
                    delete(Denial).where(col(Denial.request_id).in_(wanted)),
                    execution_options={"synchronize_session": False},
                )
            if done.rowcount < PRUNE_ROWS:
                return


def read_denial(engine: Engine, request_id: str) -> Denial | None:
    """Find the refusal of a request."""
    with reading(engine) as session:
        return session.get(Denial, request_id)


def _stored(session: Session, key_ids: set[str], tags: set[str]) -> list[ApiKey]:
    found: list[ApiKey] = []
    for some in chunks(sorted(key_ids)):
        found += session.scalars(select(ApiKey).where(col(ApiKey.key_id).in_(some)))
    for some in chunks(sorted(tags)):
        found += session.scalars(select(ApiKey).where(col(ApiKey.lookup_tag).in_(some)))
    return list({key.key_id: key for key in found}.values())


def _active_clients(session: Session, client_ids: set[str]) -> set[str]:
    active: set[str] = set()
    for some in chunks(sorted(client_ids)):
        wanted = select(col(Client.client_id)).where(col(Client.client_id).in_(some))
        active.update(session.scalars(wanted.where(col(Client.is_active))))
    return active


def _attempts_on_keys(
    repeats: list[Repeats], diagnoses: list[Diagnosis]
) -> list[tuple[Refusal, Diagnosis]]:
    """Give the first attempt of each party on each key, some of every client before more of one."""
    seen: set[tuple[str, str, str]] = set()
    of_client = Counter[str | None]()
    ranked: list[tuple[int, Refusal, Diagnosis]] = []
    for one, found in zip((one.first for one in repeats), diagnoses, strict=True):
        # Anything else is no attempt: the caller was authenticated, and has a limit or no scope.
        if found.of_key is None or (one.presented is None and one.reason):
            continue
        name = (one.party, found.of_key, found.reason)
        if name not in seen:
            seen.add(name)
            ranked.append((of_client[found.client_id], one, found))
            of_client[found.client_id] += 1
    ranked.sort(key=itemgetter(0))
    return [one[1:] for one in ranked[:ROWS_OF_REPEATS_MAX]]


def _diagnosis(refusal: Refusal, by_name: dict[str, list[Suspect]]) -> Diagnosis:
    at = moment(refusal.at_s)
    presented = refusal.presented
    if presented is not None:
        names = presented.proofs if presented.key_id is None else {presented.key_id}
        suspects = [suspect for name in names for suspect in by_name.get(name, ())]
        found = reasons.of_key(presented, suspects, at)
        # Who has failed too often first does not make an attempt with a key that ended another one:
        # it takes the secret to be told so.
        is_told = not refusal.reason or found.reason in reasons.ENDED
        if not is_told:
            found = Diagnosis(refusal.reason, found.of_key, found.client_id)
        return found
    if refusal.reason:
        return Diagnosis(refusal.reason, refusal.key_id, refusal.client_id)
    caller = by_name.get(refusal.key_id or "", [None])[0]
    return Diagnosis(reasons.of_caller(caller, at), refusal.key_id, refusal.client_id)


def _row(refusal: Refusal, diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "request_id": refusal.request_id,
        "at": moment(refusal.at_s),
        "status": refusal.status,
        "reason": diagnosis.reason[:64],
        "explanation": storable_text(reasons.explanation(diagnosis.reason, refusal.detail)),
        "client_id": diagnosis.client_id,
        "key_id": diagnosis.key_id,
        "endpoint": refusal.endpoint,
        "source_ip": storable_address(refusal.source_ip),
        "user_agent": storable_agent(refusal.user_agent),
    }
