"""Revoke an API key: it fails from the next request on, everywhere."""

import fcntl
import sys
from pathlib import Path

from _handover import telling
from _signals import held
from _wiring import (
    ControlPlane,
    Refused,
    add_key_id,
    ask,
    control_plane,
    key_id_of,
    known_key,
    open_parser,
    print_json,
    run,
)

from app.activity.database import open_activity
from app.activity.presence import Receipt, await_dropped
from app.errors import NotFound
from app.keys.lifecycle import KeyChange, deactivate_key
from app.keys.models import ApiKey
from app.keys.objects import key_object
from app.keys.registry import get_key
from app.settings import SERVER_LOCK


def main() -> None:
    """Ask, then deactivate; a key that is off already stays so."""
    parser = open_parser(__doc__, "print the key's JSON object")
    add_key_id(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    key_id = key_id_of(arguments)
    with control_plane() as plane:
        key = known_key(plane, key_id)
        question = f"Revoke {key.key_prefix} ({key.name})? [y/N] "
        if not arguments.yes and ask(question, to_stderr=arguments.json).lower() not in (
            "y",
            "yes",
        ):
            raise Refused("not revoked")
        with held():
            changed = deactivate_key(plane.engine, key_id, by=plane.by)
            with telling(f"{key.key_prefix} ({key.name}) is revoked."):
                _tell(plane, key, changed, is_json=arguments.json)


def _tell(plane: ControlPlane, key: ApiKey, changed: KeyChange, *, is_json: bool) -> None:
    """Say when the key was dropped, and whose turn it is now."""
    receipt = _await_dropped(plane, changed.generation)
    heir = _heir(plane, changed.key)
    if heir is not None:
        # Whoever found the key may have rotated it.
        text = f"Note: {heir.key_prefix} ({heir.name}) took over from it and works on."
        print(text, file=sys.stderr)
    if is_json:
        print_json(key_object(changed.key, plane.rotation_policy) | receipt.as_object())
    elif key.is_active:
        print(f"Revoked {key.key_prefix} ({key.name}); {_dropped(receipt)}.")
    else:
        print(f"{key.key_prefix} ({key.name}) was revoked already; {_dropped(receipt)}.")


def _heir(plane: ControlPlane, key: ApiKey) -> ApiKey | None:
    """Find the key that took over from this one, if it works."""
    if key.rotated_to is None:
        return None
    try:
        heir = get_key(plane.engine, str(key.rotated_to))
    except NotFound:
        return None
    return heir if heir.is_active and not heir.has_ended else None


def _await_dropped(plane: ControlPlane, generation: int) -> Receipt:
    """Wait for the proof; without it the key is revoked all the same."""
    activity = open_activity(plane.engine)
    try:
        is_served = _is_served(plane.settings.data_dir)
        return await_dropped(plane.engine, activity, generation, is_served=is_served)
    finally:
        activity.dispose()


def _is_served(data_dir: Path) -> bool:
    """Say whether a server runs on a directory: it holds a lock there as long as it does."""
    try:
        with (data_dir / SERVER_LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _dropped(receipt: Receipt) -> str:
    if not receipt.is_known:
        return f"whether every worker has dropped it is unknown after {receipt.ms:.0f} ms"
    if receipt.effective_at is None:
        late, workers = receipt.unconfirmed, _count(receipt.workers + receipt.unconfirmed)
        return f"not confirmed by {late} of {workers} after {receipt.ms:.0f} ms"
    if not receipt.workers:
        return "no worker runs"
    return f"dropped by {_count(receipt.workers)} after {receipt.ms:.0f} ms"


def _count(workers: int) -> str:
    return f"{workers} worker" if workers == 1 else f"{workers} workers"


if __name__ == "__main__":
    run(main)
