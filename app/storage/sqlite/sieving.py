"""What tells fast which logs a question can't mean, and with care which it does. Pure."""

from collections.abc import Callable, Iterator

import msgspec

from app.logs.identity import format_id
from app.logs.query import LogQuery
from app.logs.search import Search, fold, leaves, parse_exactly, stands_plainly
from app.logs.selection import Selection
from app.storage.sqlite.block import Lines
from app.storage.sqlite.sources import LINE_START, Source


class _Texts(msgspec.Struct):
    message: str | None
    error: msgspec.Raw
    metadata: msgspec.Raw


_decode_texts = msgspec.json.Decoder(_Texts).decode


def sieve(
    query: LogQuery, source: Source, blocks: dict[int, Lines], plain: list[int]
) -> Iterator[bytes]:
    """Yield the logs in blocks that may match, and perhaps some that were erased."""
    may = may_match(query)
    sought, is_all = _sure_words(query)
    first, end = (
        f"{LINE_START}{format_id(us, source.day, seq)}".encode()
        for us, seq in (source.low, source.high)
    )
    for number, lines in blocks.items():
        is_plain = bool(sought) and number in plain
        for log in lines.having(sought) if is_plain else lines:
            if first <= log < end and ((is_plain and is_all) or may(log)):
                yield log


def may_match(query: Selection) -> Callable[[bytes], bool]:
    """Return what tells fast, of most logs' texts in UTF-8, that they don't match."""
    required = query.required_words()
    sure, is_all = _sure_words(query)

    def may(text: bytes) -> bool:
        lowered = text.lower()
        for word in sure:
            if word not in lowered:
                if stands_plainly(text):
                    return False
                break
        else:
            if is_all:
                return True
        letters = fold(text.decode())
        is_likely = all(
            any(all(word in letters for word in one) for one in either) for either in required
        )
        return is_likely or b"\\u" in text  # and behind it a letter, perhaps

    return may


def _sure_words(query: Selection) -> tuple[list[bytes], bool]:
    """Return the ASCII words that a log must have, and whether that is all that it must have."""
    required = query.required_words()
    sure = {word for either in required if len(either) == 1 for word in either[0]}
    plain = sorted(filter(str.isascii, sure))
    # The longest one is in the fewest logs, most often.
    words = [word.encode() for word in sorted(plain, key=len, reverse=True)]
    return words, len(plain) == len(sure) and all(len(either) == 1 for either in required)


def matcher(query: Selection) -> Callable[[bytes], bool]:
    """Return what tells of a rendered log whether its texts match.

    Where they alone are asked for, values that can't matter are not parsed.
    """

    def matches_all(log: bytes) -> bool:
        return query.matches_content(parse_exactly(log))

    if query.search is None or query.metadata:
        return matches_all
    search = query.search
    may = _may_hold(search)

    def matches(log: bytes) -> bool:
        try:
            texts = _decode_texts(log)
        except (msgspec.MsgspecError, RecursionError):
            return matches_all(log)
        values = (bytes(texts.error), bytes(texts.metadata))
        telling = [parse_exactly(value) for value in values if may(value)]
        return search.matches(leaves([texts.message, *telling]))

    return matches


def _may_hold(search: Search) -> Callable[[bytes], bool]:
    """Return what tells fast, of most values as JSON, that no term is in them.

    What holds none changes nothing, whether a term is sought or must not be there.
    """
    terms = [[word.encode() for word in term.words] for term in search.terms]
    plain = [one for one in terms if all(word.isascii() for word in one)]

    def may(value: bytes) -> bool:
        lowered = value.lower()
        for term in plain:
            if all(word in lowered for word in term):
                return True
        if len(plain) < len(terms) and (b"\\u" in value or not value.isascii()):
            return True
        return not stands_plainly(value)

    return may
