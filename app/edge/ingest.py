"""POST /api/v1/logs: authenticate → limit → read → decode → commit → 201.

Each step costs nothing for a request that an earlier one refuses, and the reply follows the fsync.
Pure ASGI, in front of FastAPI: half of a request's time would go into its middleware.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import structlog

from app.edge import metrics
from app.edge.accesses import Pending
from app.edge.body import (
    ClientGone,
    Inflight,
    Share,
    check_encoding,
    declared_bytes,
    expand,
    read_body,
)
from app.edge.gate import Gate
from app.edge.headers import combined, idempotency_key
from app.edge.limits import Account
from app.edge.outcome import JSON, Outcome, first_errors
from app.edge.problem import Headers, problem
from app.edge.request_id import new_request_id
from app.edge.response import respond
from app.edge.signed import Signed
from app.edge.singles import Singles, is_candidate
from app.edge.tally import Tally
from app.errors import (
    Conflict,
    Elsewhere,
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
from app.logs.batch import DEFAULT_DATASET, Batch, Idempotency, Receipt
from app.logs.dead_letters import make_letters
from app.logs.decode import Decoded, DecodeLimits, decode_json, decode_ndjson, record_texts
from app.logs.identity import format_id, received_us
from app.logs.record import Rejection
from app.logs.rows import SLUG, Rows, build_rows
from app.logs.store import ClaimHeld, LogStore
from app.logs.timestamp import US_PER_MINUTE, format_instant
from app.protect.findings import Findings
from app.protect.self_scan import FoundKey, conceal, is_suspect, scan

PATH = "/api/v1/logs"
ENDPOINT = f"POST {PATH}"
SCOPE = "logs:write"
JSON_TYPES = (b"application/json", b"")
NDJSON_TYPES = (b"application/x-ndjson", b"application/jsonl", b"application/ndjson")
# Of every answer, with its request id and length.
OWN_LINES = b"x-content-type-options: nosniff\r\nx-request-id: %b\r\ncontent-length: %d\r\n"
MEDIA_TYPES = ["application/json", "application/x-ndjson", "application/jsonl"]

Reply = tuple[int, Headers, bytes]

_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
_encode_outcome = msgspec.msgpack.Encoder().encode

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake(Gate):
    """What both ways of a log into the store stand on: this one, and `prompt`."""

    inflight: Inflight
    singles: Singles
    findings: Findings
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
        self._store = store
        self._tally = tally
        self._decode_limits = decode_limits
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        request_id = new_request_id()
        account: Account | None = None
        access: Pending | None = None
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
                scope.get("client"), headers.get(self._intake.authenticator.proxy_header)
            )
            account = self._intake.limiter.account(principal)
            source = (address, headers.get(b"user-agent", b""))
            access = Pending(self._intake.accesses, principal.key_id, ENDPOINT, source)
            self._intake.guard.check(principal, address)
            signed = None
            if principal.signing is not None:
                signed = self._intake.signatures.check(principal, scope)
            self._intake.sightings.note(principal, *source)
            upload = await self._admit(access, account, headers, scope)
            if signed is not None:
                upload = upload._replace(signed=signed)
            status, reply_headers, body = await self._store_upload(upload, receive, request_id)
        except ClientGone:
            return
        except LoggerError as error:
            self._count_failure(account, error, request_id)
            caller = None if account is None else account.principal
            self._intake.denials.note(error, request_id, ENDPOINT, scope, caller)
            status, reply_headers, body = problem(error, request_id)
        except Exception:
            # A bug must not cost logs: a shipper retries on 503 and drops its batch on 500.
            log.exception("unexpected fault", request_id=request_id)
            status, reply_headers, body = problem(StorageUnavailable(), request_id)
        lines = OWN_LINES % (request_id.encode(), len(body))
        if account is not None:
            lines += account.header_lines()
        metrics.count_request("ingest", status)
        if access is not None:
            access.answered(status)
        await respond(send, status, reply_headers, lines, body)

    async def _admit(
        self, access: Pending, account: Account, headers: dict[bytes, bytes], scope: Any
    ) -> "_Upload":
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
            access,
        )
        # With an Idempotency-Key it may be a repeat, which costs nothing but a request.
        if upload.idempotency_key is None:
            await account.admit(0 if encoding else declared, logs=1)
        else:
            await account.admit()
        return upload

    def _client(self, principal: Principal, query_string: bytes) -> str:
        """Return the client that is written for: the key's own; a platform key names one."""
        named = None
        if query_string:
            named = dict(parse_qsl(query_string.decode("latin-1"))).get("client_id")
        if principal.client_id is not None:
            if named not in {None, principal.client_id}:
                raise Elsewhere
            return principal.client_id
        if named is None or not SLUG.fullmatch(named):
            raise Invalid.parameter("client_id", "is required with an admin key")
        if not self._intake.authenticator.has_client(named):
            raise NotFound  # whoever is made under that name later would find these logs
        return named

    async def _store_upload(self, upload: "_Upload", receive: Any, request_id: str) -> Reply:
        """Read, decode and commit; what the request holds and did not use is given back."""
        upload = upload._replace(request_id=request_id)
        try:
            if upload.idempotency_key is not None:
                return await self._store_once(upload, upload.idempotency_key, receive, request_id)
            upload, body = await self._read(upload, receive)
            is_plain = not upload.is_ndjson and not upload.found
            if is_plain and is_candidate(body, self._intake.single_bytes_max):
                reply = await self._store_single(upload, body)
                if reply is not None:
                    return 201, [JSON], reply
            outcome, receipt = await self._commit(upload, body)
            return outcome.reply(receipt, request_id)
        except Unavailable:
            upload.account.refund(requests=1)
            raise
        finally:
            upload.share.give_back()

    async def _read(self, upload: "_Upload", receive: Any) -> tuple["_Upload", bytes]:
        """Read the body, and see who the caller is by now: a body may be held back for long."""
        body = await read_body(receive, upload.share, self._body_bytes_max)
        if upload.signed is not None:
            await self._intake.signatures.confirm(upload.signed, body)
        if upload.encoding:
            body = await expand(body, upload.encoding, upload.share, self._body_bytes_max)
        if is_suspect(body):
            # Before anything else is made of it: no copy may hold a key of ours.
            found = await scan(body)
            upload = upload._replace(found=found, body_bytes=len(body))
            body = conceal(body, found)
        principal = await self._intake.authenticator.authenticate(upload.scope)
        self._intake.guard.check(principal, upload.access.source[0])
        if principal is upload.account.principal:
            return upload, body
        self._intake.signatures.check_still(upload.signed, principal)
        if SCOPE not in principal.scopes:
            raise Forbidden(f"Requires scope '{SCOPE}'")
        return upload._replace(account=self._intake.limiter.account(principal)), body

    async def _store_single(self, upload: "_Upload", body: bytes) -> bytes | None:
        """Store one plain log together with others; None if it has to be stored by itself."""
        account = upload.account
        await account.charge(1, len(body))
        stored = None
        try:
            stored = await self._intake.singles.join(account.principal, upload.client_id, body)
        finally:
            if stored is None:
                account.refund(logs=1, body_bytes=len(body))
        if stored is None:
            return None
        upload.access.datasets = (stored.dataset,)
        return stored.reply

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
        if upload.found:
            self._report(upload, body, records)
        day, arrival = self._store.clock.take(max(1, len(records)))
        principal = upload.account.principal
        built = build_rows(records, principal.allowed_datasets, arrival)
        _check_datasets(built, len(records))
        self._note_refused(upload, built)
        upload.access.datasets = {dataset for dataset, *_ in built.series}
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
            bytes=upload.body_bytes if upload.found else len(body),
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

    def _note_refused(self, upload: "_Upload", built: Rows) -> None:
        """Note that a batch had records for a dataset that is not its key's, once a batch."""
        refused = next((one for _, one in built.rejections if one.dataset), None)
        if refused is not None:
            caller = upload.account.principal
            error = Forbidden(refused.detail)
            self._intake.denials.note(error, upload.request_id, ENDPOINT, upload.scope, caller)

    def _report(self, upload: "_Upload", body: bytes, records: list[Decoded]) -> None:
        """Tell of the service's own keys in a body, which holds only what may be shown of them."""
        metrics.keys_found.inc(len(upload.found))
        texts = record_texts(body, self._decode_limits, is_ndjson=upload.is_ndjson)
        logs = zip(map(bytes, texts), map(_dataset_of, records), strict=True)
        self._intake.findings.report_all(upload.found, upload.client_id, logs)

    async def _append(self, account: Account, batch: Batch) -> Receipt:
        """Commit within the limits: what the store does not take or had before is given back."""
        logs = len(batch.rows)
        await account.charge(logs, batch.bytes)
        started = time.perf_counter()
        try:
            receipt = await self._store.append(batch)
        except BaseException:  # whatever it was, nobody was told that it is stored
            account.refund(logs=logs, body_bytes=batch.bytes)
            raise
        metrics.count_commit(batch, receipt, time.perf_counter() - started)
        if receipt.duplicates:
            account.refund(logs=receipt.duplicates)
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
    access: Pending
    request_id: str = ""
    signed: Signed | None = None
    # Keys of ours that were in the body, and how long it was with them.
    found: Sequence[FoundKey] = ()
    body_bytes: int = 0


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


def _dataset_of(record: Decoded) -> str | None:
    """Return the dataset that a record is of; None for one that may be of none."""
    if isinstance(record, Rejection):
        return record.dataset
    return DEFAULT_DATASET if record.dataset is None else record.dataset


def _single_id(built: Rows, day: int) -> str:
    if not built.rows:
        return ""
    us, seq, *_ = built.rows[0]
    return format_id(us, day, seq)
