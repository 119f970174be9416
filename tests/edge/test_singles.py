"""Single logs of one turn of the loop: stored together, answered each for itself."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.edge.singles import GROUP_MAX, SINGLE_BYTES_MAX, Singles, is_candidate
from app.errors import StorageUnavailable
from app.keys.principal import UNLIMITED, Principal
from app.logs.batch import Batch, Receipt
from app.logs.identity import ArrivalClock
from tests.support import LOGS, Json, Service, record, running

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one service for all tests here."""
    with running(tmp_path_factory.mktemp("singles")) as service:
        yield service


@pytest.fixture
def client_id() -> str:
    """Name a client that no other test here has."""
    return f"single-{next(NUMBERS)}"


def post_at_once(service: Service, sent: list[tuple[str, bytes]]) -> list[httpx.Response]:
    """Post bodies, each with its key, in one turn of the loop."""

    async def scenario() -> list[httpx.Response]:
        posts = [
            service.http.post(LOGS, headers={"X-API-Key": key}, content=body) for key, body in sent
        ]
        return await asyncio.gather(*posts)

    return service.run(scenario())


def test_each_gets_its_own_answer(service: Service, client_id: str) -> None:
    """Whatever stands beside a log, its answer is the one it has alone, and names that log."""
    keys = [service.key(client_id), service.key(client_id, allowed_datasets=["orders"])]
    bodies: list[object] = [
        record(run_id="0"),
        record(run_id="1", dataset="orders"),
        record(run_id="2", executed_at="1999-01-01T00:00:00Z"),
        record(run_id="3", id="own"),
        record(run_id="4", unknown=1),
        record(status=5),
        record(duration_ms=-1),
        record(dataset="No Slug"),
        {"logs": [record(run_id="8")]},
        record(run_id="9", message="x" * 20_000),
    ]
    texts = [json.dumps(body).encode() for body in bodies]
    texts += [b"{nope}", texts[0] + texts[1], b'{"a":"}']
    sent = [(key, text) for text in texts for key in keys]
    alone = [service.post(text, key) for key, text in sent]
    assert {response.status_code for response in alone} == {201, 400, 403, 422}
    together = post_at_once(service, sent * 3)
    stored = {log["id"]: log for log in service.logs(keys[0], limit=1000)}
    ids = []
    for (_, text), before, response in zip(sent * 3, alone * 3, together, strict=True):
        assert response.status_code == before.status_code
        body = response.json()
        if response.status_code != 201:
            assert {**body, "request_id": None} == {**before.json(), "request_id": None}
        elif "id" in body and "duplicate" not in body:
            assert stored[body["id"]]["run_id"] == json.loads(text)["run_id"]
            assert stored[body["id"]]["received_at"] == body["received_at"]
            ids.append(body["id"])
    assert len(set(ids)) == len(ids) == 6 * 3
    assert service.usage(keys[0])["totals"]["logs"] == len(stored)


