"""Prometheus metrics of this process. Labels never carry a key or a client."""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from app.logs.batch import Batch, Receipt

requests = Counter("central_logger_requests", "Requests answered.", ["plane", "status"])
logs_accepted = Counter("central_logger_logs_accepted", "Logs stored.")
logs_rejected = Counter("central_logger_logs_rejected", "Records refused.")
logs_duplicate = Counter("central_logger_logs_duplicate", "Records stored before.")
body_bytes = Counter("central_logger_body_bytes", "Expanded body bytes of stored logs.")
commit_seconds = Histogram(
    "central_logger_commit_seconds",
    "From a decoded batch to its receipt.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
inflight_bytes = Gauge(
    "central_logger_inflight_bytes", "Body bytes held in memory.", multiprocess_mode="livesum"
)


@lru_cache(maxsize=256)
def _requests_of(plane: str, status: int) -> Counter:
    return requests.labels(plane, status)  # a look-up by labels costs more than the count


def count_request(plane: str, status: int) -> None:
    """Count an answer of the plane `ingest` or `control`."""
    _requests_of(plane, status).inc()


def count_commit(batch: Batch, receipt: Receipt, seconds: float) -> None:
    """Count a committed batch."""
    commit_seconds.observe(seconds)
    logs_accepted.inc(len(batch.rows) - receipt.duplicates)
    body_bytes.inc(batch.bytes)
    if receipt.duplicates:
        logs_duplicate.inc(receipt.duplicates)
    if batch.rejected:
        logs_rejected.inc(batch.rejected)
