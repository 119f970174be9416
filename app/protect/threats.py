"""The rules by which suspicious activity is told from usual. Pure: evidence in, findings out.

Each rule is a row of RULES, with what may follow on it; its threshold and the reason for that are
in Thresholds. What it takes to be sure of something (which key a refused request named, what a key
was used for before) has been read by app/protect/evidence.py.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import NamedTuple

from app.activity import reasons
from app.addresses import network_of, party_of
from app.keys import shape

ALERT, BLOCK, QUARANTINE, OFF = "alert", "block", "quarantine", "off"

FAILED_ATTEMPTS = "failed_attempts"
KEY_GUESSED_AT = "failed_attempts_on_key"
ENDED_KEY = "revoked_key"
UNUSUAL_ADDRESS = "unusual_address"
UNUSUAL_COUNTRY = "unusual_country"
UNUSUAL_DATASET = "unusual_dataset"
SPIKE = "spike"
DORMANT_KEY = "dormant_key"

MINUTES_PER_DAY = 1440
# What is remembered of failures, at 3 kB each: with more subjects than this the ones quiet longest
# are forgotten. Of refusals so few have a row (app/edge/denials.py) that no more can be noisy.
SUBJECTS_MAX = 10_000
# A key that is used from as many networks has no usual address, and the rule is silent about it.
NETWORKS_MAX = 200
# A median of fewer minutes says nothing about what is usual.
SPIKE_MINUTES_MIN = 10
# How the reasons of refusals are called that are no attempt to get in: nothing was sent to try.
_NO_ATTEMPT = {shape.NONE, shape.NOT_UNDERSTOOD, reasons.VARIOUS}


class Rule(NamedTuple):
    """How grave it is, what may follow on it, and one line for the people who are told."""

    severity: str
    actions: tuple[str, ...]
    explanation: str


# Quarantine is not for what others can bring about: whoever knows a key's public id could stop it.
_OF_STRANGERS = (ALERT, BLOCK, OFF)
_OF_KEYS = (ALERT, BLOCK, QUARANTINE, OFF)
RULES: Mapping[str, Rule] = {
    FAILED_ATTEMPTS: Rule(
        "medium", _OF_STRANGERS, "Many requests from one address were sent with keys that fail."
    ),
    KEY_GUESSED_AT: Rule(
        "high", _OF_STRANGERS, "Well-formed keys with this key's id and a wrong secret were sent."
    ),
    ENDED_KEY: Rule(
        "medium", _OF_STRANGERS, "A key that was revoked, deleted, or has expired is still sent."
    ),
    UNUSUAL_ADDRESS: Rule(
        "medium", _OF_KEYS, "The key was used from a network that it was never used from before."
    ),
    UNUSUAL_COUNTRY: Rule(
        "high", _OF_KEYS, "The key was used from a country that it was never used from before."
    ),
    UNUSUAL_DATASET: Rule(
        "low", _OF_KEYS, "The key was used on a dataset that it was never used on before."
    ),
    SPIKE: Rule("medium", _OF_KEYS, "The key made far more requests in a minute than is usual."),
    DORMANT_KEY: Rule("high", _OF_KEYS, "A key that was not used for long is used again."),
}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a rule speaks; 0 for the first three, `spike_floor` or `dormant_days`: never."""

    # Within `window_minutes`. A job that runs every minute and tries five times with a wrong key
    # makes 25; who guesses is beyond 30 in a second.
    failures_per_address: int = 30
    # From anywhere. A mistyped key fails at its checksum, so this is two keys mixed up, or a guess.
    failures_per_key: int = 10
    # The first one tells: either a job is failing unseen, or somebody tries what was found.
    revoked_key_attempts: int = 1
    window_minutes: int = 5
    # A weekly job has shown by then where it comes from.
    learning_days: int = 7
    # Ten times the usual is no growth; 600 a minute are ten a second, which no cron job makes.
    spike_factor: float = 10.0
    spike_floor: int = 600
    spike_hours: int = 6
    # A monthly job stays below it in every month but the longest; no evidence is kept for longer.
    dormant_days: int = 30


