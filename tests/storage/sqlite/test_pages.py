"""Tests of app.storage.sqlite.pages: what a search passes over, and its bounds."""

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import StorageUnavailable
from app.logs.identity import ArrivalClock, format_id, parse_id
from app.logs.query import PAGE_BYTES_MAX, LogQuery
from app.logs.search import TERMS_MAX, Search, Term, parse_exactly, parse_search, words
from app.logs.selection import METADATA_FILTERS_MAX, Selection
from app.sqlite import sqlite3
from app.storage.sqlite.block import BLOCK_LOGS, WORD_BYTES, Lines, pack, pack_words
from app.storage.sqlite.day import DayFile
from app.storage.sqlite.reader import SqliteReader
from app.storage.sqlite.schema import day_path
from app.storage.sqlite.sealing import Client, build_seals
from app.storage.sqlite.sieving import matcher, may_match, sieve
from app.storage.sqlite.sources import BLOCKS_STEP, Source
from loadtests.records import Record
from tests.storage.batches import ORDERS, make_batch, record

DAY = 20_000
Fill = Callable[..., SqliteReader]

some_text = st.text(
    st.sampled_from(
        'aAnKk_1 .-"\\/\n\t\0\u00e9\u0301\u212a\u0130\u0131\u00df\u03a3\u0939\u093f\ufb01'
        "\uff21\uff3f\u017f\U0001d400\U0001f680"
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)
some_values = st.recursive(
    st.none() | st.booleans() | st.integers() | some_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(some_text, inner, max_size=3),
    max_leaves=5,
)
some_logs = st.fixed_dictionaries(
    {
        "message": st.none() | some_text,
        "error": st.none() | some_text | st.dictionaries(some_text, some_values, max_size=2),
        "metadata": st.dictionaries(some_text, some_values, max_size=3),
    }
)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for one in inner for text in _texts(one)]
    return [] if value is None else [value if isinstance(value, str) else json.dumps(value)]


def _waiting_text(log: dict[str, Any], *, escaped: bool) -> str:
    parts = [json.dumps(log[name], ensure_ascii=escaped) for name in ("error", "metadata")]
    return " ".join((log["message"] or "", *parts)).replace("\n", " ")


@given(log=some_logs, escaped=st.booleans())
@example(log={"message": "K", "error": "\u212a", "metadata": {"a": "\u0130"}}, escaped=True)
def test_no_log_that_matches_is_passed_over(log: dict[str, Any], escaped: bool) -> None:
    r"""Found by any of its own words and values, as it waits and sealed, with \uXXXX or without."""
    forms = [json.dumps(log, ensure_ascii=escaped), _waiting_text(log, escaped=escaped)]
    parsed = parse_exactly(forms[0])
    phrases = [tuple(words(text)) for text in _texts(list(log.values()))]
    selections = [Selection(search=Search((Term(one),))) for one in phrases if one]
    selections += [
        Selection(metadata={name: (value if isinstance(value, str) else json.dumps(value),)})
        for name, value in log["metadata"].items()
        if not isinstance(value, dict | list)
    ]
    for one in [*selections, *_pairs(selections)]:
        assert one.matches_content(parsed)
        assert all(may_match(one)(form.encode()) for form in forms)


@given(logs=st.lists(some_logs, min_size=1, max_size=5), escaped=st.booleans())
@example(logs=[{"message": "K", "error": "\u212a", "metadata": {"a": "A"}}] * 2, escaped=True)
@example(logs=[{"message": "A k", "error": None, "metadata": {"a": "n"}}] * 2, escaped=False)
def test_a_block_is_sieved_as_its_logs_are(logs: list[dict[str, Any]], escaped: bool) -> None:
    """Nothing that matches is lost where a block is marked, and less is left than without it."""
    lines = [
        json.dumps({"id": format_id(at, DAY, 0)} | log, ensure_ascii=escaped, separators=(",", ":"))
        for at, log in enumerate(logs)
    ]
    contents = [
        json.dumps(log[name], ensure_ascii=escaped)
        for log in logs
        for name in ("error", "metadata")
    ]
    words_packed = pack_words([log["message"] or "" for log in logs], contents)
    block = Lines(pack([line.encode() for line in lines], [1] * len(lines)))
    plain = [0] if len(words_packed) % WORD_BYTES == 1 else []
    source = Source(DAY, 1, (0, 0), (len(lines), 0))
    selections = [Selection(search=Search((one,))) for one in _terms(logs)]
    for one in [*selections, *_pairs(selections)]:
        query = LogQuery("acme", **one.members())
        matching = [log for log in block if query.matches_content(parse_exactly(log))]
        assert [log for log in block if matcher(query)(log)] == matching
        left = [list(sieve(query, source, {0: block}, numbers)) for numbers in (plain, [])]
        assert set(matching) <= set(left[0]) <= set(left[1]) <= set(block)
        inner = source._replace(low=(1, 0), high=(2, 0))
        assert list(sieve(query, inner, {0: block}, plain)) == [
            log for log in left[0] if log == block[1 % len(block)] and len(block) > 1
        ]


