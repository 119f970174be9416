"""What a sealed block is: rendered logs, compressed together, and the words in them. Pure.

A block holds up to BLOCK_LOGS neighbouring logs of one client as the very lines of JSON that a page
shows, so that reading is to unpack and to cut. 67 of 537 bytes are left of an average line, and
its words take 10 more (measured on realistic records; larger blocks save little and cost pages
that touch many).
"""

import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from itertools import accumulate

import msgspec
import zstandard

from app.logs.search import leaves, parse_exactly, stands_plainly, words

BLOCK_BITS = 8
BLOCK_LOGS = 1 << BLOCK_BITS
# Of text in a block, but that one log is always let in.
BLOCK_BYTES_MAX = 1024**2
WORD_BYTES = 3
_LEVEL = 3
_INT_BYTES = array("Q").itemsize
_WORDS_ALONE = bytes(
    byte if chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(128)
).ljust(256, b" ")


class _Texts(msgspec.Struct):
    message: str | None
    error: msgspec.Raw
    metadata: msgspec.Raw


_decode_texts = msgspec.json.Decoder(_Texts).decode


def pack(lines: list[bytes], commit_nos: list[int]) -> bytes:
    """Compress rendered logs with the length and commit of each; an empty line is an erased one."""
    head = array("Q", [len(lines), *map(len, lines), *commit_nos]).tobytes()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return compressor.compress(head + b"".join(lines))


class DamagedBlock(Exception):
    """A block does not unpack, or not to what was packed."""


class Lines:
    """The rendered logs of a block, each cut out when it is asked for; raises DamagedBlock.

    Where one was erased there is nothing, or still its line, if that was of late.
    """

    def __init__(self, packed: bytes) -> None:
        try:
            self._raw = zstandard.ZstdDecompressor().decompress(packed)
        except zstandard.ZstdError as error:
            raise DamagedBlock(str(error)) from error
        count = int.from_bytes(self._raw[:_INT_BYTES], sys.byteorder)
        head = array("Q", self._raw[_INT_BYTES : (2 * count + 1) * _INT_BYTES])
        self.commit_nos = head[count:]
        self._ends = list(accumulate(head[:count], initial=(2 * count + 1) * _INT_BYTES))

    def __iter__(self) -> Iterator[bytes]:
        return filter(None, (self[line] for line in range(len(self))))

    def __getitem__(self, line: int) -> bytes:
        """Give one rendered log."""
        return self._raw[self._ends[line] : self._ends[line + 1]]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def having(self, words: list[bytes]) -> Iterator[bytes]:
        """Yield the logs that hold all these words, of ASCII in lower case, in their bytes.

        A line without the first word costs nothing; no word reaches beyond the end of one.
        """
        first, *others = words
        raw, ends = self._raw.lower(), self._ends
        at = raw.find(first, ends[0])
        while at >= 0:
            line = bisect_right(ends, at) - 1
            if all(raw.find(word, ends[line], ends[line + 1]) >= 0 for word in others):
                yield self[line]
            at = raw.find(first, ends[line + 1])


def word_hash(word: bytes) -> bytes:
    """Give what stands for a word, in UTF-8, in a block's list: to be sought as a run of bytes.

    Found by chance in one of 5,000 blocks, which costs a look into it.
    """
    return (zlib.crc32(word) & 0xFFFFFF).to_bytes(WORD_BYTES, "little")


def words_of(lines: Iterable[bytes]) -> bytes:
    """Give the list of all words of rendered logs."""
    texts = [_decode_texts(line) for line in lines]
    contents = [str(text, "utf-8") for one in texts for text in (one.error, one.metadata)]
    return pack_words([one.message or "" for one in texts], contents)


def pack_words(texts: Collection[str], contents: Collection[str]) -> bytes:
    """Give the list of all words of logs: their messages, and their errors and metadata as JSON.

    It holds names within the JSON as well, and `null`, which nobody seeks by `q`. One byte more
    than whole entries says that every ASCII word of the logs is in their bytes in lower case; as an
    entry it could be mistaken for a word's.
    """
    plain: list[str] = []
    found: set[bytes] = set()
    for text in (*texts, *contents):
        if text.isascii():
            plain.append(text)
        else:
            found.update(word.encode() for word in words(text))
    # What `words` does, a quarter of the time: most texts are of this kind.
    found.update("\n".join(plain).encode().lower().translate(_WORDS_ALONE).split())
    for content in contents:
        if "\\" in content:  # and behind it a letter, perhaps
            for leaf in leaves(parse_exactly(content)):
                found.update(word.encode() for word in words(leaf))
    mark = b"\0" if stands_plainly("\n".join((*texts, *contents)).encode()) else b""
    return b"".join(sorted(map(word_hash, found))) + mark


def run_hash(run_id: str) -> int:
    """Give the 64-bit number that stands for a run's id among a client's sealed logs.

    A client that finds two ids of one number, after some 2^32 tries, confuses its own two runs.
    """
    digest = blake2b(run_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
