"""Revoke an API key: it fails from the next request on, everywhere."""

import argparse
import fcntl
import sys
from pathlib import Path

from _wiring import ControlPlane, Refused, ask, control_plane, print_json, run

from app.activity.presence import Receipt, await_dropped
from app.errors import NotFound, StorageUnavailable
from app.keys.database import StartRefused, open_activity
from app.keys.lifecycle import deactivate_key
from app.keys.objects import key_object
from app.keys.registry import get_key
from app.settings import SERVER_LOCK


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
        changed = deactivate_key(plane.engine, key_id)
        receipt = _await_dropped(plane, changed.generation)
    if arguments.json:
        print_json(key_object(changed.key, plane.rotation_policy) | receipt.as_object())
    elif key.is_active:
        print(f"Revoked {key.key_prefix} ({key.name}); {_dropped(receipt)}.")
    else:
        print(f"{key.key_prefix} ({key.name}) was revoked already; {_dropped(receipt)}.")


def _await_dropped(plane: ControlPlane, generation: int) -> Receipt:
    """Wait for the proof; without it the key is revoked all the same."""
    try:
        activity = open_activity(plane.engine)
    except (StartRefused, StorageUnavailable) as error:
        reason = error.reason if isinstance(error, StorageUnavailable) else error
        print(f"What workers know of the keys cannot be read: {reason}", file=sys.stderr)
        return Receipt(effective_at=None, workers=0, ms=0.0, unconfirmed=1)
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
