"""Ingest without waiting: a log whose request arrived whole, taken in at a glance.

The steps are those of `ingest`, each cut down to a look at what is known: the key was seen before,
nothing is near a limit, the body may be one plain log. Whatever takes more than a look is left to
`ingest`, and so is every refusal: there is one place for each.
"""

from time import time
from typing import NamedTuple, Protocol

import structlog

from app.edge import metrics
from app.edge.ingest import ENDPOINT, JSON_TYPES, OWN_LINES, SCOPE, Intake
from app.edge.limits import Account
from app.edge.outcome import JSON
from app.edge.problem import Headers, problem
from app.edge.request_id import new_request_id
from app.edge.sightings import Source
from app.edge.singles import is_candidate
from app.errors import LoggerError, StorageUnavailable
from app.protect.self_scan import suspect

# What a request with one of these asks for takes more than a look.
_SPECIAL = frozenset(
    (
        *(b"authorization", b"content-encoding", b"idempotency-key", b"transfer-encoding"),
        *(b"upgrade", b"origin"),  # a web page has to be told if it may read the answer
    )
)
_TYPES = frozenset((*JSON_TYPES, b"application/json; charset=utf-8"))

log = structlog.get_logger(__name__)


class Head(NamedTuple):
    """What there is to know of the head of a request; it is no secret, and holds for a while."""

    key_digest: bytes
    user_agent: bytes
    forwarded: bytes | None


class WholeRequest(Protocol):
    """A POST of logs that has arrived whole, at the plain path, and its way to an answer."""

    client: tuple[str, int] | None
    body: bytes

    def answer(self, status: int, headers: Headers, lines: bytes, body: bytes) -> None:
        """Send a response; `lines` are headers too, each `name: value` with CR LF."""

    def give_back(self) -> None:
        """Have the request run as any other."""


class PromptIngest:
    """Takes in what it can at a glance."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake

    def look(self, headers: Headers) -> Head | None:
        """Look at the head of a request; None if it takes more than a look."""
        by_name = dict(headers)
        if (
            len(by_name) != len(headers)
            or not _SPECIAL.isdisjoint(by_name)
            or by_name.get(b"content-type", b"") not in _TYPES
        ):
            return None
        authenticator = self.intake.authenticator
        key_digest = authenticator.digest(by_name)
        if key_digest is None:
            return None
        forwarded = by_name.get(authenticator.proxy_header)
        return Head(key_digest, by_name.get(b"user-agent", b""), forwarded)

    def take(self, exchange: WholeRequest, head: Head) -> bool:
        """Take in a request, to be answered when its log is on disk; False: nothing was done."""
        intake = self.intake
        body = exchange.body
        if not is_candidate(body, intake.single_bytes_max) or suspect(body):
            return False
        key_digest, user_agent, forwarded = head
        principal = intake.authenticator.recalled(key_digest)
        if (
            principal is None
            or principal.client_id is None
            or principal.signing is not None
            or SCOPE not in principal.scopes
        ):
            return False
        address = intake.authenticator.address(exchange.client, forwarded)
        if principal.restrictions is not None and not intake.guard.allows(principal, address):
            return False
        account = intake.limiter.account(principal)
        if not account.take(1, len(body)):
            return False
        if not intake.inflight.take(len(body)):
            account.refund(requests=1, logs=1, body_bytes=len(body))
            return False
        source = (address, user_agent)
        intake.singles.add(_Taken(intake, exchange, account, principal.client_id, source))
        return True


class _Taken:
    """A request on its way to the store."""

    __slots__ = (
        "_account",
        "_came_s",
        "_exchange",
        "_intake",
        "_source",
        "body",
        "client_id",
        "principal",
    )

    def __init__(
        self,
        intake: Intake,
        exchange: WholeRequest,
        account: Account,
        client_id: str,
        source: Source,
    ) -> None:
        self.principal = account.principal
        self.client_id = client_id
        self.body = exchange.body
        self._intake = intake
        self._exchange = exchange
        self._account = account
        self._source = source
        self._came_s = time()

    def stored(self, reply: bytes, dataset: str) -> None:
        """Answer, now that the log is on disk."""
        self._intake.inflight.give_back(len(self.body))
        self._count(dataset, "201")
        self._answer(new_request_id(), 201, [JSON], reply)

    def handed_back(self) -> None:
        """Leave it to `ingest`, which begins anew."""
        self._undo()
        self._exchange.give_back()

    def failed(self, error: BaseException) -> None:
        """Say that nobody knows of the log."""
        self._undo()
        request_id = new_request_id()
        if isinstance(error, StorageUnavailable):
            log.error("storage unavailable", reason=error.reason, request_id=request_id)
        elif not isinstance(error, LoggerError):
            log.error("unexpected fault", request_id=request_id, exc_info=error)
            error = StorageUnavailable()
        status, headers, body = problem(error, request_id)
        self._count("", str(status))
        self._answer(request_id, status, headers, body)

    def _undo(self) -> None:
        size = len(self.body)
        self._intake.inflight.give_back(size)
        self._account.refund(requests=1, logs=1, body_bytes=size)

    def _count(self, dataset: str, outcome: str) -> None:
        # Not before: what is handed back is seen by `ingest`.
        key_id, source, came_s = self.principal.key_id, self._source, self._came_s
        self._intake.sightings.count(key_id, source, came_s)
        self._intake.accesses.count((key_id, ENDPOINT, dataset, source, outcome), came_s)

    def _answer(self, request_id: str, status: int, headers: Headers, body: bytes) -> None:
        metrics.count_request("ingest", status)
        lines = OWN_LINES % (request_id.encode(), len(body)) + self._account.header_lines()
        self._exchange.answer(status, headers, lines, body)
