"""The wiring: settings in, a running service out. Nothing opens before the server starts it."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from functools import partial
from typing import Any, Protocol, TypedDict

import structlog
from sqlalchemy import Engine

from app import journal, process
from app.activity import uses
from app.activity.access import AccessLog
from app.activity.database import open_activity
from app.activity.denials import DenialLog
from app.activity.expiry import Expiry
from app.activity.notary import Notary, begin, books_of
from app.activity.presence import Presence
from app.api.app import create_control_app
from app.api.reads import Reads, UseReads
from app.api.services import Services, open_receipts
from app.api.writes import Writes
from app.audit.book import Book
from app.audit.chain import ChainKeys
from app.delivery.smtp import parse_mailbox
from app.edge import metrics
from app.edge.accesses import Accesses
from app.edge.address import parse_networks
from app.edge.auth import Authenticator
from app.edge.body import Inflight
from app.edge.denials import Denials
from app.edge.guard import Guard
from app.edge.hardening import Bounds, Cors
from app.edge.ingest import IngestEndpoint, Intake
from app.edge.limits import Failures, Limiter
from app.edge.local_limits import LocalFailures, LocalLimiter
from app.edge.prompt import PromptIngest
from app.edge.shared_limits import SharedFailures, SharedLimiter
from app.edge.sightings import Sightings
from app.edge.signed import Signatures
from app.edge.singles import SINGLE_BYTES_MAX, Singles
from app.edge.switch import Edge
from app.edge.tally import Tally
from app.keys.bootstrap import (
    FirstKeys,
    by_settings,
    check_secrets,
    first_start,
    open_secrets,
    see_clients,
)
from app.keys.changes import Author
from app.keys.configured import ConfiguredKeys
from app.keys.database import StartRefused, open_current
from app.keys.keyring import Keyring
from app.keys.keys_file import KeysFile
from app.keys.lifecycle import quarantine_key
from app.keys.objects import RotationPolicy
from app.keys.principal import Limits
from app.keys.sealing import chain_keys, signers
from app.keys.verifier import Peppers, hkdf_sha256
from app.logs.decode import DecodeLimits
from app.logs.place import Places
from app.logs.query import Cursors
from app.logs.tail import Tails
from app.pool import BoundedPool
from app.protect.alerts import AlertLog, Policy
from app.protect.blocks import Blocks
from app.protect.countries import Countries
from app.protect.deliveries import Recipient
from app.protect.detector import Detector
from app.protect.evidence import Sources
from app.protect.findings import Findings
from app.protect.messenger import Channel, MailChannel, Messenger
from app.protect.nonces import Nonces
from app.protect.signing_keys import SigningKeys
from app.protect.threats import BLOCK, Thresholds
from app.protect.webhook import Webhook
from app.settings import BadSetting, Settings, load_settings
from app.storage.open import open_store

_Opened = tuple[Services, IngestEndpoint, PromptIngest | None]

log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> Edge:
    """Build the ASGI application; its lifespan opens and closes everything behind it."""
    control = create_control_app(
        metrics_public=settings.metrics_public,
        management_requests_per_minute=settings.management_requests_per_minute,
        docs_enabled=settings.docs_enabled,
    )

    @asynccontextmanager
    async def lifespan(edge: Edge) -> AsyncIterator[None]:
        journal.set_up(settings.log_level)
        process.end_with_parent()
        process.share_the_interpreter()
        async with AsyncExitStack() as stack:
            services, edge.ingest, edge.prompt = await _open(settings, stack)
            control.state.services = services
            stack.enter_context(process.on_stop(services.tails.stop))
            process.settle_garbage()
            yield

    trusted = parse_networks(settings.trusted_proxies)
    bounds = Bounds(
        settings.head_timeout_s,
        settings.connections_per_address,
        trusted,
        settings.unread_timeout_s,
        settings.max_unread_bytes,
    )
    cors = Cors(settings.cors_origins) if settings.cors_origins else None
    return Edge(control, lifespan, bounds=bounds, cors=cors)


async def _open(settings: Settings, stack: AsyncExitStack) -> _Opened:
    """Open both planes; `stack` closes them in the opposite order."""
    secrets = open_secrets(settings.data_dir, settings.secret_key)
    peppers = Peppers(secrets)
    engine = open_current(settings.database_url, settings.data_dir)
    stack.callback(engine.dispose)
    pools = _open_pools(stack)
    activity = open_activity(engine)
    stack.callback(activity.dispose)
    books, seals = books_of(engine, activity), chain_keys(secrets)
    keyring = _open_keys(settings, peppers, engine, seals, stack)
    begin(books, partial(chain_keys, secrets))
    keyring.start()
    _start(Notary(books, signers(secrets)[0], settings.data_dir), stack)
    store = await open_store(settings.log_store_url, settings.data_dir, settings.dedup_window_days)
    stack.push_async_callback(store.aclose)
    tally = Tally(store)
    _start(tally, stack)
    _start(Expiry(engine, store), stack)
    await _enter(Presence(engine, activity, keyring), stack)
    signing_keys = _open_signing_keys(secrets, engine)
    countries = _open_countries(settings, stack)
    opened = (keyring, signing_keys, countries)
    gate = await _open_gate(settings, books, secrets, opened, stack)
    _start(_open_detector(settings, books, secrets, keyring, countries), stack)
    cursor_secret = hkdf_sha256(secrets[0].encode(), b"cursors", 32)
    tails = Tails(store, Places(cursor_secret))
    stack.push_async_callback(tails.aclose)
    intake = Intake(
        **gate,
        inflight=Inflight(settings.max_inflight_bytes, settings.body_timeout_s),
        singles=Singles(store, gate["authenticator"]),
        findings=_open_findings(settings, keyring, engine, seals, stack),
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
        **gate,
        signing_keys=signing_keys,
        tally=tally,
        store=store,
        cursors=Cursors(cursor_secret),
        tails=tails,
        engine=engine,
        seals=seals,
        books=books,
        **pools,
        activity=activity,
        peppers=peppers,
        key_hasher=settings.key_hasher,
        keys_per_client_max=settings.keys_per_client_max,
        rotation_policy=RotationPolicy(settings.rotation_days_live, settings.rotation_days_test),
    )
    return services, ingest, _open_prompt(intake)


class _Pools(TypedDict):
    """Where routes wait for the control database."""

    reads: Reads
    use_reads: UseReads
    writes: Writes
    receipts: BoundedPool


def _open_pools(stack: AsyncExitStack) -> _Pools:
    pools = _Pools(reads=Reads(), use_reads=UseReads(), writes=Writes(), receipts=open_receipts())
    for pool in (pools["reads"], pools["use_reads"], pools["writes"], pools["receipts"]):
        stack.callback(pool.close)
    return pools


class _Background(Protocol):
    """What goes on by itself between these two."""

    @property
    def start(self) -> Callable[[], None]:
        """Begin."""

    @property
    def aclose(self) -> Callable[[], Awaitable[None]]:
        """Stop."""


async def _enter(presence: Presence, stack: AsyncExitStack) -> None:
    await presence.start()
    stack.push_async_callback(presence.aclose)


def _start(one: _Background, stack: AsyncExitStack) -> None:
    one.start()
    stack.push_async_callback(one.aclose)


class _GateParts(TypedDict):
    """The members of Gate."""

    authenticator: Authenticator
    guard: Guard
    signatures: Signatures
    limiter: Limiter
    sightings: Sightings
    accesses: Accesses
    denials: Denials


async def _open_gate(
    settings: Settings,
    books: Sequence[Book],
    secrets: Sequence[str],
    opened: tuple[Keyring, SigningKeys, Countries | None],
    stack: AsyncExitStack,
) -> _GateParts:
    """Open what requests pass; what notes in memory what they do writes it by and by."""
    keyring, signing_keys, countries = opened
    limiter, failures = await _open_limits(settings, stack)
    activity = books[-1]
    authenticator = _open_authenticator(settings, keyring, failures, activity.engine, stack)
    refused = DenialLog(
        books[0].engine,
        activity.engine,
        chain_keys(secrets, activity.name),
        lambda: keyring.configured,
        settings.denials_kept_days,
    )
    parts = _GateParts(
        authenticator=authenticator,
        guard=Guard(countries),
        signatures=_open_signatures(settings, signing_keys, activity.engine, stack),
        limiter=limiter,
        sightings=Sightings(partial(uses.record, activity.engine)),
        accesses=Accesses(AccessLog(activity.engine, settings.access_kept_days)),
        denials=Denials(authenticator, refused),
    )
    for one in (parts["sightings"], parts["accesses"], parts["denials"]):
        _start(one, stack)
    return parts


def _open_signing_keys(secrets: Sequence[str], engine: Engine) -> SigningKeys:
    keys = SigningKeys(secrets)
    if count := keys.reseal_all(engine):
        log.info("signing secrets are sealed under the new SECRET_KEY", keys=count)
    return keys


def _open_signatures(
    settings: Settings, keys: SigningKeys, activity: Engine, stack: AsyncExitStack
) -> Signatures:
    signatures = Signatures(
        keys,
        Nonces(activity),
        age_s_max=settings.signature_age_s_max,
        sign_management=settings.sign_management,
        public_url=settings.public_url,
    )
    stack.callback(signatures.close)
    return signatures


def _open_prompt(intake: Intake) -> PromptIngest | None:
    # What others use too can't be seen at a glance.
    return PromptIngest(intake) if isinstance(intake.limiter, LocalLimiter) else None


async def _open_limits(settings: Settings, stack: AsyncExitStack) -> tuple[Limiter, Failures]:
    """Open what counts against limits: this process, or all that share a storage for it."""
    limiter, failures = LocalLimiter(), LocalFailures(settings.auth_failures_per_minute)
    if not settings.rate_limit_storage_url:
        return limiter, failures
    from app.edge.redis_windows import RedisWindows  # noqa: PLC0415  # of an extra

    shared = RedisWindows(settings.rate_limit_storage_url, settings.rate_limit_timeout_ms / 1000)
    await shared.start()
    stack.push_async_callback(shared.aclose)
    return SharedLimiter(shared, limiter), SharedFailures(shared, failures)


def _open_authenticator(
    settings: Settings,
    keyring: Keyring,
    failures: Failures,
    activity: Engine,
    stack: AsyncExitStack,
) -> Authenticator:
    if BLOCK in settings.alert_actions.values():
        failures = Blocks(activity, failures)
        _start(failures, stack)
    return Authenticator(
        keyring,
        require_api_key=settings.require_api_key,
        failures=failures,
        trusted_proxies=parse_networks(settings.trusted_proxies),
        proxy_header=settings.trusted_proxy_header,
    )


def _open_detector(
    settings: Settings,
    books: Sequence[Book],
    secrets: Sequence[str],
    keyring: Keyring,
    countries: Countries | None,
) -> Detector:
    sources = Sources(
        books[0].engine,
        books[-1].engine,
        settings.access_kept_days,
        lambda: keyring.configured.keys,
        None if countries is None else countries.country,
    )
    by = Author(chain_keys(secrets), "detector")
    channels: list[Channel] = []
    if settings.alert_webhook_url:
        channels.append(Webhook(settings.alert_webhook_url, secrets[0]))
    if settings.alert_mail_to:
        to = [parse_mailbox(one) for one in settings.alert_mail_to]
        sender = parse_mailbox(settings.mail_from)
        channels.append(MailChannel(settings.smtp_url, sender, to, settings.smtp_timeout_s))
    policy = Policy(
        settings.alert_actions,
        settings.alert_block_minutes,
        settings.alert_quiet_minutes,
        settings.alerts_kept_days,
        [Recipient(one.name, reader) for one in channels for reader in one.readers],
    )
    thresholds = {one.name: getattr(settings, f"alert_{one.name}") for one in fields(Thresholds)}
    return Detector(
        sources,
        Thresholds(**thresholds),
        AlertLog(sources.activity, policy, partial(quarantine_key, sources.control, by=by)),
        Messenger(sources.activity, channels),
        directory=settings.data_dir,
        lost=metrics.evidence_lost.inc,
    )


def _open_findings(
    settings: Settings, keyring: Keyring, engine: Engine, seals: ChainKeys, stack: AsyncExitStack
) -> Findings:
    stop = partial(quarantine_key, engine, by=Author(seals, "self-scan"))
    findings = Findings(
        keyring.resolve,
        found=lambda key_id, sender: log.warning("leaked key", key_id=key_id, sender=sender),
        quarantine=stop if settings.self_scan_action == "quarantine" else None,
    )
    stack.push_async_callback(findings.aclose)
    return findings


def _open_countries(settings: Settings, stack: AsyncExitStack) -> Countries | None:
    if not settings.geoip_database:
        return None
    countries = Countries(settings.geoip_database)
    _start(countries, stack)
    return countries


def _open_keys(
    settings: Settings,
    peppers: Peppers,
    engine: Engine,
    seals: ChainKeys,
    stack: AsyncExitStack,
) -> Keyring:
    """Open what says who a key is; on the very first start, make the first keys and show them."""
    check_secrets(engine, peppers)
    keys_file = KeysFile(settings.api_keys_file) if settings.api_keys_file else None
    configured = ConfiguredKeys(
        peppers,
        settings.api_keys,
        settings.api_key_admin,
        settings.api_key_default,
        settings.key_hasher,
        initial_admin_key=settings.initial_admin_key,
        file=None if keys_file is None else keys_file.read(),
    )
    first_start(
        engine,
        peppers,
        configured,
        seals=seals,
        embedded=settings.embedded,
        initial_admin_key=settings.initial_admin_key,
        require_api_key=settings.require_api_key,
        key_hasher=settings.key_hasher,
        show=partial(_show, settings=settings),
    )
    defaults = Limits(
        settings.default_requests_per_minute,
        settings.default_logs_per_minute,
        settings.default_bytes_per_minute,
    )
    keyring = Keyring(engine, peppers, defaults, configured)
    stack.callback(keyring.close)
    if keys_file is not None:
        see = partial(see_clients, engine, by=by_settings(seals))
        keys_file.follow(configured, keyring.reconfigure, see)
        stack.push_async_callback(keys_file.aclose)
    return keyring


def _show(first: FirstKeys, settings: Settings) -> None:
    """Print the first keys, this once; they are stored nowhere. StartRefused if that fails."""
    url = settings.reachable_url
    shown = f"""
