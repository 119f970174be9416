"""Who a key is, and what it signs with."""

from functools import partial

import structlog

from app.first_keys import show
from app.keys.bootstrap import by_settings, check_secrets, first_start, see_clients
from app.keys.configured import ConfiguredKeys
from app.keys.keyring import Keyring
from app.keys.keys_file import KeysFile
from app.keys.principal import Limits
from app.keys.verifier import Peppers
from app.protect.signing_keys import SigningKeys
from app.wiring.base import Base

log = structlog.get_logger(__name__)


def open_keys(base: Base, peppers: Peppers) -> Keyring:
    """Open what says who a key is; on the very first start, make the first keys and show them."""
    settings, engine = base.settings, base.control
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
        seals=base.seals,
        embedded=settings.embedded,
        initial_admin_key=settings.initial_admin_key,
        require_api_key=settings.require_api_key,
        key_hasher=settings.key_hasher,
        show=partial(show, url=settings.reachable_url),
    )
    defaults = Limits(
        settings.default_requests_per_minute,
        settings.default_logs_per_minute,
        settings.default_bytes_per_minute,
    )
    keyring = Keyring(engine, peppers, defaults, configured)
    base.stack.callback(keyring.close)
    if keys_file is not None:
        see = partial(see_clients, engine, by=by_settings(base.seals))
        keys_file.follow(configured, keyring.reconfigure, see)
        base.stack.push_async_callback(keys_file.aclose)
    return keyring


def open_signing_keys(base: Base) -> SigningKeys:
    """Open what requests are signed with; seal anew what a former SECRET_KEY sealed."""
    keys = SigningKeys(base.secrets)
    if count := keys.reseal_all(base.control):
        log.info("signing secrets are sealed under the new SECRET_KEY", keys=count)
    return keys
