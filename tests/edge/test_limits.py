"""Limits: exact in every minute, all or nothing, and told truly, wherever they are counted."""

from collections.abc import Callable, Iterator
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.edge.limits import Account
from app.edge.response import parse_lines
from app.errors import RateLimited, TooLarge
from app.keys.principal import Limits
from tests.edge.limiters import Bed, Beds, Clock, local_beds, principal, redis_beds

Costs = tuple[int, int, int]  # requests, logs, bytes


@pytest.fixture(scope="module", params=[local_beds, redis_beds], ids=["in-process", "redis"])
def beds(request: pytest.FixtureRequest) -> Iterator[Beds]:
    """Give a maker of new limiters, of each kind in turn."""
    with request.param() as make:
        yield make


@pytest.fixture
def limiter(beds: Beds) -> Bed:
    """Give a new limiter."""
    return beds(3)


@pytest.fixture
def clock(limiter: Bed) -> Clock:
    """Give its clock."""
    return limiter.clock


def refusal(call: Callable[[], object]) -> RateLimited:
    """Give the refusal that must come."""
    with pytest.raises(RateLimited) as caught:
        call()
    return caught.value


def headers(account: Account) -> dict[str, str]:
    """Give the headers as text."""
    return {name.decode(): value.decode() for name, value in parse_lines(account.header_lines())}


def test_a_limit_lets_just_its_number_pass(clock: Clock, limiter: Bed) -> None:
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


def test_a_refused_request_costs_nothing(limiter: Bed) -> None:
    """Refused before the body or after it, a request leaves every count as it was."""
    who = principal(key=Limits(5, 10, 100), client=Limits(5, 10, 100))
    account = limiter.account(who)
    limiter.admit(account)
    limiter.charge(account, 6, 60)
    before = limiter.used(account)
    limiter.admit(account)
    assert refusal(lambda: limiter.charge(account, 5, 1)).members["violated"] == ["logs"]
    assert limiter.used(account) == before
    limiter.admit(account)
    assert refusal(lambda: limiter.charge(account, 1, 41)).members["violated"] == ["bytes"]
    assert limiter.used(account) == before
    limiter.admit(account)
    error = refusal(lambda: limiter.charge(account, 5, 41))
    assert error.members["violated"] == ["logs", "bytes"]
    assert limiter.used(account) == before
    limiter.admit(account)
    with pytest.raises(TooLarge):
        limiter.charge(account, 11, 1)
    assert limiter.used(account) == before
    assert refusal(lambda: limiter.admit(account, 41, logs=1)).members["violated"] == ["bytes"]
    assert limiter.used(account) == before


def test_a_cost_above_the_whole_limit_is_too_large(limiter: Bed) -> None:
    """What no wait would make fit is told apart from what should wait, before it is read."""
    account = limiter.account(principal(key=Limits(0, 10, 100)))
    with pytest.raises(TooLarge, match="Body too large: it costs 101 bytes, the limit is 100"):
        limiter.admit(account, 101, logs=1)
    with pytest.raises(TooLarge, match="Body too large: it costs 11 logs, the limit is 10"):
        limiter.charge(account, 11, 1)
    limiter.charge(account, 10, 100)


def test_the_client_caps_its_keys(limiter: Bed) -> None:
    """Two keys within their own limits are refused together at their client's."""
    keys = [principal(f"key{n}", key=Limits(3, 0, 0), client=Limits(4, 0, 0)) for n in (1, 2)]
    for who in (keys[0], keys[0], keys[1], keys[1]):
        limiter.admit(limiter.account(who))
    for who in keys:
        refusal(lambda who=who: limiter.admit(limiter.account(who)))  # type: ignore[misc]
    other = principal("key3", client_id="other", key=Limits(3, 0, 0), client=Limits(4, 0, 0))
    limiter.admit(limiter.account(other))


