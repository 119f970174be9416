"""The service as a whole: settings in, a running service out, by the parts in app/wiring/.

Nothing opens before the server starts it.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from app import journal, process
from app.activity.notary import Notary, begin
from app.activity.presence import Presence
from app.api.app import create_control_app
from app.api.services import Services
from app.edge.address import parse_networks
from app.edge.hardening import Bounds, Cors
from app.edge.ingest import IngestEndpoint
from app.edge.prompt import PromptIngest
from app.edge.switch import Edge
from app.keys.sealing import signers
from app.keys.verifier import Peppers
from app.settings import BadSetting, Settings, load_settings
from app.wiring.base import open_base
from app.wiring.gate import open_gate
from app.wiring.keys import open_keys, open_signing_keys
from app.wiring.planes import open_ingest, open_logs, open_pools, open_services
from app.wiring.threats import open_countries, open_detector, open_findings


def create_app(settings: Settings) -> Edge:
    """Build the ASGI application; its lifespan opens and closes everything behind it."""
    control = create_control_app(
        metrics_public=settings.metrics_public,
        management_requests_per_minute=settings.management_requests_per_minute,
        docs_enabled=settings.docs_enabled,
    )

    @asynccontextmanager
    async def lifespan(edge: Edge) -> AsyncIterator[None]:
        journal.set_up(settings.log_level)
        process.end_with_parent()
        process.share_the_interpreter()
        async with AsyncExitStack() as stack:
            services, edge.ingest, edge.prompt = await _open(settings, stack)
            control.state.services = services
            stack.enter_context(process.on_stop(services.tails.stop))
            process.settle_garbage()
            yield

    trusted = parse_networks(settings.trusted_proxies)
    bounds = Bounds(
        settings.head_timeout_s,
        settings.connections_per_address,
        trusted,
        settings.unread_timeout_s,
        settings.max_unread_bytes,
    )
    cors = Cors(settings.cors_origins) if settings.cors_origins else None
    return Edge(control, lifespan, bounds=bounds, cors=cors)


async def _open(
    settings: Settings, stack: AsyncExitStack
) -> tuple[Services, IngestEndpoint, PromptIngest | None]:
    """Open both planes; `stack` closes them in the opposite order."""
    base = open_base(settings, stack)
    peppers = Peppers(base.secrets)
    pools = open_pools(base)
    keyring = open_keys(base, peppers)
    begin(base.books, base.seals_of)
    keyring.start()
    base.start(Notary(base.books, signers(base.secrets)[0], settings.data_dir))
    logs = await open_logs(base)
    presence = Presence(base.control, base.activity, keyring)
    await presence.start()
    stack.push_async_callback(presence.aclose)
    signing_keys = open_signing_keys(base)
    countries = open_countries(base)
    gate = await open_gate(base, keyring, signing_keys, countries)
    base.start(open_detector(base, keyring, countries))
    services = open_services(base, peppers, pools, gate, signing_keys, logs)
    ingest, prompt = open_ingest(base, gate, logs, open_findings(base, keyring))
    return services, ingest, prompt


def __getattr__(name: str) -> Any:
    """Build `app` when a server asks for it, so that importing this module reads no settings."""
    if name == "app":
        try:
            return create_app(load_settings())
        except BadSetting as error:
            raise SystemExit(f"central-logger: {error}") from None
    raise AttributeError(name)
