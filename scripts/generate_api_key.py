"""Make an API key for a client, and the client itself if it is new."""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from _handover import hand_over, switch_off, telling
from _signals import held
from _wiring import (
    ControlPlane,
    Refused,
    active_client,
    add_client_id,
    add_expires,
    client_id_of,
    control_plane,
    open_parser,
    print_json,
    run,
)

from app.delivery.secrets_managers import (
    NotDelivered,
    SecretsManager,
    Target,
    open_manager,
    parse_target,
)
from app.keys.models import LIMIT_NAMES, ApiKey
from app.keys.objects import key_object
from app.keys.registry import create_key
from app.keys.restrictions import ENFORCE, REPORT, parse_hours
from app.keys.roles import ADMIN, ROLES
from app.keys.signing import ALGORITHMS, ED25519
from app.keys.token import ENVIRONMENTS
from app.protect.public_keys import TEXT_LENGTH_MAX

RULE = "-" * 72

DELIVERY = """\
With --deliver the key goes into a secrets manager, in place of being printed. It is stored with
LOGGER_API_URL, LOGGER_API_KEY, client_id and key_id, as JSON or as Vault's fields; a secret that
exists gets a new version. If that fails, the key is switched off again.

  aws-secrets-manager:NAME    pip install 'central-logger[aws]'; AWS_DEFAULT_REGION, AWS_PROFILE,
                              AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and all else that boto3 reads
  vault:MOUNT/PATH            pip install 'central-logger[vault]'; VAULT_ADDR, VAULT_TOKEN,
                              VAULT_NAMESPACE, VAULT_CACERT. The first part of the name is the
                              mount, of KV version 2
  azure-key-vault:VAULT/NAME  pip install 'central-logger[azure]'; AZURE_CLIENT_ID and all else
                              that azure-identity reads. Without VAULT/, the vault is the one at
                              AZURE_KEY_VAULT_URL
"""

# They warn of each retry and each credential that they try; how it ended is told in one line.
LIBRARIES = ("azure", "boto3", "botocore", "hvac", "msal", "urllib3")


class _Made(NamedTuple):
    """A new key, its text, and its signing secret if it has one."""

    key: ApiKey
    text: str
    secret: str | None


def main() -> None:
    """Make the key and show it, this once."""
    arguments = _arguments()
    client_id = client_id_of(arguments)
    if arguments.deliver:
        _deliver(client_id, arguments)
        return
    with control_plane(may_create=True) as plane, held():
        made = _create(plane, client_id, arguments)
        show = partial(_show, plane, made, is_json=arguments.json)
        hand_over(switch_off(plane, made.key), show)


def _show(plane: ControlPlane, made: _Made, *, is_json: bool) -> None:
    if is_json:
        extra = {} if made.secret is None else {"signing_secret": made.secret}
        print_json({**key_object(made.key, plane.rotation_policy), "key": made.text, **extra})
    else:
        print(_letter(made, plane.settings.reachable_url))


def _deliver(client_id: str, arguments: argparse.Namespace) -> None:
    """Make the key and put it where it belongs; nobody sees it here."""
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.CRITICAL)
    target: Target = arguments.deliver
    try:
        with open_manager(target) as manager:
            # First: a key is not made if it has nowhere to go.
            manager.check()
            with control_plane(may_create=True) as plane, held():
                made = _create(plane, client_id, arguments)
                key = made.key
                put = partial(_put, plane, manager, target, made)
                hand_over(switch_off(plane, key), put)
    except NotDelivered as error:
        raise Refused(str(error)) from None
    with telling(f"Key {key.key_id} is active and in {target}."):
        if arguments.json:
            print_json({**key_object(key, plane.rotation_policy), "delivered_to": str(target)})
        else:
            print(f"API key for {key.client_id}, put into {target}:\n\n    {_facts(key)}")


def _put(plane: ControlPlane, manager: SecretsManager, target: Target, made: _Made) -> None:
    secret = {
        "LOGGER_API_URL": plane.settings.reachable_url,
        "LOGGER_API_KEY": made.text,
        "client_id": made.key.client_id or "",
        "key_id": made.key.key_id,
    }
    if made.secret is not None:
        secret["LOGGER_SIGNING_SECRET"] = made.secret
    try:
        manager.put(secret)
    except NotDelivered as error:
        raise Refused(str(error)) from None
    except KeyboardInterrupt:
        raise Refused(f"{target}: interrupted") from None


