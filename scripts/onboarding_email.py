"""Write or send the mail that brings a client its credentials.

Without --key-id a new key is made. It waits behind a link that works once, for 72 hours. The mail
is written to a file unless --send is given; SMTP_URL and MAIL_FROM say how it is sent.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from _letters import Route, find_client, link, open_route, tell
from _wiring import ControlPlane, Refused, ask, control_plane, print_json, run

from app.delivery.mail import BY_OTHER_MEANS, Handover, compose
from app.errors import NotFound
from app.keys.models import ApiKey
from app.keys.objects import key_object
from app.keys.registry import create_key, get_key


class Subject(NamedTuple):
    """What the mail is about: the client, and a key of it with its text, if they exist."""

    client_id: str
    key: ApiKey | None
    text: str


def main() -> None:
    """Make the key if need be, and the mail."""
    arguments = _arguments()
    client_id = arguments.client
    if not client_id and not arguments.key_id:
        client_id = ask("Enter client_id (e.g., 'acme_corp'): ", to_stderr=arguments.json)
        if not client_id:
            raise Refused("client_id is required")
    with control_plane() as plane:
        subject = _subject(plane, client_id, arguments.key_id)
        route = _open_route(plane, subject.client_id, arguments)
        key, text = subject.key, subject.text
        if key is None:
            key, text = _create(plane, subject.client_id)
        handover = _handover(plane, key, text, is_inline=arguments.inline_key)
        url = plane.settings.reachable_url
        message = compose(key, handover, url=url, sender=route.sender, to=route.to)
        letter = {
            "claim_url": handover.claim_url or None,
            **route.dispatch(message, handover, f"onboarding-{key.client_id}-{key.key_id}.eml"),
        }
        shown = key_object(key, plane.rotation_policy)
    if arguments.json:
        print_json(shown | letter)
        return
    print(f"{tell(letter)} It is about key {key.key_prefix} of {key.client_id}.")
    if handover.claim_url:
        print(f"Its claim link works once:\n\n    {handover.claim_url}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--client", metavar="ID", help="client_id, such as acme_corp; asked for")
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
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, which never holds the key"
    )
    return parser.parse_args()


def _subject(plane: ControlPlane, client_id: str | None, key_id: str | None) -> Subject:
    if key_id is None:
        return Subject(client_id or "", None, "")
    try:
        key = get_key(plane.engine, key_id)
    except NotFound:
        raise Refused(f"no key {key_id!r}; list_api_keys.py shows them") from None
    if key.client_id is None:
        raise Refused(f"key {key.key_id} is the platform's, not a client's")
    if client_id not in {None, key.client_id}:
        raise Refused(f"key {key.key_id} is not one of client {client_id!r}")
    if not key.is_active or key.has_ended:
        raise Refused(f"key {key.key_id} is inactive or has expired")
    text = ask("Paste the API key (empty to leave it out): ", to_stderr=True)
    if text and not (key.verifier and plane.peppers.verify(key.verifier, text)):
        raise Refused(f"that is not key {key.key_id}")
    return Subject(key.client_id, key, text)


def _open_route(plane: ControlPlane, client_id: str, arguments: argparse.Namespace) -> Route:
    client = find_client(plane, client_id)
    to = arguments.to or (client.contact_email if client else None)
    if not to:
        to = ask("Enter the client's mail address: ", to_stderr=arguments.json)
    if not to:
        raise Refused("a mail address is required: --to, or the client's contact_email")
    name = client.name if client else client_id
    return open_route(plane.settings, to, name, is_sent=arguments.send, output=arguments.output)


def _create(plane: ControlPlane, client_id: str) -> tuple[ApiKey, str]:
    return create_key(
        plane.engine,
        plane.peppers,
        key_hasher=plane.settings.key_hasher,
        create_client=True,
        client_id=client_id,
        name=client_id,
        created_by="onboarding_email.py",
    )


def _handover(plane: ControlPlane, key: ApiKey, text: str, *, is_inline: bool) -> Handover:
    if not text:
        return BY_OTHER_MEANS
    return Handover(text=text) if is_inline else link(plane, key, text)


if __name__ == "__main__":
    run(main)
