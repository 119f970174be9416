"""The two planes: the hot path of logs, and what the routes stand on."""

from typing import NamedTuple

from app.activity.expiry import Expiry
from app.api.reads import Reads, UseReads
from app.api.services import Services, open_receipts
from app.api.writes import Writes
from app.edge.body import Inflight
from app.edge.ingest import IngestEndpoint, Intake
from app.edge.local_limits import LocalLimiter
from app.edge.prompt import PromptIngest
from app.edge.singles import SINGLE_BYTES_MAX, Singles
from app.edge.tally import Tally
from app.keys.objects import RotationPolicy
from app.keys.verifier import Peppers, hkdf_sha256
from app.logs.decode import DecodeLimits
from app.logs.place import Places
from app.logs.query import Cursors
from app.logs.store import LogStore
from app.logs.tail import Tails
from app.pool import BoundedPool
from app.protect.findings import Findings
from app.protect.signing_keys import SigningKeys
from app.storage.open import open_store
from app.wiring.base import Base
from app.wiring.gate import GateParts


class Pools(NamedTuple):
    """The threads of the routes, named as in Services."""

    reads: Reads
    use_reads: UseReads
    writes: Writes
    receipts: BoundedPool


class Logs(NamedTuple):
    """Where logs are, and what counts the requests that brought none."""

    store: LogStore
    tally: Tally


def open_pools(base: Base) -> Pools:
    """Open the threads of the routes."""
    pools = Pools(Reads(), UseReads(), Writes(), open_receipts())
    for pool in pools:
        base.stack.callback(pool.close)
    return pools


async def open_logs(base: Base) -> Logs:
    """Open the store, and begin what lets go of old logs."""
    settings = base.settings
    store = await open_store(settings.log_store_url, settings.data_dir, settings.dedup_window_days)
    base.stack.push_async_callback(store.aclose)
    tally = Tally(store)
    base.start(tally)
    base.start(Expiry(base.control, store))
    return Logs(store, tally)


def open_ingest(
    base: Base, gate: GateParts, logs: Logs, findings: Findings
) -> tuple[IngestEndpoint, PromptIngest | None]:
    """Open the hot path."""
    settings = base.settings
    intake = Intake(
        **gate,
        inflight=Inflight(settings.max_inflight_bytes, settings.body_timeout_s),
        singles=Singles(logs.store, gate["authenticator"]),
        findings=findings,
        single_bytes_max=min(SINGLE_BYTES_MAX, settings.max_record_bytes),
    )
    ingest = IngestEndpoint(
        intake,
        store=logs.store,
        tally=logs.tally,
        decode_limits=DecodeLimits(settings.max_record_bytes, settings.max_batch_records),
        body_bytes_max=settings.max_body_bytes,
    )
    # What others use too can't be seen at a glance.
    prompt = PromptIngest(intake) if isinstance(gate["limiter"], LocalLimiter) else None
    return ingest, prompt


def open_services(  # noqa: PLR0913, PLR0917  # all that the routes stand on
    base: Base,
    peppers: Peppers,
    pools: Pools,
    gate: GateParts,
    signing_keys: SigningKeys,
    logs: Logs,
) -> Services:
    """Open what the routes stand on."""
    settings = base.settings
    secret = hkdf_sha256(base.secrets[0].encode(), b"cursors", 32)
    tails = Tails(logs.store, Places(secret))
    base.stack.push_async_callback(tails.aclose)
    return Services(
        **gate,
        signing_keys=signing_keys,
        tally=logs.tally,
        store=logs.store,
        cursors=Cursors(secret),
        tails=tails,
        engine=base.control,
        seals=base.seals,
        books=base.books,
        reads=pools.reads,
        use_reads=pools.use_reads,
        writes=pools.writes,
        receipts=pools.receipts,
        activity=base.activity,
        peppers=peppers,
        key_hasher=settings.key_hasher,
        keys_per_client_max=settings.keys_per_client_max,
        rotation_policy=RotationPolicy(settings.rotation_days_live, settings.rotation_days_test),
    )
