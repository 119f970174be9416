"""Restrictions of keys, through the real application: on every route, by all ways in."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.tail import KEY_CHECK_FULL_S
from app.edge import guard as guard_module
from app.edge.guard import Guard, Reports
from app.errors import Forbidden
from app.keys.lifecycle import update_key
from app.keys.models import ApiKey
from app.keys.principal import UNLIMITED, Principal
from app.keys.records import Candidate, KeyRecord
from app.keys.restrictions import NOT_FROM_ADDRESS, NOT_FROM_COUNTRY, NOT_NOW, parse_hours
from app.protect.countries import Countries
from app.sqlite import sqlite3
from tests.api.management import CURRENT, KEYS, ask
from tests.api.test_tail import Stream
from tests.edge.test_prompt import FakeExchange, seen, take
from tests.protect.mmdb import FRENCH, GERMAN, make_mmdb
from tests.support import (
    DEADLINE_S,
    LOGS,
    NDJSON,
    USAGE,
    HeldBody,
    Service,
    eventually,
    key_id_of,
    ndjson,
    problem,
    record,
    running,
)

NUMBERS = itertools.count()
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()  # a Monday
EVENING = NOON + 8 * 3600
OFFICE = parse_hours("mon-fri 09:00-17:00")
INSIDE, OUTSIDE = "198.51.100.7", "203.0.113.7"  # in Germany, in France
# Each kind of restriction, the text of its refusal, and a request that it refuses: from, and when.
KINDS: dict[str, tuple[dict[str, Any], str, str, float]] = {
    "address": ({"allowed_cidrs": ["198.51.100.0/24"]}, NOT_FROM_ADDRESS, OUTSIDE, NOON),
    "country": ({"allowed_countries": ["DE"]}, NOT_FROM_COUNTRY, OUTSIDE, NOON),
    "unknown country": ({"allowed_countries": ["DE"]}, NOT_FROM_COUNTRY, "10.1.1.1", NOON),
    "hours": ({"allowed_hours": OFFICE}, NOT_NOW, INSIDE, EVENING),
}
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", LOGS, record()),
    ("POST", LOGS, [record(), record()]),
    ("GET", LOGS, None),
    ("GET", f"{LOGS}/export", None),
    ("GET", f"{LOGS}/rejected", None),
    ("POST", "/api/v1/query", {"metrics": ["count"]}),
    ("GET", USAGE, None),
    ("GET", KEYS, None),
    ("POST", KEYS, {"name": "made", "role": "viewer"}),
    ("GET", CURRENT, None),
)


class Clock:
    """What time it is for the guard; as the system says unless a test sets it."""

    def __init__(self) -> None:
        self.now_s: float | None = None

    def __call__(self) -> float:
        """Tell the time."""
        return time.time() if self.now_s is None else self.now_s


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one service for all tests here: it trusts its peer, and knows two countries."""
    directory = tmp_path_factory.mktemp("guard")
    database = str(make_mmdb(directory / "countries.mmdb"))
    with running(
        directory / "data", trusted_proxies=("127.0.0.1",), geoip_database=database
    ) as service:
        yield service


@pytest.fixture(scope="module")
def admin(service: Service) -> str:
    """Make a key of the platform."""
    return service.key(None, name="admin")


@pytest.fixture
def guard(service: Service) -> Guard:
    """Give what is under test."""
    assert service.app.prompt is not None
    return service.app.prompt.intake.guard


