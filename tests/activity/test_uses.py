"""Uses of keys: added up by many writers, and the latest of them shown."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from app.activity.uses import SOURCES_PER_KEY_MAX, Sighting, read_sources, read_uses, record
from app.journal import REDACTED
from app.keys.token import mint

NOON = datetime(2031, 1, 2, 12, tzinfo=UTC)


def seen(
    second: float = 0, ip: str = "192.0.2.1", agent: str = "curl", *, key: str = "k", times: int = 1
) -> Sighting:
    """Make a sighting of so many requests at a second after noon."""
    at = NOON + timedelta(seconds=second)
    return Sighting(key, ip, agent, times, at, at)


def test_uses_add_up(engine: Engine) -> None:
    """Requests are summed by key and by source; first and last are those of all writes."""
    record(engine, [seen(1, times=2), seen(3, "192.0.2.2"), seen(2, key="other", times=5)])
    record(engine, [seen(4, times=3), seen(0, "192.0.2.3", "wget")])
    uses = read_uses(engine, ["k", "other", "unknown"])
    assert {key_id: use.requests for key_id, use in uses.items()} == {"k": 7, "other": 5}
    use = uses["k"]
    assert (use.first_used_at, use.last_used_at) == (NOON, NOON + timedelta(seconds=4))
    assert (use.last_source_ip, use.last_user_agent) == ("192.0.2.1", "curl")
    sources = read_sources(engine, "k")
    assert [(s.source_ip, s.user_agent, s.requests) for s in sources] == [
        ("192.0.2.1", "curl", 5),
        ("192.0.2.2", "curl", 1),
        ("192.0.2.3", "wget", 1),
    ]
    assert sources[0].first_seen_at == NOON + timedelta(seconds=1)
    assert sources[0].last_seen_at == NOON + timedelta(seconds=4)


@pytest.mark.parametrize("before", ["", "curl/8 (", "x" * 200 + " "])
def test_a_key_as_user_agent_is_not_stored(engine: Engine, before: str) -> None:
    """A key that was sent as user agent is in neither the key's use nor its sources."""
    key = mint("cl_live", "acme").text
    record(engine, [seen(agent=f"{before}{key})")])
    use, (source,) = read_uses(engine, ["k"])["k"], read_sources(engine, "k")
    assert use.last_user_agent == source.user_agent
    assert source.user_agent == f"{before}{REDACTED})"


def test_the_later_use_is_the_last(engine: Engine) -> None:
    """A worker that writes late does not make an older use the last one."""
    record(engine, [seen(9, "192.0.2.9", "new")])
    record(engine, [seen(1, "192.0.2.1", "old")])
    use = read_uses(engine, ["k"])["k"]
    assert (use.last_source_ip, use.last_user_agent) == ("192.0.2.9", "new")
    assert (use.first_used_at, use.last_used_at) == (
        NOON + timedelta(seconds=1),
        NOON + timedelta(seconds=9),
    )


def test_sources_since_a_moment(engine: Engine) -> None:
    """Asked from a moment on, what was last seen before it is left out."""
    record(engine, [seen(1, "192.0.2.1"), seen(5, "192.0.2.5"), seen(9, "192.0.2.9")])
    since = read_sources(engine, "k", NOON + timedelta(seconds=5))
    assert [source.source_ip for source in since] == ["192.0.2.9", "192.0.2.5"]


def test_the_latest_sources_are_kept(engine: Engine) -> None:
    """Of each key so many sources stay, the latest; the key's requests count all."""
    total = 3 * SOURCES_PER_KEY_MAX
    record(engine, [seen(n, f"192.0.2.{n}") for n in range(total)])
    record(engine, [seen(0, key="other")])
    for n in range(total, total + 5):
        record(engine, [seen(n, f"192.0.2.{n}")])
    kept = [source.source_ip for source in read_sources(engine, "k")]
    last = total + 4
    assert kept == [f"192.0.2.{n}" for n in range(last, last - SOURCES_PER_KEY_MAX, -1)]
    assert read_uses(engine, ["k"])["k"].requests == total + 5
    assert len(read_sources(engine, "other")) == 1


def test_uses_from_nowhere(engine: Engine) -> None:
    """Requests without a source count, and do not hide where the last known one came from."""
    record(engine, [seen(1), seen(2, "", "", times=4)])
    record(engine, [seen(3, "", "")])
    use = read_uses(engine, ["k"])["k"]
    assert (use.requests, use.last_used_at) == (6, NOON + timedelta(seconds=3))
    assert (use.last_source_ip, use.last_user_agent) == ("192.0.2.1", "curl")
    assert len(read_sources(engine, "k")) == 1


@pytest.mark.parametrize(
    ("agent", "stored"),
    [
        ("a\x00b\nc\x1b[31m", "a?b?c?[31m"),
        ("Straße 日本", "Straße 日本"),
        ("\ud800", "?"),
        ("x" * 300, "x" * 255),
        ("日" * 300, "日" * 255),
        ("'); DROP TABLE key_uses; --", "'); DROP TABLE key_uses; --"),
    ],
)
def test_user_agents_are_made_harmless(engine: Engine, agent: str, stored: str) -> None:
    """What a client calls itself is stored printable and in bounds."""
    record(engine, [seen(agent=agent), seen(ip="fe80::1%" + "z" * 60, agent=agent)])
    assert {source.user_agent for source in read_sources(engine, "k")} == {stored}
    assert read_uses(engine, ["k"])["k"].last_user_agent == stored


def test_what_becomes_the_same_text_is_one(engine: Engine) -> None:
    """Sources that differ only in what is cut off are one row."""
    record(engine, [seen(1, agent="x" * 300), seen(2, agent="x" * 301), seen(3, agent="x" * 255)])
    (source,) = read_sources(engine, "k")
    assert (source.requests, source.last_seen_at) == (3, NOON + timedelta(seconds=3))


def test_nothing_is_lost_between_writers(engine: Engine) -> None:
    """Many writers at once, of the same keys in other orders, neither lose counts nor block."""
    faults: list[BaseException] = []

    def write(number: int) -> None:
        keys = [f"k{n}" for n in range(30)]
        try:
            for _ in range(10):
                keys.reverse()
                record(engine, [seen(number, f"192.0.2.{number}", key=key) for key in keys])
        except BaseException as error:  # noqa: BLE001  # told to the test
            faults.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    uses = read_uses(engine, [f"k{n}" for n in range(30)])
    assert {use.requests for use in uses.values()} == {40}
    assert [source.requests for source in read_sources(engine, "k7")] == [10] * 4


def test_more_keys_than_a_statement_takes(engine: Engine) -> None:
    """A second in which very many keys were used is written and read as any other."""
    keys = [f"k{n}" for n in range(1200)]
    record(engine, [seen(key=key) for key in keys])
    assert read_uses(engine, keys).keys() == set(keys)


def test_nothing_to_write(engine: Engine) -> None:
    """No uses, no rows."""
    record(engine, [])
    assert read_uses(engine, []) == {}
