"""Full text: what a word is, how a question is read, and what it matches. Pure.

A word is a run of letters, marks, digits and underscores, in any script, compared without case
(Unicode's compatibility forms, NFKC, case-folded). A phrase is words that follow each other in one
value. Searched are a log's message and the values, not the names, within its error and metadata.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple
from unicodedata import category, combining, normalize

TERMS_MAX = 32
QUESTION_LENGTH_MAX = 1024
# On one letter, before they are parted by a joiner that stands for nothing; no script has so many.
MARKS_MAX = 30
_JOINER = "\u034f"
_HIGHER = "\U00010000"  # the first character beyond the basic plane

_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_ASCII_BYTES = bytes(range(128))
# A character that JSON may write so; of the higher planes it takes two.
_ESCAPE = re.compile(
    rb"\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[0-9a-fA-F]{4})"
)
# A term is a phrase in quotes or what has no space in it; a sign before it negates.
_TERM = re.compile(r'\s*(?:(-?)"([^"]*)"|(-?)([^\s"]+))')


class BadSearch(ValueError):
    """Says in its text what a question must be."""


def fold(text: str) -> str:
    """Make texts that differ in case or form alone equal."""
    if text.isascii():
        return text.lower()
    maybe, surely = _marks_in_a_row()
    if maybe.search(text):
        # Python sorts the marks on a letter in a time that grows by their square.
        text = surely.sub(rf"\g<0>{_JOINER}", text)
    return normalize("NFKC", normalize("NFKC", text).casefold())


@cache
def _marks_in_a_row() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Make patterns of as many marks as UAX 15, "Stream-Safe Text Format", leaves in a row.

    A class of marks of all planes takes 230 ns a character. With every character of the higher
    planes taken for one, and its first character by itself, it takes 7: that is asked first.
    """
    marks = "".join(chr(n) for n in range(sys.maxunicode + 1) if combining(chr(n)))
    maybe = f"[{''.join(one for one in marks if one < _HIGHER)}{_HIGHER}-{chr(sys.maxunicode)}]"
    row = f"{{{MARKS_MAX - 1}}}"
    return re.compile(f"{maybe}{maybe}{row}"), re.compile(f"[{marks}][{marks}]{row}")


def words(text: str) -> list[str]:
    """Cut a text into its words, folded."""
    return _cut(fold(text))


def _cut(folded: str) -> list[str]:
    return (_ASCII_WORD if folded.isascii() else _unicode_word()).findall(folded)


def stands_plainly(text: bytes) -> bool:
    r"""Say of a text or of JSON, in UTF-8, that no ASCII word in it is written by other means.

    Then each ASCII word in it is in its bytes in lower case. Others come of characters that fold to
    ASCII letters and digits (1,419 in Unicode 14: of full width, ligatures, fractions, letters of
    mathematics and, met more often, \u00df, \u00b2 and \u2122), and of \uXXXX in JSON.
    """
    if b"\\u" in text and any(map(_hides_ascii, set(_ESCAPE.findall(text)))):
        return False
    if text.isascii():
        return True
    return not any(map(_gives_ascii, set(text.translate(None, _ASCII_BYTES).decode())))


# Some 2 MB each at most, whatever is sent.
@lru_cache(1 << 14)
def _hides_ascii(escape: bytes) -> bool:
    return _gives_ascii(json.loads(b'"%b"' % escape))


@lru_cache(1 << 14)
def _gives_ascii(character: str) -> bool:
    return bool(_ASCII_WORD.search(fold(character)))


@cache
def _unicode_word() -> re.Pattern[str]:
    r"""Make the pattern of a word: `\w` alone would cut हिन्दी at each of its vowel signs."""
    marks = "".join(chr(n) for n in range(sys.maxunicode + 1) if category(chr(n)) in {"Mn", "Mc"})
    # The look ahead spares what follows most words the long way through the marks.
    return re.compile(rf"\w+(?:(?=[^\0-\x7f])[{marks}]+\w*)*")


class Term(NamedTuple):
    """Words that must follow each other in one value; or, negated, must not."""

    words: tuple[str, ...]
    negated: bool = False

    def is_in(self, values: list[list[str]]) -> bool:
        """Say whether one of the values, as words, holds all of them in a row."""
        first, length = self.words[0], len(self.words)
        if length == 1:
            return any(first in value for value in values)
        wanted = list(self.words)
        return any(
            value[at : at + length] == wanted
            for value in values
            for at, word in enumerate(value)
            if word == first
        )


class Search(NamedTuple):
    """All of these terms must hold."""

    terms: tuple[Term, ...]

    def matches(self, texts: Iterable[str]) -> bool:
        """Say whether a log with these texts in its searched values is meant."""
        values = []
        for text in texts:
            folded = fold(text)
            # Most values hold none of the words, and to cut one takes longer than to see that.
            if any(term.words[0] in folded for term in self.terms):
                values.append(_cut(folded))
        return all(term.is_in(values) is not term.negated for term in self.terms)

    @property
    def required(self) -> frozenset[str]:
        """The words without which no log matches."""
        return frozenset(word for term in self.terms if not term.negated for word in term.words)


def parse_search(question: str) -> Search:
    """Read `word "a phrase" -not -"this one"`; raise BadSearch for what asks for nothing.

    Signs inside a term part it into words that must stand in a row: `disk-full` is a phrase.
    """
    if len(question) > QUESTION_LENGTH_MAX:
        raise BadSearch(f"must be at most {QUESTION_LENGTH_MAX} characters")
    terms = []
    at, end = 0, len(question.rstrip())
    while at < end:
        found = _TERM.match(question, at)
        if found is None:
            raise BadSearch("has a quote that is not closed")
        at = found.end()
        sign, text = (found[1], found[2]) if found[4] is None else (found[3], found[4])
        if folded := words(text):
            terms.append(Term(tuple(folded), sign == "-"))
    if not terms:
        raise BadSearch("must hold a word")
    if len(terms) > TERMS_MAX:
        raise BadSearch(f"must hold at most {TERMS_MAX} words and phrases")
    return Search(tuple(terms))


def parse_exactly(text: str | bytes) -> Any:
    """Parse JSON with its numbers as the texts that they were sent as."""
    return json.loads(text, parse_int=str, parse_float=str)


def leaves(value: Any) -> Iterator[str]:
    """Yield the texts in what `parse_exactly` gave: all values, at any depth, but null."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
        elif one is not None:
            yield _SCALARS[one]


def scalar_text(value: Any) -> str | None:
    """Give the text that a filter of metadata is compared with; None for objects and lists."""
    if isinstance(value, str):
        return value
    return None if isinstance(value, dict | list) else _SCALARS[value]


_SCALARS = {True: "true", False: "false", None: "null"}
