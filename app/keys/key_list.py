"""Files of keys that were made elsewhere: JSON, YAML or CSV, read into entries. Pure.

As in entry.py, no error repeats anything of the file.
"""

import csv
import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from app.keys.entry import FIELDS, Entry, EntryFault, read_entry

# About 10,000 entries, whose argon2 takes two cores three minutes.
KEY_LIST_BYTES_MAX = 2 * 1024**2


class BadKeyList(ValueError):
    """The file as a whole cannot be read; the text is one line and holds nothing of the file."""


class KeyList(NamedTuple):
    """The good entries of a file, and what is wrong with the others."""

    entries: list[Entry]
    faults: list[EntryFault]


def read_key_list(raw: bytes, form: str, bytes_max: int = KEY_LIST_BYTES_MAX) -> KeyList:
    """Read a file of keys, in one of FORMATS; raises BadKeyList."""
    if len(raw) > bytes_max:
        raise BadKeyList(f"has more than {bytes_max} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadKeyList("is not UTF-8 text") from None
    found = KeyList([], [])
    numbers: dict[object, int] = {}
    for number, row in enumerate(FORMATS[form](text), 1):
        entry, faults = read_entry(number, row)
        token = row.get("key") if isinstance(row, dict) else None
        first = numbers.setdefault(token, number) if isinstance(token, str) else number
        if first != number:
            faults.append(EntryFault(number, "key", f"is the same as that of entry {first}"))
        if entry is not None and not faults:
            found.entries.append(entry)
        found.faults.extend(faults)
    return found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repeated names, which a dict would drop."""


def _json_rows(text: str) -> list[Any]:
    """Read a map of key to client_id."""
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, _Pairs):
        raise BadKeyList("is not a JSON map of key to client_id")
    return [{"key": key, "tenant": client_id} for key, client_id in pairs]


class _Loader(Composer, SafeConstructor, Resolver):
    """Reads plain data, each name once; no aliases, by which a short text can stand for a huge one.

    Of a name that is there twice, `enabled` say, PyYAML would take the last. A value that is none,
    an impossible date or a number of too many digits, becomes an object that no field takes, so
    that its entry is named.
    """

    # What a parser brings.
    check_event: Callable[..., bool]
    get_mark: Callable[[], yaml.Mark]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem_mark=self.get_mark())
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Leave what cannot be made for its entry's faults."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            return object()

    def construct_mapping(
        self, node: yaml.MappingNode, *args: Any, **kwargs: Any
    ) -> dict[Any, Any]:
        """Refuse repeated names."""
        mapping = super().construct_mapping(node, *args, **kwargs)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(problem_mark=node.start_mark)
        return mapping


class PythonLoader(_Loader, yaml.SafeLoader):
    """Parses in Python."""


def quickest_loader() -> Any:
    """Give one whose parser is libyaml, where PyYAML was built with it: it takes a third.

    Its composer is Python's all the same, since libyaml's own would follow aliases.
    """
    if not yaml.__with_libyaml__:
        return PythonLoader

    class QuickLoader(_Loader, yaml.CSafeLoader):
        def __init__(self, stream: str) -> None:
            yaml.CSafeLoader.__init__(self, stream)
            Composer.__init__(self)

    return QuickLoader


_YamlLoader = quickest_loader()


def _yaml_rows(text: str) -> list[Any]:
    """Read the list under `api_keys:`."""
    try:
        content = yaml.load(text, _YamlLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        # Its own text quotes the file.
        mark = error.problem_mark
        where = "" if mark is None else f" (at line {mark.line + 1})"
        raise BadKeyList(f"is not plain YAML{where}") from None
    except Exception:  # noqa: BLE001 (as it happens, RecursionError for one; its text may be a key)
        raise BadKeyList("is not plain YAML") from None
    if not isinstance(content, dict) or list(content) != ["api_keys"]:
        raise BadKeyList("must have `api_keys:` at its top, and nothing else there")
    rows = content["api_keys"]
    if rows is not None and not isinstance(rows, list):
        raise BadKeyList("must have a list under `api_keys:`")
    return rows or []


def _csv_rows(text: str) -> list[Any]:
    """Read rows under a line of names."""
    try:
        lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        rows = [[cell.strip() for cell in line] for line in lines]
    except csv.Error:
        raise BadKeyList("is not CSV") from None
    names, *rows = [row for row in rows if any(row)] or [[]]
    names = [name.lower() for name in names]
    if not {"key", "tenant"} <= set(names):
        raise BadKeyList("must begin with a line of names, `key` and `tenant` among them")
    for place, name in enumerate(names, 1):
        if name not in FIELDS or name in names[: place - 1]:
            # Not repeated: without a line of names it may be a key.
            raise BadKeyList(f"column {place} must be another of {', '.join(FIELDS)}")
    # An absent value is an empty cell; one cell too many gets the name None.
    return [
        {name: cell for name, cell in zip([*names, None], row, strict=False) if cell}
        for row in rows
    ]


FORMATS: dict[str, Callable[[str], list[Any]]] = {
    "json": _json_rows,
    "yaml": _yaml_rows,
    "csv": _csv_rows,
}
