"""The wiring: settings in, a running service out. Nothing opens before the server starts it."""

import asyncio
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import structlog
from sqlalchemy import Engine

from app import journal
from app.activity import uses
from app.activity.database import open_activity
from app.activity.expiry import Expiry
from app.activity.presence import Presence
from app.api.app import create_control_app
from app.api.services import Services, open_reads, open_receipts
from app.api.writes import Writes
from app.edge.address import parse_networks
from app.edge.auth import Authenticator
from app.edge.body import Inflight
from app.edge.ingest import IngestEndpoint, Intake
from app.edge.limits import Limiter
from app.edge.prompt import PromptIngest
from app.edge.sightings import Sightings
from app.edge.singles import SINGLE_BYTES_MAX, Singles
from app.edge.switch import Edge
from app.edge.tally import Tally
from app.keys.bootstrap import FirstKeys, first_start, open_secrets, see_clients
from app.keys.configured import ConfiguredKeys
from app.keys.database import open_current
from app.keys.keyring import Keyring
from app.keys.keys_file import KeysFile
from app.keys.objects import RotationPolicy
from app.keys.principal import Limits
from app.keys.verifier import Peppers, hkdf_sha256
from app.logs.decode import DecodeLimits
from app.logs.place import Places
from app.logs.query import Cursors
from app.logs.tail import Tails
from app.settings import BadSetting, Settings, load_settings
from app.storage.open import open_store

# How long a thread may hold up the event loop at a time; Python's own 5 ms is ten requests' worth.
SWITCH_S = 0.0005

_Opened = tuple[Services, IngestEndpoint, PromptIngest]

log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> Edge:
    """Build the ASGI application; its lifespan opens and closes everything behind it."""
    control = create_control_app(
        metrics_public=settings.metrics_public,
        management_requests_per_minute=settings.management_requests_per_minute,
    )

    @asynccontextmanager
    async def lifespan(edge: Edge) -> AsyncIterator[None]:
        journal.set_up(settings.log_level)
        _end_with_parent()
        sys.setswitchinterval(SWITCH_S)
        async with AsyncExitStack() as stack:
            services, edge.ingest, edge.prompt = await _open(settings, stack)
            control.state.services = services
            stack.enter_context(_on_stop(services.tails.stop))
            _settle_garbage()
            yield

    return Edge(control, lifespan)


async def _open(settings: Settings, stack: AsyncExitStack) -> _Opened:
    """Open both planes; `stack` closes them in the opposite order."""
    secrets = open_secrets(settings.data_dir, settings.secret_key)
    peppers = Peppers(secrets)
    engine = open_current(settings.database_url, settings.data_dir)
    stack.callback(engine.dispose)
    reads, writes, receipts = open_reads(), Writes(), open_receipts()
    for pool in (reads, writes, receipts):
        stack.callback(pool.close)
    activity = open_activity(engine)
    stack.callback(activity.dispose)
    keyring = _open_keys(settings, peppers, engine, stack)
    keyring.start()
    store = await open_store(settings.log_store_url, settings.data_dir, settings.dedup_window_days)
    stack.push_async_callback(store.aclose)
    tally = Tally(store)
    tally.start()
    stack.push_async_callback(tally.aclose)
    expiry = Expiry(engine, store)
    expiry.start()
    stack.push_async_callback(expiry.aclose)
    sightings = Sightings(partial(uses.record, activity))
    sightings.start()
    stack.push_async_callback(sightings.aclose)
    presence = Presence(engine, activity, keyring)
    await presence.start()
    stack.push_async_callback(presence.aclose)
    authenticator = Authenticator(
        keyring,
        require_api_key=settings.require_api_key,
        failures_per_minute=settings.auth_failures_per_minute,
        trusted_proxies=parse_networks(settings.trusted_proxies),
    )
    limiter = Limiter()
    cursor_secret = hkdf_sha256(secrets[0].encode(), b"cursors", 32)
    tails = Tails(store, Places(cursor_secret))
    stack.push_async_callback(tails.aclose)
    intake = Intake(
        authenticator=authenticator,
        limiter=limiter,
        sightings=sightings,
        inflight=Inflight(settings.max_inflight_bytes),
        singles=Singles(store, authenticator),
        single_bytes_max=min(SINGLE_BYTES_MAX, settings.max_record_bytes),
    )
    ingest = IngestEndpoint(
        intake,
        store=store,
        tally=tally,
        decode_limits=DecodeLimits(settings.max_record_bytes, settings.max_batch_records),
        body_bytes_max=settings.max_body_bytes,
    )
    services = Services(
        authenticator=authenticator,
        limiter=limiter,
        tally=tally,
        sightings=sightings,
        store=store,
        cursors=Cursors(cursor_secret),
        tails=tails,
        engine=engine,
        reads=reads,
        writes=writes,
        receipts=receipts,
        activity=activity,
        peppers=peppers,
        key_hasher=settings.key_hasher,
        rotation_policy=RotationPolicy(settings.rotation_days_live, settings.rotation_days_test),
    )
    return services, ingest, PromptIngest(intake)


