"""The durations in a sealed block as one column, for percentiles, which need each of them. Pure.

The logs of a workflow and status lie together in a block, so that most of what they share comes in
runs: of a series, with durations or without. A run costs one step, whatever its length.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import zstandard

from app.storage.sqlite.block import DamagedBlock

# The series of a line that is of no log any more: the rows of `series` are numbered from 1.
GONE = 0
_LEVEL = 3
_COUNT_BYTES = 4


class Durations(NamedTuple):
    """The series of each line of a block, and the durations in ms of those lines that have one.

    A run of `lengths` lines is of the series `codes >> 1`; if the code is odd each line has one of
    the next `values`, and else none has.
    """

    codes: "array[int]"
    lengths: "array[int]"
    values: "array[float]"

    @staticmethod
    def of(lines: Iterable[tuple[int, float | None]]) -> "Durations":
        """Make them of the series and duration of each line, in order."""
        made = Durations(array("I"), array("H"), array("d"))
        for code, run in groupby(lines, key=_code):
            durations = [duration for _, duration in run]
            made.codes.append(code)
            made.lengths.append(len(durations))
            if code & 1:
                made.values.extend(durations)  # type: ignore[arg-type]  # each has one
        return made

    @staticmethod
    def unpack(
        packed: bytes, decompressor: zstandard.ZstdDecompressor | None = None
    ) -> "Durations":
        """Read what `pack` made, with the given machine if there are many; raises DamagedBlock."""
        try:
            raw = (decompressor or zstandard.ZstdDecompressor()).decompress(packed)
        except zstandard.ZstdError as error:
            raise DamagedBlock(str(error)) from error
        codes, lengths, values = array("I"), array("H"), array("d")
        runs = int.from_bytes(raw[:_COUNT_BYTES], "little")
        lengths_at = _COUNT_BYTES + runs * codes.itemsize
        values_at = lengths_at + runs * lengths.itemsize
        codes.frombytes(raw[_COUNT_BYTES:lengths_at])
        lengths.frombytes(raw[lengths_at:values_at])
        values.frombytes(raw[values_at:])
        return Durations(codes, lengths, values)

    def pack(self) -> bytes:
        """Give them compressed: 3.2 bytes a log of realistic records."""
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        count = len(self.codes).to_bytes(_COUNT_BYTES, "little")
        return compressor.compress(count + b"".join(column.tobytes() for column in self))

    def lines(self) -> Iterator[tuple[int, float | None]]:
        """Yield the series and duration of each line, in order."""
        values = iter(self.values)
        for code, length in zip(self.codes, self.lengths, strict=True):
            for _ in range(length):
                yield code >> 1, next(values) if code & 1 else None

    def only(self, kept: Collection[int]) -> "Durations":
        """Give those of some lines, with every other one GONE."""
        return Durations.of(
            line if at in kept else (GONE, None) for at, line in enumerate(self.lines())
        )


def code_of(series: int, *, has_duration: bool) -> int:
    """Give the code of a run."""
    return series << 1 | has_duration


def _code(line: tuple[int, float | None]) -> int:
    return code_of(line[0], has_duration=line[1] is not None)
