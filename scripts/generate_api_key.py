"""Make an API key for a client, and the client itself if it is new."""

import argparse

from _wiring import ControlPlane, Refused, ask, control_plane, moment, print_json, run

from app.keys.models import LIMIT_NAMES, ApiKey
from app.keys.objects import key_object
from app.keys.registry import ENVIRONMENTS, create_key
from app.keys.roles import ADMIN, ROLES
from app.settings import Settings

RULE = "-" * 72


def main() -> None:
    """Make the key and show it, this once."""
    arguments = _arguments()
    client_id = arguments.client or ask(
        "Enter client_id (e.g., 'acme_corp'): ", to_stderr=arguments.json
    )
    if not client_id:
        raise Refused("client_id is required")
    with control_plane() as plane:
        key, text = _create(plane, client_id, arguments)
    if arguments.json:
        print_json({**key_object(key), "key": text})
    else:
        print(_letter(key, text, _public_url(plane.settings)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", metavar="ID", help="client_id, such as acme_corp; asked for")
    parser.add_argument("--name", help="what the key is for (default: the client_id)")
    parser.add_argument("--description", default="")
    parser.add_argument("--role", choices=[r for r in ROLES if r != ADMIN], default="client")
    parser.add_argument("--environment", choices=ENVIRONMENTS, default="live")
    parser.add_argument(
        "--dataset", action="append", metavar="NAME", help="allow only this one; repeatable"
    )
    parser.add_argument("--expires", type=moment, metavar="T", help="RFC 3339, a date, or 90d")
    for name in LIMIT_NAMES:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, metavar="N", help="0 = unlimited"
        )
    parser.add_argument("--prefix", metavar="P", help="instead of cl_live or cl_test")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def _create(
    plane: ControlPlane, client_id: str, arguments: argparse.Namespace
) -> tuple[ApiKey, str]:
    return create_key(
        plane.engine,
        plane.peppers,
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
        prefix=arguments.prefix,
        created_by="generate_api_key.py",
    )


def _public_url(settings: Settings) -> str:
    if settings.public_url:
        return settings.public_url.rstrip("/")
    # An address to listen on is not always one to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{host}:{settings.port}"


def _letter(key: ApiKey, text: str, url: str) -> str:
    datasets = "all" if key.allowed_datasets is None else ", ".join(key.allowed_datasets)
    expires = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M} UTC"
    return f"""\
API key for {key.client_id}, shown this once and stored nowhere:

    {text}

    key id {key.key_id} | role {key.role} | datasets {datasets} | expires {expires}

The client's .env:

LOGGER_API_URL={url}
LOGGER_API_KEY={text}

{RULE}
Send to client ({key.client_id}), by a channel that only they can read:
{RULE}
Your workflows can now send their logs to {url}/api/v1/logs.
Put these two lines into the .env of your workflows:

LOGGER_API_URL={url}
LOGGER_API_KEY=<the key above>

Each request carries the key in the header X-API-Key:

curl -X POST "$LOGGER_API_URL/api/v1/logs" \\
  -H "X-API-Key: $LOGGER_API_KEY" -H "Content-Type: application/json" \\
  -d '{{"environment": "prod", "executed_at": "2026-01-31T12:00:00Z", "status": "SUCCESS"}}'

Keep the key out of code and chats. If it leaks, tell us: it can be revoked at once.
{RULE}"""


if __name__ == "__main__":
    run(main)
