"""Replies that their clients do not take: until they do, these stay in memory."""

import socket
from asyncio import BaseTransport, WriteTransport
from contextlib import suppress
from struct import pack, unpack_from

# Within Linux's struct tcp_info (linux/tcp.h): a u64 and a u32.
_ACKED_AT, _UNSENT_AT, _INFO_BYTES = 120, 144, 148


class Unread:
    """The connections whose clients take less than is written to them, the longest waiting first.

    Behind TLS of this process nothing tells how much waits: there only its time is bounded.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting: dict[WriteTransport, None] = {}

    def add(self, transport: WriteTransport) -> None:
        """Count a connection; abort those that wait for longer while all of them are too much."""
        self._waiting[transport] = None
        sizes = [(one, one.get_write_buffer_size()) for one in self._waiting]
        total = sum(size for _, size in sizes)
        for one, size in sizes[:-1]:
            if total <= self._bytes_max:
                break
            total -= size
            cut_off(one)

    def remove(self, transport: BaseTransport) -> None:
        """Let go of one that has caught up, or is over."""
        self._waiting.pop(transport, None)  # type: ignore[call-overload]


def cut_off(transport: WriteTransport) -> None:
    """Close a connection without what waits in it, here and in the kernel, which would try on."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it is over
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    transport.abort()


def taken_bytes(transport: WriteTransport) -> int | None:
    """Give a number that changes as the client takes what was written; None: it has taken all.

    The kernel's own count, where it has one: TLS hides what waits in the process.
    """
    waiting = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is None or not hasattr(socket, "TCP_INFO"):
        return -waiting or None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:  # it is over
        return None
    if len(info) < _INFO_BYTES:
        return -waiting or None
    (acked,), (unsent,) = unpack_from("=Q", info, _ACKED_AT), unpack_from("=I", info, _UNSENT_AT)
    return acked if unsent or waiting else None
