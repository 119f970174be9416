"""What keys did, on each kind of database: added up, read by pages, kept for its days."""

import time

import pytest
from sqlalchemy import Engine, delete

from app.activity.access import Access, AccessLog, AccessQuery, place_of, read_accesses, read_used
from app.keys.database import writing
from app.keys.models import KeyAccess
from app.keys.token import mint

ENDPOINT = "POST /api/v1/logs"
NOW = int(time.time() // 60)


@pytest.fixture(autouse=True)
def no_accesses(engine: Engine) -> None:
    """Begin with none."""
    with writing(engine) as session:
        session.execute(delete(KeyAccess))


def access(minute: int = NOW, dataset: str = "d", requests: int = 1, key_id: str = "k") -> Access:
    """Make an access."""
    return Access(key_id, minute, ENDPOINT, dataset, "192.0.2.1", "curl", "201", requests)


def test_what_is_the_same_adds_up(engine: Engine) -> None:
    """Rows of one name are one row, whoever writes them and however often."""
    log, other = AccessLog(engine, 30), AccessLog(engine, 30)
    log.write([access(), access(requests=2)])
    other.write([access(requests=3), access(dataset="e")])
    rows = read_accesses(engine, AccessQuery())
    assert [(row.dataset, row.requests) for row in rows] == [("e", 1), ("d", 6)]
    key = mint("cl_live", "acme").text
    log.write([access(dataset="z")._replace(user_agent=f"x {key}\0", source_ip="x" * 99)])
    row = read_accesses(engine, AccessQuery())[0]
    assert (key in row.user_agent, len(row.source_ip)) == (False, 45)


def test_pages_and_bounds(engine: Engine) -> None:
    """The latest minute comes first, a page goes on behind a row, times and keys bound it."""
    accesses = [access(NOW - n, f"d{m}", key_id=f"k{m}") for n in range(3) for m in range(2)]
    AccessLog(engine, 30).write(accesses)
    whole = [place_of(row) for row in read_accesses(engine, AccessQuery())]
    assert [place[1] for place in whole] == [NOW, NOW, NOW - 1, NOW - 1, NOW - 2, NOW - 2]
    paged = []
    after = None
    while rows := read_accesses(engine, AccessQuery(after=after, limit=2)):
        paged += [place_of(row) for row in rows]
        after = paged[-1]
    assert paged == whole
    wanted = AccessQuery(key_ids=["k1"], start_minute=NOW - 1, end_minute=NOW)
    assert [place_of(row)[:2] for row in read_accesses(engine, wanted)] == [("k1", NOW - 1)]


def test_what_a_key_used_by_the_hour(engine: Engine) -> None:
    """All minutes of an hour are one, with what else they have in common."""
    hour = NOW // 60 * 60
    rows = [access(hour), access(hour + 59, requests=2), access(hour - 1)]
    AccessLog(engine, 30).write([*rows, access(key_id="other")])
    used = sorted((one.hour, one.dataset, one.requests) for one in read_used(engine, "k"))
    assert used == [(hour // 60 - 1, "d", 1), (hour // 60, "d", 3)]


def test_rows_are_kept_for_their_days(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows older than their days go, a few minutes at a time, by and by."""
    log = AccessLog(engine, 1)
    old = [access(NOW - 1440 - n) for n in range(1, 40)]
    log.write([access(), access(NOW - 1439), *old])
    assert not log.is_due()
    now = log._prune_at_s  # noqa: SLF001  # when it is to look next
    monkeypatch.setattr("app.activity.access.time.time", lambda: now)
    assert log.is_due()
    log.write([])
    minutes = {row.minute for row in read_accesses(engine, AccessQuery())}
    assert minutes >= {NOW}
    assert min(minutes) >= NOW - 1440