def _terms(logs: list[dict[str, Any]]) -> list[Term]:
    """Give each phrase of the logs, each of their words, and both where they must not be."""
    phrases = {tuple(words(text)) for text in _texts([list(log.values()) for log in logs])}
    phrases |= {(word,) for phrase in phrases for word in phrase}
    return [Term(one, negated) for one in sorted(phrases) if one for negated in (False, True)]


def _pairs(selections: list[Selection]) -> Iterator[Selection]:
    """Give each with one more: another value that will do, and a second thing asked for."""
    for one, other in pairwise(selections):
        if one.metadata and other.metadata:
            [(name, accepted)] = one.metadata.items()
            yield Selection(metadata={name: (*accepted, "another value")})
            yield Selection(metadata=one.metadata | other.metadata)
        elif other.metadata:
            yield replace(one, metadata=other.metadata)
        elif one.search and other.search:
            yield Selection(search=Search(one.search.terms + other.search.terms))


def test_most_others_are_passed_over() -> None:
    """A log without a word, or without all words of any value accepted, is not looked into."""
    text = b'{"message":"disk full","metadata":{"host":"db_1"}}'
    for question, may in (("disk", True), ("tape", False), ("disk tape", False), ("-tape", True)):
        assert may_match(Selection(search=parse_search(question)))(text) is may
    for values, may in ((("tape 1", "db_2"), False), (("tape", "db_1"), True), (("db_2",), False)):
        assert may_match(Selection(metadata={"host": values}))(text) is may
    caf = Selection(search=parse_search("caf\u00e9"))
    assert may_match(caf)(b'{"a":"caf\\u00e9"}')
    assert not may_match(caf)(b'{"a":"cafe"}')


