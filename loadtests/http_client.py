"""A lean HTTP/1.1 keep-alive load client: prebuilt requests out, little parsed of the replies.

General clients cost 100 to 500 µs of CPU a request, more than the server that they measure. This
one writes bytes made beforehand and looks at the status and Content-Length alone. It runs in a
process of its own (`start`, `run_in_process`), never under the server's GIL, and talks to loopback
only.
"""

import asyncio
import multiprocessing
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from ipaddress import ip_address
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Self, cast

import uvloop

SECONDS_MAX = 600.0
CONNECTIONS_MAX = 1024
DRAIN_SECONDS_MAX = 15.0  # how long replies may still come in after the last request
RECONNECTS_IN_A_ROW_MAX = 3
HEAD_BYTES_MAX = 64 * 1024


class LoadError(Exception):
    """The load could not be generated as planned: a bad plan, or no server that answers."""


@dataclass(frozen=True)
class Plan:
    """What to send: `requests` in turn, until `count` were sent or `seconds` have passed.

    Without `rate_per_s` each connection sends its next request as soon as its reply is complete;
    with it requests fall due at that rate and their latency counts from when they were due.
    """

    port: int
    requests: tuple[bytes, ...]
    connections: int = 64
    count: int | None = None
    seconds: float | None = None
    rate_per_s: float | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            raise LoadError(f"refuses to load {self.host}: loopback only")
        if self.count is None and self.seconds is None:
            raise LoadError("a plan needs a bound: count or seconds")
        if not self.requests or not 1 <= self.connections <= CONNECTIONS_MAX:
            raise LoadError(f"a plan needs a request and 1 to {CONNECTIONS_MAX} connections")
        if self.seconds is not None and not 0 < self.seconds <= SECONDS_MAX:
            raise LoadError(f"seconds must be above 0 and at most {SECONDS_MAX:.0f}")
        if self.rate_per_s is not None and self.rate_per_s <= 0:
            raise LoadError("rate_per_s must be above 0")


