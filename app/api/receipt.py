"""When every worker had dropped what was switched off."""

from typing import Any

from app.activity.presence import await_dropped
from app.api.services import Services


async def receipt(opened: Services, generation: int) -> dict[str, Any]:
    """Wait until every worker has seen a change; give `effective_at`, `workers` and `ms`."""
    dropped = await opened.receipts.run(
        await_dropped, opened.engine, opened.activity, generation, is_served=True
    )
    return dropped.as_object()
