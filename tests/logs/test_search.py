"""Tests of app.logs.search: words of any script, questions, and what they match."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.logs.search import (
    QUESTION_LENGTH_MAX,
    TERMS_MAX,
    BadSearch,
    Search,
    Term,
    fold,
    leaves,
    parse_exactly,
    parse_search,
    scalar_text,
    stands_plainly,
    words,
)

HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"  # of six characters three are vowel signs

# What a client may send, as JSON: no halves of surrogate pairs, no numbers that are none.
some_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | some_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(some_text, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("DISK", "disk"),
        ("Stra\u00dfe", "STRASSE"),
        ("\u00e9t\u00e9", "E\u0301TE\u0301"),  # composed, and with combining marks
        ("\u212a", "k"),  # the Kelvin sign
        ("\ufb01le", "FILE"),  # the ligature fi
        ("\uff24\uff29\uff33\uff2b", "disk"),  # full width
        ("\u03a3\u0391\u03a3", "\u03c3\u03b1\u03c2"),  # sigma, final or not
        ("\u0130", "i\u0307"),  # a Turkish I with its dot
        ("\u1e9e", "ss"),
    ],
)
def test_texts_of_different_case_or_form_are_equal(one: str, other: str) -> None:
    """Upper and lower case, and the ways to write one letter, don't matter."""
    assert fold(one) == fold(other)
    assert words(f"a {one} b") == words(f"A {other} B")


def test_letters_that_differ_stay_apart() -> None:
    """An accent or a missing dot is more than a matter of form."""
    assert (
        len({fold(text) for text in ("resume", "r\u00e9sum\u00e9", "\u0131", "i", "\u00ef")}) == 5
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("disk full", ["disk", "full"]),
        ("disk-full/90%:db_1", ["disk", "full", "90", "db_1"]),
        ("_a__b_", ["_a__b_"]),
        (" \t\n\r\0\u2028\u00a0", []),
        ("", []),
        ("a\0b", ["a", "b"]),
        (f"{HINDI} x", [HINDI, "x"]),
        (f"\u0301{HINDI}", [HINDI]),  # a mark without a letter before it is none of a word
        ("\u4fa1\u683c\u3092\u66f4\u65b0", ["\u4fa1\u683c\u3092\u66f4\u65b0"]),
        ("m\u00fcller+1@example.com", ["m\u00fcller", "1", "example", "com"]),
        ("\U0001f680rocket", ["rocket"]),
        ("\u0645\u06cc\u200c\u062e", ["\u0645\u06cc", "\u062e"]),
    ],
)
def test_words(text: str, found: list[str]) -> None:
    """A word is a run of letters, marks, digits and underscores, in any script."""
    assert words(text) == found


@given(some_text)
@example("\u0345\u0391")
def test_a_word_is_its_own_only_word(text: str) -> None:
    """What is found in a text is found again by asking for it."""
    for word in words(text):
        assert word
        assert word in fold(text)
        assert words(word) == [word] or fold(word) != word  # few folds are not done in one go


@given(some_text, some_text)
def test_words_of_parts_are_those_of_the_whole(one: str, other: str) -> None:
    """A quote between two texts parts them, whatever letters and marks stand beside it."""
    assert words(f'{one}"{other}') == words(one) + words(other)


@given(some_text)
def test_ascii_is_no_special_case(text: str) -> None:
    """The short way for ASCII gives what the long one does."""
    ascii_part = text.encode("ascii", "ignore").decode()
    assert words(ascii_part) == words(f"{ascii_part} \u00e9")[:-1]


