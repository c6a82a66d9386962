"""Sessions in a SQL database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, TypeVarTuple, cast

from asm_runtime import options
from asm_runtime.actor import GroupActor, Letter
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.errors import ActorStopped, MailboxFull, StoreError, ValidationError
from asm_runtime.ids import new_id
from asm_runtime.observer import observer
from asm_runtime.ports import ExecutionResult, ExpectedStatus, Order
from asm_runtime.records import Event, EventType, Fence, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores import rules
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.pace import in_turn, in_turns
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.calls import CallsUnderWay
from asm_runtime.stores.sql.outcome import Appended, Deleted, Outcome
from asm_runtime.stores.sql.paging import Pages
from asm_runtime.stores.sql.removals import Removals
from asm_runtime.stores.sql.rows import (
    drafted,
    drafted_few,
    event_row,
    event_rows,
    large_drafted,
    large_event_row,
)
from asm_runtime.stores.sql.target import DatabaseOptions, database_of
from asm_runtime.stores.sql.transaction import Transaction
from asm_runtime.stores.waiters import EventWaiters, RevisionWaiters

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SQLSessionStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Debt: TypeAlias = "tuple[Callable[[Transaction, Fence], None], Fence]"

RETRY_SECONDS = 1.0
"""After how long a release is written again that could not be."""


SMALLEST_HALF = 32
"""How many requests are worth a commit of their own, so that others can be prepared meanwhile."""

PART_BYTES = 8 << 20
"""How much events may have together, so that what came after them goes into the same transaction."""


class SQLSessionStore(GroupActor):
    """An `asm_runtime.ports.SessionStore` in a SQLite or a PostgreSQL database.

    What waits in the mailbox is committed as one transaction; reads have connections of their own
    and never wait for it. Any number of stores, in any number of processes, may share a database.

    A row that this release cannot read (somebody wrote an unknown status or broken JSON into it) is
    a `StoreError` that names it, for the calls whose answer holds it; reads past it go on.

    What a page of a log costs depends on what is in it, not on the length of the log, with two exceptions:
    a filter by the type `message_streamed` without a run (the pieces of streamed messages are in no index
    by type, which every append would pay for), and one by more than 256 runs. They go through the log, some
    0.3 ms for a thousand events, in short steps between which others read.

    Args:
        url_or_engine: `sqlite:///file.db` (`sqlite:////` for an absolute path), `sqlite://` for a
            private one in memory, `postgresql://user:password@host/db` (15 or later; extra `postgres`), or
            an application's own `AsyncEngine` on `sqlite+aiosqlite`. Of an engine the pool is shared, and
            never disposed; how durable it is and how long it waits for a lock is up to its connections.
        synchronous: `FULL`: what was acknowledged survives a power cut. `NORMAL`: a power cut may
            lose the last commits, a killed process loses nothing. SQLite's; None: `FULL`.
        migrate: Whether to make the tables, and bring them up to date, on start; if not, another
            schema than the one needed is a `MigrationRequired`. None: on SQLite yes, on a server no.
        busy_timeout_ms: How long to wait for a lock that another process holds. SQLite's; None: 10 s.
        lease_ttl_ms: How long a node counts as alive after its last heartbeat, on a server database.
            SQLite needs none: the operating system knows.
        read_only: Whether to open a SQLite file that is there, and neither write to it nor make a file
            beside it: every user who may read the file can do that, in a folder that is read-only too. A call
            that writes is a `ValidationError`, a schema that is not the one needed `MigrationRequired`.
        pool_size: How many connections read. Another one writes, one is the bell, and one renews the lease
            once the store has claimed a run. This and the next two are a server's; None: 8.
        connect_timeout_ms: How long to wait for a connection; None: 10 s.
        statement_timeout_ms: How long to wait for an answer; None: 30 s.
        mailbox_limit: How many writes may wait; then callers are suspended.
        clock: The source of its times and timers.

    Attributes:
        node_id: The owner of the runs that it claims.
    """

    def __init__(
        self,
        url_or_engine: str | AsyncEngine,
        *,
        synchronous: str | None = None,
        migrate: bool | None = None,
        busy_timeout_ms: int | None = None,
        lease_ttl_ms: int = 10_000,
        read_only: bool = False,
        pool_size: int | None = None,
        connect_timeout_ms: int | None = None,
        statement_timeout_ms: int | None = None,
        mailbox_limit: int = 10_000,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(mailbox_limit=mailbox_limit, clock=clock)
        if migrate is not None and not isinstance(migrate, bool):  # pyright: ignore[reportUnnecessaryIsInstance]  # not all callers are checked
            raise options.refused("migrate", migrate, "True, False or None")
        if not isinstance(read_only, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise options.refused("read_only", read_only, "True or False")
        if read_only and migrate:
            raise options.refused("migrate", migrate, "False or None, if read_only")
        if synchronous is not None:
            synchronous = options.choice("synchronous", synchronous, ("FULL", "NORMAL"))
        given = DatabaseOptions(
            synchronous=synchronous,
            migrate=migrate,
            busy_timeout_ms=options.integer("busy_timeout_ms", busy_timeout_ms, minimum=0, optional=True),
            lease_ttl_ms=options.integer("lease_ttl_ms", lease_ttl_ms, minimum=1),
            read_only=read_only,
            pool_size=options.integer("pool_size", pool_size, minimum=1, optional=True),
            connect_timeout_ms=options.integer(
                "connect_timeout_ms", connect_timeout_ms, minimum=1, optional=True
            ),
            statement_timeout_ms=options.integer(
                "statement_timeout_ms", statement_timeout_ms, minimum=1, optional=True
            ),
        )
        self.node_id = new_id("nod_")
        self._database = database_of(url_or_engine, self.node_id, given)
        self._is_read_only = read_only
        self._readers = EventWaiters(clock)
        self._watchers = RevisionWaiters(clock)
        self._calls = CallsUnderWay()
        self._pages = Pages(self._database.reader)
        self._looks_soon = False
        self._sync_bound = False
        self._commits = 0
        """How many are under way."""
        self._removals = Removals(
            find=self._find_left, remove=self._remove_left, spawn=self.spawn, clock=clock
        )
        self._owed: dict[Debt, None] = {}
        """Releases that could not be written, or whose caller is gone: they go with the next group."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._database.name}>"

    async def on_start(self) -> None:
        """Connect, and bring the schema up to date."""
        self._database.changes.listen(self._tell_of_others)
        if await self._database.open(self.abandon) and not self._is_read_only:
            self._removals.begin()

    async def on_stop(self) -> None:
        """Answer those who wait and read, then disconnect."""
        self._answer_waiters()
        await self._calls.ended()
        await self._database.close()

    def on_crash(self, reason: BaseException) -> None:
        """Answer those who wait."""
        self._answer_waiters()
        self._database.close_soon()

    def _answer_waiters(self) -> None:
        self._readers.stop()
        self._watchers.stop()

    async def _known_alive(self, owner: str | None) -> None:
        """See that others take this node for alive, before a run is written that it owns."""
        self._check_writable()
        if owner == self.node_id and not self._database.liveness.has_joined:
            with await self._under_way():
                await self._database.liveness.join()

    def _check_writable(self) -> None:
        if self._is_read_only:
            raise ValidationError(
                f"{self._database.name} is open for reading only: `read_only=True`",
                details={"option": "read_only", "value": True},
            )

    # -- writing

    def _write(self, operation: Callable[[Transaction, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Have an operation run in the next transaction.

        Raises:
            ValidationError: The store is read-only.
        """
        self._check_writable()
        return self.call(cast("Callable[[*Ts], T]", operation), *args)

    def handle_group(self, letters: list[Letter]) -> asyncio.Future[None]:
        """Commit everything that waits as one transaction, or two; tell callers and waiters."""
        settled = asyncio.get_running_loop().create_future()
        self._commit(letters, settled, after_lull=True)
        if not self._commits:  # it was only to look
            settled.set_result(None)
        return settled

    def _commit(
        self, letters: list[Letter], settled: asyncio.Future[None], *, after_lull: bool = False
    ) -> None:
        for part in self._parts(self._with_debts(letters), after_lull=after_lull):
            requests = [letter[:2] for letter in part]
            writing = self._database.writer.write(requests, self._clock.now())
            self._commits += 1
            writing.add_done_callback(partial(self._committed, part, settled))

    def _committed(
        self, letters: list[Letter], settled: asyncio.Future[None], writing: asyncio.Future[Outcome]
    ) -> None:
        self._commits -= 1
        try:
            outcome = writing.result()
            self._sync_bound = outcome.sync_bound
            if outcome.has_removals:
                self._removals.begin()
            if not self._commits and (more := self.take()):
                # Before anybody is told: callers prepare the next requests while these are written.
                self._commit(more, settled)
            self._tell_waiters(outcome)
            self._answer(letters, outcome.results)
            if outcome.commits:
                events = sum(len(one.events) for one in outcome.effects if isinstance(one, Appended))
                observer().group_committed(len(letters), events)
        except BaseException as error:
            if self._owed:
                self.send_after(RETRY_SECONDS, _pay)
            if not settled.done():
                settled.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            if not self._commits and not settled.done():  # else the store has crashed
                settled.set_result(None)

    def _parts(self, letters: list[Letter], *, after_lull: bool) -> list[list[Letter]]:
        """What is to be one transaction each.

        The group that a lull ends is written in two halves, if it is large. The callers are in it that
        come at once, and would all come again at once when it is written: they and the writer's thread
        would take turns. So, one half is prepared while the other is written. 256 appenders: 30 000
        events/s in turns, 45 000 in halves. Not where the disk is so slow to sync that only the number of
        commits counts.
        """
        most = len(letters)
        if most == 1:
            return [letters]
        if after_lull and most >= 2 * SMALLEST_HALF and not self._sync_bound:
            most = (most + 1) // 2
        parts: list[list[Letter]] = []
        byte_size = PART_BYTES
        for letter in letters:
            if byte_size >= PART_BYTES or len(parts[-1]) == most:
                parts.append([])
                byte_size = 0
            parts[-1].append(letter)
            byte_size += operations.byte_size(letter[0], letter[1])
        return parts

    def _with_debts(self, letters: list[Letter]) -> list[Letter]:
        """What is owed, then the letters that ask for something."""
        asking = [letter for letter in letters if letter[2] is not None]
        looks = len(asking) < len(letters) and any(letter[0] is _look for letter in letters)
        if self._owed:
            asking[:0] = [(operation, (fence,), None) for operation, fence in self._owed]
        if looks and not asking:
            self.spawn(self._look())
        elif looks:  # the group will say what others have committed
            self._looks_soon = False
        self._look_on()
        return asking

    def _answer(self, letters: list[Letter], results: list[Any]) -> None:
        unpaid = False
        for (operation, args, reply), result in zip(letters, results, strict=True):
            if result is False:  # a deletion that has left something, also if nobody waits for it
                self._removals.begin()
            if reply is None:
                if isinstance(result, StoreError):
                    unpaid = True
                else:
                    self._owed.pop((operation, *args), None)
            elif reply.done():
                if operation is operations.claim_run and isinstance(result, Run):
                    self._owe(operations.unclaim_run, result.fence)
            elif isinstance(result, BaseException):
                reply.set_exception(result)
            else:
                reply.set_result(result)
        if unpaid:
            self.send_after(RETRY_SECONDS, _pay)

    def _tell_waiters(self, outcome: Outcome) -> None:
        if not (self._readers or self._watchers):
            return
        self._tell_of_others(outcome.foreign)
        for effect in outcome.effects:
            if isinstance(effect, Appended):
                for session_id, events in effect.by_session().items():
                    self._readers.appended(session_id, events)
            elif isinstance(effect, Deleted):
                self._readers.deleted(effect.session_id)
                self._watchers.deleted(effect.session_id)
            else:
                self._watchers.changed(effect.session_id, effect.revision)

    def _tell_of_others(self, changed: Collection[str] | None) -> None:
        for session_id in self._awaited() if changed is None else changed:
            self._readers.changed(session_id)
            self._watchers.changed(session_id)

    def _awaited(self) -> Collection[str]:
        return {*self._readers.sessions(), *self._watchers.sessions()}

    def _look_soon(self) -> None:
        """See in a moment what others have committed, if there may be others."""
        seconds = self._database.changes.look_every_seconds
        if seconds is not None and not self._looks_soon:
            self._looks_soon = True
            self.send_after(seconds, _look)

    async def _look(self) -> None:
        changed: Collection[str] | None = ()
        try:
            changed = await self._database.changes.look(self._awaited())
        except ActorStopped:
            return  # the store stops, and has answered who waits
        except StoreError as error:
            logger.debug("%r cannot see what others have committed: %s", self, error)
            if not error.retryable:  # those who wait are told when they read
                changed = None
        self._looks_soon = False
        self._look_on()
        self._tell_of_others(changed)

    def _look_on(self) -> None:
        # Before they are told: one that is told of a change which brings it nothing waits on.
        if self._readers or self._watchers:
            self._look_soon()

    def _owe(self, operation: Callable[[Transaction, Fence], None], fence: Fence) -> None:
        """See to it that a run is given up here, whatever happens to the caller or the database."""
        self._owed[operation, fence] = None
        try:
            self.cast_nowait(_pay)
        except (MailboxFull, ActorStopped):
            pass  # a group is on its way; or the node ends, and all its claims with it

    # -- sessions and runs

    async def save_session(self, session: Session, *, expected_status: ExpectedStatus | None = None) -> None:
        """See `SessionStore`."""
        session = await rules.copied("session", session, Session)
        expected = rules.expected_session_status("expected_status", expected_status)
        await self._write(operations.save_session, session, expected)

    async def get_session(self, session_id: str) -> Session:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        with await self._under_way():
            return await self._database.reader.session(session_id)

    async def list_sessions(
        self,
        *,
        status: SessionStatus | str | Collection[SessionStatus | str] | None = None,
        agent_id: str | Collection[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Session]:
        """See `SessionStore`."""
        statuses = options.members("status", status, SessionStatus)
        agents = options.identifiers("agent_id", agent_id)
        limit = options.integer("limit", limit, minimum=1, optional=True)
        offset = options.integer("offset", offset, minimum=0)
        with await self._under_way():
            return await self._pages.sessions(statuses, agents, limit, offset)

    async def delete_session(self, session_id: str) -> None:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        if await self._write(operations.delete_session, session_id):
            return
        await self._removals.ended(session_id)

    async def _remove_left(self, session_ids: list[str]) -> list[str]:
        while not self.is_running:  # noqa: ASYNC110  `on_start` ends in this or the next turn
            await asyncio.sleep(0)
        return await self._write(operations.remove_left, session_ids)

    def _find_left(self, past: str, limit: int) -> Awaitable[list[str]]:
        return self._database.reader.removals(past, limit)

    async def save_run(self, run: Run, *, expected_status: ExpectedStatus | None = None) -> None:
        """See `SessionStore`."""
        run = await rules.copied("run", run, Run)
        expected = rules.expected_run_status("expected_status", expected_status)
        await self._known_alive(run.owner)
        await self._write(operations.save_run, run, expected)

    async def get_run(self, run_id: str, *, session_id: str | None = None) -> Run:
        """See `SessionStore`."""
        run_id = options.identifier("run_id", run_id)
        session_id = options.optional_identifier("session_id", session_id)
        with await self._under_way():
            return await self._database.reader.run(run_id, session_id)

    async def list_runs(
        self,
        session_id: str,
        *,
        status: RunStatus | str | Collection[RunStatus | str] | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Run]:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        statuses = options.members("status", status, RunStatus)
        limit = options.integer("limit", limit, minimum=1, optional=True)
        after = options.optional_identifier("after", after)
        with await self._under_way():
            return await self._pages.runs(session_id, statuses, limit, after)

    async def get_active_run(self, session_id: str) -> Run | None:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        with await self._under_way():
            return await self._database.reader.active_run(session_id)

    async def flush(
        self,
        result: ExecutionResult,
        *,
        fence: Fence | None = None,
        expected_session_status: ExpectedStatus | None = None,
        expected_run_status: ExpectedStatus | None = None,
        expected_session: Session | None = None,
        expected_run: Run | None = None,
    ) -> list[Event]:
        """See `SessionStore`."""
        session_status = rules.expected_session_status("expected_session_status", expected_session_status)
        run_status = rules.expected_run_status("expected_run_status", expected_run_status)
        result = await rules.checked_result(result, session_status, run_status)
        expected_session = await rules.expected_row(
            "expected_session", expected_session, result.session, Session
        )
        expected_run = await rules.expected_row("expected_run", expected_run, result.run, Run)
        fence = rules.optional_fence(fence)
        rows = await in_turns(event_row, result.events, large=large_event_row, few=event_rows)
        if result.run is not None:
            await self._known_alive(result.run.owner)
        return await self._write(
            operations.flush, result, rows, fence, session_status, run_status, expected_session, expected_run
        )

    # -- the log

    async def append_event(self, event: Event) -> None:
        """See `SessionStore`."""
        await self._write(operations.append, (await in_turn(drafted, event, large=large_drafted),), None)

    async def append_event_with_sequence(self, event: Event) -> Event:
        """See `SessionStore`."""
        return (
            await self._write(operations.append, (await in_turn(drafted, event, large=large_drafted),), None)
        )[0]

    async def append_events(self, events: Sequence[Event], *, fence: Fence | None = None) -> list[Event]:
        """See `SessionStore`."""
        events = rules.events_in("events", events)
        rows = await in_turns(drafted, events, large=large_drafted, few=drafted_few)
        return await self._write(operations.append, rows, rules.optional_fence(fence))

    async def get_events(
        self,
        session_id: str,
        *,
        run_id: str | Collection[str] | None = None,
        type: EventType | str | Collection[EventType | str] | None = None,
        since: datetime | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        max_bytes: int | None = None,
        order: Order = "asc",
        wait_timeout_ms: int = 0,
    ) -> list[Event]:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        filter = EventFilter.checked(
            run_id=run_id,
            type=type,
            since=since,
            after=after,
            before=before,
            limit=limit,
            max_bytes=max_bytes,
            order=order,
            wait_timeout_ms=wait_timeout_ms,
        )
        with await self._under_way():
            if not wait_timeout_ms:
                return (await self._pages.events(session_id, filter))[0]
            self._look_soon()
            return await self._readers.read_or_wait(session_id, filter, wait_timeout_ms, self._pages.events)

    async def get_latest_sequence(self, session_id: str) -> int:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        with await self._under_way():
            return await self._database.reader.latest_sequence(session_id)

    # -- the queue

    async def enqueue_run(self, run: Run, *, max_open_runs: int | None = None) -> Run:
        """See `SessionStore`."""
        run = await rules.checked_pending(run)
        max_open_runs = options.integer("max_open_runs", max_open_runs, minimum=0, optional=True)
        return await self._write(operations.enqueue_run, run, max_open_runs)

    async def claim_run(
        self,
        session_id: str,
        *,
        max_concurrent_runs: int | None = None,
        run_id: str | None = None,
    ) -> Run | None:
        """See `SessionStore`. The run of a caller that is cancelled goes back to its place in the queue."""
        session_id = options.identifier("session_id", session_id)
        slots = options.integer("max_concurrent_runs", max_concurrent_runs, minimum=0, optional=True)
        run_id = options.optional_identifier("run_id", run_id)
        await self._known_alive(self.node_id)
        claim = self._write(operations.claim_run, session_id, slots, run_id)
        try:
            return await claim
        except asyncio.CancelledError:
            # Its answer may be on the way to a caller that is gone. A claim that has no answer yet is
            # seen to by `_answer`.
            if claim.done() and not claim.cancelled() and claim.exception() is None:
                claimed = claim.result()
                if claimed is not None:
                    self._owe(operations.unclaim_run, claimed.fence)
            raise

    async def release_run(self, fence: Fence) -> None:
        """See `SessionStore`. What cannot be written now is written as soon as it can be."""
        fence = rules.checked_fence(fence)
        try:
            await self._write(operations.release_run, fence)
        except (asyncio.CancelledError, StoreError):
            self._owe(operations.release_run, fence)
            raise

    async def list_orphaned_runs(
        self, *, session_id: str | None = None, limit: int | None = None
    ) -> list[Run]:
        """See `SessionStore`."""
        session_id = options.optional_identifier("session_id", session_id)
        limit = options.integer("limit", limit, minimum=1, optional=True)
        with await self._under_way():
            owners = await self._database.reader.owners(session_id)
            dead = await self._database.liveness.dead([owner for owner in owners if owner is not None])
            if not dead and None not in owners:
                return []
            return await self._pages.orphans(session_id, dead, limit)

    async def wait_for_runs(
        self, session_id: str, *, after: int | None = None, timeout_ms: int | None
    ) -> int:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        after = options.integer("after", after, minimum=0, optional=True)
        timeout_ms = options.integer("timeout_ms", timeout_ms, minimum=0, optional=True)
        with await self._under_way():
            self._look_soon()
            return await self._watchers.read_or_wait(session_id, after, timeout_ms, self._run_revision)

    def _run_revision(self, session_id: str) -> Awaitable[int]:
        return self._database.reader.run_revision(session_id)

    async def _under_way(self) -> CallsUnderWay:
        """Count a call that reads, while it runs: the stop waits for those.

        Raises:
            ActorStopped: The store is not running.
        """
        if not self.is_running:
            await self.call(_pay)
        return self._calls


def _look() -> None:
    """A letter: look what others have committed."""


def _pay() -> None:
    """A letter: write what is owed."""