@pytest.fixture(params=[False, True], ids=["waiting", "sealed"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fill]:
    """Give a function that stores logs in a day, sealed or not, and gives a reader of it."""
    clock = ArrivalClock()
    readers: list[SqliteReader] = []

    def store(*sent: Record, kind: type[SqliteReader] = SqliteReader) -> SqliteReader:
        path = day_path(tmp_path, DAY)
        file = DayFile(path, DAY, lambda _: [])
        for at in range(0, len(sent), 10):
            file.commit([make_batch(clock, "acme", sent[at : at + 10], day=DAY)])
        if request.param:
            db = sqlite3.connect(path)
            assert all(map(file.seal, build_seals(db, DAY, Client(1, "acme"))))
            db.close()
        file.close()
        readers.append(kind(tmp_path))
        return readers[-1]

    yield store
    for reader in readers:
        reader.close()


def _ask(reader: SqliteReader, **members: Any) -> list[Record]:
    page = reader.page(LogQuery("acme", **members), time.monotonic() + 60)
    logs: list[Record] = json.loads(f"[{page.logs}]")
    return logs


def test_questions_of_any_size_are_answered(fill: Fill) -> None:
    """However many values and words are asked for, no statement is too large for SQLite."""
    text = " ".join(f"word{n}" for n in range(3000))
    reader = fill(record(metadata={"n": 1777, "text": text}), record(metadata={"n": 4}))
    many = tuple(str(n) for n in range(1000, 3000))
    assert len(_ask(reader, metadata={"n": many})) == 1
    assert len(_ask(reader, metadata={"n": ("4", *many)})) == 2
    assert len(_ask(reader, metadata={"text": (text,)})) == 1
    assert _ask(reader, metadata={"text": (f"{text} more",)}) == []
    assert _ask(reader, metadata={"n": ()}) == []
    phrase = f'"{" ".join("a" for _ in range(500))}"'
    assert _ask(reader, search=parse_search(phrase)) == []
    values = tuple(f"{text} {n}" for n in range(30))
    everything = {f"name{n}": values for n in range(METADATA_FILTERS_MAX)}
    question = " ".join(f"word{n}" for n in range(TERMS_MAX))
    assert len(_ask(reader, search=parse_search(question))) == 1
    assert _ask(reader, search=parse_search(question), metadata=everything) == []


@pytest.mark.parametrize("order", ORDERS)
def test_a_search_is_bounded_in_memory(fill: Fill, order: Any) -> None:
    """Large logs that match are read as a page holds them, and those that don't, some at a time."""
    large = "x" * 900_000
    sent = [record(message=f"needle {n} {large}" if n % 2 else large) for n in range(100)]
    reader = fill(*sent)
    query = LogQuery("acme", search=parse_search("needle"), limit=1000, order=order)
    found = 0
    while True:
        tracemalloc.start()
        try:
            page = reader.page(query, time.monotonic() + 60)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(page.logs) < PAGE_BYTES_MAX + 100
        assert peak < 8 * PAGE_BYTES_MAX
        found += page.logs.count("needle")
        if page.last_id is None:
            break
        query = replace(query, after=parse_id(page.last_id))
    assert found == 50


class ReaderOutOfTime(SqliteReader):
    """Has its time run out once it has been asked for the file so often."""

    left = 1000

    def db(self, day: int) -> "sqlite3.Connection":
        """Count down."""
        self.left -= 1
        self.stopped = self.left < 0
        return super().db(day)


def test_a_search_ends_in_its_time(fill: Fill) -> None:
    """A search that reads everything looks at the clock while it does."""
    # Matched by all their words, but not in a row.
    sent = [record(message="full disk", run_id=str(n)) for n in range(BLOCK_LOGS * BLOCKS_STEP * 2)]
    reader = fill(*sent, kind=ReaderOutOfTime)
    assert isinstance(reader, ReaderOutOfTime)
    query = {"search": parse_search('"disk full"')}
    assert _ask(reader, **query) == []
    looks = 1000 - reader.left
    assert looks >= 4
    for left in {0, 1, looks // 2, looks - 1}:
        reader.left = left
        with pytest.raises(StorageUnavailable):
            _ask(reader, **query)
        reader.stopped = False


def test_pages_of_a_search_over_many_steps(fill: Fill) -> None:
    """Where few of many logs match, they come on pages of the size asked for, and then none."""
    count = 3000
    sent = [
        record(message="rare find" if n % 601 == 0 else "find", run_id=str(n)) for n in range(count)
    ]
    reader = fill(*sent)
    want = [str(n) for n in range(0, count, 601)]
    for order in ORDERS:
        for limit in (1, 2, 5, 6):
            query = LogQuery("acme", search=parse_search("rare find"), limit=limit, order=order)
            found: list[str] = []
            pages = 0
            while True:
                pages += 1
                page = reader.page(query, time.monotonic() + 60)
                logs = json.loads(f"[{page.logs}]")
                found += [log["run_id"] for log in logs]
                if page.last_id is None:
                    break
                assert len(logs) == limit
                query = replace(query, after=parse_id(page.last_id))
            assert pages == -(-len(want) // limit)
            assert found == sorted(want, key=int, reverse=order == "desc")


@pytest.mark.parametrize("order", ORDERS)
def test_pages_of_a_search_with_filters(fill: Fill, order: Any) -> None:
    """Of logs that all have the word, those with the columns asked for come, on full pages."""
    count = 1000
    sent = [
        record(
            message=f"Find {'x' * (n % 3)}",
            run_id=str(n),
            executed_at=1_780_272_000 + n,
            status="FAILED" if n % 97 == 0 else "SUCCESS",
        )
        for n in range(count)
    ]
    reader = fill(*sent)
    failed = [str(n) for n in range(0, count, 97)]
    questions: list[tuple[dict[str, tuple[str, ...]], list[str]]] = [
        ({"status": ("FAILED",)}, failed),
        ({"status": ("FAILED",), "run_id": ("97", "98", "873")}, ["97", "873"]),
        ({}, [str(n) for n in range(count)]),
    ]
    for filters, want in questions:
        query = LogQuery(
            "acme", filters=filters, search=parse_search("find -xx"), limit=4, order=order
        )
        wanted = [n for n in want if int(n) % 3 != 2]
        wanted = (wanted if order == "asc" else wanted[::-1])[:80]
        found: list[str] = []
        while len(found) < len(wanted):
            page = reader.page(query, time.monotonic() + 60)
            found += [log["run_id"] for log in json.loads(f"[{page.logs}]")]
            if page.last_id is None:
                break
            query = replace(query, after=parse_id(page.last_id))
        assert found == wanted
