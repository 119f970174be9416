"""How hard a key is to guess, and which verifier it gets for that. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from app.keys.token import MalformedToken, parse
from app.keys.verifier import Peppers

# What NIST SP 800-131A asks of a secret; a key with less must be slow to guess.
STRENGTH_BITS_MIN = 112


def make_verifier(peppers: Peppers, token: str, key_hasher: str) -> tuple[str, str | None]:
    """Make the verifier of a new key, and its lookup tag if it needs one."""
    if needs_argon2(token, key_hasher):
        return peppers.make_argon2id(token), peppers.lookup_tag(token)
    return peppers.make_keyed(token), None


def needs_argon2(token: str, key_hasher: str) -> bool:
    """Say whether a key gets argon2id: a weak one does, whatever `key_hasher` says."""
    return key_hasher == "argon2id" or is_weak(token)


def is_weak(token: str) -> bool:
    """Say whether a key may be guessable: not of our format, or of fewer than 112 bits."""
    try:
        parsed = parse(token)
    except MalformedToken:
        return True
    return parsed is None or strength_bits(parsed.secret) < STRENGTH_BITS_MIN


def strength_bits(text: str) -> float:
    """Estimate the bits in a text from below, by what can be seen in it.

    Each place where the text does something new (no three characters are repeated there) counts
    with the entropy of its characters or of the steps between neighbours, whichever is lower: so
    `aaaa`, `abcd` and `abcabc` come to almost nothing, and 43 random base62 characters, which hold
    256 bits, to about 200 (the least of 60,000 made here: 173). It cannot see words or dates, nor
    a generator that was not random.
    """
    steps = [ord(b) - ord(a) for a, b in pairwise(text)]
    places = len({text[at : at + 3] for at in range(len(text) - 2)})
    return places * min(_entropy(text), _entropy(steps))


def _entropy(values: Sequence[object]) -> float:
    counts = Counter(values).values()
    return -sum(n / len(values) * math.log2(n / len(values)) for n in counts)