def _arguments() -> argparse.Namespace:
    parser = open_parser(__doc__, epilog=DELIVERY)
    add_client_id(parser)
    parser.add_argument("--name", help="what the key is for (default: the client_id)")
    parser.add_argument("--description", default="", metavar="TEXT", help="more about it")
    parser.add_argument("--role", choices=[r for r in ROLES if r != ADMIN], default="client")
    parser.add_argument("--environment", choices=ENVIRONMENTS, default="live")
    parser.add_argument(
        "--dataset", action="append", metavar="NAME", help="allow only this one; repeatable"
    )
    add_expires(parser)
    _add_restrictions(parser)
    parser.add_argument(
        "--sign",
        type=_signing,
        metavar="HOW",
        help="take signed requests alone: hmac-sha256, or ed25519:FILE with a public key",
    )
    for name in LIMIT_NAMES:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, metavar="N", help="0 = unlimited"
        )
    parser.add_argument("--prefix", metavar="P", help="instead of cl_live or cl_test")
    parser.add_argument(
        "--deliver", type=_target, metavar="MANAGER:NAME", help="put the key there; see below"
    )
    return parser.parse_args()


def _add_restrictions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cidr", action="append", metavar="NET", help="allow only from there; repeatable"
    )
    parser.add_argument(
        "--country",
        action="append",
        metavar="CC",
        help="allow only from this one, as DE; repeatable; needs GEOIP_DATABASE",
    )
    parser.add_argument(
        "--hours",
        type=_hours,
        metavar="WHEN",
        help="allow only then: 'mon-fri 09:00-17:00 Europe/Berlin'",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="refuse nothing by these, only report what would be",
    )


def _hours(text: str) -> dict[str, Any]:
    try:
        return parse_hours(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _signing(text: str) -> tuple[str, str | None]:
    """Read an algorithm, and the public key of one that takes it."""
    algorithm, _, path = text.partition(":")
    if algorithm not in ALGORITHMS or (algorithm == ED25519) != bool(path):
        raise argparse.ArgumentTypeError("must be hmac-sha256 or ed25519:FILE")
    if not path:
        return algorithm, None
    try:
        with Path(path).open(encoding="ascii") as file:
            return algorithm, file.read(TEXT_LENGTH_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no PEM"
        # Not its name: what stands there by mistake may be a private key, and not its file.
        raise argparse.ArgumentTypeError(f"FILE: {reason}") from None


def _target(text: str) -> Target:
    try:
        return parse_target(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _create(plane: ControlPlane, client_id: str, arguments: argparse.Namespace) -> _Made:
    active_client(plane, client_id)
    if arguments.country and not plane.settings.geoip_database:
        raise Refused("--country needs the setting GEOIP_DATABASE")
    signing = None if arguments.sign is None else plane.signing_keys.make(*arguments.sign)
    key, text = create_key(
        plane.engine,
        plane.peppers,
        by=plane.by,
        key_hasher=plane.settings.key_hasher,
        create_client=True,
        client_id=client_id,
        name=arguments.name or client_id,
        description=arguments.description,
        environment=arguments.environment,
        role=arguments.role,
        allowed_datasets=arguments.dataset,
        limits={name: getattr(arguments, name) for name in LIMIT_NAMES},
        expires_at=arguments.expires,
        allowed_cidrs=arguments.cidr,
        allowed_countries=arguments.country,
        allowed_hours=arguments.hours,
        restrictions_mode=REPORT if arguments.report_only else ENFORCE,
        require_signature=signing is not None,
        signing=signing,
        prefix=arguments.prefix,
        created_by="generate_api_key.py",
    )
    return _Made(key, text, None if signing is None else signing.secret)


def _letter(made: _Made, url: str) -> str:
    key, text = made.key, made.text
    signing = concealed = ""
    if made.secret is not None:
        signing = f"\nLOGGER_SIGNING_SECRET={made.secret}"
        concealed = "\nLOGGER_SIGNING_SECRET=<the signing secret above>"
    return f"""\
API key for {key.client_id}, shown this once and stored nowhere:

    {text}

    {_facts(key)}

The client's .env:

LOGGER_API_URL={url}
LOGGER_API_KEY={text}{signing}

{RULE}
Send to client ({key.client_id}), by a channel that only they can read:
{RULE}
Your workflows can now send their logs to {url}/api/v1/logs.
Put these lines into the .env of your workflows:

LOGGER_API_URL={url}
LOGGER_API_KEY=<the key above>{concealed}

{_request(key)}

Keep the key out of code and chats. If it leaks, tell us: it can be revoked at once.
{RULE}"""


def _request(key: ApiKey) -> str:
    """Show how a request is made with a key."""
    if key.require_signature:
        return """\
Each request carries the key in the header X-API-Key, and a signature by RFC 9421: see
"Sign requests" in the guide for clients."""
    return """\
Each request carries the key in the header X-API-Key:

curl -X POST "$LOGGER_API_URL/api/v1/logs" \\
  -H "X-API-Key: $LOGGER_API_KEY" -H "Content-Type: application/json" \\
  -d '{"environment": "prod", "executed_at": "2026-01-31T12:00:00Z", "status": "SUCCESS"}'"""


def _facts(key: ApiKey) -> str:
    datasets = "all" if key.allowed_datasets is None else ", ".join(key.allowed_datasets)
    expires = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M} UTC"
    return f"key id {key.key_id} | role {key.role} | datasets {datasets} | expires {expires}"


if __name__ == "__main__":
    run(main)
