"""Revoke an API key: it fails from the next request on, everywhere."""

import argparse

from _wiring import Refused, ask, control_plane, print_json, run

from app.errors import NotFound
from app.keys.lifecycle import deactivate_key
from app.keys.objects import key_object
from app.keys.registry import get_key


def main() -> None:
    """Ask, then deactivate; a key that is off already stays so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("key_id", nargs="?", metavar="KEY_ID", help="key_id or UUID; asked for")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print the key's JSON object")
    arguments = parser.parse_args()
    key_id = arguments.key_id or ask("Enter key_id: ", to_stderr=arguments.json)
    if not key_id:
        raise Refused("key_id is required")
    with control_plane() as plane:
        try:
            key = get_key(plane.engine, key_id)
        except NotFound:
            raise Refused(f"no key {key_id!r}; list_api_keys.py shows them") from None
        question = f"Revoke {key.key_prefix} ({key.name})? [y/N] "
        if not arguments.yes and ask(question, to_stderr=arguments.json).lower() not in (
            "y",
            "yes",
        ):
            raise Refused("not revoked")
        key = deactivate_key(plane.engine, key_id).key
    if arguments.json:
        print_json(key_object(key))
    else:
        print(f"Revoked {key.key_prefix} ({key.name}).")


if __name__ == "__main__":
    run(main)
