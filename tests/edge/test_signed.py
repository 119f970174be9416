"""Signed requests held to being let in once, whatever the settings become."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from app.activity.database import open_activity
from app.edge.signed import Signatures
from app.errors import InvalidSignature
from app.keys.principal import UNLIMITED, Principal
from app.keys.signing import HMAC_SHA256, Signing
from app.protect.nonces import Nonces
from app.protect.signatures import AGE_S_BOUND
from app.protect.signing_keys import SigningKeys
from tests.signing import Headers, Signer
from tests.support import LOGS

KEYS = SigningKeys(["a secret of the server"])
MADE = KEYS.new_secret()
SIGNER = Signer(MADE.secret or "")
CALLER = Principal(
    id="0",
    key_id="k",
    client_id="acme",
    role="client",
    scopes=frozenset(),
    allowed_datasets=None,
    is_admin=False,
    key_limits=UNLIMITED,
    client_limits=UNLIMITED,
    expires_at_s=None,
    name="",
    signing=Signing(HMAC_SHA256, MADE.stored, is_required=True),
)


@pytest.fixture
def activity(engine: Engine) -> Iterator[Engine]:
    """Give a database for nonces."""
    activity = open_activity(engine)
    yield activity
    activity.dispose()


def take(activity: Engine, headers: Headers, *, ago_s: int = 0, age_s_max: int = 300) -> None:
    """Take a request, as a worker does that was started so long ago."""
    scope = {
        "method": "GET",
        "scheme": "http",
        "path": LOGS,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def scenario() -> None:
        signed = signatures.check(CALLER, scope)
        assert signed is not None
        await signatures.confirm(signed, b"")

    signatures = Signatures(
        KEYS, Nonces(activity), age_s_max=age_s_max, clock=lambda: time.time() - ago_s
    )
    try:
        asyncio.run(scenario())
    finally:
        signatures.close()


def test_a_longer_age_makes_nothing_good_again(activity: Engine) -> None:
    """What was let in once is refused after a start with the longest SIGNATURE_AGE_S_MAX."""
    ago_s = AGE_S_BOUND - 120
    headers = SIGNER.request("GET", LOGS, age_s=ago_s)
    take(activity, headers, ago_s=ago_s)
    with pytest.raises(InvalidSignature) as refused:
        take(activity, headers, age_s_max=AGE_S_BOUND)
    assert refused.value.cause == "its nonce was used before"
    take(activity, SIGNER.request("GET", LOGS, age_s=ago_s), age_s_max=AGE_S_BOUND)


def test_two_signatures_are_good_once_together(activity: Engine) -> None:
    """Of a request that was let in with two signatures, neither lets it in by itself."""
    first, second = (SIGNER.request("GET", LOGS, label=label) for label in ("a", "b"))
    both = {name: f"{value}, {second[name]}" for name, value in first.items()}
    take(activity, both)
    for again in (first, second, both):
        with pytest.raises(InvalidSignature) as refused:
            take(activity, again)
        assert refused.value.cause == "its nonce was used before"
    # Nor is one good again that came beside one which was let in alone.
    third, fourth = (SIGNER.request("GET", LOGS, label=label) for label in ("a", "b"))
    take(activity, third)
    for again in ({name: f"{value}, {fourth[name]}" for name, value in third.items()}, fourth):
        with pytest.raises(InvalidSignature):
            take(activity, again)
