"""Make an admin key: it manages every client, their keys and their logs."""

from functools import partial

from _handover import hand_over, switch_off
from _signals import held
from _wiring import (
    ControlPlane,
    add_expires,
    control_plane,
    needed,
    open_parser,
    print_json,
    run,
)

from app.keys.models import ApiKey
from app.keys.objects import key_object
from app.keys.registry import create_key


def main() -> None:
    """Make the key and show it, this once."""
    parser = open_parser(__doc__)
    parser.add_argument("--name", help="whose it is, such as 'alice laptop'; asked for")
    add_expires(parser)
    arguments = parser.parse_args()
    question = "Enter a name for the key (e.g., 'alice laptop'): "
    name = needed(arguments.name, "name", question, to_stderr=arguments.json)
    with control_plane(may_create=True) as plane, held():
        key, text = create_key(
            plane.engine,
            plane.peppers,
            by=plane.by,
            key_hasher=plane.settings.key_hasher,
            client_id=None,
            name=name,
            expires_at=arguments.expires,
            created_by="create_admin_key.py",
        )
        show = partial(_show, plane, key, text, is_json=arguments.json)
        hand_over(switch_off(plane, key), show)


def _show(plane: ControlPlane, key: ApiKey, text: str, *, is_json: bool) -> None:
    if is_json:
        print_json({**key_object(key, plane.rotation_policy), "key": text})
        return
    print(f"Admin key {key.name!r}, shown this once and stored nowhere:\n")
    print(f"    {text}\n")
    print("It reaches every client's logs. Keep it as you would a root password.")


if __name__ == "__main__":
    run(main)
