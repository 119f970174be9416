"""Compressing what is sent: the encoding that a caller asks for, at the speed of the stream."""

import zlib
from typing import Protocol

import zstandard

# Both at the level of most speed: gzip -1 makes 100 MB/s a core and a tenth of the logs, zstd four
# times that; higher levels save little, and would hold up the stream.
ZSTD_LEVEL = 1
GZIP_LEVEL = 1
_GZIP_WINDOW_BITS = 31
# By preference, where a caller weighs them alike.
ENCODINGS = ("zstd", "gzip")


class Encoder(Protocol):
    """Takes a stream in parts, and gives what it becomes."""

    def compress(self, data: bytes, /) -> bytes:
        """Take a part; may give nothing yet."""
        ...

    def flush(self) -> bytes:
        """Give the end of the stream."""
        ...


class _Identity:
    """Leaves a stream as it is."""

    def compress(self, data: bytes, /) -> bytes:
        """Give the part."""
        return data

    def flush(self) -> bytes:
        """Give nothing."""
        return b""


def choose_encoding(accept_encoding: str) -> str:
    """Return the encoding that an Accept-Encoding likes best; empty for none (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        name, _, parameter = item.partition(";")
        name = name.strip().removeprefix("x-")
        if name:
            weights[name] = _weight(parameter)
    anything = weights.get("*", 0.0)
    best = max(ENCODINGS, key=lambda name: weights.get(name, anything))
    weight = weights.get(best, anything)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


def _weight(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def open_encoder(encoding: str) -> Encoder:
    """Return what compresses one stream."""
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
    if encoding == "gzip":
        return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    return _Identity()
