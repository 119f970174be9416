"""Refusals noted in memory: a row for each within bounds, the rest counted, none lost."""

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, select

from app.activity.denials import ROWS_OF_REPEATS_MAX, DenialLog
from app.activity.reasons import VARIOUS, Diagnosis
from app.activity.refusals import KINDS_MAX, KINDS_OF_PARTY_MAX, Refusal, Repeats, Telling
from app.audit.models import AuditEvent, Denial
from app.edge import denials as module
from app.edge.address import parse_networks
from app.edge.auth import Authenticator
from app.edge.denials import REPEATS_MAX, ROWS_OF_PARTY_MAX, ROWS_WAITING_MAX, Denials
from app.edge.local_limits import LocalFailures
from app.errors import (
    Forbidden,
    InvalidKey,
    KeyRequired,
    LoggerError,
    NotFound,
    RateLimited,
    StorageUnavailable,
)
from app.keys import shape
from app.keys.configured import ConfiguredKeys
from app.keys.database import writing
from app.keys.keyring import Keyring
from app.keys.models import ApiKey, Client
from app.keys.principal import UNLIMITED, Principal
from app.keys.sealing import chain_keys
from app.keys.token import mint
from app.keys.verifier import Peppers
from app.protect.evidence import Place, read_refusals
from app.protect.threats import Attempts, Thresholds

ENDPOINT = "POST /api/v1/logs"
KEY = mint("cl_live", "acme")
SECRET = "a secret of the server"
CALLER = Principal(
    id="0",
    key_id="k",
    client_id="acme",
    role="client",
    scopes=frozenset(),
    allowed_datasets=None,
    is_admin=False,
    key_limits=UNLIMITED,
    client_limits=UNLIMITED,
    expires_at_s=None,
    name="",
)


class Written:
    """Takes what is written, or fails as told."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.repeats: list[Repeats] = []
        self.lasts: list[bool] = []
        self.fault: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def is_due(self) -> bool:
        """Have nothing to do by itself."""
        return False

    def write(
        self, refusals: list[Refusal], repeats: list[Repeats], *, is_last: bool = False
    ) -> None:
        """Write."""
        assert self.may_go_on.wait(20)
        if self.fault is not None:
            raise self.fault
        self.refusals += refusals
        self.repeats += repeats
        self.lasts.append(is_last)

    def times(self) -> int:
        """Sum what was written."""
        return len(self.refusals) + sum(one.times for one in self.repeats)


@pytest.fixture
def authenticator(engine: Engine) -> Iterator[Authenticator]:
    """Give what knows addresses and credentials."""
    peppers = Peppers([SECRET])
    keyring = Keyring(engine, peppers, UNLIMITED, ConfiguredKeys(peppers, {}))
    yield Authenticator(
        keyring, require_api_key=True, failures=LocalFailures(0), trusted_proxies=parse_networks([])
    )
    keyring.close()


def scope(address: str = "192.0.2.1", **headers: str) -> dict[str, Any]:
    """Make a request of an address."""
    named = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return {"client": (address, 1234), "headers": named}


def noting(
    authenticator: Authenticator, written: Written, *notes: tuple[LoggerError, Any]
) -> Denials:
    """Note errors that answer requests; to be called on a loop."""
    denials = Denials(authenticator, written)
    for number, (error, request) in enumerate(notes):
        denials.note(error, f"r{number}", ENDPOINT, request)
    return denials


def test_what_is_noted(authenticator: Authenticator) -> None:
    """A refusal is noted with its request, its credential's shape and what its caller was told."""
    written = Written()

    async def scenario() -> None:
        asked = scope(x_api_key=KEY.text, user_agent="curl/8")
        denials = noting(
            authenticator,
            written,
            (InvalidKey(), asked),
            (KeyRequired(), scope()),
            (RateLimited(["auth_failures"], 3), asked),
            (NotFound(), asked),
        )
        denials.note(Forbidden("Requires scope 'x'"), "r9", ENDPOINT, asked, CALLER)
        denials.note(InvalidKey(), "r10", ENDPOINT, asked, CALLER)
        await denials.flush()
        await denials.aclose()

    asyncio.run(scenario())
    first, second, third, fourth, fifth = written.refusals
    assert (first.request_id, first.status, first.endpoint) == ("r0", 401, ENDPOINT)
    assert (first.source_ip, first.user_agent, first.reason) == ("192.0.2.1", "curl/8", "")
    assert first.presented is not None
    assert first.presented[:3] == (shape.WELL_FORMED, KEY.key_id, "live")
    assert second.presented == shape.Presented(shape.NONE)
    assert (third.status, third.reason) == (429, "too_many_failures")
    assert third.presented is not None
    assert third.presented[:3] == first.presented[:3]
    assert set(third.presented.proofs) == Peppers([SECRET]).proofs(KEY.text)
    assert (fourth.reason, fourth.detail) == ("scope_missing", "Requires scope 'x'")
    assert (fourth.key_id, fourth.client_id, fourth.presented) == ("k", "acme", None)
    assert (fifth.reason, fifth.key_id, fifth.presented) == ("", "k", None)
    secret = KEY.text[-49:-6]
    assert secret not in repr(written.refusals)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "key"}, shape.NOT_UNDERSTOOD),
        ({"authorization": "Bearer a", "x_api_key": "b"}, shape.TWO),
        ({"x_api_key": "clé"}, shape.NOT_ASCII),
        ({"authorization": f"Bearer {KEY.text[:-1]}"}, shape.TRUNCATED),
    ],
)
def test_shapes_of_headers(
    authenticator: Authenticator, headers: dict[str, str], expected: str
) -> None:
    """What stands in the headers is told apart as authentication takes it."""
    assert authenticator.presented(scope(**headers)).shape == expected


