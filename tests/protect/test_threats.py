"""Tests of app.protect.threats: when each rule speaks, and when it must not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protect.threats import (
    DORMANT_KEY,
    ENDED_KEY,
    FAILED_ATTEMPTS,
    KEY_GUESSED_AT,
    MINUTES_PER_DAY,
    NETWORKS_MAX,
    SUBJECTS_MAX,
    UNUSUAL_ADDRESS,
    UNUSUAL_COUNTRY,
    UNUSUAL_DATASET,
    Attempts,
    Finding,
    Habits,
    Refused,
    Thresholds,
    Use,
    judge_spike,
    judge_use,
)

T = Thresholds(failures_per_address=5, failures_per_key=3, revoked_key_attempts=2)
WINDOW_S = T.window_minutes * 60
NOW = 30_000_000  # a minute
KEY = "Zk3Zk3Zk3Zk3"


def attempts(
    count: int, *, every_s: float = 1.0, start_s: float = 0.0, **what: Any
) -> list[Refused]:
    """Give refusals of one kind, one after the other."""
    first = Refused(0, "unknown_key", "192.0.2.7")
    return [first._replace(at_s=start_s + number * every_s, **what) for number in range(count)]


def rules_of(findings: Sequence[Finding]) -> list[str]:
    """Name the rules that spoke."""
    return [one.rule for one in findings]


# --- attempts ------------------------------------------------------------------------------------


def test_failed_attempts_of_an_address() -> None:
    """As many failures from one address within the window as the threshold are a finding."""
    (found,) = Attempts(T).judge(attempts(5) + attempts(1, source_ip="192.0.2.8"))
    assert (found.rule, found.source_ip) == (FAILED_ATTEMPTS, "192.0.2.7")
    assert found.key_id is None
    assert list(found.moments) == [0, 1, 2, 3, 4]
    assert (found.seen, found.sources) == (("unknown_key",), ("192.0.2.7",))


def test_a_v6_party_has_many_addresses() -> None:
    """Failures from all over a /64 count together, and those of two neighbours do not."""
    within = [attempts(1, source_ip=f"2001:db8::{n:x}")[0] for n in range(5)]
    (found,) = Attempts(T).judge(within)
    assert (found.source_ip, found.sources) == ("2001:db8::/64", ("2001:db8::/64",))
    across = [attempts(1, source_ip=f"2001:db8:0:{n:x}::1")[0] for n in range(5)]
    assert Attempts(T).judge(across) == []


@pytest.mark.parametrize(
    "refusals",
    [
        attempts(4),
        attempts(20, every_s=WINDOW_S / 3.9),  # four in any window
        attempts(50, reason="no_key"),
        attempts(50, reason="authorization_not_understood"),
        attempts(50, source_ip=""),
        [attempts(1, source_ip=f"192.0.2.{n}")[0] for n in range(50)],
    ],
)
def test_no_failed_attempts(refusals: list[Refused]) -> None:
    """Fewer, slower, without a key at all, or each from elsewhere: nothing."""
    assert Attempts(T).judge(refusals) == []


def test_guesses_at_one_key() -> None:
    """Wrong secrets for one key are a finding about that key, wherever they came from."""
    guesses = [
        attempts(1, source_ip=f"192.0.2.{n}", reason="wrong_secret", key_id=KEY, client_id="acme")[
            0
        ]
        for n in range(3)
    ]
    (found,) = Attempts(T).judge(guesses)
    assert (found.rule, found.key_id, found.client_id) == (KEY_GUESSED_AT, KEY, "acme")
    assert found.sources == ("192.0.2.0", "192.0.2.1", "192.0.2.2")


def test_no_guesses_at_one_key() -> None:
    """Made-up ids are no guesses at a key, and two wrong secrets are below the threshold."""
    made_up = attempts(4, reason="unknown_key", key_id=KEY)
    assert rules_of(Attempts(T).judge(made_up)) == []
    assert rules_of(Attempts(T).judge(attempts(2, reason="wrong_secret", key_id=KEY))) == []


@pytest.mark.parametrize(
    "reason", ["deactivated", "quarantined", "deleted", "expired", "grace_over"]
)
def test_a_revoked_key_is_sent(reason: str) -> None:
    """A key that has ended, in any way, and is sent still, is a finding."""
    (found,) = Attempts(T).judge(attempts(2, reason=reason, key_id=KEY, client_id="acme"))
    assert (found.rule, found.key_id, found.seen) == (ENDED_KEY, KEY, (f"{reason} 192.0.2.7",))


def test_no_revoked_key_is_sent() -> None:
    """Once is below a threshold of two; a client that is switched off is no key that is."""
    assert Attempts(T).judge(attempts(1, reason="deleted", key_id=KEY)) == []
    assert Attempts(T).judge(attempts(4, reason="client_deactivated", key_id=KEY)) == []


def test_a_threshold_of_0_is_silence() -> None:
    """A rule whose threshold is 0 never speaks."""
    silent = replace(T, failures_per_address=0, failures_per_key=0, revoked_key_attempts=0)
    refusals = attempts(90) + attempts(90, reason="wrong_secret", key_id=KEY)
    assert Attempts(silent).judge(refusals + attempts(90, reason="expired", key_id=KEY)) == []


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.lists(st.integers(1, 20)))
def test_it_makes_no_difference_how_attempts_are_cut(gaps: list[int], cuts: list[int]) -> None:
    """Judged at once or in portions, the same attempts are told, each once counted by moment."""
    at_s, refusals = 0, []
    for gap in gaps:
        at_s += gap
        refusals += attempts(1, start_s=at_s)
    whole = {one for found in Attempts(T).judge(refusals) for one in found.moments}
    portions, rest, told = Attempts(T), list(refusals), set[float]()
    for cut in [*cuts, len(refusals)]:
        some, rest = rest[:cut], rest[cut:]
        for found in portions.judge(some):
            told.update(found.moments)
    assert told == whole


def test_a_flood_from_everywhere_is_bounded() -> None:
    """More parties than are remembered make the quietest be forgotten, and no memory grow."""
    judge = Attempts(T)
    judge.judge(attempts(4))
    many = range(SUBJECTS_MAX)
    judge.judge([Refused(5, "malformed", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in many])
    assert judge.judge(attempts(4, start_s=6)) == []
    assert rules_of(judge.judge(attempts(1, start_s=10))) == [FAILED_ATTEMPTS]


# --- uses ----------------------------------------------------------------------------------------


def habits(**known: Any) -> Habits:
    """Give the habits of a key of a month, used a minute ago from two networks on one dataset."""
    usual = Habits(
        client_id="acme",
        first_minute=NOW - 30 * MINUTES_PER_DAY,
        last_minute=NOW - 1,
        networks={"198.51.100.0/24": "198.51.100.9", "2001:db8::/48": "2001:db8::9"},
        datasets={"orders"},
    )
    return replace(usual, **known)


def use(*addresses: str, datasets: Sequence[str] = (), minute: int = NOW) -> Use:
    """Give a use of the key."""
    return Use(KEY, minute, addresses, datasets)


def test_an_unusual_address() -> None:
    """A network that the key was never used from is told, once, and is usual from then on."""
    known = habits()
    new = use("198.51.100.1", "203.0.113.7", "203.0.113.8")
    (found,) = judge_use(new, known, T)
    assert (found.rule, found.seen) == (UNUSUAL_ADDRESS, ("203.0.113.0/24",))
    assert (found.source_ip, found.sources) == ("203.0.113.8", ("203.0.113.8",))
    assert (found.key_id, found.client_id) == (KEY, "acme")
    assert judge_use(new, known, T) == []


@pytest.mark.parametrize(
    ("addresses", "known"),
    [
        (("198.51.100.200", "2001:db8:0:ffff::1", "::ffff:198.51.100.7"), habits()),
        (("203.0.113.7",), habits(first_minute=NOW - 7 * MINUTES_PER_DAY + 1)),
        (("203.0.113.7",), habits(first_minute=None, last_minute=None)),
        (("203.0.113.7",), habits(networks={})),
        (
            ("203.0.113.7",),
            habits(networks={f"10.{n >> 8}.{n & 255}.0/24": "" for n in range(NETWORKS_MAX + 1)}),
        ),
        (("unix", ""), habits()),
    ],
)
def test_no_unusual_address(addresses: tuple[str, ...], known: Habits) -> None:
    """The same network, a key that is learned still, or one that comes from everywhere: nothing."""
    assert judge_use(use(*addresses), known, T) == []


COUNTRIES = {"198.51.100.9": "DE", "203.0.113.7": "FR", "192.0.2.7": "DE"}


def test_an_unusual_country() -> None:
    """An address of a country that none of the former ones is of is told with its country."""
    found = judge_use(use("203.0.113.7"), habits(), T, COUNTRIES.get)
    assert [(one.rule, one.seen) for one in found] == [
        (UNUSUAL_ADDRESS, ("203.0.113.0/24",)),
        (UNUSUAL_COUNTRY, ("FR",)),
    ]


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("192.0.2.7", habits()),  # another network of the same country
        ("203.0.112.7", habits()),  # of a country that is not known
        ("203.0.113.7", habits(networks={"2001:db8::/48": "2001:db8::9"})),  # where they all are
        ("203.0.113.7", habits(first_minute=NOW - 1)),
    ],
)
def test_no_unusual_country(address: str, known: Habits) -> None:
    """The usual country, an unknown one, unknown former ones, or a key that is new: nothing."""
    assert UNUSUAL_COUNTRY not in rules_of(judge_use(use(address), known, T, COUNTRIES.get))


def test_an_unusual_dataset() -> None:
    """A dataset that the key never got at is told, and so is a read of all of them."""
    (found,) = judge_use(use("198.51.100.9", datasets=["orders", "*"]), habits(), T)
    assert (found.rule, found.seen, found.source_ip) == (UNUSUAL_DATASET, ("*",), "198.51.100.9")


def test_no_unusual_dataset() -> None:
    """The usual dataset, a key that had none yet, or one that is learned still: nothing."""
    payroll = use(datasets=["payroll"])
    assert judge_use(use(datasets=["orders"]), habits(), T) == []
    assert judge_use(payroll, habits(datasets=set()), T) == []
    assert judge_use(payroll, habits(first_minute=NOW - MINUTES_PER_DAY), T) == []


def test_a_dormant_key_awakes() -> None:
    """A key that was not used for the days of the setting is told when it is used, once."""
    known = habits(last_minute=NOW - 30 * MINUTES_PER_DAY)
    (found,) = judge_use(use("198.51.100.9"), known, T)
    assert found.rule == DORMANT_KEY
    assert judge_use(use("198.51.100.9", minute=NOW + 1), known, T) == []


def test_no_dormant_key() -> None:
    """A minute less, a key of which nothing is known, or a threshold of 0: nothing."""
    asleep = NOW - 30 * MINUTES_PER_DAY
    one = use("198.51.100.9")
    assert judge_use(one, habits(last_minute=asleep + 1), T) == []
    assert judge_use(one, Habits(), T) == []
    assert judge_use(one, habits(last_minute=asleep), replace(T, dormant_days=0)) == []


@pytest.mark.parametrize(
    ("requests", "usual", "is_spike"),
    [
        (600, [60] * 10, True),
        (5_000, [1] * 300 + [5_000] * 100, True),  # it has spiked before, but not mostly
        (599, [1] * 10, False),  # below the floor
        (600, [61] * 10, False),  # not ten times as many
        (600, [1] * 9, False),  # too little to know what is usual
        (5_000, [5_000] * 24, False),  # the job of every quarter of an hour
    ],
)
def test_a_spike(requests: int, usual: list[int], *, is_spike: bool) -> None:
    """A minute is a spike at the floor and at ten times the median of the others, and no sooner."""
    found = judge_spike(use("198.51.100.9"), "acme", requests, usual, T)
    assert (found is not None) is is_spike
    if found is not None:
        assert found.numbers["requests"] == requests
        assert (found.key_id, found.source_ip) == (KEY, "198.51.100.9")
    assert judge_spike(use(), None, requests, usual, replace(T, spike_floor=0)) is None
