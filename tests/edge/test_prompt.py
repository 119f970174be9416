"""Requests that arrive whole: taken in at once, or left untouched."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from app.activity.access import AccessQuery, read_accesses
from app.activity.database import open_activity
from app.activity.uses import read_sources
from app.edge.problem import Headers
from app.edge.prompt import PromptIngest
from app.errors import StorageUnavailable
from tests.support import Service, eventually, key_id_of, record, running

NUMBERS = itertools.count()
BODY = json.dumps(record()).encode()


class FakeExchange:
    """A request, and what became of it."""

    client: tuple[str, int] | None

    def __init__(self, key: str, body: bytes = BODY, *headers: tuple[bytes, bytes]) -> None:
        self.client = ("192.0.2.7", 1234)
        self.headers = [(b"x-api-key", key.encode()), *headers]
        self.body = body
        self.answers: list[tuple[int, Headers, bytes, bytes]] = []
        self.times_given_back = 0

    def answer(self, status: int, headers: Headers, lines: bytes, body: bytes) -> None:
        """Note an answer."""
        self.answers.append((status, headers, lines, body))

    def give_back(self) -> None:
        """Note that it was given back."""
        self.times_given_back += 1


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one service for all tests here."""
    with running(tmp_path_factory.mktemp("prompt"), max_inflight_bytes=5_000_000) as service:
        yield service


@pytest.fixture
def prompt(service: Service) -> PromptIngest:
    """Give what is under test."""
    assert service.app.prompt is not None
    return service.app.prompt


@pytest.fixture
def store(prompt: PromptIngest) -> Any:
    """Give the store behind it."""
    return prompt.intake.singles._store  # noqa: SLF001  # to make it fail, as only a broken disk does


@pytest.fixture
def client_id() -> str:
    """Name a client that no other test here has."""
    return f"prompt-{next(NUMBERS)}"


def seen(service: Service, client_id: str | None, **properties: Any) -> str:
    """Make a key that the service has verified."""
    key = service.key(client_id, **properties)
    # Verified keys are forgotten when any key changes, so it takes a request after that.
    assert service.get("/health/ready").status_code == 200
    service.get("/api/v1/usage", key)
    return key


def take(service: Service, prompt: PromptIngest, *exchanges: FakeExchange) -> list[bool]:
    """Offer requests in one turn of the loop, and wait until each that was taken has an end."""

    async def offer() -> list[bool]:
        heads = [(one, prompt.look(one.headers)) for one in exchanges]
        return [head is not None and prompt.take(one, head) for one, head in heads]

    taken = service.run(offer())
    waiting = [one for one, was_taken in zip(exchanges, taken, strict=True) if was_taken]
    eventually(lambda: service.run(_ended(waiting)), lambda ended: ended)
    return taken


async def _ended(exchanges: list[FakeExchange]) -> bool:
    return all(one.answers or one.times_given_back for one in exchanges)


def test_a_plain_log_is_stored(service: Service, prompt: PromptIngest, client_id: str) -> None:
    """A plain log is taken, stored once and answered once, with its limits and its place."""
    key = seen(service, client_id, limits={"requests_per_minute": 100})
    exchange = FakeExchange(key)
    assert take(service, prompt, exchange) == [True]
    [(status, headers, lines, body)] = exchange.answers
    assert (status, headers) == (201, [(b"content-type", b"application/json")])
    assert b"x-request-id: " in lines
    assert b"content-length: %d\r\n" % len(body) in lines
    assert b'ratelimit: "requests";r=98;' in lines
    [stored] = service.logs(key)
    reply = json.loads(body)
    assert {name: stored[name] for name in reply} == reply
    assert service.usage(key)["totals"]["logs"] == 1


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer x"),
        (b"content-encoding", b"gzip"),
        (b"idempotency-key", b"1"),
        (b"content-type", b"application/x-ndjson"),
        (b"content-type", b"text/plain"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"websocket"),
        (b"x-api-key", b"another"),
    ],
)
def test_what_needs_more_than_a_look(
    service: Service, prompt: PromptIngest, client_id: str, header: tuple[bytes, bytes]
) -> None:
    """A request that asks for more than storing a plain log is left untouched."""
    exchange = FakeExchange(seen(service, client_id), BODY, header)
    assert take(service, prompt, exchange) == [False]
    assert exchange.answers == []


def test_who_may_not_be_taken(service: Service, prompt: PromptIngest, client_id: str) -> None:
    """A key that is unknown, of another role, of no client, or at a limit is left to others."""
    limited = [{"requests_per_minute": 1}, {"logs_per_minute": 1}, {"bytes_per_minute": 150}]
    keys = [service.key(client_id, limits=limits) for limits in limited]
    others = [
        service.key(client_id, role="viewer"),
        service.key(None, role="admin"),
        service.key(client_id)[:-1],
    ]
    for key in (*keys, *others):
        service.post(record(), key)  # verifies it, and uses up what is limited
    exchanges = [FakeExchange(key) for key in (*keys, *others, "")]
    assert take(service, prompt, *exchanges) == [False] * 7
    assert not any(one.answers or one.times_given_back for one in exchanges)


def sources_of(service: Service, prompt: PromptIngest, key: str) -> dict[tuple[str, str], int]:
    """Read how often a key was used from where."""
    service.run(prompt.intake.sightings.flush())
    activity = open_activity(service.engine)
    try:
        sources = read_sources(activity, key_id_of(key))
    finally:
        activity.dispose()
    return {(source.source_ip, source.user_agent): source.requests for source in sources}


