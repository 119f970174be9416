"""Tests of app.storage.sqlite.block: what goes in comes out, and is found by its words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.logs.search import leaves, parse_exactly, words
from app.storage.sqlite.block import (
    BLOCK_LOGS,
    WORD_BYTES,
    DamagedBlock,
    Lines,
    pack,
    pack_words,
    run_hash,
    word_hash,
)

some_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | some_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(some_text, inner, max_size=3),
    max_leaves=8,
)
lines = some_text.map(lambda text: text.replace("\n", " ") or "x")
commit_nos = st.integers(0, 2**63)


@given(st.lists(st.tuples(lines, commit_nos), min_size=1, max_size=BLOCK_LOGS))
def test_lines_come_back(logs: list[tuple[str, int]]) -> None:
    """Each line is cut out as it went in, with the number of its commit."""
    packed = pack([line.encode() for line, _ in logs], [number for _, number in logs])
    unpacked = Lines(packed)
    want = [line.encode() for line, _ in logs]
    assert len(unpacked) == len(logs)
    assert list(unpacked) == want
    assert [unpacked[at] for at in range(len(logs))] == want
    assert list(unpacked.commit_nos) == [number for _, number in logs]


def test_a_damaged_block_is_noticed() -> None:
    """What is cut off, or a bit that has turned, is an error, not another log."""
    packed = pack([b"one", b"two"], [1, 2])
    for damaged in (packed[:-1], packed[:-9] + bytes([packed[-9] ^ 1]) + packed[-8:], b""):
        with pytest.raises(DamagedBlock):
            Lines(damaged)


def _hashes(packed: bytes) -> set[bytes]:
    """Give the entries of a list without its mark."""
    assert len(packed) % WORD_BYTES <= 1
    end = len(packed) - len(packed) % WORD_BYTES
    return {packed[at : at + WORD_BYTES] for at in range(0, end, WORD_BYTES)}


@given(st.lists(some_text, max_size=4), st.lists(some_json, max_size=4), st.booleans())
def test_the_list_holds_every_word(texts: list[str], values: list[Any], escaped: bool) -> None:
    r"""Whatever word a message or a value has is in the list, written as \uXXXX or not."""
    contents = [json.dumps(value, ensure_ascii=escaped) for value in values]
    packed = pack_words(texts, contents)
    found = _hashes(packed)
    values_texts = [leaf for one in contents for leaf in leaves(parse_exactly(one))]
    for text in (*texts, *values_texts):
        for word in words(text):
            assert word_hash(word.encode()) in found
            assert word_hash(word.encode()) in packed  # which is how SQL looks for it
    assert packed[: len(found) * WORD_BYTES] == b"".join(sorted(found))


@pytest.mark.parametrize(
    "content",
    [
        '{"a":"x\\u0041bc y"}',
        '{"a":"caf\\u00e9 \\ud83d\\ude80rocket"}',
        '{"a":["\\/dev\\/null","tab\\there","back\\\\slash"]}',
        '{"a":1.50,"b":-3,"c":[true,false],"d":1E+5}',
        '{"a":{"\\u00e9":"deep"}}',
    ],
)
def test_words_behind_escapes(content: str) -> None:
    """An escape in the JSON hides no word, and neither does what stands beside it."""
    found = _hashes(pack_words([], [content]))
    for leaf in leaves(parse_exactly(content)):
        assert {word_hash(word.encode()) for word in words(leaf)} <= found


def test_only_words_are_in_the_list() -> None:
    """Nothing else is, so that most blocks are passed over, and each word is there once."""
    packed = pack_words(["Disk full, DISK", ""], ['{"host":"db_1"}', ""])
    assert _hashes(packed) == {word_hash(word) for word in (b"disk", b"full", b"host", b"db_1")}
    assert len(packed) == 4 * WORD_BYTES + 1
    assert _hashes(pack_words([], [])) == set()


@pytest.mark.parametrize(
    ("text", "content", "marked"),
    [
        ("Disk full", '{"n":1}', True),
        ("caf\u00e9", r'"caf\u00e9 \u0001"', True),
        ("\uff24isk", "", False),
        ("", '{"a":"\u212a"}', False),
        ("", r'{"a":"\u0064isk"}', False),
    ],
)
def test_the_mark_of_a_list(text: str, content: str, marked: bool) -> None:
    """A list says by its length whether the words of ASCII stand in the logs as they are."""
    for texts, contents in (([text], [content]), (["a", text], ['"b"', content])):
        assert (len(pack_words(texts, contents)) % WORD_BYTES == 1) is marked


def test_the_logs_that_have_words() -> None:
    """Those with all of them are found, each once, however often and wherever a word is there."""
    logs = ["disk disk DISK full", "", "full", "x", "FULL of disks", "disk", "disk full"]
    lines = Lines(pack([one.encode() for one in logs], [1] * len(logs)))
    for sought in (["disk"], ["disk", "full"], ["full", "disk"], ["x"], ["tape"], ["o", "f"]):
        want = [log for log in logs if all(word in log.lower() for word in sought)]
        found = [line.decode() for line in lines.having([word.encode() for word in sought])]
        assert found == want


def test_runs_have_numbers() -> None:
    """A run's number is the same on every day and machine, and fits SQLite's integers."""
    assert run_hash("") == run_hash("") != run_hash(" ")
    assert run_hash("run-1") == -8_668_539_035_648_608_218
    assert len({run_hash(f"run-{n}") for n in range(10_000)}) == 10_000


@given(st.text())
def test_every_run_id_has_a_number(run_id: str) -> None:
    """Also one that is no Unicode."""
    assert -(2**63) <= run_hash(run_id) < 2**63