@dataclass(frozen=True)
class Result:
    """What came back. `lost` requests were sent and never answered; they are in no other figure."""

    requests: int
    statuses: Counter[int]
    elapsed_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    lost: int
    client_cpu_s: float
    # The first body of each status, for whoever has to find out why.
    samples: dict[int, bytes] = field(repr=False)

    @property
    def requests_per_s(self) -> float:
        """Give the throughput over the whole run."""
        return self.requests / self.elapsed_s if self.elapsed_s else 0.0

    def require(self, *statuses: int) -> Self:
        """Return self; raise LoadError if anything was lost or answered with another status."""
        others = {status: n for status, n in self.statuses.items() if status not in statuses}
        if others or self.lost or not self.requests:
            seen = {status: self.samples[status][:300] for status in others}
            raise LoadError(f"{self.requests} answered, {self.lost} lost, unexpected: {seen}")
        return self


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine: a loopback address or localhost, no other name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def build_request(
    method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """Give the bytes of one request; `headers` adds to Host and Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body or method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


async def run(plan: Plan) -> Result:
    """Carry out `plan` on the running loop."""
    return await _Load(plan).run()


class LoadProcess:
    """A load that runs in a process of its own; `wait` gives its result."""

    def __init__(self, process: SpawnProcess, pipe: Connection, seconds_max: float) -> None:
        self._process = process
        self._pipe = pipe
        self._seconds_max = seconds_max

    def wait(self) -> Result:
        """Give the result; raise LoadError if the process failed or is long overdue."""
        try:
            if not self._pipe.poll(self._seconds_max):
                raise LoadError(f"the load did not end within {self._seconds_max:.0f} s")
            answer = self._pipe.recv()
        except EOFError:
            raise LoadError("the load process died") from None
        finally:
            self.stop()
        if isinstance(answer, Result):
            return answer
        raise LoadError(str(answer))

    def stop(self) -> None:
        """End the process, if it still runs."""
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()


def start(plan: Plan) -> LoadProcess:
    """Start `plan` in its own process and return at once."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    # Through the pipe, not as an argument: bodies of some 10 MB arrive this way without a copy of
    # the parent's main module having to unpickle them first.
    ours.send(plan)
    bound_s = SECONDS_MAX if plan.seconds is None else plan.seconds
    return LoadProcess(process, ours, bound_s + DRAIN_SECONDS_MAX + 30)


def run_in_process(plan: Plan) -> Result:
    """Carry out `plan` in its own process and give its result."""
    return start(plan).wait()


def _child(pipe: Connection) -> None:
    plan = pipe.recv()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            pipe.send(runner.run(run(plan)))
    except (LoadError, OSError) as error:
        pipe.send(f"{type(error).__name__}: {error}")


class _Load:
    """The state that the connections of one run share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.latencies_s = array("d")
        self.statuses: Counter[bytes] = Counter()
        self.samples: dict[bytes, bytes] = {}
        self.sent = 0
        self.open = 0
        self.lost = 0
        self.idle: deque[_Connection] = deque()
        self.connections: set[_Connection] = set()
        self.reconnecting: set[asyncio.Task[None]] = set()
        self.failure: LoadError | None = None
        self.done = asyncio.Event()
        self.started_s = self.ended_s = 0.0
        self.stop_sending_s = 0.0
        self.requests_left = plan.count if plan.count is not None else 1 << 62
        self.timer: asyncio.TimerHandle | None = None

    async def run(self) -> Result:
        seconds = SECONDS_MAX if self.plan.seconds is None else self.plan.seconds
        self.idle.extend([await self.connect() for _ in range(self.plan.connections)])
        cpu_s = time.process_time()
        self.started_s = self.ended_s = time.perf_counter()
        self.stop_sending_s = self.started_s + seconds
        self._start_sending()
        try:
            async with asyncio.timeout(seconds + DRAIN_SECONDS_MAX):
                await self.done.wait()
        except TimeoutError:
            self.lost += self.open
        finally:
            self._close()
        if self.failure is not None:
            raise self.failure
        return self._result(time.process_time() - cpu_s)

    async def connect(self) -> "_Connection":
        _, connection = await self.loop.create_connection(
            lambda: _Connection(self), self.plan.host, self.plan.port
        )
        self.connections.add(connection)
        return connection

    def next_request(self) -> bytes | None:
        """Give the next request, or None when the bound is reached."""
        if self.requests_left <= 0:
            return None
        self.requests_left -= 1
        request = self.plan.requests[self.sent % len(self.plan.requests)]
        self.sent += 1
        self.open += 1
        return request

    def answered(self, connection: "_Connection", now_s: float) -> None:
        """Let a connection whose reply is complete send its next request, if one is due."""
        self.open -= 1
        self.ended_s = now_s
        if now_s >= self.stop_sending_s:
            self.requests_left = 0
        rate = self.plan.rate_per_s
        due_s = now_s if rate is None else self.started_s + self.sent / rate
        if due_s <= now_s:
            self._send(connection, due_s)
        else:
            self.idle.append(connection)
            self._check_done()

    def connection_ended(self, connection: "_Connection", *, in_flight: bool) -> None:
        """Count what was lost and replace the connection: a server may close an idle one."""
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if in_flight:
            self.open -= 1
            self.lost += 1
        if self.done.is_set() or self._check_done():
            return
        task = self.loop.create_task(self._reconnect())
        self.reconnecting.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self.reconnecting.discard)

    def fail(self, reason: str) -> None:
        """End the run: what comes back is nothing that this client can read."""
        self.failure = LoadError(reason)
        self.done.set()

    def _start_sending(self) -> None:
        if self.plan.rate_per_s is not None:
            self._send_due()
            return
        for _ in range(len(self.idle)):
            self._send(self.idle.popleft(), time.perf_counter())

    def _send(self, connection: "_Connection", due_s: float) -> None:
        request = self.next_request()
        if request is None:
            self.idle.append(connection)
            self._check_done()
        else:
            connection.send(request, due_s)

    def _send_due(self) -> None:
        """Send what has fallen due on idle connections, then sleep until the next is.

        Where none is idle the next reply sends it (`answered`), late, and its latency shows that.
        """
        rate = cast("float", self.plan.rate_per_s)
        now_s = time.perf_counter()
        if now_s >= self.stop_sending_s:
            self.requests_left = 0
        if self.requests_left <= 0:
            self._check_done()
            return
        while self.idle and (due_s := self.started_s + self.sent / rate) <= now_s:
            self._send(self.idle.popleft(), due_s)
            if self.requests_left <= 0:
                return
        wait_s = self.started_s + self.sent / rate - now_s
        self.timer = self.loop.call_later(max(wait_s, 0.001), self._send_due)

    def _check_done(self) -> bool:
        if self.requests_left <= 0 and self.open == 0:
            self.done.set()
        return self.done.is_set()

    async def _reconnect(self) -> None:
        for attempt in range(RECONNECTS_IN_A_ROW_MAX):
            await asyncio.sleep(0.02 * attempt)
            try:
                connection = await self.connect()
            except OSError:
                continue
            if time.perf_counter() >= self.stop_sending_s:
                self.requests_left = 0
            if self.plan.rate_per_s is None:
                self._send(connection, time.perf_counter())
            else:
                self.idle.append(connection)
            return
        if not self.connections and self.failure is None:
            # The server is gone: what was answered until now is the result.
            self.requests_left = 0
            self._check_done()

    def _close(self) -> None:
        self.done.set()
        if self.timer is not None:
            self.timer.cancel()
        for connection in list(self.connections):
            connection.close()

    def _result(self, client_cpu_s: float) -> Result:
        ordered = sorted(self.latencies_s)
        return Result(
            requests=len(ordered),
            statuses=Counter({int(status): n for status, n in self.statuses.items()}),
            elapsed_s=self.ended_s - self.started_s,
            p50_ms=percentile(ordered, 0.50) * 1000,
            p95_ms=percentile(ordered, 0.95) * 1000,
            p99_ms=percentile(ordered, 0.99) * 1000,
            lost=self.lost,
            client_cpu_s=client_cpu_s,
            samples={int(status): body for status, body in self.samples.items()},
        )


def percentile(ordered: list[float], share: float) -> float:
    """Give the smallest value that at least `share` of the ordered values do not exceed."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * share // 1)
    return ordered[max(int(rank) - 1, 0)]


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    transport: asyncio.Transport

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._due_s = 0.0
        self._in_flight = False
        self._buffer = b""
        self._body_start = self._reply_end = 0  # of the reply in _buffer, once its head is there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, due_s: float) -> None:
        self._due_s = due_s
        self._in_flight = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        # The common case, the whole reply in one read, costs one find for the head's end and one
        # for its length; only longer replies are put together.
        self._buffer = self._buffer + data if self._buffer else data
        if not self._reply_end and not self._read_head():
            return
        if len(self._buffer) < self._reply_end:
            return
        now_s = time.perf_counter()
        load = self._load
        status = self._buffer[9:12]
        if status not in load.samples:
            load.samples[status] = self._buffer[self._body_start : self._reply_end]
        load.statuses[status] += 1
        load.latencies_s.append(now_s - self._due_s)
        self._buffer = b""
        self._reply_end = 0
        self._in_flight = False
        load.answered(self, now_s)

    def _read_head(self) -> bool:
        buffer = self._buffer
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            if len(buffer) > HEAD_BYTES_MAX:
                self._load.fail("a reply's head does not end")
            return False
        start = buffer.find(b"\r\ncontent-length: ", 0, head_end)
        if start < 0:
            start = buffer[:head_end].lower().find(b"\r\ncontent-length: ")
        if not buffer.startswith(b"HTTP/1.1 ") or start < 0:
            self._load.fail(f"not a reply with a length: {buffer[:head_end]!r}")
            return False
        line_end = buffer.find(b"\r\n", start + 2)
        self._body_start = head_end + 4
        self._reply_end = self._body_start + int(buffer[start + 18 : line_end])
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # a reset and a close are the same loss to a load
        self._load.connection_ended(self, in_flight=self._in_flight)

    def close(self) -> None:
        self._in_flight = False
        self.transport.abort()
