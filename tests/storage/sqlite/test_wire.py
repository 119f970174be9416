"""Tests of app.storage.sqlite.wire."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.logs.batch import Batch, DeadLetter, Idempotency, Receipt, StoredOutcome
from app.storage.sqlite.wire import (
    Answer,
    Append,
    Claim,
    Claimed,
    Done,
    Erase,
    Erased,
    EraseRest,
    Expire,
    Failed,
    FrameProtocol,
    Ping,
    Question,
    Receipted,
    Release,
    Retire,
    Rewrite,
    Scrub,
    Welcome,
    frame,
)

BATCH = Batch(
    "acme",
    "key",
    20_000,
    28_800_000,
    [(-1, 2**63 - 1, 0, None, 0.1, "own\x00id", "m" * 70_000, '"e"', "{}")],
    [("default", "production", "SUCCESS", None, "価格")],
    idempotency=Idempotency("k", b"\x00\xff", b"outcome"),
    dead_letters=[DeadLetter(2**53 - 1, 0, None, "is bad", None, "nul\x00")],
)
QUESTIONS: tuple[Question, ...] = (
    Append(1, BATCH),
    Claim(2, "acme", "k"),
    Release("acme", "k"),
    Ping(3),
    Erase(4, 20_000, "acme", [(-1, 2**63 - 1)]),
    EraseRest(5, 20_000, "acme"),
    Rewrite(6, 20_000, 1 << 32, 2, b"logs\x00", b"words", None),
    Scrub(7, 20_000, {1 << 32: 1}),
    Expire(8, 20_000, "acme", ["default", None], [(-1, 2**63 - 1)], keeps_ids=True),
    Retire(9, 20_000, [("acme", "default"), ("acme", None)]),
)
ANSWERS: tuple[Answer, ...] = (
    Welcome(7),
    Done([1, 2]),
    Receipted(1, Receipt(2, "id")),
    Erased(4, [(-1, 2**63 - 1)], more=True),
    Claimed(2, granted=True, stored=StoredOutcome(b"d", b"o", Receipt())),
    Claimed(2, granted=False, stored=None),
    Failed(3, "no space"),
)


def _cut(stream: bytes, cuts: list[int], kind: Any) -> list[Any]:
    received: list[Any] = []
    protocol = FrameProtocol(msgspec.msgpack.Decoder(kind).decode, received.append)
    at = 0
    for size in cuts:
        protocol.data_received(stream[at : at + size])
        at += size
    protocol.data_received(stream[at:])
    return received


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from(QUESTIONS), max_size=6),
    st.lists(st.integers(1, 9) | st.integers(1, 100_000), max_size=60),
)
def test_questions_survive_any_chunking(questions: list[Question], cuts: list[int]) -> None:
    """However the bytes arrive, the questions come out whole and in order."""
    stream = b"".join(map(frame, questions))
    assert _cut(stream, cuts, Question) == questions


@settings(derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(ANSWERS), max_size=12), st.lists(st.integers(1, 9), max_size=60))
def test_answers_survive_any_chunking(answers: list[Answer], cuts: list[int]) -> None:
    """However the bytes arrive, the answers come out whole and in order."""
    stream = b"".join(map(frame, answers))
    assert _cut(stream, cuts, Answer) == answers


def test_byte_by_byte() -> None:
    """Nothing is handed on before its last byte is there, and nothing later than that."""
    first, second = frame(Claim(1, "acme", "k")), frame(Ping(2))
    received: list[Any] = []
    protocol = FrameProtocol(msgspec.msgpack.Decoder(Question).decode, received.append)
    for place, byte in enumerate(first + second, 1):
        protocol.data_received(bytes([byte]))
        assert len(received) == (place >= len(first)) + (place >= len(first + second))


def test_a_stream_that_ends_early_gives_only_whole_messages() -> None:
    """A question that was cut off by a death is no question."""
    stream = frame(Ping(1)) + frame(Append(2, BATCH))[:-1]
    assert _cut(stream, [], Question) == [Ping(1)]
