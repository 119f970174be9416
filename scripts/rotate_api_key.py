"""Replace an API key by a new one; the old one works on for a grace, and then stops by itself.

The new key is shown once, or with --notify mailed to its owner behind a link that works once.
"""

import argparse
from typing import Any

from _letters import find_client, link, open_route, tell
from _wiring import ControlPlane, Refused, ask, control_plane, print_json, run

from app.delivery.mail import compose
from app.delivery.templates import utc_text
from app.errors import NotFound
from app.keys.lifecycle import GRACE_S_DEFAULT, Rotation, rotate_key
from app.keys.objects import iso_time, key_object
from app.keys.registry import get_key


def main() -> None:
    """Rotate, then show the key or mail its link."""
    arguments = _arguments()
    key_id = arguments.key_id or ask("Enter key_id: ", to_stderr=arguments.json)
    if not key_id:
        raise Refused("key_id is required")
    with control_plane() as plane:
        if arguments.notify is not None:
            rotation, extra = _notify(plane, key_id, arguments)
        else:
            rotation = _rotate(plane, key_id, arguments.grace_seconds)
            extra = {"key": rotation.text}
        shown = key_object(rotation.key, plane.rotation_policy)
        url = plane.settings.reachable_url
    if arguments.json:
        old = {
            "grace_until": iso_time(rotation.old.grace_until),
            "old_key_id": rotation.old.key_id,
        }
        print_json(shown | extra | old)
    elif arguments.notify is not None:
        print(f"{_deadline(rotation)}\n\n{tell(extra)} Its claim link works once:")
        print(f"\n    {extra['claim_url']}")
    else:
        print(_letter(rotation, url))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("key_id", nargs="?", metavar="KEY_ID", help="key_id or UUID; asked for")
    parser.add_argument(
        "--grace-seconds",
        type=int,
        default=GRACE_S_DEFAULT,
        metavar="N",
        help="how long the old key works on (default: %(default)s); 0 = not at all",
    )
    parser.add_argument(
        "--notify",
        metavar="ADDR",
        help="mail the link there, by SMTP_URL; without it, into a file",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def _notify(
    plane: ControlPlane, key_id: str, arguments: argparse.Namespace
) -> tuple[Rotation, dict[str, Any]]:
    """Rotate, and mail the link; nothing is rotated that could not be told of."""
    client = find_client(plane, _client_of(plane, key_id))
    name = client.name if client else "platform"
    route = open_route(plane.settings, arguments.notify, name, is_sent=True, output=None)
    rotation = _rotate(plane, key_id, arguments.grace_seconds)
    handover = link(plane, rotation.key, rotation.text)
    message = compose(
        rotation.key,
        handover,
        url=plane.settings.reachable_url,
        sender=route.sender,
        to=route.to,
        old=rotation.old,
    )
    owner = rotation.key.client_id or "platform"
    default_output = f"rotation-{owner}-{rotation.key.key_id}.eml"
    sent = route.dispatch(message, handover, default_output)
    return rotation, {"claim_url": handover.claim_url, **sent}


def _client_of(plane: ControlPlane, key_id: str) -> str | None:
    try:
        return get_key(plane.engine, key_id).client_id
    except NotFound:
        raise _unknown(key_id) from None


def _rotate(plane: ControlPlane, key_id: str, grace_s: int) -> Rotation:
    try:
        return rotate_key(
            plane.engine,
            plane.peppers,
            key_id,
            grace_s=grace_s,
            key_hasher=plane.settings.key_hasher,
            created_by="rotate_api_key.py",
        )
    except NotFound:
        raise _unknown(key_id) from None


def _unknown(key_id: str) -> Refused:
    return Refused(f"no key {key_id!r}; list_api_keys.py shows them")


def _deadline(rotation: Rotation) -> str:
    assert rotation.old.grace_until is not None  # noqa: S101  # a rotation sets it
    until = utc_text(rotation.old.grace_until)
    return f"The old key {rotation.old.key_prefix} works until {until}, and then stops by itself."


def _letter(rotation: Rotation, url: str) -> str:
    key = rotation.key
    return f"""\
New API key for {key.client_id or "the platform"}, shown this once and stored nowhere:

    {rotation.text}

    key id {key.key_id} | role {key.role}

{_deadline(rotation)}

The client's .env:

LOGGER_API_URL={url}
LOGGER_API_KEY={rotation.text}"""


if __name__ == "__main__":
    run(main)
