"""Make an admin key: it manages every client, their keys and their logs."""

import argparse

from _wiring import Refused, ask, control_plane, moment, print_json, run

from app.keys.objects import key_object
from app.keys.registry import create_key


def main() -> None:
    """Make the key and show it, this once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="whose it is, such as 'alice laptop'; asked for")
    parser.add_argument("--expires", type=moment, metavar="T", help="RFC 3339, a date, or 90d")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    name = arguments.name or ask(
        "Enter a name for the key (e.g., 'alice laptop'): ", to_stderr=arguments.json
    )
    if not name:
        raise Refused("name is required")
    with control_plane() as plane:
        key, text = create_key(
            plane.engine,
            plane.peppers,
            key_hasher=plane.settings.key_hasher,
            client_id=None,
            name=name,
            expires_at=arguments.expires,
            created_by="create_admin_key.py",
        )
    if arguments.json:
        print_json({**key_object(key, plane.rotation_policy), "key": text})
    else:
        print(f"Admin key {key.name!r}, shown this once and stored nowhere:\n\n    {text}\n")
        print("It reaches every client's logs. Keep it as you would a root password.")


if __name__ == "__main__":
    run(main)
