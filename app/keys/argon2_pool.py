"""Where argon2 runs: few threads, a short queue, and each key once however often it is sent."""

import asyncio
from collections.abc import Sequence

from app.errors import Overloaded
from app.keys.verifier import Peppers
from app.pool import BoundedPool


class Argon2Pool:
    """Holds keys against argon2id verifiers off the event loop, which argon2 releases.

    Each check holds a core for about 30 ms and 19 MiB, so what strangers can make it do is bounded:
    `threads` at once, `queue` waiting, Overloaded beyond. That refuses the caller's request, not
    the key: it fails closed, and passes.
    """

    def __init__(self, peppers: Peppers, threads: int, queue: int) -> None:
        self._peppers = peppers
        self._pool = BoundedPool("argon2", threads, queue)
        self._flights: dict[tuple[bytes, int], asyncio.Future[str | None]] = {}

    async def match(
        self, flight_id: tuple[bytes, int], token: str, verifiers: Sequence[str]
    ) -> str | None:
        """Say which verifier is the key's; calls with one `flight_id` share one check."""
        flight = self._flights.get(flight_id)
        if flight is None:
            job = self._pool.submit(self._search, token, tuple(verifiers))
            flight = asyncio.wrap_future(job)
            self._flights[flight_id] = flight
            flight.add_done_callback(lambda _: self._flights.pop(flight_id))
        # Shielded: one caller that hangs up must not take the answer from the others.
        return await asyncio.shield(flight)

    def close(self) -> None:
        """Drop what waits."""
        self._pool.close()

    def _search(self, token: str, verifiers: tuple[str, ...]) -> str | None:
        try:
            return next((v for v in verifiers if self._peppers.verify(v, token)), None)
        except MemoryError as error:
            raise Overloaded from error
