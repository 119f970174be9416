"""What a request to store logs led to, and the reply that says so.

An outcome is kept with an Idempotency-Key, so that a repeat is answered by the same code from the
same facts.
"""

import msgspec
import orjson

from app.edge.problem import CONTENT_TYPE, Headers, problem_body
from app.logs.batch import Receipt
from app.logs.identity import parse_id, received_us
from app.logs.record import Rejection
from app.logs.timestamp import format_instant

ERRORS_MAX = 100
JSON = (b"content-type", b"application/json")
REJECTED = "No record was accepted"


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """`records` were sent; `log_id` is a single stored object's; `errors` are the first 100."""

    client_id: str
    received_at: str
    records: int
    is_single: bool
    log_id: str
    rejected: int
    errors: list[tuple[int, str | None, str]]

    def reply(self, receipt: Receipt, request_id: str) -> tuple[int, Headers, bytes]:
        """Return status, headers and body, once the store has told about duplicates."""
        if self.rejected and self.rejected == self.records:
            members: dict[str, object] = {"errors": self._errors()}
            if not self.is_single:
                members |= self._counts(receipt)
            return 422, [CONTENT_TYPE], problem_body(422, REJECTED, request_id, members)
        if self.is_single:
            return 201, [JSON], orjson.dumps(self._stored(receipt))
        return 201, [JSON], orjson.dumps(self._counts(receipt) | {"errors": self._errors()})

    def _stored(self, receipt: Receipt) -> dict[str, object]:
        """Tell of the log in the store: of a duplicate that is the first one, not this one."""
        log_id, received_at = self.log_id, self.received_at
        place = parse_id(receipt.duplicate_id) if receipt.duplicate_id is not None else None
        if place is None:
            return {"id": log_id, "client_id": self.client_id, "received_at": received_at}
        return {
            "id": receipt.duplicate_id,
            "client_id": self.client_id,
            "received_at": format_instant(received_us(place.day, place.seq)),
            "duplicate": True,
        }

    def _counts(self, receipt: Receipt) -> dict[str, object]:
        return {
            "accepted": self.records - self.rejected - receipt.duplicates,
            "rejected": self.rejected,
            "duplicates": receipt.duplicates,
        }

    def _errors(self) -> list[dict[str, object]]:
        return [
            {"index": index, "field": field, "detail": detail}
            for index, field, detail in self.errors
        ]


def first_errors(rejections: list[tuple[int, Rejection]]) -> list[tuple[int, str | None, str]]:
    """Return what an outcome keeps of the rejections."""
    return [(index, one.field, one.detail) for index, one in rejections[:ERRORS_MAX]]