def accesses_of(
    service: Service, prompt: PromptIngest, key: str
) -> dict[tuple[str, str, str, str], int]:
    """Read how often a key did what from where."""
    service.run(prompt.intake.accesses.flush())
    activity = open_activity(service.engine)
    try:
        rows = read_accesses(activity, AccessQuery(key_ids=[key_id_of(key)]))
    finally:
        activity.dispose()
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for row in rows:
        counts[row.source_ip, row.user_agent, row.dataset, row.outcome] += row.requests
    return counts


def test_a_log_that_is_taken_is_seen(
    service: Service, prompt: PromptIngest, client_id: str
) -> None:
    """A request that is answered counts as one use of its key, from where it came."""
    key = seen(service, client_id)
    exchanges = [FakeExchange(key, BODY, (b"user-agent", b"n8n/1.0")) for _ in range(3)]
    assert take(service, prompt, *exchanges) == [True] * 3
    assert sources_of(service, prompt, key)["192.0.2.7", "n8n/1.0"] == 3
    place = ("192.0.2.7", "n8n/1.0", "default", "201")
    eventually(lambda: accesses_of(service, prompt, key)[place], lambda count: count == 3)


def test_a_log_that_is_given_back_is_not_seen(
    service: Service, prompt: PromptIngest, client_id: str
) -> None:
    """A request that is left to `ingest`, before or after it was taken, is counted there alone."""
    key = seen(service, client_id)
    exchange = FakeExchange(key, b"{ ]}")
    special = FakeExchange(key, BODY, (b"idempotency-key", b"1"))
    assert take(service, prompt, exchange, special) == [True, False]
    assert exchange.times_given_back == 1
    assert ("192.0.2.7", "") not in sources_of(service, prompt, key)


def test_a_revocation_in_the_same_turn(
    service: Service, prompt: PromptIngest, client_id: str
) -> None:
    """A key that is revoked after its request was taken, before it is stored, stores nothing."""
    key, kept = service.key(client_id), service.key(client_id)
    for one in (key, kept):
        service.get("/api/v1/usage", one)
    exchange = FakeExchange(key)

    async def scenario() -> bool:
        head = prompt.look(exchange.headers)
        taken = head is not None and prompt.take(exchange, head)
        service.revoke(key)
        return taken

    assert service.run(scenario())
    eventually(lambda: service.run(_ended([exchange])), lambda ended: ended)
    assert (exchange.times_given_back, exchange.answers) == (1, [])
    assert service.logs(kept) == []
    assert service.usage(kept)["totals"]["requests"] == 0


@pytest.mark.parametrize("body", [b"{}", b"{ ]}", json.dumps(record(id="own")).encode()])
def test_a_log_that_needs_a_second_look(
    service: Service, prompt: PromptIngest, client_id: str, body: bytes
) -> None:
    """What turns out not to be plain is given back, and has cost nothing."""
    key = seen(service, client_id, limits={"requests_per_minute": 3, "logs_per_minute": 2})
    beside = FakeExchange(key)
    exchange = FakeExchange(key, body)
    assert take(service, prompt, exchange, beside) == [True, True]
    assert (exchange.times_given_back, exchange.answers) == (1, [])
    assert beside.answers[0][0] == 201
    assert prompt.intake.inflight.bytes == 0
    assert service.post(record(), key).headers["ratelimit"].startswith('"requests";r=0')


def test_a_store_that_is_away(
    service: Service,
    prompt: PromptIngest,
    store: Any,
    client_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who could not be stored is told so, may come again, and has used up nothing."""
    key = seen(service, client_id, limits={"requests_per_minute": 4, "logs_per_minute": 2})

    async def away(_: object) -> None:
        raise StorageUnavailable("gone")

    exchanges = [FakeExchange(key), FakeExchange(key)]
    with monkeypatch.context() as patch:
        patch.setattr(store, "append", away)
        assert take(service, prompt, *exchanges) == [True, True]
    for exchange in exchanges:
        [(status, headers, _, body)] = exchange.answers
        assert status == 503
        assert b"retry-after" in dict(headers)
        assert json.loads(body)["detail"] == "Storage unavailable"
    assert prompt.intake.inflight.bytes == 0
    assert take(service, prompt, FakeExchange(key), FakeExchange(key)) == [True, True]
    assert service.usage(key)["totals"]["logs"] == 2


def test_an_unforeseen_fault(
    service: Service,
    prompt: PromptIngest,
    store: Any,
    client_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bug beyond the taking answers 503, which a shipper retries."""
    key = seen(service, client_id)

    async def buggy(_: object) -> None:
        raise ZeroDivisionError

    exchange = FakeExchange(key)
    with monkeypatch.context() as patch:
        patch.setattr(store, "append", buggy)
        take(service, prompt, exchange)
    assert exchange.answers[0][0] == 503


def test_memory_is_bounded(service: Service, prompt: PromptIngest, client_id: str) -> None:
    """With as many bytes held as may be, nothing more is taken, and nothing is counted."""
    key = seen(service, client_id, limits={"logs_per_minute": 1})
    assert prompt.intake.inflight.take(5_000_000)
    try:
        assert take(service, prompt, FakeExchange(key)) == [False]
    finally:
        prompt.intake.inflight.give_back(5_000_000)
    assert take(service, prompt, FakeExchange(key)) == [True]
