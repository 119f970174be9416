"""What the audit is sealed and signed with, derived from the server's secrets."""

from collections.abc import Sequence

from app.audit.chain import CONTROL, ChainKey, ChainKeys
from app.audit.checkpoints import SEED_BYTES, Signer
from app.keys.verifier import hkdf_sha256

_KEY_BYTES = 32
_ID_BYTES = 4


def chain_keys(secrets: Sequence[str], book: str = CONTROL) -> ChainKeys:
    """Give what seals the chains of a book: the present secret, and those before it to check."""
    return ChainKeys([_chain_key(secret.encode()) for secret in secrets], book)


def signers(secrets: Sequence[str]) -> list[Signer]:
    """Give who signs checkpoints, the present one first."""
    label = b"central-logger audit checkpoints"
    return [Signer(hkdf_sha256(secret.encode(), label, SEED_BYTES)) for secret in secrets]


def _chain_key(secret: bytes) -> ChainKey:
    # The id stands beside each seal, so it comes from the secret under a label of its own.
    return ChainKey(
        secret_id=hkdf_sha256(secret, b"central-logger audit id", _ID_BYTES).hex(),
        key=hkdf_sha256(secret, b"central-logger audit", _KEY_BYTES),
    )
