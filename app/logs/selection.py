"""Which logs a question is about: the filter language of every route that reads or erases. Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any, TypeVar

from app.errors import Invalid, fault
from app.logs.search import Search, leaves, parse_search, scalar_text, words
from app.logs.timestamp import MIN_US, US_PER_S, BadTime, parse_instant

Instant = tuple[int, int]  # us since 1970, ns beyond
Params = Iterable[tuple[str, str]]
Fault = dict[str, Any]  # {index, field, detail}
T = TypeVar("T")

# Values that a log either has or not; a list of them means any of them.
SERIES_FILTERS = ("environment", "status", "level", "workflow", "dataset")
FILTERS = (*SERIES_FILTERS, "run_id")
METADATA_PREFIX = "metadata."
METADATA_FILTERS_MAX = 16
METADATA_NAME_LENGTH_MAX = 256  # each dot in it is a step down, and one more look at each
# Filters that may be given once.
SINGLE_FILTERS = frozenset({"from", "to", "q", "min_duration_ms"})

_RELATIVE = re.compile(r"-(\d{1,9})([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DECIMAL = re.compile(r"\d{1,300}(\.\d{1,300})?([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Logs with `start` <= executed_at < `end` that match every filter.

    `filters` maps a name of FILTERS to its accepted values, `metadata` a name inside the metadata
    to those of the value there.
    """

    start: Instant | None = None
    end: Instant | None = None
    filters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    min_duration_ms: float | None = None
    search: Search | None = None
    metadata: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def matches(self, log: Mapping[str, Any]) -> bool:
        """Say whether a log as `parse_exactly` gave it is meant."""
        if self.start is not None or self.end is not None:
            instant = parse_instant(log["executed_at"])
            if self.start is not None and instant < self.start:
                return False
            if self.end is not None and instant >= self.end:
                return False
        if not all(log[name] in accepted for name, accepted in self.filters.items()):
            return False
        if self.min_duration_ms is not None:
            duration = log["duration_ms"]
            if duration is None or float(duration) < self.min_duration_ms:
                return False
        return self.matches_content(log)

    @property
    def reads_content(self) -> bool:
        """Say whether it takes a look into a log's texts to tell whether it is meant."""
        return self.search is not None or bool(self.metadata)

    def matches_content(self, log: Mapping[str, Any]) -> bool:
        """Say whether `search` and `metadata` hold of a log as `parse_exactly` gave it."""
        for name, accepted in self.metadata.items():
            if not _accepts(log["metadata"], name, accepted):
                return False
        if self.search is None:
            return True
        searched = [log["message"], log["error"], log["metadata"]]
        return self.search.matches(leaves(searched))

    def required_words(self) -> list[list[frozenset[str]]]:
        """Give what the words of a log that matches must include: all of it, any list of each.

        A way to pass over most others by their words alone; what it lets pass must be looked at.
        """
        sought = self.search.required if self.search else ()
        return [[frozenset({word})] for word in sought] + [
            [frozenset(words(value)) for value in accepted] for accepted in self.metadata.values()
        ]

    def members(self) -> dict[str, Any]:
        """Give what makes a question of another kind about the same logs."""
        return {one.name: getattr(self, one.name) for one in fields(Selection)}

    def as_params(self) -> list[Any]:
        """Give it in a form that is the same for the same question, to be signed."""
        return [
            sorted(self.filters.items()),
            self.min_duration_ms,
            self.search,
            sorted(self.metadata.items()),
        ]


def parse_selection(params: Params, now_us: int) -> Selection:
    """Read filters of a query string; unknown or bad ones raise Invalid, all at once.

    An unknown name is refused, not ignored: a misspelt filter would show everything.
    """
    single: dict[str, str] = {}
    several: dict[str, tuple[str, ...]] = {}
    faults: list[Fault] = []
    for name, value in params:
        if name in FILTERS or (name.startswith(METADATA_PREFIX) and name != METADATA_PREFIX):
            several[name] = (*several.get(name, ()), value)
        elif name not in SINGLE_FILTERS:
            faults.append(fault(name, "is not a known parameter"))
        elif name in single:
            faults.append(fault(name, "is given twice"))
        else:
            single[name] = value
    metadata = {
        name.removeprefix(METADATA_PREFIX): values
        for name, values in several.items()
        if name not in FILTERS
    }
    if any(len(name) > METADATA_NAME_LENGTH_MAX for name in metadata):
        detail = f"a name must be at most {METADATA_NAME_LENGTH_MAX} characters"
        faults.append(fault("metadata", detail))
    if len(metadata) > METADATA_FILTERS_MAX:
        faults.append(fault("metadata", f"may be filtered by {METADATA_FILTERS_MAX} names at most"))
    selection = Selection(
        start=read_one("from", single, lambda text: parse_bound(text, now_us), faults),
        end=read_one("to", single, lambda text: parse_bound(text, now_us), faults),
        filters={name: values for name, values in several.items() if name in FILTERS},
        min_duration_ms=read_one("min_duration_ms", single, _duration, faults),
        search=read_one("q", single, parse_search, faults),
        metadata=metadata,
    )
    if faults:
        raise Invalid(faults)
    return selection


def read_one(
    name: str, single: Mapping[str, str], read: Callable[[str], T], faults: list[Fault]
) -> T | None:
    """Read one parameter if it is there; note what is wrong with it among the faults."""
    if name not in single:
        return None
    try:
        return read(single[name])
    except ValueError as error:
        faults.append(fault(name, str(error)))
        return None


def parse_bound(text: str, now_us: int) -> Instant:
    """Read a bound: RFC 3339, or relative to now as in `-1h`; raise BadTime."""
    relative = _RELATIVE.fullmatch(text)
    if relative is not None:
        return max(MIN_US, now_us - int(relative[1]) * _UNIT_S[relative[2]] * US_PER_S), 0
    try:
        # A `+` in a query string arrives as a space unless the caller escaped it; the one between
        # date and time is another matter.
        return parse_instant(text[:11] + text[11:].replace(" ", "+"))
    except BadTime:
        raise BadTime("must be an RFC 3339 time, or relative like -1h or -7d") from None


def _duration(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not isfinite(duration := float(text)):
        raise ValueError("must be a number of at least 0")
    return duration


def _accepts(metadata: Any, name: str, accepted: tuple[str, ...]) -> bool:
    return any(scalar_text(value) in accepted for value in _named(metadata, name))


def _named(metadata: Any, name: str) -> Iterator[Any]:
    """Yield what stands under a name, or under a path of names that dots part."""
    if not isinstance(metadata, dict):
        return
    if name in metadata:
        yield metadata[name]
    for dot in re.finditer(r"\.", name):
        head = name[: dot.start()]
        if head in metadata:
            yield from _named(metadata[head], name[dot.end() :])
