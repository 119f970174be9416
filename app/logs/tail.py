"""Tails: streams of a client's new logs, each log read once for all who follow it here.

A tail that resumes reads on by itself, at its reader's pace, until nothing more follows. Then it
joins the feed of its client, which reads for all of them and puts what matches into their queues.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import msgspec
import structlog

from app.errors import Overloaded, RateLimited, Unavailable
from app.logs.place import Following, Place, Places
from app.logs.search import parse_exactly
from app.logs.selection import Selection
from app.logs.store import LogStore

# In one process: each holds a socket, of which a process has 1,024 by default.
TAILS_MAX = 800
# So that one client leaves room for others. It learns of its limit by 429.
CLIENT_TAILS_MAX = 400
RETRY_AFTER_S = 5
# What may wait for a reader: some seconds of a busy client. Beyond, it is too slow.
QUEUE_LOGS_MAX = 20_000
QUEUE_BYTES_MAX = 4 * 1024**2
# Of all readers of a process together.
QUEUES_BYTES_MAX = 128 * 1024**2
# Written at a time: what is on its way when a key is revoked can't be called back.
CHUNK_BYTES = 64 * 1024

# Between reads of one client's logs: nobody sees the difference, and a busy client costs ten reads
# a second. Where more follow at once there is only a breath for others.
PAUSE_S = 0.1
BUSY_PAUSE_S = 0.01
# Without news: should some have been lost with a writer.
POLL_S = 3.0
RETRY_S = 0.5
# More than these are made into events in a thread: 10 us each.
FEW_LOGS = 20

SLOW = "slow reader"
STOPPING = "server stopping"
UNAVAILABLE = "storage unavailable"

_EVERYTHING = Selection()
# They end no line of a stream of events, but common readers take them for such (str.splitlines).
# In JSON they can only stand inside a text, where an escape means the same.
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})

log = structlog.get_logger(__name__)


class Chunk(NamedTuple):
    """Events ready to send, and the place behind the last of them."""

    events: bytes
    logs: int
    place: Place


class Tail:
    """One stream: what it wants, what waits to be sent, and why it ended.

    `place` is behind all that was put into the queue or did not match.
    """

    def __init__(self, tails: "Tails", client_id: str, selection: Selection, place: Place) -> None:
        self.client_id = client_id
        self.selection = selection
        self.question = msgspec.msgpack.encode(
            [selection.as_params(), selection.start, selection.end]
        )
        self.place = place
        self.reason: str | None = None
        self.ended = asyncio.Event()
        self._tails = tails
        self._sent = place
        self._chunks: deque[Chunk] = deque()
        self._logs = 0
        self._bytes = 0
        self._filled = asyncio.Event()
        self._joined = False

    @property
    def pending(self) -> bool:
        """Say whether events wait to be sent."""
        return bool(self._chunks)

    @property
    def last_id(self) -> str:
        """The id from which a reader resumes who has got all that was taken."""
        place = self._sent if self._chunks else self.place
        return self._tails.places.seal(self.client_id, place)

    async def wait(self, seconds: float) -> None:
        """Return when events wait, the tail has ended, or so much time has passed; or sooner."""
        if self._chunks or self.reason is not None:
            return
        if not self._joined:
            await self._catch_up()
            return
        self._filled.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._filled.wait(), seconds)

    def take(self) -> bytes:
        """Take the next events off the queue."""
        chunk = self._chunks.popleft()
        self._count(chunk, -1)
        self._sent = chunk.place
        return chunk.events

    def put(self, chunks: Iterable[Chunk], place: Place) -> None:
        """Queue events; without room for them the stream ends behind what is queued."""
        if self.reason is not None:
            return
        for chunk in chunks:
            if self._chunks and (
                self._logs + chunk.logs > QUEUE_LOGS_MAX
                or self._bytes + len(chunk.events) > QUEUE_BYTES_MAX
                or self._tails.queued_bytes + len(chunk.events) > QUEUES_BYTES_MAX
            ):
                self.end(SLOW)
                return
            self._chunks.append(chunk)
            self._count(chunk, 1)
            self.place = chunk.place
        self.place = place
        if self._chunks:
            self._filled.set()

    def end(self, reason: str) -> None:
        """End the stream; unless its reader was too slow, nothing that is queued is sent any more.

        So it resumes without a gap from the last event sent.
        """
        self.reason = reason
        if reason != SLOW:
            self._drop()
        self.ended.set()
        self._filled.set()

    def close(self) -> None:
        """Forget it."""
        self._drop()
        self._tails.forget(self)

    def _drop(self) -> None:
        if self._chunks:
            self.place = self._sent
        while self._chunks:
            self._count(self._chunks.popleft(), -1)

    def _count(self, chunk: Chunk, sign: int) -> None:
        self._logs += sign * chunk.logs
        self._bytes += sign * len(chunk.events)
        self._tails.queued_bytes += sign * len(chunk.events)

    async def _catch_up(self) -> None:
        """Read on from its own place; with nothing more to read, join those who follow."""
        try:
            following = await self._tails.store.follow(self.client_id, self.place)
        except Unavailable:
            await asyncio.sleep(RETRY_S)
            return
        place, chunks = await _in_thread(following, self, self.place, self._tails.places)
        self.put(chunks, place)
        if not following.more and self.reason is None:
            self._joined = True
            self._tails.join(self)


class Tails:
    """All tails of a process."""

    def __init__(self, store: LogStore, places: Places) -> None:
        self.store = store
        self.places = places
        self.queued_bytes = 0
        self._tails: set[Tail] = set()
        self._feeds: dict[str, _Feed] = {}
        self._stopping = False

    async def open(self, client_id: str, selection: Selection, after: Place | None) -> Tail:
        """Return a tail from a place on, or from now; whoever opens it closes it.

        Raises RateLimited or Overloaded where there are too many, StorageUnavailable.
        """
        self._require_room(client_id)
        if after is None:
            after = (await self.store.follow(client_id, None)).place
            self._require_room(client_id)
        tail = Tail(self, client_id, selection, after)
        self._tails.add(tail)
        return tail

    def join(self, tail: Tail) -> None:
        """Have a tail fed with what comes after its place."""
        feed = self._feeds.get(tail.client_id)
        if feed is None:
            feed = self._feeds[tail.client_id] = _Feed(self, tail.client_id, tail.place)
        feed.join(tail)

    def forget(self, tail: Tail) -> None:
        """Let go of a tail, and with the last one of a client of its feed."""
        self._tails.discard(tail)
        feed = self._feeds.get(tail.client_id)
        if feed is not None and feed.leave(tail):
            del self._feeds[tail.client_id]

    def stop(self) -> None:
        """End all tails, and open no more."""
        self._stopping = True
        for tail in self._tails:
            tail.end(STOPPING)

    async def aclose(self) -> None:
        """Stop reading."""
        self.stop()
        await asyncio.gather(*(feed.aclose() for feed in self._feeds.values()))

    def _require_room(self, client_id: str) -> None:
        if self._stopping or len(self._tails) >= TAILS_MAX:
            raise Overloaded
        if sum(tail.client_id == client_id for tail in self._tails) >= CLIENT_TAILS_MAX:
            raise RateLimited(["tails"], RETRY_AFTER_S)


class _Feed:
    """Reads the new logs of one client for all of its tails."""

    def __init__(self, tails: Tails, client_id: str, place: Place) -> None:
        self._store = tails.store
        self._places = tails.places
        self._client_id = client_id
        self._place = place
        self._fed: set[Tail] = set()
        self._joining: list[Tail] = []
        self._news = asyncio.Event()
        self._committed: asyncio.Future[None] | None = None
        self._failed = False
        self._task = asyncio.create_task(self._read_on())
        self._task.add_done_callback(self._finished)

    def join(self, tail: Tail) -> None:
        """Feed one more; it may have seen more than this feed has, or less."""
        if self._task.done():
            tail.end(UNAVAILABLE)
        self._joining.append(tail)
        self._news.set()

    def leave(self, tail: Tail) -> bool:
        """Feed it no more; True: nobody is left, and this has ended."""
        self._fed.discard(tail)
        if tail in self._joining:
            self._joining.remove(tail)
        if self._fed or self._joining:
            return False
        self._task.cancel()
        return True

    async def aclose(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read_on(self) -> None:
        while True:
            for tail in self._joining:
                self._place = self._place.earliest(tail.place)
                self._fed.add(tail)
            self._joining.clear()
            self._listen()
            try:
                following = await self._store.follow(self._client_id, self._place)
            except Unavailable as error:
                if not self._failed:
                    log.warning("tails cannot read on", reason=repr(error))
                self._failed = True
                await asyncio.sleep(RETRY_S)
                continue
            self._failed = False
            await self._feed(following)
            await asyncio.sleep(BUSY_PAUSE_S if following.more else PAUSE_S)
            if not following.more:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), POLL_S)

    def _listen(self) -> None:
        """Begin to listen for news, before a read: what is stored after it is some."""
        self._news.clear()
        committed = self._store.next_commit(self._client_id)
        if committed is not self._committed:
            self._committed = committed
            committed.add_done_callback(lambda _: self._news.set())

    def _finished(self, task: asyncio.Task[None]) -> None:
        """End all tails at a fault that nobody foresaw: they would wait for ever."""
        if not task.cancelled():
            log.error("a feed of tails has died", exc_info=task.exception())
            for tail in (*self._fed, *self._joining):
                tail.end(UNAVAILABLE)

    async def _feed(self, following: Following) -> None:
        """Hand out logs; tails in line that ask for the same get the very same events."""
        made: dict[bytes, tuple[Place, list[Chunk]]] = {}
        start, self._place = self._place, following.place
        for tail in list(self._fed):
            if tail.reason is not None:
                continue
            if tail.place != start:  # it has just joined
                place, chunks = await _in_thread(following, tail, tail.place, self._places)
            else:
                if tail.question not in made:
                    made[tail.question] = await _in_thread(following, tail, start, self._places)
                place, chunks = made[tail.question]
            tail.put(chunks, place)


async def _in_thread(
    following: Following, tail: Tail, start: Place, places: Places
) -> tuple[Place, list[Chunk]]:
    """Make events without holding up others for long."""
    asked = (following, tail.selection, start, tail.client_id, places)
    if len(following.logs) <= FEW_LOGS:
        return make_events(*asked)
    return await asyncio.to_thread(make_events, *asked)


def make_events(
    following: Following, selection: Selection, start: Place, client_id: str, places: Places
) -> tuple[Place, list[Chunk]]:
    """Return the events of logs that match and are not seen yet, and the place behind all."""
    place = start
    chunks: list[Chunk] = []
    events: list[bytes] = []
    size, last = 0, start
    for day, mark, text in following.logs:
        if place.has(day, mark):
            continue
        place = place.at(day, mark)
        if selection != _EVERYTHING and not selection.matches(parse_exactly(text)):
            continue
        line = text if text.isascii() else text.translate(_LINE_ENDS)
        event = f"id: {places.seal(client_id, place)}\ndata: {line}\n\n".encode()
        if events and size + len(event) > CHUNK_BYTES:
            chunks.append(Chunk(b"".join(events), len(events), last))
            events, size = [], 0
        events.append(event)
        size += len(event)
        last = place
    if events:
        chunks.append(Chunk(b"".join(events), len(events), last))
    return (place if following.more else following.place), chunks
