"""The keys in use: who a key is, in a microsecond, and never a moment after it stopped being so."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Engine

from app.errors import InvalidKey, StorageUnavailable
from app.keys.argon2_pool import Argon2Pool
from app.keys.changes import Asker
from app.keys.configured import DEFAULT_CLIENT_ID, ConfiguredKeys
from app.keys.database import sqlite_path
from app.keys.principal import Limits, Principal
from app.keys.records import Candidate, KeyRecord, Live, Records, Retag
from app.keys.shape import Presented, Proofs, shape_of
from app.keys.token import TOKEN_LENGTH_MAX, MalformedToken, ParsedToken, parse
from app.keys.verifier import Peppers, is_argon2
from app.keys.watch import ChangeWatch, DatabaseGone, SqliteWatch, WatchLost

# A principal takes about 1 kB. Past this the cache starts over, which costs each key one more read:
# an order of eviction would cost every hit.
CACHE_PRINCIPALS_MAX = 100_000
# Of so many live keys the rows are kept, 0.5 kB each; those beyond are read one by one.
LIVE_ROWS_MAX = 50_000
# Two cores' worth of argon2, and about half a second of waiting.
ARGON2_THREADS = 2
ARGON2_QUEUE = 32
# A key that is read by itself takes 0.1 ms, and each step of that waits for a busy thread; the list
# of 10,000 live ones takes 20 ms of a thread. So it is read once that may pay.
READS_UNLISTED_MAX = 32
# Keys that argon2 has proved: about 0.3 kB each.
PROVED_MAX = 20_000
# Each write to the database empties every worker's cache, so re-tags are gathered.
RETAG_DELAY_S = 1.0

_ANONYMOUS = b"anonymous"

_T = TypeVar("_T")

log = logging.getLogger(__name__)


class Keyring:
    """Verified keys in memory, in front of the control database.

    Belongs to one event loop. Reads of the database are made on the loop itself: an indexed read
    of SQLite takes less than handing it to a thread, and between such a read and the cache nothing
    else can run, so a stale answer cannot slip in.
    """

    def __init__(  # noqa: PLR0913 (its parts, and the sizes that tests make small)
        self,
        engine: Engine,
        peppers: Peppers,
        defaults: Limits,
        configured: ConfiguredKeys,
        *,
        watch: ChangeWatch | None = None,
        argon2_threads: int = ARGON2_THREADS,
        argon2_queue: int = ARGON2_QUEUE,
        cache_principals_max: int = CACHE_PRINCIPALS_MAX,
        live_rows_max: int = LIVE_ROWS_MAX,
    ) -> None:
        self._records = Records(engine, live_rows_max)
        self._peppers = peppers
        self._defaults = defaults
        self._configured = configured
        self._argon2 = Argon2Pool(peppers, argon2_threads, argon2_queue)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="keyring")
        self._tasks: set[asyncio.Task[None]] = set()
        self._retags: dict[UUID, Retag] = {}

        # A dict is looked up by a digest under a key of this process, never by the token: how long
        # a lookup takes then says nothing about any token.
        self._new_digest = blake2b(key=secrets.token_bytes(32), digest_size=16).copy
        self._verified: dict[bytes, Principal] = {}
        self._cache_principals_max = cache_principals_max
        # The verifier that argon2 has held a key against. It matches for ever, whatever else may
        # change: else each write of one client would have the keys of all others proved again.
        self._proved: dict[bytes, str] = {}
        # Keys of the settings, each with the row that decides in its place: told of once.
        self._shadowed: set[tuple[str, str]] = set()
        # None = unknown since the last change: then each well-formed key costs a read.
        self._live: Live | None = None
        # In place of a row that is not there: the verifier of a key that nobody has.
        self._nobody = f"{peppers.make_keyed(secrets.token_hex())} []"
        self._reads_unlisted = 0

        self._watch = watch or _watch_of(engine)
        self._watch_lost = False
        self._gone: str | None = None
        self.changes = 0
        self._is_fresh = False

    def start(self) -> None:
        """Begin to read which keys are live: the first requests need not wait for it."""
        self._reload_live()

    def cached(self, token: str) -> Principal | None:
        """Say who this key is if it has been verified since the last change; else None."""
        if not self._is_fresh:
            self._notice_changes()
        return self.recalled(self.digest(token))

    def recalled(self, digest: bytes) -> Principal | None:
        """Say what `cached` would, as of the last check; `check` tells whether it still holds."""
        principal = self._verified.get(digest)
        if principal is None or principal.expires_at_s is None:
            return principal
        return principal if principal.expires_at_s > time.time() else None

    def check(self) -> int:
        """Look for changes, now, and return how many times any were seen."""
        self._notice_changes()
        return self.changes

    async def resolve(self, token: str) -> Principal:
        """Say who this key is, by the database.

        Raises InvalidKey (with code "malformed_key" if only its checksum was wrong),
        StorageUnavailable when the database cannot be read, Overloaded when too many keys that
        need argon2 wait already.
        """
        if not self._is_fresh:
            self._notice_changes()
        if len(token) > TOKEN_LENGTH_MAX or not token.isascii():
            raise InvalidKey
        try:
            parsed = parse(token)
        except MalformedToken:
            raise InvalidKey(code="malformed_key") from None
        # 1 µs a pepper, and only where it is needed: a key of ours names its own row.
        tags = [] if parsed else list(self._peppers.lookup_tags(token))
        candidates = self._candidates(token, parsed, tags)
        for candidate in candidates:
            verifier = candidate.key.verifier or ""
            if is_argon2(verifier) or not candidate.is_usable():
                continue
            if self._peppers.verify(verifier, token):
                return self._accept(token, candidate)
        return await self._resolve_by_argon2(token, candidates)

    def anonymous(self) -> Principal:
        """Give the caller without a key, for REQUIRE_API_KEY=false: client `default`.

        Raises InvalidKey while that client is absent or inactive.
        """
        if not self._is_fresh:
            self._notice_changes()
        principal = self._verified.get(_ANONYMOUS)
        if principal is None:
            candidate = self._with_client(_ANONYMOUS_KEY)
            if not candidate.is_usable():
                raise InvalidKey
            principal = candidate.principal(self._defaults)
            self._remember(_ANONYMOUS, principal)
        return principal

    def asker(self, principal: Principal) -> Asker:
        """Give the one who asks for a change: to be called in the turn in which it was found."""
        return Asker(principal, self._defaults, self._configured_now)

    @property
    def configured(self) -> ConfiguredKeys:
        """Give the keys of the settings as they are now; they never change, others follow them."""
        return self._configured

    def presented(self, token: str) -> Presented:
        """Say what may be noted of a key that failed, and later be held against the rows."""
        return shape_of(token)._replace(proofs=Proofs(partial(self._peppers.proofs, token)))

    async def live_of(self, key_ids: Collection[str]) -> set[str]:
        """Say which public ids are of keys in use, by the list of live ones, read if need be.

        Raises StorageUnavailable. What is not among them is garbage; what is may be as well.
        """
        if not self._is_fresh:
            self._notice_changes()
        live = self._live
        if live is None:
            live = await self._in_background(self._stored.live)
        return {one for one in key_ids if one in live.rows or self._configured.by_token_id(one)}

    def has_client(self, client_id: str) -> bool:
        """Say whether there is a client of that name; raises StorageUnavailable."""
        return self._stored.client(client_id) is not None

    def reconfigure(self, configured: ConfiguredKeys) -> None:
        """Accept other configured keys from now on; whoever was verified before is looked up anew.

        It is a change like one of the database, to be called on the event loop.
        """
        self._configured = configured
        self._shadowed.clear()
        self._forget_verified()

    def close(self) -> None:
        """Stop what runs in the background and let go of the watch."""
        for task in self._tasks:
            task.cancel()
        self._argon2.close()
        self._background.shutdown(wait=True, cancel_futures=True)
        self._watch.close()

    # Noticing changes.

    def _notice_changes(self) -> None:
        """Ask the watch, at most once a turn of the event loop.

        Exact, although many requests share one answer: the loop runs its callbacks in the order in
        which they were scheduled, and `_forget` is scheduled with the check. A request runs in a
        task that is scheduled when its bytes have been read. If they were read after the check, the
        task runs after `_forget` and so gets a check of its own. If they were read before, the
        request was on its way before the check, and may be answered as of then: whatever changed
        later was not done when the request was sent.
        """
        try:
            changed = self._watch.changed()
        except WatchLost as error:
            self._gone = str(error) if isinstance(error, DatabaseGone) else None
            if not self._watch_lost:
                instead = "refusing" if self._gone else "reading"
                log.warning("changes of keys cannot be seen, %s each key: %s", instead, error)
            self._watch_lost = changed = True
        else:
            # The first good answer after a gap says nothing about the gap, in which each check
            # emptied the cache, but the reads after the last one filled it.
            changed = changed or self._watch_lost
            self._watch_lost = False
            self._gone = None
        if changed:
            self._forget_verified()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # Without a loop there are no turns: the next call checks again.
        self._is_fresh = True
        loop.call_soon(self._forget)

    def _forget_verified(self) -> None:
        self.changes += 1
        self._verified.clear()
        self._live = None
        self._reads_unlisted = 0

    def _forget(self) -> None:
        self._is_fresh = False

    # Finding the key.

    @property
    def _stored(self) -> Records:
        """The database, where it is; never what is still open of a file that has gone."""
        if self._gone is not None:
            raise StorageUnavailable(self._gone)
        return self._records

    def _candidates(
        self, token: str, parsed: ParsedToken | None, tags: list[str]
    ) -> list[Candidate]:
        """Find what the key may be, reading the database only for what may be there.

        Rows come first: where the settings have a key that is stored too, its row decides, or who
        revokes it would find that it works on. Of those that have ended the list does not know.
        """
        stored: list[Candidate] = []
        if parsed is not None:
            configured = [
                record
                for record in self._configured.by_token_id(parsed.key_id)
                if self._may_match(record.verifier or "", token)
            ]
            if configured:
                stored = self._stored.by_key_id(parsed.key_id)
            else:
                stored = self._by_key_id(parsed.key_id, token)
        else:
            configured = self._configured.by_tags(tags)
            if configured or self._live is None or not self._live.lookup_tags.isdisjoint(tags):
                stored = self._stored.by_tags(tags)
        if self._live is None:
            self._reads_unlisted += 1
            # Few good keys do without the list of live ones; garbage may be the first of much.
            if self._reads_unlisted > READS_UNLISTED_MAX or not (stored or configured):
                self._reload_live()
        # A public id is one key's. Of a deleted one without such an id nothing but its tag is left:
        # better that one text in 65,536 is refused with it than that it works again.
        ended = [c for c in stored if parsed is not None or c.key.deleted_at is not None]
        if configured and ended:
            self._tell_shadowed(configured, ended[0].key)
            return stored
        return stored + [self._with_client(record) for record in configured]

    def _tell_shadowed(self, configured: list[KeyRecord], key: KeyRecord) -> None:
        for one in configured:
            if (one.key_id, key.key_id) not in self._shadowed:
                self._shadowed.add((one.key_id, key.key_id))
                log.error(
                    "static key %s is not used: the stored key %s, %s, has the same text; take it"
                    " out of the settings",
                    one.key_id,
                    key.key_id,
                    "which was deleted" if key.deleted_at else "which decides",
                )

    def _by_key_id(self, key_id: str, token: str) -> list[Candidate]:
        """Find the key of this public id; of the listed ones only if it is the one."""
        if self._live is None:
            return self._stored.by_key_id(key_id)
        row = self._live.rows.get(key_id)
        if not row and row is not None:
            return self._stored.by_key_id(key_id)
        # Before the row is taken apart, and for ids that are none of ours too: the time that a
        # refusal takes is not to tell which ids are live.
        verifier, _, columns = (self._nobody if row is None else row).partition(" ")
        if not self._may_match(verifier, token) or row is None:
            return []
        return [self._records.candidate(columns)]

    def _may_match(self, verifier: str, token: str) -> bool:
        return is_argon2(verifier) or self._peppers.verify(verifier, token)

    def _with_client(self, record: KeyRecord) -> Candidate:
        """Read the client of a key that is not a row."""
        client = None if record.client_id is None else self._stored.client(record.client_id)
        return Candidate(record, client)

    async def _resolve_by_argon2(self, token: str, candidates: list[Candidate]) -> Principal:
        slow = self._slow(token, candidates)
        if not slow:
            raise InvalidKey
        proved = self._proved.get(self.digest(token))
        for candidate in slow:
            # What was proved of the settings' key says nothing of a row that has come since.
            is_first = candidate is slow[0] or not self._is_configured(candidate.key)
            if candidate.key.verifier == proved and is_first:
                return self._decide(token, candidate, slow)  # read in this very turn
        # The count of changes is part of the name: who comes after a change joins no older check.
        flight_id = (self.digest(token), self.changes)
        found = await self._argon2.match(flight_id, token, [c.key.verifier or "" for c in slow])
        if found is None:
            raise InvalidKey
        # It took a while: the key may have been revoked, so what counts is read again.
        for key in (candidate.key for candidate in slow if candidate.key.verifier == found):
            for candidate in self._again(key):
                if candidate.key.verifier == found:
                    if len(self._proved) >= PROVED_MAX:
                        self._proved.clear()
                    self._proved[self.digest(token)] = found
                    return self._decide(token, candidate, slow)
        raise InvalidKey

    def _slow(self, token: str, candidates: list[Candidate]) -> list[Candidate]:
        """Give those that argon2 has to be asked about, in this order; none if none may be used.

        Behind rows that have ended only where one of the settings' may be the same key.
        """
        slow = [c for c in candidates if is_argon2(c.key.verifier or "")]
        if not any(self._is_configured(c.key) for c in slow):
            slow = [c for c in slow if c.is_usable()]
        if not slow:
            return []
        # The tag is asked of keys that name their row as well: wrong secrets with a right, public
        # key_id would otherwise cost argon2 each.
        tags = self._peppers.lookup_tags(token)
        slow = [candidate for candidate in slow if candidate.key.lookup_tag in tags]
        return slow if any(candidate.is_usable() for candidate in slow) else []

    def _is_configured(self, key: KeyRecord) -> bool:
        return self._configured.current(key.id) is not None

    def _decide(self, token: str, candidate: Candidate, others: list[Candidate]) -> Principal:
        """Accept the key that it is, if it may be used."""
        if not self._is_configured(candidate.key):
            configured = [c.key for c in others if self._is_configured(c.key)]
            self._tell_shadowed(configured, candidate.key)
        if not candidate.is_usable():
            raise InvalidKey
        return self._accept(token, candidate)

    def _configured_now(self, id_: UUID) -> KeyRecord | None:
        # From any thread: a set of configured keys never changes, another one takes its place.
        return self._configured.current(id_)

    def _again(self, key: KeyRecord) -> list[Candidate]:
        configured = self._configured.current(key.id)
        if configured is not None:
            return [self._with_client(configured)]
        return self._stored.by_key_id(key.key_id)

    # Accepting it. No `await` from the read of the row to the end of this.

    def _accept(self, token: str, candidate: Candidate) -> Principal:
        principal = candidate.principal(self._defaults)
        self._remember(self.digest(token), principal)
        self._retag_later(token, candidate.key)
        return principal

    def _remember(self, digest: bytes, principal: Principal) -> None:
        if len(self._verified) >= self._cache_principals_max:
            self._verified.clear()
        self._verified[digest] = principal

    def digest(self, token: str) -> bytes:
        """Return what stands for a key in this process, and tells nothing of it."""
        digest = self._new_digest()
        digest.update(token.encode("utf-8", "surrogatepass"))
        return digest.digest()

    # In the background: never on a request's way, and a failure only logged.

    def _reload_live(self) -> None:
        # While changes cannot be seen a list would be out of date before it is here.
        if not self._watch_lost and "live" not in {task.get_name() for task in self._tasks}:
            self._start("live", self._load_live())

    async def _load_live(self) -> None:
        before = self.changes
        live = await self._in_background(self._stored.live)
        # All of it is as of one moment. A change after the last check and before that moment is in
        # the list already; one after it is either seen here, and the list thrown away, or seen by
        # the next check, as the change of a verified key is.
        self._notice_changes()
        if self.changes == before:
            self._live = live

    def _retag_later(self, token: str, key: KeyRecord) -> None:
        old = key.verifier or ""
        tag = self._peppers.lookup_tag(token) if is_argon2(old) else None
        if self._peppers.is_current(old) and key.lookup_tag == tag:
            return
        new = old if is_argon2(old) else self._peppers.make_keyed(token)
        self._retags[key.id] = Retag(key.id, old, new, tag)
        if "retag" not in {task.get_name() for task in self._tasks}:
            self._start("retag", self._write_retags())

    async def _write_retags(self) -> None:
        while self._retags:  # more may come while some are written
            await asyncio.sleep(RETAG_DELAY_S)
            retags, self._retags = list(self._retags.values()), {}
            await self._in_background(partial(self._stored.retag, retags))

    async def _in_background(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._background, work)

    def _start(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("keyring background task %s failed: %s", task.get_name(), error)


def _watch_of(engine: Engine) -> ChangeWatch:
    try:
        return SqliteWatch(sqlite_path(engine.url), engine.dispose)
    except WatchLost as error:
        raise StorageUnavailable(str(error)) from error


_ANONYMOUS_KEY = KeyRecord(
    id=UUID(int=0),
    key_id="anonymous",
    client_id=DEFAULT_CLIENT_ID,
    name="without a key",
    role="client",
    scopes=None,
    allowed_datasets=None,
    requests_per_minute=None,
    logs_per_minute=None,
    bytes_per_minute=None,
    verifier="",
    lookup_tag=None,
    is_active=True,
    expires_at=None,
    grace_until=None,
)