@pytest.fixture
def clock(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Set the guard's clock."""
    clock = Clock()
    monkeypatch.setattr(guard, "_clock", clock)
    return clock


@pytest.fixture
def client_id() -> str:
    """Name a client that no other test here has."""
    return f"guarded-{next(NUMBERS)}"


def send(
    service: Service, key: str, route: tuple[str, str, Any], address: str = INSIDE
) -> httpx.Response:
    """Send a request that came from an address."""
    method, path, body = route
    return ask(service, method, path, key, body, **{"x-forwarded-for": address})


@pytest.mark.parametrize("kind", KINDS)
def test_each_restriction_on_each_route(
    service: Service, clock: Clock, client_id: str, kind: str
) -> None:
    """What a key's restrictions refuse is refused everywhere, with its text; all else passes."""
    columns, detail, address, now_s = KINDS[kind]
    key = service.key(client_id, role="owner", **columns)
    clock.now_s = NOON
    for route in ROUTES:
        assert send(service, key, route).status_code in {200, 201}, route
        clock.now_s = now_s
        problem(send(service, key, route, address), 403, detail)
        clock.now_s = NOON
    assert len(service.logs(service.key(client_id))) == 3


def test_a_batch_is_refused_unread(service: Service, client_id: str) -> None:
    """Nothing of a request is read that comes from where its key may not be used."""
    key = service.key(client_id, allowed_cidrs=["198.51.100.0/24"])
    held = HeldBody()
    headers = {"x-api-key": key, "content-type": NDJSON}
    response = service.run(service.http.post(LOGS, content=held, headers=headers))
    problem(response, 403, NOT_FROM_ADDRESS)
    assert not held.started.is_set()
    held.send(None)
    response = service.post(ndjson([record()]), key, content_type=NDJSON, x_forwarded_for=INSIDE)
    assert response.json()["accepted"] == 1


def test_hours_that_end_while_a_write_waits(service: Service, clock: Clock, client_id: str) -> None:
    """A key gives nothing outside of its hours, though it asked within them."""
    key = service.key(client_id, role="owner", allowed_hours=OFFICE)
    clock.now_s = NOON
    state = service.app._control.state  # noqa: SLF001  # its name
    taken = state.services.writes._taken  # noqa: SLF001

    async def ask_late(other: sqlite3.Connection) -> httpx.Response:
        asked = asyncio.create_task(
            service.http.post(KEYS, json={"name": "made"}, headers={"X-API-Key": key})
        )
        while not taken:  # noqa: ASYNC110  # nothing tells that it is authenticated and waits
            await asyncio.sleep(0.01)
        clock.now_s = EVENING
        other.execute("ROLLBACK")
        return await asked

    path = service.settings.data_dir / "control.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        problem(service.run(ask_late(other)), 403, NOT_NOW)


def test_an_admin_keys_restrictions(service: Service) -> None:
    """Keys of the platform obey too, on its routes as well."""
    key = service.key(None, allowed_cidrs=[INSIDE])
    for path in ("/metrics", "/api/v1/clients", CURRENT):
        assert send(service, key, ("GET", path, None)).status_code == 200
        problem(send(service, key, ("GET", path, None), OUTSIDE), 403, NOT_FROM_ADDRESS)


def test_refused_before_limits(service: Service, client_id: str) -> None:
    """A refused request costs no limit, leaves no trace of use, and is counted as denied."""
    key = service.key(
        client_id, limits={"requests_per_minute": 2}, allowed_cidrs=["198.51.100.0/24"]
    )
    for _ in range(3):
        problem(send(service, key, ("POST", LOGS, record()), OUTSIDE), 403, NOT_FROM_ADDRESS)
        problem(send(service, key, ("GET", LOGS, None), OUTSIDE), 403, NOT_FROM_ADDRESS)
    assert send(service, key, ("POST", LOGS, record())).status_code == 201
    other = service.key(client_id)
    totals = eventually(lambda: service.usage(other)["totals"], lambda found: found["denied"] == 6)
    assert totals["logs"] == 1
    owner = service.key(client_id, role="owner")
    path = f"{KEYS}/{key_id_of(key)}"
    shown = eventually(
        lambda: service.get(path, owner).json(), lambda found: found["total_requests"] == 1
    )
    assert [one["source_ip"] for one in shown["sources"]] == [INSIDE]


def test_a_change_counts_on_the_next_request(service: Service, admin: str, client_id: str) -> None:
    """Restrictions that are set, changed or taken away are in force on the very next request."""
    key = service.key(client_id)
    path = f"{KEYS}/{key_id_of(key)}"
    one = ("POST", LOGS, record())
    assert send(service, key, one, OUTSIDE).status_code == 201
    steps: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({"allowed_cidrs": ["198.51.100.0/24"]}, NOT_FROM_ADDRESS),
        ({"allowed_cidrs": ["198.51.100.0/24", "203.0.113.0/24"]}, None),
        ({"allowed_countries": ["de"]}, NOT_FROM_COUNTRY),
        ({"restrictions_mode": "report"}, None),
        ({"restrictions_mode": "enforce"}, NOT_FROM_COUNTRY),
        ({"allowed_countries": None}, None),
        ({"allowed_cidrs": ["::/0"]}, NOT_FROM_ADDRESS),
        ({"allowed_cidrs": None}, None),
    )
    for change, detail in steps:
        shown = ask(service, "PATCH", path, admin, change)
        assert shown.status_code == 200, shown.text
        assert change.items() <= shown.json().items()
        for route in (one, ("GET", LOGS, None), one):
            response = send(service, key, route, OUTSIDE)
            if detail is None:
                assert response.status_code in {200, 201}
            else:
                problem(response, 403, detail)
    # As a command beside the server would.
    update_key(service.engine, key_id_of(key), {"allowed_cidrs": [INSIDE]}, by=service.by)
    problem(send(service, key, one, OUTSIDE), 403, NOT_FROM_ADDRESS)


