"""What may be known, and noted, of a credential that was refused: its shape, never its text. Pure.

Looked for on the way of a refusal alone.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from app.keys.token import (
    BODY_LENGTH,
    ENVIRONMENTS,
    PREFIX_ADMIN,
    TOKEN_LENGTH_MAX,
    MalformedToken,
    parse,
)

NONE = "no_key"
NOT_UNDERSTOOD = "authorization_not_understood"
TWO = "two_keys_that_differ"
NOT_ASCII = "not_ascii"
TOO_LONG = "too_long"
MALFORMED = "malformed"
TRUNCATED = "truncated"
SHOWN_FORM = "shown_form"
FOREIGN = "not_our_form"
WELL_FORMED = "well_formed"

_PREFIXES = {f"{prefix}_": name for name, prefix in ENVIRONMENTS.items()}
_PREFIXES[f"{PREFIX_ADMIN}_"] = "admin"


class Proofs(Collection[str]):
    """Texts that are made when one first looks at them: not before somebody has the time.

    `make` may know a secret. It is let go of then, and shown by nothing.
    """

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], frozenset[str]]) -> None:
        self._make: Callable[[], frozenset[str]] | None = make
        self._made: frozenset[str] = frozenset()

    def made(self) -> frozenset[str]:
        """Give them."""
        if self._make is not None:
            self._made, self._make = self._make(), None
        return self._made

    def __contains__(self, text: object) -> bool:
        return text in self.made()

    def __iter__(self) -> Iterator[str]:
        return iter(self.made())

    def __len__(self) -> int:
        return len(self.made())


class Presented(NamedTuple):
    """A credential as it may be noted.

    `key_id` is the public id of a well-formed key, which only its verifier could confirm;
    `environment` what the prefix says. `proofs` are what the verifier of this very key would be,
    one for each secret of the server, and its lookup tags: to be compared, and not to be stored.
    """

    shape: str
    key_id: str | None = None
    environment: str | None = None
    proofs: Collection[str] = frozenset()


def shape_of(token: str) -> Presented:
    """Say what a text that was sent as a key looks like."""
    if not token.isascii():
        return Presented(NOT_ASCII)
    environment = next((name for text, name in _PREFIXES.items() if token.startswith(text)), None)
    key_id = None
    try:
        parsed = parse(token)
    except MalformedToken:
        shape = MALFORMED
    else:
        key_id = None if parsed is None else parsed.key_id
        shape = WELL_FORMED if parsed else _shape_of_foreign(token, is_ours=environment is not None)
    if len(token) > TOKEN_LENGTH_MAX:  # refused before it was looked at
        shape, key_id = TOO_LONG, None
    return Presented(shape, key_id, environment)


def _shape_of_foreign(token: str, *, is_ours: bool) -> str:
    if not is_ours:
        return FOREIGN
    body = token.rpartition("_")[2]
    if body.endswith("***"):
        return SHOWN_FORM
    if len(body) == BODY_LENGTH:  # of characters that no key of ours has
        return MALFORMED
    return TRUNCATED if len(body) < BODY_LENGTH else TOO_LONG