def test_a_flood_is_counted(authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many a second one party's refusals are counted by kind, and hide nobody else's."""
    written = Written()
    monkeypatch.setattr(module, "time", lambda: 1000.5)

    async def scenario() -> None:
        asked = scope("2001:db8::1", x_api_key=KEY.text)
        other = scope("2001:db8::2", x_api_key="x")
        flood = [(InvalidKey(), asked)] * (3 * ROWS_OF_PARTY_MAX) + [(InvalidKey(), other)] * 2
        denials = noting(authenticator, written, *flood, (InvalidKey(), scope()))
        await denials.flush()
        await denials.aclose()

    asyncio.run(scenario())
    assert len(written.refusals) == ROWS_OF_PARTY_MAX + 1
    assert written.refusals[-1].source_ip == "192.0.2.1"
    assert [one.times for one in written.repeats] == [2 * ROWS_OF_PARTY_MAX, 2]
    assert written.repeats[0].first.request_id == f"r{ROWS_OF_PARTY_MAX}"
    assert written.repeats[0].last_request_id == f"r{3 * ROWS_OF_PARTY_MAX - 1}"


def test_memory_is_bounded(authenticator: Authenticator) -> None:
    """While nothing can be written, refusals from everywhere take a bounded part of memory."""
    written = Written()
    written.fault = StorageUnavailable("away")
    total = ROWS_WAITING_MAX + 2 * REPEATS_MAX

    async def scenario() -> None:
        denials = Denials(authenticator, written)
        for number in range(total):
            request = scope(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
            denials.note(KeyRequired(), f"r{number}", ENDPOINT, request)
            if number % 500 == 0:
                await denials.flush()
        assert len(denials._refusals) <= ROWS_WAITING_MAX  # noqa: SLF001  # what it must not exceed
        assert len(denials._repeats) <= REPEATS_MAX + 1  # noqa: SLF001
        written.fault = None
        await denials.flush()
        await denials.aclose()

    asyncio.run(scenario())
    assert written.times() == total
    assert any(one.first.reason == VARIOUS for one in written.repeats)


def test_a_stop_tells_the_rest(authenticator: Authenticator) -> None:
    """What was noted is written by itself, and the last of it with the stop."""
    written = Written()

    async def scenario() -> None:
        denials = noting(authenticator, written, (KeyRequired(), scope()))
        denials.start()
        async with asyncio.timeout(20):
            while not written.refusals:  # noqa: ASYNC110  # what it waits for is in a thread
                await asyncio.sleep(0.01)
        denials.note(KeyRequired(), "r1", ENDPOINT, scope())
        await denials.aclose()

    asyncio.run(scenario())
    assert written.times() == 2
    assert written.lasts[-1] is True


def refused(at_s: float, party: str = "p", reason: str = "no_key", **fields: Any) -> Refusal:
    """Make a refusal."""
    fields.setdefault("request_id", f"r{at_s}")
    return Refusal(
        at_s=at_s, status=401, endpoint=ENDPOINT, party=party, source_ip="192.0.2.1",
        user_agent="curl", reason=reason, **fields,
    )  # fmt: skip


def told(*counted: Refusal | Repeats) -> list[tuple[Repeats, Diagnosis]]:
    """Give refusals as they are told."""
    repeats = [one if isinstance(one, Repeats) else Repeats.of(one) for one in counted]
    return [
        (one, Diagnosis(one.first.reason, one.first.key_id, one.first.client_id)) for one in repeats
    ]


def test_repeats_are_told_once_a_minute() -> None:
    """A kind is told of at once, its repeats after the minute, all of them in the end."""
    telling, events = Telling().after(told(refused(1), refused(2), refused(2, reason="expired")), 0)
    counts = [json.loads(one.detail)["count"] for one in events]
    assert (counts, telling.has_repeats) == ([2, 1], False)
    telling, events = telling.after(told(refused(3), refused(4)), 0)
    telling, more = telling.after(told(refused(5)), 0)
    assert events == more == []
    telling, events = telling.after([], 1)
    [event] = events
    detail = json.loads(event.detail)
    assert (detail["count"], detail["first_request_id"], detail["last_request_id"]) == (
        *(3, "r3", "r5"),
    )
    assert (event.action, event.request_id, event.target) == ("denied", "r3", ENDPOINT)
    telling, _ = telling.after(told(refused(61)), 1)
    telling, events = telling.after(told(refused(62)), 1, is_last=True)
    assert [json.loads(one.detail)["count"] for one in events] == [1]
    assert not telling.has_repeats


def test_kinds_are_bounded() -> None:
    """However many keys, places and reasons are made up, the events of a minute are few."""
    many = [refused(n, key_id=f"k{n}") for n in range(3 * KINDS_OF_PARTY_MAX)]
    telling, events = Telling().after(told(*many), 0)
    assert len(events) == KINDS_OF_PARTY_MAX + 1
    assert sum(json.loads(one.detail)["count"] for one in events) == len(many)
    everywhere = [refused(n, party=f"p{n}") for n in range(2 * KINDS_MAX)]
    telling, events = telling.after(told(*everywhere), 0)
    assert len(telling.told) <= KINDS_MAX + 1
    # What befalls a key that is there is told all the same.
    _, events = telling.after(told(refused(9, "here", "expired", client_id="acme")), 0)
    assert [one.client_id for one in events] == ["acme"]


@pytest.fixture
def log(engine: Engine, tmp_path: Path) -> DenialLog:
    """Give where refusals are written, both books in one database."""
    configured = ConfiguredKeys(Peppers(["a secret of the server"]), {})
    return DenialLog(engine, engine, chain_keys(["a secret of the server"]), lambda: configured, 30)


def test_all_or_nothing_is_written(engine: Engine, log: DenialLog) -> None:
    """What could not be written is written whole the next time, in rows and in the audit."""
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_events RENAME TO away")
        connection.commit()
    with pytest.raises(StorageUnavailable):
        log.write([refused(1)], [])
    with Session(engine) as session:
        assert session.exec(select(Denial)).all() == []
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO audit_events")
        connection.commit()
    log.write([refused(1)], [])
    with Session(engine) as session:
        assert [one.request_id for one in session.exec(select(Denial))] == ["r1"]
        actions = [one.action for one in session.exec(select(AuditEvent))]
    assert actions.count("denied") == 1


def test_a_credential_is_let_go_of_when_it_is_explained(log: DenialLog) -> None:
    """What waits for the end of the minute is without the text of a key."""
    presented = shape.shape_of(KEY.text)._replace(
        proofs=shape.Proofs(partial(Peppers([SECRET]).proofs, KEY.text))
    )
    for _ in range(2):
        log.write([refused(1, reason="", presented=presented)], [])
    waiting = [one for one in log._telling.told.values() if one is not None]  # noqa: SLF001
    assert [(one.first.presented, found.reason) for one, found in waiting] == [
        (None, "unknown_key")
    ]


def test_a_flood_hides_no_key_that_ended(engine: Engine, log: DenialLog) -> None:
    """Of attempts that are only counted one of each key that is there has a row, at a 429 too."""
    tokens = [(client, mint("cl_live", client)) for client in ["evil"] * 150 + ["acme"]]
    peppers = Peppers([SECRET])
    with writing(engine) as session:
        session.add_all(Client(client_id=name, name=name) for name in ("evil", "acme"))
        session.flush()
        for client, token in tokens:
            session.add(
                ApiKey(
                    key_id=token.key_id,
                    key_prefix=token.key_id,
                    client_id=client,
                    name="a key",
                    role="client",
                    verifier=peppers.make_keyed(token.text),
                    is_active=False,
                )
            )
    texts = [mint("cl_live", "made-up").text for _ in range(200)] + ["garbage"]
    texts += [token.text for _, token in tokens]
    repeats = []
    for at_s, text in enumerate(texts):
        presented = shape.shape_of(text)._replace(proofs=peppers.proofs(text))
        reason = "" if at_s % 2 else "too_many_failures"
        repeats.append(Repeats.of(refused(at_s, reason=reason, presented=presented)))
    log.write([], [*repeats, repeats[-1]._replace(times=3)])
    start, end = (datetime.fromtimestamp(at_s, UTC) for at_s in (0, len(texts)))
    attempts, _ = read_refusals(engine, Place(start, ""), end)
    found = [(one.client_id, one.key_id, one.reason) for one in attempts]
    assert found.count(("acme", tokens[-1][1].key_id, "deactivated")) == 1
    assert len(found) == ROWS_OF_REPEATS_MAX
    assert {one[::2] for one in found[:-1]} == {("evil", "deactivated")}
    alerts = Attempts(Thresholds()).judge(attempts)
    assert {(one.rule, one.client_id) for one in alerts} >= {("revoked_key", "acme")}


def test_rows_are_kept_for_their_days(
    engine: Engine, log: DenialLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows older than their days go, and the oldest beyond the most; events stay."""
    now = log._prune_at_s + 1  # noqa: SLF001  # when it is to look next
    monkeypatch.setattr("app.activity.denials.time", lambda: now)
    old, young = now - 31 * 86400, now - 29 * 86400
    log.write([refused(old, request_id="old"), refused(young, request_id="young")], [])
    with Session(engine) as session:
        assert [one.request_id for one in session.exec(select(Denial))] == ["young"]
    monkeypatch.setattr("app.activity.denials.ROWS_MAX", 2)
    later = [refused(now + n, request_id=f"n{n}") for n in range(2)]
    monkeypatch.setattr("app.activity.denials.time", lambda: now + 100)
    assert log.is_due()
    log.write(later, [])
    with Session(engine) as session:
        kept = {one.request_id for one in session.exec(select(Denial))}
        events = [one for one in session.exec(select(AuditEvent)) if one.action == "denied"]
    assert kept == {"n0", "n1"}
    assert sum(json.loads(one.detail)["count"] for one in events) == 4