def test_the_clock_decides_each_minute(service: Service, clock: Clock, client_id: str) -> None:
    """The first moment of the hours counts and their end no longer does, for a known key too."""
    key = service.key(client_id, allowed_hours=OFFICE)
    for hour, minute, second, allowed in (
        (8, 59, 59.9, False),
        (9, 0, 0.0, True),
        (16, 59, 59.9, True),
        (17, 0, 0.0, False),
        (9, 0, 0.0, True),
    ):
        clock.now_s = NOON + (hour - 12) * 3600 + minute * 60 + second
        status = send(service, key, ("POST", LOGS, record())).status_code
        assert status == (201 if allowed else 403)


def test_whole_requests(service: Service, clock: Clock, client_id: str) -> None:
    """A log that arrives whole is taken at a glance where its key may be used, and only there."""
    prompt = service.app.prompt
    assert prompt is not None
    clock.now_s = NOON
    key = seen(
        service, client_id, allowed_cidrs=["192.0.2.0/24", "127.0.0.1"], allowed_hours=OFFICE
    )
    inside, outside = FakeExchange(key), FakeExchange(key)
    outside.client = (OUTSIDE, 1)
    assert take(service, prompt, inside, outside) == [True, False]
    assert inside.answers[0][0] == 201
    clock.now_s = EVENING
    assert take(service, prompt, FakeExchange(key)) == [False]
    dry = seen(service, client_id, allowed_cidrs=[INSIDE], restrictions_mode="report")
    assert take(service, prompt, FakeExchange(dry)) == [True]
    forwarded = FakeExchange(key, FakeExchange(key).body, (b"x-forwarded-for", OUTSIDE.encode()))
    clock.now_s = NOON
    seen(service, client_id)
    service.get(USAGE, key)
    forwarded.client = ("127.0.0.1", 1)
    assert take(service, prompt, forwarded) == [False]


def _held(
    service: Service, key: str, method: str, path: str, last: bytes, change: Callable[[], None]
) -> httpx.Response:
    """Send a request whose body waits for a change."""

    async def scenario() -> httpx.Response:
        held = HeldBody()
        headers = {"x-api-key": key, "content-type": "application/json"}
        sending = asyncio.create_task(
            service.http.request(method, path, content=held, headers=headers)
        )
        await held.started.wait()
        change()
        held.send(last)
        held.send(None)
        async with asyncio.timeout(DEADLINE_S):
            return await sending

    return service.run(scenario())


