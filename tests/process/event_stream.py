"""A reader of Server-Sent Events in a thread of its own, as a client's would be."""

import json
import threading
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlencode

from loadtests.server import HOST
from tests.process.service import WAIT_S_MAX

TAIL = "/api/v1/logs/tail"


class EventStream:
    """One connection to a tail; reads until the stream ends, or it is closed."""

    def __init__(self, port: int, key: str, last_id: str = "", **params: str) -> None:
        headers = {"X-API-Key": key}
        if last_id:
            headers["Last-Event-ID"] = last_id
        self._connection = HTTPConnection(HOST, port, timeout=WAIT_S_MAX)
        self._connection.request("GET", f"{TAIL}?{urlencode(params)}", headers=headers)
        self.response: HTTPResponse = self._connection.getresponse()
        assert self.response.status == 200, self.response.read()
        self._socket = self._connection.sock
        self.last_id = last_id
        self.logs: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.is_whole = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def runs(self) -> list[str]:
        """The run_ids of the logs, in order."""
        return [log["run_id"] for log in self.logs]

    @property
    def has_ended(self) -> bool:
        """Say whether nothing more comes."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None and not self.has_ended:
            self._socket.shutdown(2)
        self._thread.join(WAIT_S_MAX)
        assert self.has_ended
        self.response.close()
        self._connection.close()

    def _read(self) -> None:
        kind = ""
        last_id = self.last_id
        try:
            for line in self.response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    last_id = value
                elif name == "event":
                    kind = value
                elif name == "data" and kind == "end":
                    self.reason = json.loads(value)["reason"]
                elif name == "data":
                    self.logs.append(json.loads(value))
                elif not name:
                    # Only with the empty line is an event there.
                    self.last_id, kind = last_id, ""
            self.is_whole = True
        except (OSError, HTTPException, ValueError):
            return