class Finding(NamedTuple):
    """What a rule has found, of one key or, without, of one address.

    Attempts are told apart by their `moments` (Unix time, s), anything else by what was `seen`:
    what was recorded once is not counted again. `sources` are the parties to block.
    """

    rule: str
    key_id: str | None
    client_id: str | None
    source_ip: str
    seen: tuple[str, ...]
    moments: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()
    numbers: Mapping[str, float] = {}  # never changed


class Refused(NamedTuple):
    """A request that was refused for its key; `key_id` is of the key that it named, if any."""

    at_s: float
    reason: str
    source_ip: str
    key_id: str | None = None
    client_id: str | None = None


class _Attempt(NamedTuple):
    at_s: float
    seen: str
    party: str


@dataclass(slots=True)
class _Burst:
    """What one subject did since the last judgement, with the attempts that led to it."""

    last: Refused
    attempts: list[_Attempt]


class Attempts:
    """The rules about refused requests, and the times of the last ones of each subject."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._window_s = thresholds.window_minutes * 60
        self._most = {
            FAILED_ATTEMPTS: thresholds.failures_per_address,
            KEY_GUESSED_AT: thresholds.failures_per_key,
            ENDED_KEY: thresholds.revoked_key_attempts,
        }
        self._latest: dict[tuple[str, str], deque[_Attempt]] = {}

    def judge(self, refusals: Iterable[Refused]) -> list[Finding]:
        """Judge the refusals that have come since, the oldest first."""
        bursts: dict[tuple[str, str], _Burst] = {}
        for one in refusals:
            for rule, subject, what in _subjects(one):
                most = self._most[rule]
                if not most:
                    continue
                latest = self._of(rule, subject, most)
                latest.append(_Attempt(one.at_s, what, party_of(one.source_ip)))
                if len(latest) < most or one.at_s - latest[0].at_s > self._window_s:
                    continue
                burst = bursts.get((rule, subject))
                if burst is None:
                    bursts[rule, subject] = _Burst(one, list(latest))
                else:
                    burst.last = one
                    burst.attempts.append(latest[-1])
        return [_found(*name, burst) for name, burst in bursts.items()]

    def _of(self, rule: str, subject: str, most: int) -> "deque[_Attempt]":
        latest = self._latest.pop((rule, subject), None)
        if latest is None:
            latest = deque(maxlen=most)
            if len(self._latest) >= SUBJECTS_MAX:
                del self._latest[next(iter(self._latest))]
        self._latest[rule, subject] = latest  # the noisiest of late stand last
        return latest


def _subjects(one: Refused) -> Iterable[tuple[str, str, str]]:
    """Name the rules that a refusal counts for, whom it counts against, and what is shown of it."""
    party = party_of(one.source_ip)
    if one.reason not in _NO_ATTEMPT and party:
        yield FAILED_ATTEMPTS, party, one.reason
    if one.key_id is not None and one.reason == reasons.WRONG_SECRET:
        yield KEY_GUESSED_AT, one.key_id, party
    if one.key_id is not None and one.reason in reasons.ENDED:
        yield ENDED_KEY, one.key_id, f"{one.reason} {party}"


def _found(rule: str, subject: str, burst: _Burst) -> Finding:
    is_of_key = rule != FAILED_ATTEMPTS
    return Finding(
        rule,
        key_id=burst.last.key_id if is_of_key else None,
        client_id=burst.last.client_id if is_of_key else None,
        source_ip=burst.last.source_ip if is_of_key else subject,
        seen=tuple(dict.fromkeys(one.seen for one in burst.attempts)),
        moments=tuple(one.at_s for one in burst.attempts),
        sources=tuple(dict.fromkeys(one.party for one in burst.attempts if one.party)),
    )


@dataclass(slots=True)
class Habits:
    """What is known of a key's use before the minutes that are judged; minutes are Unix time / 60.

    `last_minute` is when it was used last, or since when it was not: made, for one never used.
    """

    client_id: str | None = None
    first_minute: int | None = None
    last_minute: int | None = None
    networks: dict[str, str] = field(default_factory=dict)  # and an address in each
    datasets: set[str] = field(default_factory=set)


class Use(NamedTuple):
    """What is new of a key's use in a minute: addresses, and datasets that it got at."""

    key_id: str
    minute: int
    source_ips: Sequence[str]
    datasets: Sequence[str]


