"""The first keys of an installation, printed once."""

import os
import sys

from app.keys.bootstrap import FirstKeys
from app.keys.database import StartRefused


def show(first: FirstKeys, url: str) -> None:
    """Print the first keys, this once; they are stored nowhere. StartRefused if that fails."""
    shown = f"""
First start: these keys are shown once and stored nowhere. Keep them.

  admin key:               {first.admin_key}
  key of client `{first.client_id}`:    {first.client_key}

Send a log:

curl -sS {url}/api/v1/logs -H 'X-API-Key: {first.client_key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"environment":"production","executed_at":"2026-01-01T00:00:00Z","status":"SUCCESS"}}'

Read it back:

curl -sS {url}/api/v1/logs -H 'X-API-Key: {first.client_key}'
"""
    fault = "it is closed" if sys.stdout is None else ""
    try:
        print(shown, flush=True)  # noqa: T201
    except OSError as error:
        fault = error.strerror or str(error)
    if fault:
        fault = f"the first keys could not be written to standard output: {fault}"
        # Where the log goes too, so that it is told elsewhere.
        print(f"central-logger: {fault}", file=sys.stderr)  # noqa: T201
        if sys.stdout is not None:
            # The keys are in its buffer still; a flush that fails at the end changes the status.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StartRefused(fault)
