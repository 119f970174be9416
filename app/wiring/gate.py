"""What requests pass, and what notes in memory what they do."""

from functools import partial
from typing import TypedDict

from app.activity import uses
from app.activity.access import AccessLog
from app.activity.denials import DenialLog
from app.edge.accesses import Accesses
from app.edge.address import parse_networks
from app.edge.auth import Authenticator
from app.edge.denials import Denials
from app.edge.guard import Guard
from app.edge.limits import Failures, Limiter
from app.edge.local_limits import LocalFailures, LocalLimiter
from app.edge.shared_limits import SharedFailures, SharedLimiter
from app.edge.sightings import Sightings
from app.edge.signed import Signatures
from app.keys.keyring import Keyring
from app.protect.blocks import Blocks
from app.protect.countries import Countries
from app.protect.nonces import Nonces
from app.protect.signing_keys import SigningKeys
from app.protect.threats import BLOCK
from app.wiring.base import Base


class GateParts(TypedDict):
    """The members of Gate."""

    authenticator: Authenticator
    guard: Guard
    signatures: Signatures
    limiter: Limiter
    sightings: Sightings
    accesses: Accesses
    denials: Denials


async def open_gate(
    base: Base, keyring: Keyring, signing_keys: SigningKeys, countries: Countries | None
) -> GateParts:
    """Open what requests pass; what notes in memory what they do writes it by and by."""
    settings = base.settings
    limiter, failures = await _open_limits(base)
    authenticator = _open_authenticator(base, keyring, failures)
    refused = DenialLog(
        base.control,
        base.activity,
        base.seals_of(base.refusals.name),
        lambda: keyring.configured,
        settings.denials_kept_days,
    )
    parts = GateParts(
        authenticator=authenticator,
        guard=Guard(countries),
        signatures=_open_signatures(base, signing_keys),
        limiter=limiter,
        sightings=Sightings(partial(uses.record, base.activity)),
        accesses=Accesses(AccessLog(base.activity, settings.access_kept_days)),
        denials=Denials(authenticator, refused),
    )
    for one in (parts["sightings"], parts["accesses"], parts["denials"]):
        base.start(one)
    return parts


async def _open_limits(base: Base) -> tuple[Limiter, Failures]:
    """Open what counts against limits: this process, or all that share a storage for it."""
    settings = base.settings
    limiter, failures = LocalLimiter(), LocalFailures(settings.auth_failures_per_minute)
    if not settings.rate_limit_storage_url:
        return limiter, failures
    from app.edge.redis_windows import RedisWindows  # noqa: PLC0415  # of an extra

    shared = RedisWindows(settings.rate_limit_storage_url, settings.rate_limit_timeout_ms / 1000)
    await shared.start()
    base.stack.push_async_callback(shared.aclose)
    return SharedLimiter(shared, limiter), SharedFailures(shared, failures)


def _open_authenticator(base: Base, keyring: Keyring, failures: Failures) -> Authenticator:
    settings = base.settings
    if BLOCK in settings.alert_actions.values():
        failures = Blocks(base.activity, failures)
        base.start(failures)
    return Authenticator(
        keyring,
        require_api_key=settings.require_api_key,
        failures=failures,
        trusted_proxies=parse_networks(settings.trusted_proxies),
        proxy_header=settings.trusted_proxy_header,
    )


def _open_signatures(base: Base, keys: SigningKeys) -> Signatures:
    settings = base.settings
    signatures = Signatures(
        keys,
        Nonces(base.activity),
        age_s_max=settings.signature_age_s_max,
        sign_management=settings.sign_management,
        public_url=settings.public_url,
    )
    base.stack.callback(signatures.close)
    return signatures
