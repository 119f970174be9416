"""Health and metrics: what probes and Prometheus ask."""

import asyncio
import os

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from app.api.dependencies import Opened
from app.api.openapi import documented
from app.edge import metrics as gathered
from app.errors import StorageUnavailable

router = APIRouter(tags=["health"])

# Shorter than most probes wait: they should hear a reason, not their own time-out.
PROBE_S_MAX = 2.0

_STATUS = {"application/json": {"schema": {"type": "object", "properties": {"status": {}}}}}


@router.get("/health/live", summary="Is the process serving?", **documented(_STATUS, public=True))
async def live() -> dict[str, str]:
    """Answer while the process serves."""
    return {"status": "ok"}


@router.get("/health/ready", summary="Can it store logs?", **documented(_STATUS, 503, public=True))
async def ready(opened: Opened) -> dict[str, str]:
    """Answer 200 while both planes can be written to, 503 otherwise."""
    try:
        async with asyncio.timeout(PROBE_S_MAX):
            await opened.store.ping()
            await asyncio.to_thread(_ping, opened.engine)
    except TimeoutError:
        raise StorageUnavailable("it does not answer in time") from None
    return {"status": "ok"}


def _ping(engine: Engine) -> None:
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 FROM api_keys LIMIT 1"))
    except SQLAlchemyError as error:
        raise StorageUnavailable(str(error)) from error


@router.get("/metrics", summary="Prometheus metrics", **documented({"text/plain": {}}, 401, 403))
async def metrics() -> Response:
    """Return this service's metrics, summed over its workers; for admin keys unless opened."""
    gathered.hand_over()
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