def test_hours_that_end_while_a_body_is_awaited(
    service: Service, clock: Clock, client_id: str
) -> None:
    """Who may when a request begins and may no longer when all of it is there gives nothing."""
    key = service.key(client_id, role="owner", allowed_hours=OFFICE)
    log, form = json.dumps(record()).encode(), b'{"name": "late"}'

    def close() -> None:
        clock.now_s = EVENING

    for method, path, body in (("POST", LOGS, log), ("POST", KEYS, form)):
        clock.now_s = NOON
        problem(_held(service, key, method, path, body, close), 403, NOT_NOW)
    clock.now_s = NOON
    assert service.logs(key) == []
    assert [one["name"] for one in service.get(KEYS, key).json()["api_keys"]] == ["test"]


def test_a_tail_ends_with_the_hours(service: Service, clock: Clock, client_id: str) -> None:
    """A stream of a key that leaves its hours ends, as a revoked key's does."""
    clock.now_s = NOON
    key = service.key(client_id, allowed_hours=OFFICE)

    async def scenario() -> str:
        stream = Stream(service.app, key)
        await stream.until(lambda s: s.text)
        clock.now_s = EVENING
        async with asyncio.timeout(KEY_CHECK_FULL_S / 2):
            await stream.end()
        return stream.text

    assert '"reason":"key revoked"' in service.run(scenario())


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Give what the log tells of dry runs."""
    events = [one.msg for one in caplog.records if isinstance(one.msg, dict)]
    return [one for one in events if one["event"] == "a request would be refused"]


def test_a_dry_run_only_reports(
    service: Service, admin: str, client_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In mode `report` all passes; what would be refused is told once a minute, and counted."""
    key = service.key(client_id, allowed_cidrs=[INSIDE], restrictions_mode="report")
    for _ in range(3):
        assert send(service, key, ("POST", LOGS, record()), OUTSIDE).status_code == 201
        assert send(service, key, ("GET", LOGS, None), OUTSIDE).status_code == 200
    assert [(one["key_id"], one["source_ip"], one["reason"]) for one in told(caplog)] == [
        (key_id_of(key), OUTSIDE, NOT_FROM_ADDRESS)
    ]
    assert key not in caplog.text
    metrics = service.get("/metrics", admin).text
    assert f'central_logger_would_refuse_total{{reason="{NOT_FROM_ADDRESS}"}}' in metrics


def test_no_key_gives_away_its_restrictions(service: Service, clock: Clock, client_id: str) -> None:
    """A restricted key makes keys as restricted as itself, and can't free itself or others."""
    clock.now_s = NOON
    columns = {"allowed_cidrs": ["198.51.100.0/24"], "allowed_countries": ["DE"]}
    owner = service.key(client_id, role="owner", allowed_hours=OFFICE, **columns)

    def make(**asked: Any) -> httpx.Response:
        return send(service, owner, ("POST", KEYS, {"name": "made", **asked}))

    made = make().json()
    assert (columns | {"allowed_hours": OFFICE}).items() <= made.items()
    assert make(allowed_cidrs=[INSIDE]).json()["allowed_cidrs"] == [INSIDE]
    for asked in (
        {"allowed_cidrs": ["198.51.0.0/16"]},
        {"allowed_countries": ["DE", "FR"]},
        {"allowed_hours": parse_hours("mon-fri 09:00-18:00")},
        {"restrictions_mode": "report", "allowed_cidrs": [INSIDE]},
    ):
        problem(make(**asked), 403)
        for key_id in (key_id_of(owner), made["key_id"]):
            problem(send(service, owner, ("PATCH", f"{KEYS}/{key_id}", asked)), 403)
    problem(send(service, owner, ("PATCH", f"{KEYS}/{made['id']}", {"allowed_cidrs": None})), 403)
    free = service.key(client_id)
    problem(send(service, owner, ("POST", f"{KEYS}/{key_id_of(free)}/rotate", {})), 403)
    heir = send(service, owner, ("POST", f"{KEYS}/{made['id']}/rotate", {})).json()
    assert (columns | {"allowed_hours": OFFICE}).items() <= heir.items()
    problem(send(service, heir["key"], ("GET", LOGS, None), OUTSIDE), 403, NOT_FROM_ADDRESS)


