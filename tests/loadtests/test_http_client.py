"""The load client against a tiny server of this process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from loadtests.http_client import (
    LoadError,
    Plan,
    Result,
    build_request,
    percentile,
    run,
    run_in_process,
)

CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
POST = build_request("POST", "/x", b"hello")
Answer = Callable[[int], bytes | None]


@asynccontextmanager
async def serving(answer: Answer, *, pieces: int = 1) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve `answer(request number)` in `pieces`; None closes the connection unanswered."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.rpartition(b"Content-Length: ")[2] or 0)
                bodies.append(await reader.readexactly(length))
                reply = answer(len(bodies))
                if reply is None:
                    break
                size = -(-len(reply) // pieces)
                for start in range(0, len(reply), size):
                    writer.write(reply[start : start + size])
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], bodies
    finally:
        server.close()
        await asyncio.sleep(0.05)  # the handlers see their connections close


def load(answer: Answer, *, pieces: int = 1, **plan: object) -> tuple[Result, list[bytes]]:
    """Run a plan against a server that answers so; give the result and the bodies that came."""

    async def main() -> tuple[Result, list[bytes]]:
        async with serving(answer, pieces=pieces) as (port, bodies):
            options = {"requests": (POST,), "connections": 4, **plan}
            return await run(Plan(port, **options)), bodies  # type: ignore[arg-type]

    return asyncio.run(main())


def test_sends_exactly_count_requests() -> None:
    """A plan bounded by count sends that many, whole, and has an answer for each."""
    result, bodies = load(lambda _: CREATED, count=50)
    assert result.requests == 50
    assert result.statuses == {201: 50}
    assert result.lost == 0
    assert bodies == [b"hello"] * 50
    assert result.samples == {201: b"{}"}
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms


def test_sends_the_requests_in_turn() -> None:
    """Requests are taken in order, and from the first again after the last."""
    requests = tuple(build_request("POST", "/x", b"%d" % i) for i in range(3))
    _, bodies = load(lambda _: CREATED, requests=requests, connections=1, count=7)
    assert bodies == [b"0", b"1", b"2", b"0", b"1", b"2", b"0"]


def test_fewer_requests_than_connections_end_the_run() -> None:
    """Connections without a request do not keep the run from ending."""
    result, _ = load(lambda _: CREATED, connections=8, count=3)
    assert result.requests == 3


def test_stops_when_the_seconds_have_passed() -> None:
    """A plan bounded by seconds ends by itself and counts what was answered."""
    result, bodies = load(lambda _: CREATED, seconds=0.2)
    assert result.requests == len(bodies) > 0


def test_a_rate_is_not_exceeded() -> None:
    """A paced plan sends no more than its rate allows in its time, however fast the server."""
    result, _ = load(lambda _: CREATED, seconds=0.5, rate_per_s=40)
    assert 1 <= result.requests <= 21


def test_a_paced_plan_sends_its_whole_count() -> None:
    """With a bound by count each of the paced requests is sent once."""
    result, bodies = load(lambda _: CREATED, count=20, rate_per_s=500)
    assert result.requests == len(bodies) == 20


def test_puts_replies_together() -> None:
    """A reply that comes in many pieces, in any spelling of its length, is one reply."""
    body = b"x" * 5000
    reply = b"HTTP/1.1 200 OK\r\nserver: t\r\nCONTENT-LENGTH: 5000\r\nA: b\r\n\r\n" + body
    result, _ = load(lambda _: reply, pieces=40, connections=2, count=6)
    assert result.statuses == {200: 6}
    assert result.samples == {200: body}


def test_counts_each_status() -> None:
    """Refusals are counted by their status with a sample of each."""
    busy = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
    result, _ = load(lambda number: busy if number % 5 == 0 else CREATED, count=20)
    assert result.statuses == {201: 16, 503: 4}
    assert result.samples[503] == b"busy"


def test_require_refuses_other_statuses() -> None:
    """A bench must not take refusals for throughput; the error shows what the server said."""
    busy = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
    result, _ = load(lambda number: busy if number == 1 else CREATED, count=3)
    assert result.require(201, 503) is result
    with pytest.raises(LoadError, match="busy"):
        result.require(201)


def test_a_connection_closed_with_a_request_in_flight_is_a_loss() -> None:
    """What was never answered is counted as lost, and the load goes on."""
    result, _ = load(lambda number: None if number == 3 else CREATED, connections=2, count=10)
    assert result.lost == 1
    assert result.requests == 9
    with pytest.raises(LoadError, match="1 lost"):
        result.require(201)


def test_a_server_that_is_gone_ends_the_run() -> None:
    """When nothing answers any more the run ends with what it has."""

    async def main() -> Result:
        async with serving(lambda _: CREATED) as (port, _):
            plan = Plan(port, (POST,), connections=2, seconds=30)
            running = asyncio.create_task(run(plan))
            await asyncio.sleep(0.05)
            for task in asyncio.all_tasks() - {running, asyncio.current_task()}:
                task.cancel()
        return await running

    result = asyncio.run(main())
    assert result.requests > 0


def test_a_reply_without_a_length_fails_the_run() -> None:
    """What this client can't read is an error, not a hang."""
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    with pytest.raises(LoadError, match="not a reply with a length"):
        load(lambda _: chunked, count=1, connections=1)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"host": "192.0.2.1"}, "loopback only"),
        ({"count": None}, "count or seconds"),
        ({"requests": ()}, "needs a request"),
        ({"connections": 0}, "connections"),
        ({"connections": 5000}, "connections"),
        ({"seconds": 10_000.0}, "at most 600"),
        ({"rate_per_s": 0.0}, "rate_per_s"),
    ],
)
def test_a_plan_out_of_bounds_is_refused(changes: dict[str, object], fault: str) -> None:
    """Load stays on this machine and is bounded in count and time."""
    plan = {"port": 1, "requests": (POST,), "count": 1, **changes}
    with pytest.raises(LoadError, match=fault):
        Plan(**plan)  # type: ignore[arg-type]


def test_a_host_name_is_refused() -> None:
    """A name could be any machine; only addresses and localhost are taken."""
    with pytest.raises(LoadError, match="loopback only"):
        Plan(1, (POST,), count=1, host="logs.example.com")


def test_runs_in_its_own_process() -> None:
    """The load can run outside the caller's process and gives the same kind of result."""

    async def main() -> Result:
        async with serving(lambda _: CREATED) as (port, _):
            return await asyncio.to_thread(run_in_process, Plan(port, (POST,), 2, count=10))

    result = asyncio.run(main())
    assert result.statuses == {201: 10}


def test_a_load_that_can_not_connect_says_so() -> None:
    """A failure in the other process reaches the caller as an error."""
    with pytest.raises(LoadError, match="refused"):
        run_in_process(Plan(1, (POST,), 1, count=1))


def test_build_request_states_the_length() -> None:
    """A body has its Content-Length; a GET without one has none."""
    assert POST == b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello"
    get = build_request("GET", "/y", headers={"X-API-Key": "k"})
    assert get == b"GET /y HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: k\r\n\r\n"


def test_percentiles_take_the_nearest_rank() -> None:
    """The percentile is a value that occurred."""
    ordered = [float(n) for n in range(1, 101)]
    assert [percentile(ordered, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) == 0.0
