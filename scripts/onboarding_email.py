"""Write or send the mail that brings a client its credentials.

Without --key-id a new key is made. It waits behind a link that works once, for 72 hours. The mail
is written to a file unless --send is given; SMTP_URL and MAIL_FROM say how it is sent.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

from _handover import Undo, close_link, hand_over, switch_off
from _letters import Letter, Route, link, open_route
from _signals import held
from _wiring import (
    ControlPlane,
    Refused,
    active_client,
    add_client_id,
    ask,
    client_id_of,
    control_plane,
    known_key,
    needed,
    open_parser,
    print_json,
    run,
)

from app.delivery.mail import Handover, compose
from app.keys.database import writing
from app.keys.models import ApiKey
from app.keys.objects import key_object
from app.keys.registry import add_key, new_key


class Subject(NamedTuple):
    """What the mail is about: the client, and a key of it with its text, if they exist."""

    client_id: str
    key: ApiKey | None
    text: str


def main() -> None:
    """Make the key if need be, and the mail."""
    arguments = _arguments()
    with control_plane() as plane:
        subject = _subject(plane, arguments)
        route = _open_route(plane, subject, arguments)
        with held():
            key, handover, undo = _prepare(plane, subject, is_inline=arguments.inline_key)
            letter = hand_over(undo, partial(_mail, plane, route, key, handover))
    with letter.telling():
        if arguments.json:
            extra = {"claim_url": handover.claim_url or None, **letter.as_object()}
            print_json(key_object(key, plane.rotation_policy) | extra)
        else:
            print(f"{letter} It is about key {key.key_prefix} of {key.client_id}.")
            if handover.claim_url:
                print(f"Its claim link works once:\n\n    {handover.claim_url}")


def _arguments() -> argparse.Namespace:
    parser = open_parser(__doc__, "print one JSON object, which never holds the key")
    add_client_id(parser)
    parser.add_argument(
        "--key-id",
        metavar="ID",
        help="a key that exists; its text is read from standard input, and may be left out",
    )
    parser.add_argument(
        "--to", metavar="ADDR", help="default: the client's contact_email; else asked for"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.eml", help="write the mail there")
    parser.add_argument(
        "--inline-key", action="store_true", help="put the key into the mail, in place of a link"
    )
    parser.add_argument("--send", action="store_true", help="send the mail by SMTP_URL")
    return parser.parse_args()


def _subject(plane: ControlPlane, arguments: argparse.Namespace) -> Subject:
    if not arguments.key_id:
        return Subject(client_id_of(arguments), None, "")
    key = known_key(plane, arguments.key_id)
    if key.client_id is None:
        raise Refused(f"key {key.key_id} is the platform's, not a client's")
    if arguments.client not in {None, key.client_id}:
        raise Refused(f"key {key.key_id} is not one of client {arguments.client!r}")
    if not key.is_active or key.has_ended:
        raise Refused(f"key {key.key_id} is inactive or has expired")
    question = "Paste the API key (empty to leave it out): "
    text = ask(question, to_stderr=True, is_secret=True)
    if text and not (key.verifier and plane.peppers.verify(key.verifier, text)):
        raise Refused(f"that is not key {key.key_id}")
    return Subject(key.client_id, key, text)


def _open_route(plane: ControlPlane, subject: Subject, arguments: argparse.Namespace) -> Route:
    client = active_client(plane, subject.client_id)
    to = needed(
        arguments.to or (client.contact_email if client else None),
        "a mail address",
        "Enter the client's mail address: ",
        to_stderr=arguments.json,
    )
    return open_route(
        plane.settings,
        to,
        client.name if client else subject.client_id,
        is_sent=arguments.send,
        output=arguments.output,
        default_output=None if subject.key is None else _file_name(subject.key),
    )


def _prepare(
    plane: ControlPlane, subject: Subject, *, is_inline: bool
) -> tuple[ApiKey, Handover, Undo | None]:
    """Make the key, unless it exists, and its link: both, or nothing."""
    key, text = subject.key, subject.text
    if key is None:
        client_id = subject.client_id
        key, text = new_key(
            plane.peppers,
            plane.settings.key_hasher,
            client_id=client_id,
            name=client_id,
            created_by="onboarding_email.py",
        )
    handover = Handover(text=text)
    with writing(plane.engine) as session:
        if subject.key is None:
            add_key(session, key, by=plane.by, create_client=True)
        if text and not is_inline:
            handover = link(plane, session, key, text)
    if subject.key is None:
        return key, handover, switch_off(plane, key)
    return key, handover, close_link(plane, handover) if handover.claim_url else None


def _mail(plane: ControlPlane, route: Route, key: ApiKey, handover: Handover) -> Letter:
    url = plane.settings.reachable_url
    mail = compose(key, handover, url=url, sender=route.sender, to=route.to)
    return route.dispatch(mail, handover, _file_name(key))


def _file_name(key: ApiKey) -> str:
    return f"onboarding-{key.client_id}-{key.key_id}.eml"


if __name__ == "__main__":
    run(main)