@pytest.mark.parametrize("named", ["X-Forwarded-For", "Forwarded"])
def test_the_header_of_the_proxy_counts(tmp_path: Path, named: str) -> None:
    """Of the two headers by which proxies tell addresses, only the one that is set is read."""
    with running(tmp_path, trusted_proxies=("127.0.0.1",), trusted_proxy_header=named) as service:
        key = service.key(role="owner", allowed_cidrs=[INSIDE])
        for inside in ("X-Forwarded-For", "Forwarded"):
            sent = {
                "X-Forwarded-For": INSIDE if inside == "X-Forwarded-For" else OUTSIDE,
                "Forwarded": f"for={INSIDE if inside == 'Forwarded' else OUTSIDE}",
            }
            for method, path, body in (ROUTES[0], ROUTES[2], ROUTES[8]):
                response = ask(service, method, path, key, body, **sent)
                if inside == named:
                    assert response.status_code in {200, 201}
                else:
                    problem(response, 403, NOT_FROM_ADDRESS)


def principal(**columns: Any) -> Principal:
    """Say who a key with these columns is."""
    key = ApiKey(key_id="key", key_prefix="", client_id="acme", name="", role="client", **columns)
    return Candidate(KeyRecord.of(key), None).principal(UNLIMITED)


def refusal(guard: Guard, caller: Principal, address: str) -> str | None:
    """Say why a caller is refused."""
    try:
        guard.check(caller, address)
    except Forbidden as error:
        assert not guard.allows(caller, address)
        return error.detail
    assert guard.allows(caller, address)
    return None


def test_a_new_database_of_countries_counts(tmp_path: Path) -> None:
    """What was said of an address by the old file is forgotten once the new one is read."""
    path = make_mmdb(tmp_path / "countries.mmdb")
    german = principal(allowed_countries=["DE"])

    async def main() -> None:
        countries = Countries(path, poll_s=0.01)
        guard = Guard(countries)
        countries.start()
        assert (refusal(guard, german, GERMAN), refusal(guard, german, FRENCH)) == (
            None,
            NOT_FROM_COUNTRY,
        )
        make_mmdb(path, {"203.0.113.0/24": {"country": {"iso_code": "DE"}}})
        async with asyncio.timeout(DEADLINE_S):
            while not countries.generation:  # noqa: ASYNC110  # nothing tells when it is read
                await asyncio.sleep(0.01)
        assert (refusal(guard, german, GERMAN), refusal(guard, german, FRENCH)) == (
            NOT_FROM_COUNTRY,
            None,
        )
        await countries.aclose()

    asyncio.run(main())


def test_without_a_database_no_country_is_known() -> None:
    """A key that is restricted to countries is refused everywhere where nobody knows countries."""
    assert refusal(Guard(), principal(allowed_countries=["DE"]), GERMAN) == NOT_FROM_COUNTRY
    assert refusal(Guard(), principal(), "") is None


def test_verdicts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses come, few are remembered, and each gets its own answer."""
    monkeypatch.setattr(guard_module, "VERDICTS_MAX", 10)
    guard = Guard()
    caller = principal(allowed_cidrs=["10.0.0.0/30"])
    for _ in range(2):
        for n in range(40):
            expected = None if n < 4 else NOT_FROM_ADDRESS
            assert refusal(guard, caller, f"10.0.0.{n}") == expected
            assert len(guard._verdicts) <= 10  # noqa: SLF001
    other = principal(allowed_cidrs=["10.0.0.39"])
    assert refusal(guard, other, "10.0.0.39") is None


def test_reports_are_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each key's finding is told again after a minute, and few are remembered."""
    monkeypatch.setattr(guard_module, "REPORTS_MAX", 1)
    clock = Clock()
    reports = Reports(clock)
    for now_s in (0.0, 59.0, 60.0):
        clock.now_s = now_s
        reports(principal(), INSIDE, NOT_NOW)
    reports(principal(), INSIDE, NOT_FROM_ADDRESS)
    reports(principal(), INSIDE, NOT_NOW)
    assert len(told(caplog)) == 4
