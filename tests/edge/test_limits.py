"""Limits: exact in every minute, all or nothing, and told truly."""

from collections.abc import Callable
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.edge import limits
from app.edge.limits import Account, Limiter, Window
from app.edge.response import parse_lines
from app.errors import RateLimited, TooLarge
from app.keys.principal import UNLIMITED, Limits, Principal

Costs = tuple[int, int, int]  # requests, logs, bytes


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now_s


def principal(
    key_id: str = "key1",
    *,
    client_id: str | None = "acme",
    key: Limits = UNLIMITED,
    client: Limits = UNLIMITED,
) -> Principal:
    """Make a key's principal with limits of its own and of its client."""
    return Principal(
        id="",
        key_id=key_id,
        client_id=client_id,
        role="client",
        scopes=frozenset(),
        allowed_datasets=None,
        is_admin=client_id is None,
        key_limits=key,
        client_limits=client,
        expires_at_s=None,
        name="",
    )


@pytest.fixture
def clock() -> Clock:
    """Give a clock of the test's own."""
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    """Give a limiter on that clock."""
    return Limiter(clock)


def refusal(call: Callable[[], object]) -> RateLimited:
    """Give the refusal that must come."""
    with pytest.raises(RateLimited) as caught:
        call()
    return caught.value


def used(account: Account) -> dict[str, list[int]]:
    """Give what the windows of an account hold."""
    kinds = {"requests": account.requests, "logs": account.logs, "bytes": account.bytes}
    return {name: [window.used for window, _ in meters] for name, meters in kinds.items()}


def headers(account: Account) -> dict[str, str]:
    """Give the headers as text."""
    return {name.decode(): value.decode() for name, value in parse_lines(account.header_lines())}


def test_a_limit_lets_just_its_number_pass(clock: Clock, limiter: Limiter) -> None:
    """The request over the limit is refused, and passes when the first is a minute old."""
    who = principal(key=Limits(3, 0, 0))
    for _ in range(3):
        limiter.admit(limiter.account(who))
        clock.now_s += 10
    error = refusal(lambda: limiter.admit(limiter.account(who)))
    assert (error.members["violated"], error.retry_after_s) == (["requests"], 30)
    clock.now_s += 29
    assert refusal(lambda: limiter.admit(limiter.account(who))).retry_after_s == 1
    clock.now_s += 1
    limiter.admit(limiter.account(who))
    assert refusal(lambda: limiter.admit(limiter.account(who))).retry_after_s == 10


def test_a_refused_request_costs_nothing(limiter: Limiter) -> None:
    """Refused before the body or after it, a request leaves every count as it was."""
    who = principal(key=Limits(5, 10, 100), client=Limits(5, 10, 100))
    account = limiter.account(who)
    limiter.admit(account)
    limiter.charge(account, 6, 60)
    before = used(account)
    limiter.admit(account)
    assert refusal(lambda: limiter.charge(account, 5, 1)).members["violated"] == ["logs"]
    assert used(account) == before
    limiter.admit(account)
    assert refusal(lambda: limiter.charge(account, 1, 41)).members["violated"] == ["bytes"]
    assert used(account) == before
    limiter.admit(account)
    error = refusal(lambda: limiter.charge(account, 5, 41))
    assert error.members["violated"] == ["logs", "bytes"]
    assert used(account) == before
    limiter.admit(account)
    with pytest.raises(TooLarge):
        limiter.charge(account, 11, 1)
    assert used(account) == before
    assert refusal(lambda: limiter.admit(account, 41, logs=1)).members["violated"] == ["bytes"]
    assert used(account) == before


def test_a_cost_above_the_whole_limit_is_too_large(limiter: Limiter) -> None:
    """What no wait would make fit is told apart from what should wait, before it is read."""
    account = limiter.account(principal(key=Limits(0, 10, 100)))
    with pytest.raises(TooLarge, match="Body too large: it costs 101 bytes, the limit is 100"):
        limiter.admit(account, 101, logs=1)
    with pytest.raises(TooLarge, match="Body too large: it costs 11 logs, the limit is 10"):
        limiter.charge(account, 11, 1)
    limiter.charge(account, 10, 100)