# Letters, marks that go together with them, and what folds to ASCII or stands for it.
odd_text = st.text(
    st.sampled_from(
        'aAeEhijJkKnsST_1 -\\"\u0301\u0307\u030c\u0323\u0327\u0331\u0345\u034f\u00e9\u00df\u00fc'
        "\u0130\u0131\u0149\u017f\u01f0\u03a3\u1e96\u1e9b\u1e9e\u2122\u212a\u4fa1\ufb01\uff24\uff3f"
        "\U0001d400\U0001d165\U0001f680"
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)


@given(odd_text)
@example("e\u0301x")
@example("\u1e96\u0327h")
def test_words_that_stand_plainly_are_in_the_bytes(text: str) -> None:
    r"""Where nothing else makes words of ASCII, each is there in lower case, also in JSON."""
    for form in (text, json.dumps(text), json.dumps(text, ensure_ascii=False)):
        if stands_plainly(form.encode()):
            lowered = form.encode().lower()
            assert all(word.encode() in lowered for word in words(text) if word.isascii())


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Disk full", True),
        ("caf\u00e9 e\u0301t\u00e9 \u4fa1\u683c \U0001f680", True),
        (r"caf\u00e9 \ud83d\ude80 \u0001 \u003c \ud83d", True),
        ("\u212a", False),
        ("a\uff3fb", False),
        ("Stra\u00dfe", False),
        (r"\u0041", False),
        (r"\u005F", False),
        (r"\u212A", False),
        (r"\uD835\uDC00", False),
        (r"\ud83d\ud835\udc00", False),
    ],
)
def test_which_texts_stand_plainly(text: str, plain: bool) -> None:
    """Most do; not those with letters that fold to ASCII, nor with such behind an escape."""
    assert stands_plainly(text.encode()) is plain


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("disk", [Term(("disk",))]),
        ("  Disk\tFULL\n", [Term(("disk",)), Term(("full",))]),
        ('"disk full"', [Term(("disk", "full"))]),
        ("disk-full", [Term(("disk", "full"))]),
        ("-disk", [Term(("disk",), negated=True)]),
        ('-"disk full" x', [Term(("disk", "full"), negated=True), Term(("x",))]),
        ('a"b c"d', [Term(("a",)), Term(("b", "c")), Term(("d",))]),
        ("--disk", [Term(("disk",), negated=True)]),
        ("- disk", [Term(("disk",))]),
        ('"" disk !', [Term(("disk",))]),
        ("it's", [Term(("it", "s"))]),
        (f"-{HINDI}", [Term((HINDI,), negated=True)]),
        ("\u3000disk\u3000full", [Term(("disk",)), Term(("full",))]),
    ],
)
def test_questions(question: str, terms: list[Term]) -> None:
    """Words, phrases in quotes and those that must not be there; signs within a term part it."""
    assert parse_search(question) == Search(tuple(terms))


@pytest.mark.parametrize(
    ("question", "detail"),
    [
        ("", "must hold a word"),
        ("  ", "must hold a word"),
        ('"" - -"" !?', "must hold a word"),
        ('disk "full', "has a quote that is not closed"),
        ('disk"', "has a quote that is not closed"),
        ('-"', "has a quote that is not closed"),
        ("x" * (QUESTION_LENGTH_MAX + 1), f"must be at most {QUESTION_LENGTH_MAX} characters"),
        ("x " * (TERMS_MAX + 1), f"must hold at most {TERMS_MAX} words and phrases"),
    ],
)
def test_questions_that_ask_for_nothing(question: str, detail: str) -> None:
    """What has no word, no end or no bound is refused, with the reason."""
    with pytest.raises(BadSearch, match=f"^{detail}$"):
        parse_search(question)


def test_the_largest_questions() -> None:
    """The limits themselves are within."""
    assert len(parse_search("x " * TERMS_MAX).terms) == TERMS_MAX
    assert parse_search("x" * QUESTION_LENGTH_MAX).terms == (Term(("x" * QUESTION_LENGTH_MAX,)),)


@given(st.text(max_size=40))
def test_every_text_is_a_question_or_none(question: str) -> None:
    """Whatever is asked, it is read or refused; what was read has words to look for."""
    try:
        search = parse_search(question)
    except BadSearch:
        return
    assert search.terms
    assert all(term.words and all(term.words) for term in search.terms)
    assert search.required == {
        word for term in search.terms if not term.negated for word in term.words
    }


