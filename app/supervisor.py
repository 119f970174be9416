"""The parent of several HTTP workers: it starts them, and others in the place of those that die."""

import logging
import math
import time
from socket import socket

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

# A start that fails takes a second of a core, which the workers that serve need too.
RESTART_PAUSE_S = 5.0

# To standard error: where standard output is full, a process that has written to it can start none.
log = logging.getLogger(__name__)


class Supervisor(Multiprocess):
    """Refuses a start that fails before any worker serves; later one waits, and is tried again.

    uvicorn's own ends all workers when one that replaces another can't start. That would make an
    outage of a file that was edited badly, which those that run have refused to take over.
    """

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self.is_refused = False
        self._served: set[int | None] = set()
        self._restart_at_s: dict[int | None, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Look after each worker; called twice a second."""
        timeout_s = self.config.timeout_worker_healthcheck
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(timeout_s):
                if process.pid not in self._served and process.is_ready(timeout_s):
                    self._served.add(process.pid)
            elif process.pid not in self._restart_at_s:
                self._bury(process)
            if self._restart_at_s.get(process.pid, math.inf) <= time.monotonic():
                del self._restart_at_s[process.pid]
                self.processes[place] = Process(self.config, self.sockets)
                self.processes[place].start()

    def _bury(self, process: Process) -> None:
        """Say when another one is to take the place of a worker that has died, or that hangs."""
        process.kill()
        process.join()
        pause_s = 0.0 if process.pid in self._served else RESTART_PAUSE_S
        if process.exitcode == STARTUP_FAILURE and not self._have_served():
            log.error("worker %s could not start", process.pid)
            self.is_refused = True
            self.should_exit.set()
            return
        log.error("worker %s died; another one follows in %g s", process.pid, pause_s)
        self._restart_at_s[process.pid] = time.monotonic() + pause_s

    def _have_served(self) -> bool:
        """Say whether this ever came to serve; asked of the workers, who may have just begun to."""
        timeout_s = self.config.timeout_worker_healthcheck
        return bool(self._served) or any(
            one.process.is_alive() and one.is_ready(timeout_s) for one in self.processes
        )