def test_the_client_caps_its_keys(limiter: Limiter) -> None:
    """Two keys within their own limits are refused together at their client's."""
    keys = [principal(f"key{n}", key=Limits(3, 0, 0), client=Limits(4, 0, 0)) for n in (1, 2)]
    for who in (keys[0], keys[0], keys[1], keys[1]):
        limiter.admit(limiter.account(who))
    for who in keys:
        refusal(lambda who=who: limiter.admit(limiter.account(who)))  # type: ignore[misc]
    other = principal("key3", client_id="other", key=Limits(3, 0, 0), client=Limits(4, 0, 0))
    limiter.admit(limiter.account(other))


def test_clients_and_keys_of_one_name_do_not_mix(limiter: Limiter) -> None:
    """A key_id that reads like a client_id shares no count with it."""
    one = principal("acme", client_id="zeta", key=Limits(1, 0, 0), client=Limits(1, 0, 0))
    two = principal("zeta", client_id="acme", key=Limits(1, 0, 0), client=Limits(1, 0, 0))
    limiter.admit(limiter.account(one))
    limiter.admit(limiter.account(two))


def test_a_platform_key_has_its_own_limits_only(limiter: Limiter) -> None:
    """A key without a client is limited as a key."""
    who = principal(client_id=None, key=Limits(1, 0, 0), client=Limits(1, 0, 0))
    limiter.admit(limiter.account(who))
    refusal(lambda: limiter.admit(limiter.account(who)))


def test_zero_is_no_limit(limiter: Limiter) -> None:
    """Without limits nothing is refused and nothing is told."""
    account = limiter.account(principal())
    for _ in range(1000):
        limiter.admit(account, 10**12, logs=10**9)
        limiter.charge(account, 10**9, 10**12)
    assert account.header_lines() == b""


def test_a_changed_limit_does_not_forget(clock: Clock, limiter: Limiter) -> None:
    """A key whose limits change mid-minute keeps what it has used."""
    who = principal(key=Limits(5, 0, 0))
    for _ in range(4):
        limiter.admit(limiter.account(who))
    changed = replace(who, key_limits=Limits(3, 0, 0))
    clock.now_s += 59
    assert refusal(lambda: limiter.admit(limiter.account(changed))).retry_after_s == 1
    raised = replace(who, key_limits=Limits(6, 0, 0))
    limiter.admit(limiter.account(raised))
    limiter.admit(limiter.account(raised))
    refusal(lambda: limiter.admit(limiter.account(raised)))


def test_a_slow_body_counts_when_it_is_charged(clock: Clock, limiter: Limiter) -> None:
    """Logs count for a minute from their charge, however long their body was on its way."""
    who = principal(key=Limits(0, 10, 0))
    account = limiter.account(who)
    limiter.admit(account, logs=1)
    clock.now_s += 50
    limiter.charge(account, 10, 1)
    clock.now_s += 59
    assert refusal(lambda: limiter.admit(limiter.account(who), logs=1)).retry_after_s == 1
    clock.now_s += 1
    limiter.admit(limiter.account(who), logs=1)


def test_the_wait_is_that_of_the_slowest(clock: Clock, limiter: Limiter) -> None:
    """Where several limits are violated, Retry-After satisfies them all."""
    who = principal(key=Limits(1, 10, 100))
    account = limiter.account(who)
    limiter.charge(account, 10, 0)
    clock.now_s += 20
    account = limiter.account(who)
    limiter.admit(account)
    limiter.charge(account, 0, 100)
    error = refusal(lambda: limiter.admit(account, 1, logs=1))
    assert error.members["violated"] == ["requests", "logs", "bytes"]
    clock.now_s += error.retry_after_s
    limiter.admit(limiter.account(who), 1, logs=1)
    assert error.retry_after_s == 60


def test_refunds_give_back_what_was_counted(clock: Clock, limiter: Limiter) -> None:
    """What was taken for something that did not happen can be used again, and never more."""
    who = principal(key=Limits(5, 10, 100), client=Limits(9, 20, 200))
    limiter.charge(limiter.account(who), 4, 40)
    clock.now_s += 5
    account = limiter.account(who)
    limiter.admit(account)
    limiter.charge(account, 6, 60)
    limiter.refund(account, requests=1, logs=7, body_bytes=10)
    assert used(account) == {"requests": [0, 0], "logs": [3, 3], "bytes": [90, 90]}
    limiter.refund(account, requests=9, logs=9, body_bytes=900)
    assert used(account) == {"requests": [0, 0], "logs": [0, 0], "bytes": [0, 0]}


