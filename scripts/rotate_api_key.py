"""Replace an API key by a new one; the old one works on for a grace, and then stops by itself.

The new key is shown once, or with --notify mailed to its owner behind a link that works once.
"""

import argparse
import json
from functools import partial
from typing import Any

from _handover import hand_over, unrotate
from _letters import Letter, Route, link, open_route
from _signals import held
from _wiring import (
    ControlPlane,
    active_client,
    add_key_id,
    control_plane,
    key_id_of,
    known_key,
    open_parser,
    print_json,
    run,
)
from sqlmodel import Session

from app.delivery.mail import Handover, compose
from app.delivery.templates import utc_text
from app.keys.database import writing
from app.keys.lifecycle import GRACE_S_DEFAULT, Rotation, replace_key
from app.keys.models import ApiKey
from app.keys.objects import iso_time, key_object


def main() -> None:
    """Rotate, then show the key or mail its link."""
    arguments = _arguments()
    key_id = key_id_of(arguments)
    with control_plane() as plane:
        old = known_key(plane, key_id)
        if arguments.notify is None:
            _rotate_and_show(plane, old, arguments)
        else:
            _rotate_and_notify(plane, old, arguments)


def _arguments() -> argparse.Namespace:
    parser = open_parser(__doc__)
    add_key_id(parser)
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
    return parser.parse_args()


def _rotate_and_show(plane: ControlPlane, old: ApiKey, arguments: argparse.Namespace) -> None:
    with held():
        with writing(plane.engine) as session:
            rotation = _rotate(session, plane, old, arguments.grace_seconds)
        show = partial(_show, plane, rotation, is_json=arguments.json)
        hand_over(unrotate(plane, rotation), show)


def _show(plane: ControlPlane, rotation: Rotation, *, is_json: bool) -> None:
    if is_json:
        print_json(_object(plane, rotation) | {"key": rotation.text} | _secret(rotation))
    else:
        print(_letter(rotation, plane.settings.reachable_url))


def _rotate_and_notify(plane: ControlPlane, old: ApiKey, arguments: argparse.Namespace) -> None:
    """Rotate, and mail the link; nothing is rotated that could not be told of."""
    client = active_client(plane, old.client_id)
    name = client.name if client else "platform"
    route = open_route(plane.settings, arguments.notify, name, is_sent=True)
    with held():
        with writing(plane.engine) as session:
            rotation = _rotate(session, plane, old, arguments.grace_seconds)
            handover = link(plane, session, rotation.key, rotation.text)
        mail = partial(_mail, plane, route, rotation, handover, is_json=arguments.json)
        letter = hand_over(unrotate(plane, rotation), mail)
    is_begun = arguments.json and rotation.signing_secret is not None
    with letter.telling(is_begun=is_begun):
        if arguments.json:
            extra = {"claim_url": handover.claim_url, **letter.as_object()}
            rest = json.dumps(_object(plane, rotation) | extra)
            print(rest.removeprefix("{") if is_begun else rest)
        else:
            print(f"{_deadline(rotation)}\n\n{letter} Its claim link works once:")
            print(f"\n    {handover.claim_url}")


def _mail(
    plane: ControlPlane, route: Route, rotation: Rotation, handover: Handover, *, is_json: bool
) -> Letter:
    key, url = rotation.key, plane.settings.reachable_url
    mail = compose(key, handover, url=url, sender=route.sender, to=route.to, old=rotation.old)
    file_name = f"rotation-{key.client_id or 'platform'}-{key.key_id}.eml"
    _show_secret(rotation, is_json=is_json)
    return route.dispatch(mail, handover, file_name)


def _show_secret(rotation: Rotation, *, is_json: bool) -> None:
    """Show the signing secret, if there is one, before the mail is on its way.

    The mail cannot be called back, and nothing else holds the secret: if the output failed after
    it, the rotation would stand and nobody could sign. For a machine it begins the one JSON object,
    which is finished once it is known where the mail is.
    """
    secret = rotation.signing_secret
    if secret is None:
        return
    if is_json:
        print(json.dumps(_secret(rotation)).removesuffix("}"), end=", ", flush=True)
        return
    # Not with the key: whoever gets hold of the mail is not to have both.
    print(f"The signing secret of the new key {rotation.key.key_id}, shown this once. The mail")
    print(f"does not hold it; give it by another way:\n\n    {secret}\n", flush=True)


def _rotate(session: Session, plane: ControlPlane, old: ApiKey, grace_s: int) -> Rotation:
    return replace_key(
        session,
        plane.peppers,
        old.key_id,
        by=plane.by,
        asker=None,
        grace_s=grace_s,
        key_hasher=plane.settings.key_hasher,
        created_by="rotate_api_key.py",
        new_secret=plane.signing_keys.new_secret,
    )


def _object(plane: ControlPlane, rotation: Rotation) -> dict[str, Any]:
    return {
        **key_object(rotation.key, plane.rotation_policy),
        "grace_until": iso_time(rotation.old.grace_until),
        "old_key_id": rotation.old.key_id,
    }


def _secret(rotation: Rotation) -> dict[str, str]:
    secret = rotation.signing_secret
    return {} if secret is None else {"signing_secret": secret}


def _deadline(rotation: Rotation) -> str:
    assert rotation.old.grace_until is not None  # noqa: S101  # a rotation sets it
    until = utc_text(rotation.old.grace_until)
    return f"The old key {rotation.old.key_prefix} works until {until}, and then stops by itself."


def _letter(rotation: Rotation, url: str) -> str:
    key = rotation.key
    secret = rotation.signing_secret
    signing = "" if secret is None else f"\nLOGGER_SIGNING_SECRET={secret}"
    return f"""\
New API key for {key.client_id or "the platform"}, shown this once and stored nowhere:

    {rotation.text}

    key id {key.key_id} | role {key.role}

{_deadline(rotation)}

The client's .env:

LOGGER_API_URL={url}
LOGGER_API_KEY={rotation.text}{signing}"""


if __name__ == "__main__":
    run(main)
