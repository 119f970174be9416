"""POST /api/v1/logs: authenticate → limit → read → decode → commit → 201.

Each step costs nothing for a request that an earlier one refuses, and the reply follows the fsync.
Pure ASGI, in front of FastAPI: half of a request's time would go into its middleware.
"""

import time
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import structlog

from app.edge import metrics
from app.edge.auth import Authenticator
from app.edge.body import (
    ClientGone,
    Inflight,
    Share,
    check_encoding,
    declared_bytes,
    expand,
    read_body,
)
from app.edge.headers import combined, idempotency_key
from app.edge.limits import Account, Limiter
from app.edge.outcome import JSON, Outcome, first_errors
from app.edge.problem import Headers, problem
from app.edge.request_id import new_request_id
from app.edge.response import respond
from app.edge.sightings import Sightings
from app.edge.singles import Singles, is_candidate
from app.edge.tally import Tally
from app.errors import (
    Conflict,
    Forbidden,
    Invalid,
    LoggerError,
    NotFound,
    RateLimited,
    StorageUnavailable,
    Unavailable,
    UnsupportedMedia,
    fault,
)
from app.keys.principal import Principal
from app.logs.batch import Batch, Idempotency, Receipt
from app.logs.dead_letters import make_letters
from app.logs.decode import Decoded, DecodeLimits, decode_json, decode_ndjson, record_texts
from app.logs.identity import format_id, received_us
from app.logs.rows import SLUG, Rows, build_rows
from app.logs.store import ClaimHeld, LogStore
from app.logs.timestamp import US_PER_MINUTE, format_instant

PATH = "/api/v1/logs"
SCOPE = "logs:write"
JSON_TYPES = (b"application/json", b"")
NDJSON_TYPES = (b"application/x-ndjson", b"application/jsonl", b"application/ndjson")
MEDIA_TYPES = ["application/json", "application/x-ndjson", "application/jsonl"]

Reply = tuple[int, Headers, bytes]

_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
_encode_outcome = msgspec.msgpack.Encoder().encode

log = structlog.get_logger(__name__)


class Intake(NamedTuple):
    """What both ways of a log into the store stand on: this one, and `prompt`."""

    authenticator: Authenticator
    limiter: Limiter
    sightings: Sightings
    inflight: Inflight
    singles: Singles
    single_bytes_max: int


