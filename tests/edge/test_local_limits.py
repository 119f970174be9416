"""Limits counted in this process: a window is a minute, memory is bounded, a glance is enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.edge import limits
from app.edge.local_limits import LocalFailures, LocalLimiter, Window
from app.keys.principal import Limits
from tests.edge.limiters import Clock, principal


def test_a_glance_takes_all_or_nothing() -> None:
    """What passes at a glance is counted as a whole, and what does not leaves no trace."""
    account = LocalLimiter(Clock()).account(principal(key=Limits(2, 3, 100)))
    assert account.take(2, 60)
    assert not account.take(2, 1)
    assert not account.take(1, 41)
    assert account.take(1, 40)
    assert not account.take(0, 0)


def test_sources_that_fail_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past their bound the source that has been quiet longest is forgotten."""
    monkeypatch.setattr("app.edge.local_limits.ADDRESSES_MAX", 2)
    failures = LocalFailures(1, Clock())
    for source in ("a", "b", "a", "c"):
        failures.add(source)
    assert len(failures._windows) == 2  # noqa: SLF001  # that nothing grows can't be seen otherwise
    assert set(failures._windows) == {"a", "c"}  # noqa: SLF001


def test_idle_accounts_are_forgotten_and_busy_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded by what was used in the last minute; no count in use is lost."""
    clock = Clock()
    limiter = LocalLimiter(clock)
    monkeypatch.setattr(limits, "ACCOUNTS_MAX", 10)
    busy = principal("busy", key=Limits(1, 0, 0))
    for n in range(10):
        assert limiter.account(principal(f"idle{n}", key=Limits(1, 0, 0))).take(0, 0)
    clock.now_s += 60
    assert limiter.account(busy).take(0, 0)
    for n in range(25):
        limiter.account(principal(f"new{n}", key=Limits(1, 0, 0)))
    assert not limiter.account(busy).take(0, 0)
    assert len(limiter._windows) < 25  # noqa: SLF001  # that nothing grows can't be seen otherwise


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(-9, 5)), min_size=1, max_size=30))
def test_a_window_is_a_minute(steps: list[tuple[int, int]]) -> None:
    """A window's count is that of the last sixty seconds, less what was taken back."""
    second = 0
    window = Window(0)
    history: list[int] = []  # the second of each that counts
    for passed, amount in steps:
        second += passed
        window.advance(second)
        history = [when for when in history if when > second - 60]
        if amount < 0:
            window.take_back(-amount)
            del history[amount:]
        else:
            window.used += amount
            history += [second] * amount
        assert window.used == len(history)
        assert window.reset_s() == (history[0] if history else second) + 60 - second
        for limit in range(1, 6):
            excess = len(history) + 1 - limit
            freed = 0 if excess <= 0 else history[min(excess, len(history)) - 1] + 60 - second
            assert window.wait_s(1, limit) == freed
