"""The stream of a tail as a server sends it: events, heartbeats, ends; and what is refused."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from app.api.tail import HEARTBEAT_S, KeyCheck, TailResponse
from app.keys.lifecycle import update_key
from app.logs.place import Place
from app.logs.selection import Selection
from tests.support import DEADLINE_S, LOGS, Json, Service, key_id_of, problem, record

TAIL = f"{LOGS}/tail"


class Stream:
    """One request for a tail, driven as a server does: httpx would wait for the end of it."""

    def __init__(self, app: Any, key: str, *, method: str = "GET", **params: str) -> None:
        headers = {"x-api-key": key, "host": "logger"}
        if "last_id" in params:
            headers["last-event-id"] = params.pop("last_id")
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self._changed = asyncio.Event()
        self._gone = asyncio.Event()
        scope = {
            "type": "http",
            "method": method,
            "path": TAIL,
            "raw_path": TAIL.encode(),
            "query_string": urlencode(params).encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("logger", 80),
            "scheme": "http",
            "http_version": "1.1",
        }
        self._first = True
        self.task = asyncio.create_task(app(scope, self._receive, self._send))
        self.task.add_done_callback(lambda _: self._changed.set())

    @property
    def logs(self) -> list[Json]:
        """The logs that came."""
        events = self.text.split("\n\n")
        lines = [line for event in events if "event:" not in event for line in event.split("\n")]
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]

    @property
    def messages(self) -> list[str]:
        """Their messages."""
        return [log["message"] for log in self.logs]

    @property
    def last_id(self) -> str:
        """The id that a reader would resume from."""
        return self.text.rpartition("id: ")[2].partition("\n")[0]

    async def until(self, happened: Callable[["Stream"], object]) -> None:
        """Wait until something is true of what came."""
        async with asyncio.timeout(DEADLINE_S):
            while not happened(self):
                self._changed.clear()
                assert not self.task.done(), self.text
                await self._changed.wait()

    async def end(self) -> None:
        """Wait until it is over."""
        async with asyncio.timeout(DEADLINE_S):
            await self.task

    async def close(self) -> None:
        """Hang up."""
        self._gone.set()
        await self.end()

    async def _receive(self) -> Json:
        if self._first:
            self._first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Json) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.text += message.get("body", b"").decode()
        self._changed.set()


async def post(service: Service, key: str, *messages: str, **fields: Any) -> None:
    """Store logs."""
    logs = [record(message=message, **fields) for message in messages]
    answer = await service.http.post(LOGS, json=logs, headers={"X-API-Key": key})
    assert answer.status_code == 201


# 200


def test_each_log_is_an_event(service: Service, key: str) -> None:
    """What is stored from now on comes, each as in the list, with an id."""

    async def scenario() -> None:
        await post(service, key, "before")
        stream = Stream(service.app, key)
        await stream.until(lambda one: one.text)
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        assert "x-ratelimit-remaining" in stream.headers
        assert "content-length" not in stream.headers
        await post(service, key, "a", "b")
        await stream.until(lambda one: len(one.logs) == 2)
        page = await service.http.get(LOGS, headers={"X-API-Key": key}, params={"limit": 3})
        stored = {log["id"]: log for log in page.json()["logs"]}
        assert [stored[log["id"]] for log in stream.logs] == stream.logs
        assert stream.messages == ["a", "b"]
        await stream.close()

    service.run(scenario())


def test_filters_are_those_of_the_list(service: Service, key: str) -> None:
    """A tail shows what the same filters show in the list."""

    async def scenario() -> None:
        stream = Stream(service.app, key, **{"status": "FAILED", "q": "disk -old", "from": "-1h"})
        await stream.until(lambda one: one.text)
        now = time.time()
        await post(service, key, "disk ok", executed_at=now)
        await post(service, key, "disk full", "old disk", status="FAILED", executed_at=now)
        await post(service, key, "disk of last year", status="FAILED")
        await post(service, key, "last disk", status="FAILED", executed_at=now)
        await stream.until(lambda one: len(one.logs) == 2)
        assert stream.messages == ["disk full", "last disk"]
        await stream.close()

    service.run(scenario())


def test_it_resumes_by_header_or_address(service: Service, key: str) -> None:
    """After the event named, in the header or else in the address, what followed comes once."""

    async def scenario() -> None:
        first = Stream(service.app, key)
        await first.until(lambda one: one.text)
        start = first.last_id
        await post(service, key, "a")
        await first.until(lambda one: one.logs)
        await first.close()
        await post(service, key, "b", "c")
        for params, expected in (
            ({"last_id": first.last_id}, ["b", "c"]),
            ({"last_event_id": first.last_id}, ["b", "c"]),
            ({"last_event_id": start}, ["a", "b", "c"]),
            # A browser that comes again names the newer one in the header.
            ({"last_event_id": start, "last_id": first.last_id}, ["b", "c"]),
        ):
            again = Stream(service.app, key, **params)
            await again.until(lambda one: "c" in one.messages)
            assert again.messages == expected
            await again.close()

    service.run(scenario())


def test_a_key_of_some_datasets_sees_only_those(service: Service, client_id: str) -> None:
    """A key that is limited to datasets gets no log of another one."""
    key, writer = service.key(client_id, allowed_datasets=["orders"]), service.key(client_id)

    async def scenario() -> None:
        stream = Stream(service.app, key)
        await stream.until(lambda one: one.text)
        await post(service, writer, "hidden", dataset="payments")
        await post(service, writer, "shown", dataset="orders")
        await stream.until(lambda one: one.logs)
        assert stream.messages == ["shown"]
        await stream.close()

    service.run(scenario())
    refused = service.get(TAIL, key, params={"dataset": "payments"})
    problem(refused, 403, "Not authorized for dataset 'payments'")


def test_an_admin_names_the_client(service: Service, admin: str, key: str, client_id: str) -> None:
    """A platform key follows the one client that it names."""

    async def scenario() -> None:
        stream = Stream(service.app, admin, client_id=client_id)
        await stream.until(lambda one: one.text)
        await post(service, key, "a")
        await stream.until(lambda one: one.logs)
        assert stream.messages == ["a"]
        await stream.close()

    service.run(scenario())
    problem(service.get(TAIL, admin), 422)
    problem(service.get(TAIL, admin, params={"client_id": "nobody"}), 404)


def test_a_quiet_tail_has_a_heartbeat(service: Service, key: str, client_id: str) -> None:
    """Where nothing happens a comment comes at each interval, and where logs were passed an id."""
    assert HEARTBEAT_S == 15

    async def scenario() -> None:
        tails = service.app._control.state.services.tails  # noqa: SLF001
        selection = Selection(filters={"status": ("FAILED",)})

        class Fine(KeyCheck):
            def __init__(self) -> None:
                pass

            async def fault(self) -> str | None:
                return None

        tail = await tails.open(client_id, selection, None)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope |= {"state": {"is_head": False}}
            await TailResponse(tail, Fine(), heartbeat_s=0.05)(scope, receive, send)

        stream = Stream(app, key)
        await stream.until(lambda one: one.text.count(": heartbeat\n\n") >= 3)
        before = stream.last_id
        await post(service, key, "passed")
        await stream.until(lambda one: one.last_id != before)
        assert ": heartbeat\nid: " in stream.text
        assert not stream.logs
        await stream.close()

    service.run(scenario())


def test_head_has_no_body_and_ends(service: Service, key: str) -> None:
    """HEAD tells what GET would, and does not wait for logs."""

    async def scenario() -> None:
        stream = Stream(service.app, key, method="HEAD")
        await stream.end()
        assert (stream.status, stream.text) == (200, "")

    service.run(scenario())


@pytest.mark.parametrize("change", ["revoked", "datasets"])
def test_it_ends_with_the_key(service: Service, client_id: str, change: str) -> None:
    """A key that may no more what it might ends its stream, with the reason and nothing after."""
    key = service.key(client_id)

    async def scenario() -> None:
        stream = Stream(service.app, key)
        await stream.until(lambda one: one.text)
        changed = time.monotonic()
        if change == "revoked":
            service.revoke(key)
        else:
            update_key(
                service.engine, key_id_of(key), {"allowed_datasets": ["orders"]}, by=service.by
            )
        await stream.end()
        assert time.monotonic() - changed < DEADLINE_S
        reason = "key revoked" if change == "revoked" else "key changed"
        assert f'event: end\nid: {stream.last_id}\ndata: {{"reason":"{reason}"}}' in stream.text

    service.run(scenario())


def test_a_reader_that_has_gone_is_forgotten(service: Service, key: str) -> None:
    """When the reader hangs up, nothing is kept for it."""

    async def scenario() -> None:
        stream = Stream(service.app, key)
        await stream.until(lambda one: one.text)
        tails = service.app._control.state.services.tails  # noqa: SLF001
        assert len(tails._tails) == 1  # noqa: SLF001
        await stream.close()
        assert not tails._tails  # noqa: SLF001
        assert tails.queued_bytes == 0

    service.run(scenario())


# 401, 403, 422


def test_who_may_not_read_may_not_follow(service: Service, client_id: str) -> None:
    """A key without logs:read is refused, as one that is unknown."""
    writer = service.key(client_id, role="ingest")
    problem(service.get(TAIL, writer), 403, "Requires scope 'logs:read'")
    problem(service.get(TAIL, "nobody's"), 401, "Invalid API key")


@pytest.mark.parametrize(
    "params",
    [
        {"order": "asc"},
        {"limit": "1"},
        {"cursor": "x"},
        {"unknown": "x"},
        {"from": "yesterday"},
        {"last_event_id": "x"},
        {"last_event_id": ["x", "y"]},
    ],
)
def test_bad_parameters(service: Service, key: str, params: dict[str, Any]) -> None:
    """What the list's paging is, or what nobody knows, is refused by name."""
    body = problem(service.get(TAIL, key, params=params), 422)
    assert body["errors"][0]["field"] == next(iter(params))


def test_an_id_of_another_client_is_refused(service: Service, key: str, client_id: str) -> None:
    """Where one client was says nothing to another."""
    places = service.app._control.state.services.tails.places  # noqa: SLF001
    own, others = (places.seal(name, Place(20_000)) for name in (client_id, "other"))
    assert own != others
    problem(service.get(TAIL, key, headers={"Last-Event-ID": others}), 422)