def test_headers_tell_the_tightest(clock: Clock, limiter: Limiter) -> None:
    """The headers are those of the draft and the X- ones, of the limit that will bite first."""
    who = principal(key=Limits(40, 0, 1000), client=Limits(100, 0, 500))
    account = limiter.account(who)
    limiter.admit(account)
    limiter.charge(account, 5, 100)
    clock.now_s += 48
    account = limiter.account(who)
    assert headers(account) == {
        "ratelimit-policy": '"requests";q=40;w=60, "bytes";q=500;w=60',
        "ratelimit": '"requests";r=39;t=12, "bytes";r=400;t=12',
        "x-ratelimit-limit": "40",
        "x-ratelimit-remaining": "39",
        "x-ratelimit-reset": "12",
    }


def test_headers_without_a_requests_limit(limiter: Limiter) -> None:
    """The X- headers are about requests: without such a limit there are none."""
    told = headers(limiter.account(principal(key=Limits(0, 7, 0))))
    assert told == {"ratelimit-policy": '"logs";q=7;w=60', "ratelimit": '"logs";r=7;t=60'}


def test_idle_accounts_are_forgotten_and_busy_ones_are_not(
    clock: Clock, limiter: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by what was used in the last minute; no count in use is lost."""
    monkeypatch.setattr(limits, "ACCOUNTS_MAX", 10)
    busy = principal("busy", key=Limits(1, 0, 0))
    for n in range(10):
        limiter.admit(limiter.account(principal(f"idle{n}", key=Limits(1, 0, 0))))
    clock.now_s += 60
    limiter.admit(limiter.account(busy))
    for n in range(25):
        limiter.account(principal(f"new{n}", key=Limits(1, 0, 0)))
    refusal(lambda: limiter.admit(limiter.account(busy)))
    assert len(limiter._windows) < 25  # noqa: SLF001  # that nothing grows can't be seen otherwise


def spend(limiter: Limiter, account: Account, logs: int, size: int) -> None:
    """Do what a request does."""
    limiter.admit(account)
    limiter.charge(account, logs, size)


steps = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 7, 30, 59, 60, 61]),  # seconds that pass
        st.integers(0, 1),  # which key
        st.integers(0, 6),  # logs
        st.integers(0, 60),  # bytes
        st.booleans(),  # refunded at once
    ),
    max_size=40,
)


@given(steps)
def test_no_minute_holds_more_than_its_limits(
    taken: list[tuple[int, int, int, int, bool]],
) -> None:
    """Against a list of everything that happened: refused exactly when it would not fit."""
    clock = Clock()
    limiter = Limiter(clock)
    client = Limits(6, 15, 150)
    keys = [principal("a", key=Limits(4, 10, 100), client=client)]
    keys.append(principal("b", key=Limits(5, 12, 120), client=client))
    history: list[tuple[float, int, Costs]] = []  # when, which key, what

    def held(kind: int, of: int | None) -> int:
        return sum(
            costs[kind]
            for when, which, costs in history
            if when > clock.now_s - 60 and of in {None, which}
        )

    def fits(which: int, costs: Costs) -> bool:
        bounds = ((keys[which].key_limits, which), (client, None))
        spaces = (
            limit - held(kind, of) - costs[kind]
            for bound, of in bounds
            for kind, limit in enumerate(astuple(bound))
        )
        return all(space >= 0 for space in spaces)

    for seconds, which, logs, size, is_refunded in taken:
        clock.now_s += seconds
        account = limiter.account(keys[which])
        if not fits(which, (1, logs, size)):
            wait_s = refusal(lambda: spend(limiter, account, logs, size)).retry_after_s  # noqa: B023
            assert 1 <= wait_s <= 60
            clock.now_s += wait_s
            assert fits(which, (1, logs, size))
            clock.now_s -= 1
            assert not fits(which, (1, logs, size))
            clock.now_s -= wait_s - 1
            continue
        spend(limiter, account, logs, size)
        if is_refunded:
            limiter.refund(account, requests=1, logs=logs, body_bytes=size)
        else:
            history.append((clock.now_s, which, (1, logs, size)))
        assert used(account)["logs"] == [held(1, which), held(1, None)]


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 5)), min_size=1, max_size=30))
def test_a_window_is_a_minute(added: list[tuple[int, int]]) -> None:
    """A window's count is that of the last sixty seconds, and its reset comes when it shrinks."""
    second = 0
    window = Window(0)
    history = []
    for passed, amount in added:
        second += passed
        window.advance(second)
        window.add(amount)
        history.append((second, amount))
        assert window.used == sum(one for when, one in history if when > second - 60)
        assert 1 <= window.reset_s() <= 60