class IngestEndpoint:
    """The hot path, as an ASGI application of its own."""

    def __init__(
        self,
        intake: Intake,
        *,
        store: LogStore,
        tally: Tally,
        decode_limits: DecodeLimits,
        body_bytes_max: int,
    ) -> None:
        self._intake = intake
        self._limiter = intake.limiter
        self._store = store
        self._tally = tally
        self._decode_limits = decode_limits
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        request_id = new_request_id()
        account: Account | None = None
        try:
            headers = dict(scope["headers"])
            principal = None
            if len(headers) == len(scope["headers"]):
                principal = self._intake.authenticator.known(headers)
            else:
                headers = combined(scope["headers"])
            if principal is None:
                principal = await self._intake.authenticator.authenticate(scope)
            address = self._intake.authenticator.address(
                scope.get("client"), headers.get(b"x-forwarded-for")
            )
            self._intake.sightings.note(principal, address, headers.get(b"user-agent", b""))
            account = self._limiter.account(principal)
            upload = self._admit(account, headers, scope)
            status, reply_headers, body = await self._store_upload(upload, receive, request_id)
        except ClientGone:
            return
        except LoggerError as error:
            self._count_failure(account, error, request_id)
            status, reply_headers, body = problem(error, request_id)
        except Exception:
            # A bug must not cost logs: a shipper retries on 503 and drops its batch on 500.
            log.exception("unexpected fault", request_id=request_id)
            status, reply_headers, body = problem(StorageUnavailable(), request_id)
        lines = b"x-request-id: %b\r\ncontent-length: %d\r\n" % (request_id.encode(), len(body))
        if account is not None:
            lines += account.header_lines()
        metrics.count_request("ingest", status)
        await respond(send, status, reply_headers, lines, body)

    def _admit(self, account: Account, headers: dict[bytes, bytes], scope: Any) -> "_Upload":
        """Check all that can be checked, and count the request, before anything of it is read."""
        if SCOPE not in account.principal.scopes:
            raise Forbidden(f"Requires scope '{SCOPE}'")
        content_type = headers.get(b"content-type", b"")
        encoding = ""
        if b"content-encoding" in headers:
            encoding = check_encoding(headers[b"content-encoding"])
        declared = declared_bytes(headers.get(b"content-length"), self._body_bytes_max)
        upload = _Upload(
            account,
            self._client(account.principal, scope["query_string"]),
            content_type != JSON_TYPES[0] and _is_ndjson(content_type),
            encoding,
            idempotency_key(headers),
            Share(self._intake.inflight),
            scope,
        )
        # With an Idempotency-Key it may be a repeat, which costs nothing but a request.
        if upload.idempotency_key is None:
            self._limiter.admit(account, 0 if encoding else declared, logs=1)
        else:
            self._limiter.admit(account)
        return upload

    def _client(self, principal: Principal, query_string: bytes) -> str:
        """Return the client that is written for: the key's own; a platform key names one."""
        named = None
        if query_string:
            named = dict(parse_qsl(query_string.decode("latin-1"))).get("client_id")
        if principal.client_id is not None:
            if named not in {None, principal.client_id}:
                raise NotFound
            return principal.client_id
        if named is None or not SLUG.fullmatch(named):
            raise Invalid.parameter("client_id", "is required with an admin key")
        if not self._intake.authenticator.has_client(named):
            raise NotFound  # whoever is made under that name later would find these logs
        return named

    async def _store_upload(self, upload: "_Upload", receive: Any, request_id: str) -> Reply:
        """Read, decode and commit; what the request holds and did not use is given back."""
        try:
            if upload.idempotency_key is not None:
                return await self._store_once(upload, upload.idempotency_key, receive, request_id)
            upload, body = await self._read(upload, receive)
            if not upload.is_ndjson and is_candidate(body, self._intake.single_bytes_max):
                reply = await self._store_single(upload, body)
                if reply is not None:
                    return 201, [JSON], reply
            outcome, receipt = await self._commit(upload, body)
            return outcome.reply(receipt, request_id)
        except Unavailable:
            self._limiter.refund(upload.account, requests=1)
            raise
        finally:
            upload.share.give_back()

    async def _read(self, upload: "_Upload", receive: Any) -> tuple["_Upload", bytes]:
        """Read the body, and see who the caller is by now: a body may be held back for long."""
        body = await read_body(receive, upload.share, self._body_bytes_max)
        if upload.encoding:
            body = await expand(body, upload.encoding, upload.share, self._body_bytes_max)
        principal = await self._intake.authenticator.authenticate(upload.scope)
        if principal is upload.account.principal:
            return upload, body
        if SCOPE not in principal.scopes:
            raise Forbidden(f"Requires scope '{SCOPE}'")
        return upload._replace(account=self._limiter.account(principal)), body

    async def _store_single(self, upload: "_Upload", body: bytes) -> bytes | None:
        """Store one plain log together with others; None if it has to be stored by itself."""
        account = upload.account
        self._limiter.charge(account, 1, len(body))
        reply = None
        try:
            reply = await self._intake.singles.join(account.principal, upload.client_id, body)
        finally:
            if reply is None:
                self._limiter.refund(account, logs=1, body_bytes=len(body))
        return reply

    async def _store_once(
        self, upload: "_Upload", key: str, receive: Any, request_id: str
    ) -> Reply:
        """Store under an Idempotency-Key, held from before the read, or repeat its outcome."""
        try:
            async with self._store.claim(upload.client_id, key) as stored:
                upload, body = await self._read(upload, receive)
                digest = blake2b(body, digest_size=16).digest()
                if stored is None:
                    outcome, receipt = await self._commit(upload, body, digest)
                    return outcome.reply(receipt, request_id)
        except ClaimHeld:
            raise Conflict("A request with this Idempotency-Key is in flight") from None
        if stored.digest != digest:
            detail = "Idempotency-Key was used with another body"
            raise Invalid([fault("Idempotency-Key", "was used with another body")], detail)
        outcome = _decode_outcome(stored.outcome)
        status, headers, reply = outcome.reply(stored.receipt, request_id)
        return status, [*headers, (b"idempotent-replayed", b"true")], reply

    async def _commit(
        self, upload: "_Upload", body: bytes, digest: bytes = b""
    ) -> tuple[Outcome, Receipt]:
        """Decode and store a body; on return it is on disk with its usage and its outcome."""
        records, is_single = _decode(upload, body, self._decode_limits)
        day, arrival = self._store.clock.take(max(1, len(records)))
        principal = upload.account.principal
        built = build_rows(records, principal.allowed_datasets, arrival)
        _check_datasets(built, len(records))
        received = received_us(day, arrival)
        outcome = Outcome(
            client_id=upload.client_id,
            received_at=format_instant(received),
            records=len(records),
            is_single=is_single,
            log_id=_single_id(built, day) if is_single else "",
            rejected=len(built.rejections),
            errors=first_errors(built.rejections),
        )
        batch = Batch(
            client_id=upload.client_id,
            key_id=principal.key_id,
            day=day,
            minute=received // US_PER_MINUTE,
            rows=built.rows,
            series=built.series,
            requests=1,
            bytes=len(body),
            rejected=len(built.rejections),
        )
        if built.rejections:
            texts = record_texts(body, self._decode_limits, is_ndjson=upload.is_ndjson)
            batch.dead_letters = make_letters(built.rejections, texts, arrival)
        key = upload.idempotency_key
        if key is not None:
            batch.idempotency = Idempotency(key, digest, _encode_outcome(outcome))
        receipt = await self._append(upload.account, batch)
        return outcome, receipt

    async def _append(self, account: Account, batch: Batch) -> Receipt:
        """Commit within the limits: what the store does not take or had before is given back."""
        logs = len(batch.rows)
        self._limiter.charge(account, logs, batch.bytes)
        started = time.perf_counter()
        try:
            receipt = await self._store.append(batch)
        except BaseException:  # whatever it was, nobody was told that it is stored
            self._limiter.refund(account, logs=logs, body_bytes=batch.bytes)
            raise
        metrics.count_commit(batch, receipt, time.perf_counter() - started)
        if receipt.duplicates:
            self._limiter.refund(account, logs=receipt.duplicates)
        return receipt

    def _count_failure(self, account: Account | None, error: LoggerError, request_id: str) -> None:
        if isinstance(error, StorageUnavailable):
            log.error("storage unavailable", reason=error.reason, request_id=request_id)
        if account is None:
            return
        if isinstance(error, RateLimited | Forbidden):
            self._tally.count(account.principal, denied=1)
        elif not isinstance(error, Unavailable):
            self._tally.count(account.principal, requests=1)


class _Upload(NamedTuple):
    """What is known of a request before its body is read."""

    account: Account
    client_id: str
    is_ndjson: bool
    encoding: str
    idempotency_key: str | None
    share: Share
    scope: Any


def _is_ndjson(content_type: bytes) -> bool:
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type in JSON_TYPES:
        return False
    if media_type in NDJSON_TYPES:
        return True
    raise UnsupportedMedia(
        f"Content-Type {media_type.decode('latin-1')!r} is not supported", supported=MEDIA_TYPES
    )


def _decode(upload: _Upload, body: bytes, limits: DecodeLimits) -> tuple[list[Decoded], bool]:
    if upload.is_ndjson:
        return decode_ndjson(body, limits), False
    return decode_json(body, limits)


def _check_datasets(built: Rows, records: int) -> None:
    """Refuse a request none of whose records may go where it says; elsewhere each is on its own."""
    rejections = built.rejections
    if records and len(rejections) == records and all(one.dataset for _, one in rejections):
        raise Forbidden(rejections[0][1].detail)


def _single_id(built: Rows, day: int) -> str:
    if not built.rows:
        return ""
    us, seq, *_ = built.rows[0]
    return format_id(us, day, seq)