@pytest.mark.parametrize(
    ("question", "texts", "found"),
    [
        ("disk", ["Disk full"], True),
        ("dis", ["disk"], False),
        ("disk full", ["full", "disk"], True),
        ('"disk full"', ["full", "disk"], False),
        ('"disk full"', ["the disk, full of it"], True),
        ('"disk full"', ["disk disk full"], True),
        ('"disk full"', ["full disk"], False),
        ('"disk full"', ["disk is full"], False),
        ("-disk", ["disk"], False),
        ("-disk", ["full"], True),
        ("-disk", [], True),
        ("full -disk", ["full", "disk"], False),
        ('full -"disk full"', ["full disk"], True),
        ("disk", [], False),
    ],
)
def test_what_a_question_matches(question: str, texts: list[str], found: bool) -> None:
    """All terms must hold, each phrase within one value, and none of the negated ones."""
    assert parse_search(question).matches(texts) is found


@given(st.lists(some_text, max_size=4))
def test_each_text_is_found_by_its_own_words(texts: list[str]) -> None:
    """A text between quotes matches the logs that hold it, and negated no such log."""
    for text in texts:
        if phrase := words(text):
            assert Search((Term(tuple(phrase)),)).matches(texts)
            assert not Search((Term(tuple(phrase), negated=True),)).matches(texts)


@given(
    st.lists(st.tuples(odd_text, st.booleans()), min_size=1, max_size=3),
    st.lists(odd_text, max_size=4),
)
@example([("disk full", False)], ["full of disk", "disk", "disk FULL"])
@example([("disk", True), ("e\u0301", False)], ["DISK", "\u00e9"])
def test_values_without_the_words_change_nothing(
    questions: list[tuple[str, bool]], texts: list[str]
) -> None:
    """To pass over values is as good as to look into each of them."""
    terms = [Term(tuple(words(text)), negated) for text, negated in questions if words(text)]
    values = list(map(words, texts))
    want = all(term.is_in(values) is not term.negated for term in terms)
    assert Search(tuple(terms)).matches(texts) is want


@given(some_json)
def test_leaves_are_all_values(value: Any) -> None:
    """Every value at any depth is searched, names and null are not."""

    def expect(one: Any) -> list[str]:
        if isinstance(one, dict):
            return [text for inner in one.values() for text in expect(inner)]
        if isinstance(one, list):
            return [text for inner in one for text in expect(inner)]
        if one is None:
            return []
        return [one if isinstance(one, str) else json.dumps(one)]

    for ensure_ascii in (True, False):
        text = json.dumps(value, ensure_ascii=ensure_ascii)
        assert sorted(leaves(parse_exactly(text))) == sorted(expect(value))


@pytest.mark.parametrize("number", ["1.50", "1e400", "-0", "12345678901234567890123", "1E+5"])
def test_numbers_are_the_texts_that_were_sent(number: str) -> None:
    """No number is rounded or written anew."""
    assert parse_exactly(number) == number
    assert parse_exactly(f'{{"n":[{number}]}}'.encode()) == {"n": [number]}


def test_the_texts_of_scalars() -> None:
    """A filter of metadata is compared with a value's JSON, of a string with the string itself."""
    texts = {'"a b"': "a b", "1.50": "1.50", "true": "true", "false": "false", "null": "null"}
    for value, text in texts.items():
        assert scalar_text(parse_exactly(value)) == text
    for value in ("{}", "[]", '["a"]', '{"a":1}'):
        assert scalar_text(parse_exactly(value)) is None


def test_marks_without_end_take_no_time_without_end() -> None:
    """Marks by the hundred thousand on one letter are folded as soon as any other text.

    Python sorts those of a letter in a time that grows by their square: an hour for these.
    """
    text = "a" + "\u0301" * 250_000 + "\u0323" * 250_000
    assert len(words(f"{text} next")) == 2
    # Of two planes, in turn.
    fold("a" + "\u0301\U0001d165" * 100_000 + "\u0323\U0001e8d0" * 100_000)
    assert not parse_search("b").matches([text])
    few = "a" + "\u0301\u0323" * 15
    assert words(few) == words("a" + "\u0323\u0301" * 15)
