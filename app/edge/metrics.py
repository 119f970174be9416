"""Prometheus metrics of this process. Labels never carry a key or a client."""

from collections import Counter

from prometheus_client import PLATFORM_COLLECTOR, REGISTRY, Histogram
from prometheus_client import Counter as PrometheusCounter

from app.logs.batch import Batch, Receipt

# It tells the version of Python, which is nobody's business where METRICS_PUBLIC is set.
REGISTRY.unregister(PLATFORM_COLLECTOR)

requests = PrometheusCounter("central_logger_requests", "Requests answered.", ["plane", "status"])
logs_accepted = PrometheusCounter("central_logger_logs_accepted", "Logs stored.")
logs_rejected = PrometheusCounter("central_logger_logs_rejected", "Records refused.")
logs_duplicate = PrometheusCounter("central_logger_logs_duplicate", "Records stored before.")
body_bytes = PrometheusCounter("central_logger_body_bytes", "Expanded body bytes of stored logs.")
keys_found = PrometheusCounter(
    "central_logger_keys_found", "Keys of this service taken out of incoming logs."
)
would_refuse = PrometheusCounter(
    "central_logger_would_refuse",
    "Requests that restrictions in mode `report` let pass.",
    ["reason"],
)
limits_alone = PrometheusCounter(
    "central_logger_limits_alone",
    "Decisions on limits made by this worker alone, since the storage of limits did not answer.",
)
evidence_lost = PrometheusCounter(
    "central_logger_evidence_lost",
    "Uses, accesses, refusals and findings given up, since they could not be written.",
)
commit_seconds = Histogram(
    "central_logger_commit_seconds",
    "From a decoded batch to its receipt; one in sixteen is measured.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)

# A count in prometheus_client takes 1.5 µs, and a request makes five: they are gathered here as
# plain numbers and handed over once a second.
_gathered: Counter[tuple[str, int]] = Counter()
_logs = [0, 0, 0, 0]  # accepted, rejected, duplicate, bytes
_COMMITS_PER_SAMPLE = 16
_commits = 0


def count_request(plane: str, status: int) -> None:
    """Count an answer of the plane `ingest` or `control`."""
    _gathered[plane, status] += 1


def count_would_refuse(reason: str) -> None:
    """Count a request that was let pass by a dry run alone."""
    would_refuse.labels(reason).inc()


def count_commit(batch: Batch, receipt: Receipt, seconds: float) -> None:
    """Count a committed batch; the time of one in sixteen goes into the histogram."""
    global _commits  # noqa: PLW0603
    _logs[0] += len(batch.rows) - receipt.duplicates
    _logs[1] += batch.rejected
    _logs[2] += receipt.duplicates
    _logs[3] += batch.bytes
    _commits += 1
    if _commits % _COMMITS_PER_SAMPLE == 1:
        commit_seconds.observe(seconds)


def hand_over() -> None:
    """Give what was gathered to prometheus_client."""
    for (plane, status), count in _gathered.items():
        requests.labels(plane, status).inc(count)
    _gathered.clear()
    for counter, count in zip(
        (logs_accepted, logs_rejected, logs_duplicate, body_bytes), _logs, strict=True
    ):
        counter.inc(count)
    _logs[:] = [0] * len(_logs)