def judge_use(
    use: Use,
    habits: Habits,
    thresholds: Thresholds,
    country: Callable[[str], str | None] | None = None,
) -> list[Finding]:
    """Judge a use by the habits of the key, and let it become one of them.

    `country` names that of an address; without it no country is unusual.
    """
    networks = {
        network: address
        for address in use.source_ips
        if (network := network_of(address)) is not None and network not in habits.networks
    }
    seen: dict[str, Sequence[str]] = {}
    if dormant := _slept(use, habits, thresholds):
        seen[DORMANT_KEY] = [f"not used since {_shown(dormant)}"]
    if _is_learned(use, habits, thresholds):
        if 0 < len(habits.networks) <= NETWORKS_MAX:
            seen[UNUSUAL_ADDRESS] = list(networks)
            if country is not None:
                seen[UNUSUAL_COUNTRY] = _unusual_countries(networks, habits, country)
        if habits.datasets:
            seen[UNUSUAL_DATASET] = [one for one in use.datasets if one not in habits.datasets]
    source_ip = next(iter([*networks.values(), *use.source_ips]), "")
    _learn(use, networks, habits)
    sources = tuple(dict.fromkeys(party_of(one) for one in [*networks.values(), source_ip] if one))
    return [
        Finding(rule, use.key_id, habits.client_id, source_ip, tuple(what), sources=sources)
        for rule, what in seen.items()
        if what
    ]


def _is_learned(use: Use, habits: Habits, thresholds: Thresholds) -> bool:
    if habits.first_minute is None:
        return False
    return use.minute - habits.first_minute >= thresholds.learning_days * MINUTES_PER_DAY


def _slept(use: Use, habits: Habits, thresholds: Thresholds) -> int | None:
    """Give the minute since which the key was not used, if that is long ago."""
    last, days = habits.last_minute, thresholds.dormant_days
    is_long = last is not None and days and use.minute - last >= days * MINUTES_PER_DAY
    return last if is_long else None


def _unusual_countries(
    networks: Mapping[str, str], habits: Habits, country: Callable[[str], str | None]
) -> list[str]:
    """Name the countries of new networks that none of the old ones is in; the unknown is none."""
    found = {code for address in networks.values() if (code := country(address)) is not None}
    if not found:
        return []
    usual = {country(address) for address in habits.networks.values()} - {None}
    return sorted(found - usual) if usual else []


def _learn(use: Use, networks: Mapping[str, str], habits: Habits) -> None:
    if len(habits.networks) <= NETWORKS_MAX:
        habits.networks.update(networks)
    habits.datasets.update(use.datasets)
    if habits.first_minute is None:
        habits.first_minute = use.minute
    habits.last_minute = max(use.minute, habits.last_minute or 0)


def judge_spike(
    use: Use, client_id: str | None, requests: int, usual: Sequence[int], thresholds: Thresholds
) -> Finding | None:
    """Judge the requests of a key in a minute by those of its other minutes of the last hours.

    Minutes without any do not count: the job of every hour would be a spike each time.
    """
    if not thresholds.spike_floor or requests < thresholds.spike_floor:
        return None
    if len(usual) < SPIKE_MINUTES_MIN or requests < thresholds.spike_factor * median(usual):
        return None
    source_ip = next(iter(use.source_ips), "")
    return Finding(
        SPIKE,
        use.key_id,
        client_id,
        source_ip,
        (_shown(use.minute),),
        sources=tuple(dict.fromkeys(party_of(one) for one in use.source_ips)),
        numbers={"requests": requests, "usual_requests": median(usual)},
    )


def _shown(minute: int) -> str:
    return f"{datetime.fromtimestamp(minute * 60, UTC):%Y-%m-%dT%H:%MZ}"