First start: these keys are shown once and stored nowhere. Keep them.

  admin key:               {first.admin_key}
  key of client `{first.client_id}`:    {first.client_key}

Send a log:

curl -sS {url}/api/v1/logs -H 'X-API-Key: {first.client_key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"environment":"production","executed_at":"2026-01-01T00:00:00Z","status":"SUCCESS"}}'

Read it back:

curl -sS {url}/api/v1/logs -H 'X-API-Key: {first.client_key}'
"""
    fault = "it is closed" if sys.stdout is None else ""
    try:
        print(shown, flush=True)  # noqa: T201
    except OSError as error:
        fault = error.strerror or str(error)
    if fault:
        fault = f"the first keys could not be written to standard output: {fault}"
        # Where the log goes too, so that it is told elsewhere.
        print(f"central-logger: {fault}", file=sys.stderr)  # noqa: T201
        if sys.stdout is not None:
            # The keys are in its buffer still; a flush that fails at the end changes the status.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StartRefused(fault)


def __getattr__(name: str) -> Any:
    """Build `app` when a server asks for it, so that importing this module reads no settings."""
    if name == "app":
        try:
            return create_app(load_settings())
        except BadSetting as error:
            raise SystemExit(f"central-logger: {error}") from None
    raise AttributeError(name)
