"""The head of a connection's last request, to know the next one by. Pure.

A client's next log mostly comes with the head of its last one, but for the length of the body.
To compare the two takes a tenth of parsing it and looking at each field again. What is the same
byte for byte, from a place where a request begins, is parsed the same.
"""

import re

# Any head; larger ones are parsed each time, so that idle connections hold no more than this.
HEAD_BYTES_MAX = 2048
_END = b"\r\n\r\n"
_LENGTH_DIGITS_MAX = 9
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,%d})\r\n" % _LENGTH_DIGITS_MAX)


class RepeatedHead:
    """A head up to the digits of its Content-Length, and behind them."""

    __slots__ = ("_before", "_behind", "_digits_end_max", "_digits_start")

    def __init__(self, before: bytes, behind: bytes) -> None:
        self._before = before
        self._behind = behind
        self._digits_start = len(before)
        self._digits_end_max = len(before) + _LENGTH_DIGITS_MAX + 1

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body of a request with this head, of which `data` is all; else None."""
        start = self._digits_start
        end = data.find(b"\r", start, self._digits_end_max)
        if end < 0 or not data.startswith(self._before) or not data.startswith(self._behind, end):
            return None
        digits = data[start:end]
        body = data[end + len(self._behind) :]
        # Of bytes, these are 0 to 9 alone.
        return body if digits.isdigit() and int(digits) == len(body) else None


def repeated_head(data: bytes, body: bytes) -> RepeatedHead | None:
    """Return the head of a request that `data` was all of; None if there is more to it.

    It was parsed, had this body, and no field twice.
    """
    end = data.find(_END) + len(_END)
    if end > HEAD_BYTES_MAX or len(data) - end != len(body):
        return None
    found = _LENGTH.search(data, 0, end)
    if found is None or int(found[1]) != len(body):
        return None
    return RepeatedHead(data[: found.start(1)], data[found.end(1) : end])