def _open_keys(
    settings: Settings, peppers: Peppers, engine: Engine, stack: AsyncExitStack
) -> Keyring:
    """Open what says who a key is; on the very first start, make the first keys and show them."""
    keys_file = KeysFile(settings.api_keys_file) if settings.api_keys_file else None
    configured = ConfiguredKeys(
        peppers,
        settings.api_keys,
        settings.api_key_admin,
        settings.api_key_default,
        settings.key_hasher,
        file=None if keys_file is None else keys_file.read(),
    )
    first = first_start(
        engine,
        peppers,
        configured,
        embedded=settings.embedded,
        initial_admin_key=settings.initial_admin_key,
        require_api_key=settings.require_api_key,
        key_hasher=settings.key_hasher,
    )
    if first is not None:
        _show(first, settings)
    defaults = Limits(
        settings.default_requests_per_minute,
        settings.default_logs_per_minute,
        settings.default_bytes_per_minute,
    )
    keyring = Keyring(engine, peppers, defaults, configured)
    stack.callback(keyring.close)
    if keys_file is not None:
        keys_file.follow(configured, keyring.reconfigure, partial(see_clients, engine))
        stack.push_async_callback(keys_file.aclose)
    return keyring


def _end_with_parent() -> None:
    """Have a worker stop as if asked to when its supervisor is killed: nobody else would ask it.

    It would serve on without the lock of the data directory, and keep the port.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        loop = asyncio.get_running_loop()
        loop.add_reader(parent.sentinel, _end, parent.sentinel)


@contextmanager
def _on_stop(end_streams: Callable[[], None]) -> Iterator[None]:
    """End what never ends by itself as soon as the server is asked to stop.

    The server waits for its connections first, and tells the application only after that.
    """
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def on_signal(server: Any, number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end_streams)
        if callable(server):
            server(number, frame)

    servers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, server in servers.items():
        if callable(server):
            signal.signal(number, partial(on_signal, server))
    try:
        yield
    finally:
        for number, server in servers.items():
            if callable(server):
                signal.signal(number, server)


def _end(sentinel: int) -> None:
    asyncio.get_running_loop().remove_reader(sentinel)
    os.kill(os.getpid(), signal.SIGTERM)


def _settle_garbage() -> None:
    """Spare the collector what lives as long as the process, and requests most of its visits.

    A request's own objects are freed by their counts; looking for cycles among them took 5 % of
    its time. A key that is new leaves 40 objects behind; a visit to 50,000 took 11 to 22 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 50)


def _show(first: FirstKeys, settings: Settings) -> None:
    """Print the first keys, this once; they are stored nowhere."""
    url = settings.reachable_url
    print(  # noqa: T201
        f"""
First start: these keys are shown once and stored nowhere. Keep them.

  admin key:               {first.admin_key}
  key of client `{first.client_id}`:    {first.client_key}

Send a log:

curl -sS {url}/api/v1/logs -H 'X-API-Key: {first.client_key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"environment":"production","executed_at":"2026-01-01T00:00:00Z","status":"SUCCESS"}}'

Read it back:

curl -sS {url}/api/v1/logs -H 'X-API-Key: {first.client_key}'
""",
        flush=True,
    )


def __getattr__(name: str) -> Any:
    """Build `app` when a server asks for it, so that importing this module reads no settings."""
    if name == "app":
        try:
            return create_app(load_settings())
        except BadSetting as error:
            raise SystemExit(f"central-logger: {error}") from None
    raise AttributeError(name)
