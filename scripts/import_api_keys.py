"""Store API keys that were made elsewhere, and their clients where they are new.

FILE is a JSON map of key to client_id, a YAML list `api_keys:`, or CSV with a line of names: key,
role, tenant, description, rate_limit, expires_at, enabled, allowed_datasets, permissions. A key
that is stored already is left as it is, so that a second run does no harm. One that the settings
have is stored if it is the same client's, and then to be taken out there.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from _wiring import ControlPlane, Refused, control_plane, needed, open_parser, print_json, run

from app.errors import Invalid
from app.keys.configured import texts_of_settings
from app.keys.entry import Entry, EntryFault
from app.keys.imports import StoredAlready, check_new, import_key, prepare_import
from app.keys.key_list import FORMATS, KEY_LIST_BYTES_MAX, BadKeyList, read_key_list
from app.keys.keys_file import KeysFile
from app.keys.models import ApiKey
from app.keys.strength import is_weak

SUFFIXES = {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".csv": "csv"}
# Each is an argon2 at a time (19 MiB), and then a turn at the one writer of the database.
THREADS_MAX = 8

# The text of each key of the settings, with its place and its client.
Given = dict[str, tuple[str, str | None]]


class Outcome(NamedTuple):
    """What became of one entry: a new key, or one that is there, or why there is none."""

    entry: Entry
    key: ApiKey | None = None
    is_new: bool = False
    detail: str = ""


def main() -> None:
    """Import, and report by the numbers of the entries."""
    parser, arguments = _arguments()
    question = "Enter the file with the keys: "
    file = Path(needed(arguments.file, "FILE", question, to_stderr=arguments.json))
    form = arguments.format or SUFFIXES.get(file.suffix.lower())
    if form is None:
        parser.error("--format is needed: the file's name ends in none of .json .yaml .csv")
    try:
        entries, faults = read_key_list(_read(file), form)
    except OSError as error:
        parser.error(f"{file}: {error.strerror}")
    except BadKeyList as error:
        raise Refused(f"{file} {error}") from None
    with (
        control_plane(may_create=True) as plane,
        ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS_MAX)) as threads,
    ):
        given = _given(plane)
        one = partial(_import, plane, given, is_dry=arguments.dry_run)
        outcomes = list(threads.map(one, entries))
    report = _report(outcomes, faults, given)
    if arguments.json:
        print_json({"dry_run": arguments.dry_run, **report})
    else:
        print(_text(report, is_dry=arguments.dry_run))
    if report["failed"]:
        numbers = {fault["entry"] for fault in report["failed"]}
        raise Refused(f"{len(numbers)} of the entries cannot be imported")


def _arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = open_parser(__doc__)
    parser.add_argument("file", nargs="?", metavar="FILE", help="asked for if it is missing")
    parser.add_argument("--format", choices=FORMATS, help="default: by the end of its name")
    parser.add_argument("--dry-run", action="store_true", help="store nothing, only say")
    return parser, parser.parse_args()


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(KEY_LIST_BYTES_MAX + 1)  # enough to see that it is too much


def _given(plane: ControlPlane) -> Given:
    one = plane.settings
    entries = KeysFile(one.api_keys_file).read() if one.api_keys_file else []
    platform = one.api_key_admin, one.api_key_default, one.initial_admin_key
    return texts_of_settings(one.api_keys, *platform, entries)


def _import(plane: ControlPlane, given: Given, entry: Entry, *, is_dry: bool) -> Outcome:
    place, client_id = given.get(entry.token, ("", entry.client_id))
    if client_id != entry.client_id:
        owner = f"client {client_id}" if client_id else "the platform"
        return Outcome(entry, detail=f"key is that of {place} already, for {owner}")
    try:
        return Outcome(entry, _store(plane, entry, is_dry=is_dry), is_new=True)
    except StoredAlready as error:
        return _met(entry, error.key)
    except Invalid as error:
        faults = error.members["errors"]
        detail = "; ".join(f"{fault['field']} {fault['detail']}" for fault in faults)
        return Outcome(entry, detail=detail)


def _store(plane: ControlPlane, entry: Entry, *, is_dry: bool) -> ApiKey | None:
    client_id = entry.client_id
    name = entry.name_or(client_id or "imported admin key")
    if is_dry:
        check_new(plane.engine, plane.peppers, entry.token)
        prepare_import(
            plane.peppers, entry.token, client_id=client_id, name=name, **entry.properties
        )
        return None
    return import_key(
        plane.engine,
        plane.peppers,
        by=plane.by,
        token=entry.token,
        client_id=client_id,
        name=name,
        key_hasher=plane.settings.key_hasher,
        create_client=True,
        **entry.properties,
    )


def _met(entry: Entry, key: ApiKey) -> Outcome:
    """Leave a key that is there; to be another's, or gone for good, is not what was asked for."""
    if key.client_id != entry.client_id:
        owner = f"client {key.client_id}" if key.client_id else "the platform"
        return Outcome(entry, detail=f"key is stored already, for {owner}")
    if key.deleted_at is not None:
        return Outcome(entry, detail="key was deleted here, and stays so")
    return Outcome(entry, key)


def _report(
    outcomes: list[Outcome], faults: list[EntryFault], given: Given
) -> dict[str, list[dict[str, Any]]]:
    failed = [
        {"entry": fault.number, "detail": f"{fault.field} {fault.detail}"} for fault in faults
    ]
    failed += [{"entry": one.entry.number, "detail": one.detail} for one in outcomes if one.detail]
    return {
        "imported": [_shown(one) for one in outcomes if one.is_new],
        "skipped": [_shown(one) for one in outcomes if one.key is not None and not one.is_new],
        "failed": sorted(failed, key=lambda fault: fault["entry"]),
        "in_settings": [
            {**_shown(one), "place": given[one.entry.token][0]}
            for one in outcomes
            if not one.detail and one.entry.token in given
        ],
        "worth_rotating": [
            _shown(one) for one in outcomes if not one.detail and is_weak(one.entry.token)
        ],
    }


def _shown(outcome: Outcome) -> dict[str, Any]:
    entry, key = outcome.entry, outcome.key
    return {
        "entry": entry.number,
        "client_id": entry.client_id,
        "key_id": None if key is None else key.key_id,
        "role": entry.role if key is None else key.role,
        "is_active": entry.is_active if key is None else key.is_active,
    }


def _text(report: dict[str, list[dict[str, Any]]], *, is_dry: bool) -> str:
    imported, skipped, failed = (len(report[one]) for one in ("imported", "skipped", "failed"))
    begin = "Would import" if is_dry else "Imported"
    lines = [f"{begin} {imported}, stored already {skipped}, failed {failed}."]
    lines += [
        f"  {title:9} entry {one['entry']}: {one.get('detail') or _name(one)}"
        for title in ("imported", "skipped", "failed")
        for one in report[title]
    ]
    if report["worth_rotating"]:
        lines.append("Worth rotating, since they may be guessable (not made by central-logger):")
        lines += [f"  entry {one['entry']}: {_name(one)}" for one in report["worth_rotating"]]
    if report["in_settings"]:
        lines.append("To be taken out of the settings, since what is stored decides:")
        lines += [f"  entry {one['entry']}: {one['place']}" for one in report["in_settings"]]
    return "\n".join(lines)


def _name(shown: dict[str, Any]) -> str:
    state = "" if shown["is_active"] else ", inactive"
    return (
        f"key {shown['key_id'] or '(new)'} of {shown['client_id'] or '(platform)'}, "
        f"role {shown['role']}{state}"
    )


if __name__ == "__main__":
    run(main)
