"""What a sealed block is: rendered logs, compressed together, and the words in them. Pure.

A block holds up to BLOCK_LOGS neighbouring logs of one client as the very lines of JSON that a page
shows, so that reading is to unpack and to cut. 67 of 537 bytes are left of an average line, and
its words take 10 more (measured on realistic records; larger blocks save little and cost pages
that touch many).
"""

import zlib
from collections.abc import Iterable
from hashlib import blake2b

import zstandard

from app.logs.search import leaves, parse_exactly, words

BLOCK_BITS = 8
BLOCK_LOGS = 1 << BLOCK_BITS
# Of text in a block, but that one log is always let in.
BLOCK_BYTES_MAX = 1024**2
WORD_BYTES = 3
_LEVEL = 3


def pack(lines: str) -> bytes:
    """Compress rendered logs, joined by line breaks."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(lines.encode())


def unpack(packed: bytes) -> list[str]:
    """Give the rendered logs back."""
    return zstandard.ZstdDecompressor().decompress(packed).decode().split("\n")


def word_hash(word: str) -> bytes:
    """Give what stands for a word in a block's list: to be sought as a run of bytes.

    Found by chance in one of 5,000 blocks, which costs a look into it.
    """
    return (zlib.crc32(word.encode()) & 0xFFFFFF).to_bytes(WORD_BYTES, "little")


def pack_words(texts: Iterable[str], contents: Iterable[str]) -> bytes:
    """Give the list of all words of logs: their messages, and their errors and metadata as JSON.

    It holds names within the JSON as well, and `null`, which nobody seeks by `q`.
    """
    found: set[str] = set()
    for text in texts:
        found.update(words(text))
    for content in contents:
        found.update(words(content))
        if "\\" in content:  # and behind it a letter, perhaps
            for leaf in leaves(parse_exactly(content)):
                found.update(words(leaf))
    return b"".join(sorted(map(word_hash, found)))


def run_hash(run_id: str) -> int:
    """Give the 64-bit number that stands for a run's id among a client's sealed logs.

    A client that finds two ids of one number, after some 2^32 tries, confuses its own two runs.
    """
    digest = blake2b(run_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
