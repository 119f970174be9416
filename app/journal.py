"""The service's own logs: one JSON object a line on stdout, and never a key in any of them."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

# The body of a key of ours is 61 base62 characters; whatever stands before it goes too. Looked for
# from the beginning of a word alone: from each of its letters, a long word would take for ever.
_KEY = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]*_[0-9A-Za-z]{61,}")
REDACTED = "[key redacted]"


def redacted(text: str) -> str:
    """Replace what looks like a key."""
    return _KEY.sub(REDACTED, text)


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what looks like a key in any text of an event, also one inside a traceback."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redacted(value)
        elif not isinstance(value, int | float | None):
            event[name] = redacted(repr(value))
    return event


class _Output(logging.StreamHandler[TextIO]):
    """Standard output. That it cannot be written is told elsewhere: once, and in one line."""

    _is_told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Tell of it."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_told:
            self._is_told = True
            fault = f"the log cannot be written: {error.strerror}"
            print(f"central-logger: {fault}", file=sys.stderr)  # noqa: T201


_SHARED: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
# One list however often it is set up: loggers keep theirs, and what captures their lines for a
# test does so by changing the list that was set up last.
_PROCESSORS: list[Any] = [*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]


def set_up(level: str) -> None:
    """Send structlog's and the standard library's loggers through one JSON renderer."""
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _Output(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_SHARED],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # A line a request would cost more than the request; metrics and usage count them.
    logging.getLogger("uvicorn.access").handlers = []
    logging.getLogger("uvicorn.access").propagate = False