def test_clients_and_keys_of_one_name_do_not_mix(limiter: Bed) -> None:
    """A key_id that reads like a client_id shares no count with it."""
    one = principal("acme", client_id="zeta", key=Limits(1, 0, 0), client=Limits(1, 0, 0))
    two = principal("zeta", client_id="acme", key=Limits(1, 0, 0), client=Limits(1, 0, 0))
    limiter.admit(limiter.account(one))
    limiter.admit(limiter.account(two))


def test_a_platform_key_has_its_own_limits_only(limiter: Bed) -> None:
    """A key without a client is limited as a key."""
    who = principal(client_id=None, key=Limits(1, 0, 0), client=Limits(1, 0, 0))
    limiter.admit(limiter.account(who))
    refusal(lambda: limiter.admit(limiter.account(who)))


def test_zero_is_no_limit(limiter: Bed) -> None:
    """Without limits nothing is refused and nothing is told."""
    account = limiter.account(principal())
    for _ in range(1000):
        limiter.admit(account, 10**12, logs=10**9)
        limiter.charge(account, 10**9, 10**12)
    assert account.header_lines() == b""


def test_a_changed_limit_does_not_forget(clock: Clock, limiter: Bed) -> None:
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


def test_a_slow_body_counts_when_it_is_charged(clock: Clock, limiter: Bed) -> None:
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


def test_the_wait_is_that_of_the_slowest(clock: Clock, limiter: Bed) -> None:
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


def test_refunds_give_back_what_was_counted(clock: Clock, limiter: Bed) -> None:
    """What was taken for something that did not happen can be used again, and never more."""
    who = principal(key=Limits(5, 10, 100), client=Limits(9, 20, 200))
    limiter.charge(limiter.account(who), 4, 40)
    clock.now_s += 5
    account = limiter.account(who)
    limiter.admit(account)
    limiter.charge(account, 6, 60)
    account.refund(requests=1, logs=7, body_bytes=10)
    assert limiter.used(account) == {"requests": [0, 0], "logs": [3, 3], "bytes": [90, 90]}
    account.refund(requests=9, logs=9, body_bytes=900)
    assert limiter.used(account) == {"requests": [0, 0], "logs": [0, 0], "bytes": [0, 0]}


def test_failures_are_limited_by_source(clock: Clock, limiter: Bed) -> None:
    """A source that has failed its share waits until its first failure is a minute old."""
    assert [limiter.fail("192.0.2.1") for _ in range(3)] == [0, 0, 0]
    clock.now_s += 10
    assert [limiter.fail("192.0.2.1") for _ in range(2)] == [50, 50]
    assert limiter.fail("2001:db8::/64") == 0
    clock.now_s += 50
    assert [limiter.fail("192.0.2.1") for _ in range(4)] == [0, 0, 0, 60]


def test_failures_without_a_limit(beds: Beds) -> None:
    """Where failures are not limited, nobody ever waits."""
    limiter = beds(0)
    assert not any(limiter.fail("192.0.2.1") for _ in range(200))


def test_headers_tell_the_tightest(clock: Clock, limiter: Bed) -> None:
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


def test_headers_without_a_requests_limit(limiter: Bed) -> None:
    """The X- headers are about requests: without such a limit there are none."""
    told = headers(limiter.account(principal(key=Limits(0, 7, 0))))
    assert told == {"ratelimit-policy": '"logs";q=7;w=60', "ratelimit": '"logs";r=7;t=60'}


def spend(limiter: Bed, account: Account, logs: int, size: int) -> None:
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


@hypothesis_settings(max_examples=60)
@given(taken=steps)
def test_no_minute_holds_more_than_its_limits(
    beds: Beds, taken: list[tuple[int, int, int, int, bool]]
) -> None:
    """Against a list of everything that happened: refused exactly when it would not fit."""
    limiter = beds(0)
    clock = limiter.clock
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
            account.refund(requests=1, logs=logs, body_bytes=size)
        else:
            history.append((clock.now_s, which, (1, logs, size)))
        assert limiter.used(account)["logs"] == [held(1, which), held(1, None)]