def test_usage_is_exact(service: Service, client_id: str) -> None:
    """Requests, logs and bytes of logs stored together are those of each, by key and dataset."""
    keys = [service.key(client_id), service.key(client_id)]
    sent = [
        (keys[n % 2], json.dumps(record(message="m" * n, dataset=f"d{n % 3}")).encode())
        for n in range(60)
    ]
    assert {response.status_code for response in post_at_once(service, sent)} == {201}
    totals = service.usage(keys[0])["totals"]
    size = sum(len(body) for _, body in sent)
    assert (totals["requests"], totals["logs"], totals["bytes"]) == (60, 60, size)
    for group, count in (("key", 30), ("dataset", 20)):
        rows = service.usage(keys[0], group_by=group)["usage"]
        assert [(row["requests"], row["logs"]) for row in rows] == [(count, count)] * (60 // count)


def test_a_limit_holds_within_a_turn(service: Service, client_id: str) -> None:
    """Of requests that come at once, just as many pass as the limit allows; bad ones use none."""
    key = service.key(client_id, limits={"logs_per_minute": 5})
    body = json.dumps(record()).encode()
    statuses = [one.status_code for one in post_at_once(service, [(key, body)] * 9)]
    assert sorted(statuses) == [201] * 5 + [429] * 4
    other = service.key(client_id + "x", limits={"logs_per_minute": 5})
    for _ in range(3):
        post_at_once(service, [(other, b"{}")] * 4)
    statuses = [one.status_code for one in post_at_once(service, [(other, body)] * 5)]
    assert statuses == [201] * 5


class FakeStore:
    """Takes batches, or is away."""

    def __init__(self) -> None:
        self.clock = ArrivalClock()
        self.fault: Exception | None = None
        self.taken: list[Batch] = []

    async def append(self, batch: Batch) -> Receipt:
        """Take it, or raise the fault."""
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        self.taken.append(batch)
        return Receipt()


class FakeKeys:
    """Keys that change when a test says so; a change is seen at the next check."""

    def __init__(self) -> None:
        self.key_changes = 0
        self.unseen = 0

    def check_keys(self) -> int:
        """See what changed."""
        self.key_changes += self.unseen
        self.unseen = 0
        return self.key_changes


KEYS: Any = FakeKeys()
WHO = Principal(
    id="",
    key_id="key1",
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
PLAIN = json.dumps(record()).encode()
BAD = json.dumps(record(duration_ms=-1)).encode()


@pytest.mark.parametrize("given_up", [PLAIN, BAD, b"{}", json.dumps(record(id="x")).encode()])
def test_one_that_is_given_up_harms_nobody(given_up: bytes) -> None:
    """A request that is cancelled before its turn ends leaves the others their answers."""

    async def scenario() -> None:
        store: Any = FakeStore()
        singles = Singles(store, KEYS)
        waiting = [singles.join(WHO, "acme", body) for body in (PLAIN, given_up, PLAIN)]
        waiting[1].cancel()
        for one in (waiting[0], waiting[2]):
            stored = await asyncio.wait_for(one, 5)
            assert stored is not None

    asyncio.run(scenario())


def test_a_store_that_is_away_is_told_to_all() -> None:
    """Each of those that were to be stored together learns that they were not."""

    async def scenario() -> None:
        store: Any = FakeStore()
        store.fault = StorageUnavailable("gone")
        singles = Singles(store, KEYS)
        waiting = [singles.join(WHO, "acme", body) for body in (PLAIN, BAD, PLAIN)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in outcomes] == [
            StorageUnavailable,
            type(None),
            StorageUnavailable,
        ]
        store.fault = None
        assert await singles.join(WHO, "acme", PLAIN) is not None
        assert [batch.requests for batch in store.taken] == [1]

    asyncio.run(scenario())


def test_a_narrowed_key_stores_nothing_with_its_wider_past() -> None:
    """Requests of one key that were authenticated before and after a change are kept apart."""

    async def scenario() -> None:
        store: Any = FakeStore()
        singles = Singles(store, KEYS)
        orders = json.dumps(record(dataset="orders")).encode()
        narrowed = replace(WHO, allowed_datasets=frozenset({"other"}))
        before, after = singles.join(WHO, "acme", orders), singles.join(narrowed, "acme", orders)
        assert await before is not None
        assert await after is None  # to be stored, and so refused, by itself
        assert [batch.requests for batch in store.taken] == [1]

    asyncio.run(scenario())


def test_a_fault_while_grouping_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever when the turn as a whole fails."""

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        store: Any = FakeStore()
        singles = Singles(store, KEYS)
        monkeypatch.setattr("app.edge.singles.decode_singles", lambda _: 1 / 0)
        waiting = [singles.join(WHO, "acme", PLAIN) for _ in range(2)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in outcomes] == [ZeroDivisionError] * 2
        assert outcomes[0] is not outcomes[1]

    asyncio.run(scenario())


def test_a_change_of_keys_hands_all_back() -> None:
    """Who was authenticated before a change of keys, seen or not yet seen, is asked again."""

    async def scenario() -> None:
        store: Any = FakeStore()
        keys: Any = FakeKeys()
        singles = Singles(store, keys)
        first = singles.join(WHO, "acme", PLAIN)
        keys.unseen = 1
        assert await first is None
        second = singles.join(WHO, "acme", PLAIN)
        keys.key_changes += 1  # as if another request had seen it
        third = singles.join(WHO, "acme", PLAIN)
        assert await second is await third is None
        assert await singles.join(WHO, "acme", PLAIN) is not None
        assert [batch.requests for batch in store.taken] == [1]

    asyncio.run(scenario())


def test_a_full_group_waits_for_no_turn() -> None:
    """Many requests of one turn go to the store in groups, none of them twice or never."""

    async def scenario() -> None:
        store: Any = FakeStore()
        singles = Singles(store, KEYS)
        waiting = [singles.join(WHO, "acme", PLAIN) for _ in range(2 * GROUP_MAX + 3)]
        assert None not in await asyncio.gather(*waiting)
        assert [batch.requests for batch in store.taken] == [GROUP_MAX, GROUP_MAX, 3]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", True),
        (b"{" + b" " * (SINGLE_BYTES_MAX - 2) + b"}", True),
        (b"{" + b" " * (SINGLE_BYTES_MAX - 1) + b"}", False),
        (b"[]", False),
        (b" {}", False),
        (b"{}\n", False),
        (b"", False),
    ],
)
def test_candidates_are_small_objects(body: bytes, *, expected: bool) -> None:
    """Only what begins and ends as an object, and is small, is stored with others."""
    assert is_candidate(body, SINGLE_BYTES_MAX) is expected


def test_answers_have_the_same_shape(service: Service, client_id: str) -> None:
    """A log stored with others is answered with the members of one stored by itself."""
    key = service.key(client_id)
    together, alone = (
        service.post(body, key).json() for body in (record(), json.dumps(record()).encode() + b"\n")
    )
    shapes: list[Json] = [
        {name: len(value) for name, value in one.items()} for one in (together, alone)
    ]
    assert shapes[0].keys() == shapes[1].keys()
    assert shapes[0]["id"] == shapes[1]["id"]
