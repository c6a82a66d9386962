"""A store in this process's memory: it ends with the process; all else is as in the others."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Awaitable, Collection, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from asm_runtime import options
from asm_runtime.actor import Actor
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.errors import Conflict, RunNotFound, SessionNotFound
from asm_runtime.ids import new_id
from asm_runtime.observer import observer
from asm_runtime.ports import ExecutionResult, ExpectedStatus, Order
from asm_runtime.records import (
    OPEN_RUN_STATUSES,
    Event,
    EventType,
    Fence,
    Run,
    RunStatus,
    Session,
    SessionStatus,
)
from asm_runtime.stores import rules
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.memory_artifact_rows import ArtifactRows
from asm_runtime.stores.memory_log import EventLog
from asm_runtime.stores.memory_runs import RunQueue
from asm_runtime.stores.pace import FEW, in_turn, in_turns, paced
from asm_runtime.stores.waiters import EventWaiters, RevisionWaiters

__all__ = ["InMemorySessionStore"]

R = TypeVar("R", Session, Run)

_SLICE = 256
"""How many runs are gone through in one go."""


class InMemorySessionStore(Actor):
    """An `asm_runtime.ports.SessionStore` in memory, on one event loop.

    Only this store claims its runs. So a run is orphaned when it is `running` without an owner, or
    with an owner that somebody wrote into it.

    Args:
        name: Shown by `repr()`.
        clock: The source of its times and timers.
    """

    def __init__(self, name: str | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock=clock)
        self.name: str | None = options.optional_identifier("name", name)
        self.node_id = new_id("nod_")
        self._sessions: dict[str, _Session] = {}
        self._order: list[tuple[datetime, str]] = []
        """The session rows, oldest first."""
        self._sessions_of_runs: dict[str, tuple[str, ...]] = {}
        self.artifacts = ArtifactRows()
        """For `InMemoryArtifactRegistry`, which reads and changes them in handlers of this store."""
        self._revision = 0
        """Of the latest change of any run; one for all sessions, so that it grows across deletions."""
        self._deletion = 0
        """The revision of the latest deletion, which is that of every session not in memory."""
        self._readers = EventWaiters(clock)
        self._watchers = RevisionWaiters(clock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or self.node_id}>"

    async def on_stop(self) -> None:
        """Answer those who wait."""
        self._answer_waiters()

    def on_crash(self, reason: BaseException) -> None:
        """Answer those who wait."""
        self._answer_waiters()

    def _answer_waiters(self) -> None:
        self._readers.stop()
        self._watchers.stop()

    # -- sessions and runs

    async def save_session(self, session: Session, *, expected_status: ExpectedStatus | None = None) -> None:
        """See `SessionStore`."""
        session = await rules.copied("session", session, Session)
        expected = rules.expected_session_status("expected_status", expected_status)
        await self.call(self._flush, ExecutionResult(session=session), None, expected, None)

    async def get_session(self, session_id: str) -> Session:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        return await _copy(await self.call(self._get_session, session_id))

    def _get_session(self, session_id: str) -> Session:
        known = self._sessions.get(session_id)
        if known is None or known.row is None or known.row.deleted_at is not None:
            raise SessionNotFound(f"there is no session {session_id}", details={"session_id": session_id})
        return known.row

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
        found: list[Session] = []
        async for _, id in paced(await self.call(self._oldest_first)):
            known = self._sessions.get(id)
            row = None if known is None else known.row
            if (
                row is None
                or row.deleted_at is not None
                or (statuses is not None and row.status not in statuses)
                or (agents is not None and row.agent_id not in agents)
            ):
                continue
            if offset:
                offset -= 1
                continue
            found.append(row)
            if len(found) == limit:
                break
        return await _copies(found)

    def _oldest_first(self) -> list[tuple[datetime, str]]:
        return self._order.copy()

    async def delete_session(self, session_id: str) -> None:
        """See `SessionStore`."""
        await self.call(self._delete_session, options.identifier("session_id", session_id))

    def _delete_session(self, session_id: str) -> None:
        gone = self._sessions.pop(session_id, None)
        if gone is not None:
            if gone.row is not None:
                del self._order[bisect_left(self._order, _age(gone.row))]
            pieces = self._forgotten(gone)
            if next(pieces, self) is not self:
                self.spawn(_in_turns_of_the_loop(pieces))
            self._revision += 1
            self._deletion = self._revision
            self._watchers.changed(session_id, self._revision)
        self.artifacts.forget(session_id)
        self._readers.deleted(session_id)
        self._watchers.deleted(session_id)

    def _forgotten(self, gone: _Session) -> Iterator[None]:
        """Forget the runs and events of a deleted session, a piece at each step."""
        runs = [] if gone.runs is None else gone.runs.all
        for number, run in enumerate(runs, 1):
            self._forget_run(run)
            if number % _SLICE == 0:
                yield
        if gone.log is not None:
            yield from gone.log.emptied()

    async def save_run(self, run: Run, *, expected_status: ExpectedStatus | None = None) -> None:
        """See `SessionStore`."""
        run = await rules.copied("run", run, Run)
        expected = rules.expected_run_status("expected_status", expected_status)
        await self.call(self._flush, ExecutionResult(run=run), None, None, expected)

    async def get_run(self, run_id: str, *, session_id: str | None = None) -> Run:
        """See `SessionStore`."""
        run_id = options.identifier("run_id", run_id)
        session_id = options.optional_identifier("session_id", session_id)
        return await _copy(await self.call(self._get_run, run_id, session_id))

    def _get_run(self, run_id: str, session_id: str | None) -> Run:
        if session_id is None:
            owners = [id for id in self._sessions_of_runs.get(run_id, ()) if self._find_run(id, run_id)]
            if len(owners) > 1:
                raise Conflict(
                    f"runs of {len(owners)} sessions have the id {run_id}: name the session",
                    details={"run_id": run_id},
                )
            session_id = owners[0] if owners else None
        run = None if session_id is None else self._find_run(session_id, run_id)
        if run is None:
            where = "" if session_id is None else f" in session {session_id}"
            raise RunNotFound(f"there is no run {run_id}{where}", details={"run_id": run_id})
        return run

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
        runs = await self.call(self._queue_of, session_id, after)
        found: list[Run] = []
        while runs is not None and (limit is None or len(found) < limit):
            size = _SLICE if limit is None else min(_SLICE, limit - len(found))
            page = list(islice(runs.with_status(statuses, after=after), size))
            found += await _copies(page)
            if len(page) < size:
                break
            after = page[-1].id
            await asyncio.sleep(0)
        return found

    def _queue_of(self, session_id: str, after: str | None) -> RunQueue | None:
        if after is not None:
            self._get_run(after, session_id)
        return self._runs_of(session_id)

    async def get_active_run(self, session_id: str) -> Run | None:
        """See `SessionStore`."""
        run = await self.call(self._get_active_run, options.identifier("session_id", session_id))
        return None if run is None else await _copy(run)

    def _get_active_run(self, session_id: str) -> Run | None:
        runs = self._runs_of(session_id)
        return None if runs is None else runs.earliest_started()

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
        return await self.call(
            self._flush, result, fence, session_status, run_status, expected_session, expected_run
        )

    def _flush(
        self,
        result: ExecutionResult,
        fence: Fence | None,
        expected_session_status: str | None,
        expected_run_status: str | None,
        expected_session: Session | None = None,
        expected_run: Run | None = None,
    ) -> Any:
        session, run = result.session, result.run
        self._check_fence(fence)
        if run is not None:
            stored_run = self._find_run(run.session_id, run.id)
            run_status = None if stored_run is None else stored_run.status
            rules.check_expected_status(run, run_status, expected_run_status)
            rules.check_expected_row(expected_run, stored_run)
            rules.check_status_kept(run, run_status)
        if session is not None:
            session_status = self._session_status(session.id)
            rules.check_expected_status(session, session_status, expected_session_status)
            known = self._sessions.get(session.id)
            rules.check_expected_row(expected_session, None if known is None else known.row)
            rules.check_status_kept(session, session_status)
            rules.check_completion(session, session_status, self._open_runs_after(session.id, run))
        # All checks are made, all writes follow: nobody sees one without the others.
        if run is not None:
            self._put_run(run)
        if session is not None:
            self._put_session(session)
        events = result.events
        return self._append(events) if len(events) <= FEW else self._append_many(events)

    # -- the log

    async def append_event(self, event: Event) -> None:
        """See `SessionStore`."""
        await self.call(self._append, (await rules.copied("event", event, Event),))

    async def append_event_with_sequence(self, event: Event) -> Event:
        """See `SessionStore`."""
        stored = await self.call(self._append, (await rules.copied("event", event, Event),))
        return stored[0]

    async def append_events(self, events: Sequence[Event], *, fence: Fence | None = None) -> list[Event]:
        """See `SessionStore`."""
        result = ExecutionResult(events=await rules.checked_events("events", events))
        return await self.call(self._flush, result, rules.optional_fence(fence), None, None)

    def _append(self, events: Sequence[Event]) -> list[Event]:
        new: dict[str, list[Event]] = {}
        stored = [self._stored(event, new) for event in events]
        self._tell(new)
        return stored

    async def _append_many(self, events: Sequence[Event]) -> list[Event]:
        """As a handler it keeps the mailbox shut: nobody sees a part of them."""
        new: dict[str, list[Event]] = {}
        stored = await in_turns(lambda event: self._stored(event, new), events)
        self._tell(new)
        return stored

    def _stored(self, event: Event, new: dict[str, list[Event]]) -> Event:
        session_id = event.session_id
        session = self._session(session_id)
        log = session.log
        if log is None:
            log = session.log = EventLog()
        number = log.append(event)
        if number is None:
            return log.event(session_id, log.number_of(event.id))
        event = event.replace(sequence_number=number)
        if session_id in new:
            new[session_id].append(event)
        else:
            new[session_id] = [event]
        return event

    def _tell(self, new: dict[str, list[Event]]) -> None:
        for session_id, appended in new.items():
            self._readers.appended(session_id, appended)
        if new:
            observer().group_committed(1, sum(map(len, new.values())))

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

        return await self._readers.read_or_wait(session_id, filter, wait_timeout_ms, self._read)

    async def _read(self, session_id: str, filter: EventFilter) -> tuple[list[Event], int]:
        while True:
            log, head = await self.call(self._snapshot, session_id)
            events = [] if log is None else await log.read(session_id, head, filter)
            if events is not None:  # else the log was deleted on the way
                return events, head

    def _snapshot(self, session_id: str) -> tuple[EventLog | None, int]:
        session = self._sessions.get(session_id)
        if session is None or session.log is None:
            return None, 0
        return session.log, len(session.log)

    async def get_latest_sequence(self, session_id: str) -> int:
        """See `SessionStore`."""
        _, head = await self.call(self._snapshot, options.identifier("session_id", session_id))
        return head

    # -- the queue

    async def enqueue_run(self, run: Run, *, max_open_runs: int | None = None) -> Run:
        """See `SessionStore`."""
        run = await rules.checked_pending(run)
        max_open_runs = options.integer("max_open_runs", max_open_runs, minimum=0, optional=True)
        return await _copy(await self.call(self._enqueue_run, run, max_open_runs))

    def _enqueue_run(self, run: Run, max_open_runs: int | None) -> Run:
        stored = rules.check_enqueue(
            run,
            self._find_run(run.session_id, run.id),
            self._session_status(run.session_id),
            self._open_runs_after(run.session_id, None),
            max_open_runs,
        )
        if stored is None:
            self._put_run(run)
        return stored or run

    async def claim_run(
        self,
        session_id: str,
        *,
        max_concurrent_runs: int | None = None,
        run_id: str | None = None,
    ) -> Run | None:
        """See `SessionStore`. A claim whose caller is cancelled leaves the run `pending`."""
        session_id = options.identifier("session_id", session_id)
        slots = options.integer("max_concurrent_runs", max_concurrent_runs, minimum=0, optional=True)
        run_id = options.optional_identifier("run_id", run_id)
        claimed: list[Run] = []
        try:
            await self.call(self._claim_run, claimed, session_id, slots, run_id)
            return await _copy(claimed[0]) if claimed else None
        except asyncio.CancelledError:
            # The claim may have been made already, its answer on the way to a caller that is gone.
            # Undone here and now: the mailbox may be full, or closed.
            for run in claimed:
                self._unclaim_run(run)
            raise

    def _claim_run(self, claimed: list[Run], session_id: str, slots: int | None, run_id: str | None) -> None:
        session = self._sessions.get(session_id)
        if session is None or session.runs is None:
            return
        if session.row is not None and session.row.status is not SessionStatus.ACTIVE:
            return
        if slots is not None and session.runs.running_count >= slots:
            return
        run = session.runs.first_pending() if run_id is None else session.runs.get(run_id)
        if run is None or run.status is not RunStatus.PENDING:
            return
        running = run.with_status(RunStatus.RUNNING, at=self._clock.now())
        running = running.replace(owner=self.node_id, attempt=run.attempt + 1)
        self._put_run(running)
        claimed.append(running)

    def _unclaim_run(self, run: Run) -> None:
        if self._run_under(run.fence):
            self._put_run(run.with_status(RunStatus.PENDING))

    async def release_run(self, fence: Fence) -> None:
        """See `SessionStore`."""
        await self.call(self._release_run, rules.checked_fence(fence))

    def _release_run(self, fence: Fence) -> None:
        run = self._run_under(fence)
        if run is not None and run.owner is not None:
            self._put_run(run.replace(owner=None))

    async def list_orphaned_runs(
        self, *, session_id: str | None = None, limit: int | None = None
    ) -> list[Run]:
        """See `SessionStore`."""
        session_id = options.optional_identifier("session_id", session_id)
        limit = options.integer("limit", limit, minimum=1, optional=True)
        orphans: list[Run] = []
        async for id in paced(await self.call(self._known, session_id)):
            if (runs := self._runs_of(id)) is not None:
                running = runs.with_status((RunStatus.RUNNING,))
                orphans += [run for run in running if run.owner != self.node_id]
            if limit is not None and len(orphans) >= limit:
                break
        return await _copies(orphans[:limit])

    def _known(self, session_id: str | None) -> list[str]:
        return list(self._sessions) if session_id is None else [session_id]

    async def wait_for_runs(
        self, session_id: str, *, after: int | None = None, timeout_ms: int | None
    ) -> int:
        """See `SessionStore`."""
        session_id = options.identifier("session_id", session_id)
        after = options.integer("after", after, minimum=0, optional=True)
        timeout_ms = options.integer("timeout_ms", timeout_ms, minimum=0, optional=True)
        return await self._watchers.read_or_wait(session_id, after, timeout_ms, self._read_revision)

    def _read_revision(self, session_id: str) -> Awaitable[int]:
        return self.call(self._revision_of, session_id)

    def _revision_of(self, session_id: str) -> int:
        session = self._sessions.get(session_id)
        return self._deletion if session is None else session.revision

    # -- what is stored

    def _session(self, session_id: str) -> _Session:
        """All that is stored of a session, from now on."""
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = _Session(self._deletion)
        return session

    def _session_status(self, session_id: str) -> SessionStatus | None:
        session = self._sessions.get(session_id)
        return None if session is None or session.row is None else session.row.status

    def _runs_of(self, session_id: str) -> RunQueue | None:
        session = self._sessions.get(session_id)
        return None if session is None else session.runs

    def _find_run(self, session_id: str, run_id: str) -> Run | None:
        runs = self._runs_of(session_id)
        return None if runs is None else runs.get(run_id)

    def _run_under(self, fence: Fence) -> Run | None:
        """The run of that fence, if it is `running` under that attempt."""
        run = self._find_run(fence.session_id, fence.run_id)
        if run is None or run.status is not RunStatus.RUNNING or run.attempt != fence.attempt:
            return None
        return run

    def _check_fence(self, fence: Fence | None) -> None:
        if fence is not None:
            run = self._find_run(fence.session_id, fence.run_id)
            rules.check_fence(fence, None if run is None else run.status, 0 if run is None else run.attempt)

    def _open_runs_after(self, session_id: str, changed: Run | None) -> int:
        """How many open runs the session has once `changed` is written."""
        runs = self._runs_of(session_id)
        count = 0 if runs is None else runs.open_count
        if changed is not None and changed.session_id == session_id:
            stored = None if runs is None else runs.get(changed.id)
            count += changed.status in OPEN_RUN_STATUSES
            count -= stored is not None and stored.status in OPEN_RUN_STATUSES
        return count

    def _put_session(self, row: Session) -> None:
        session = self._session(row.id)
        before, session.row = session.row, row
        if before is None or before.created_at != row.created_at:
            if before is not None:
                del self._order[bisect_left(self._order, _age(before))]
            insort(self._order, _age(row))
        if before is None or before.status is not row.status:
            self._runs_changed(row.id, session)

    def _put_run(self, run: Run) -> None:
        session = self._session(run.session_id)
        if session.runs is None:
            session.runs = RunQueue()
        if session.runs.put(run):
            known = self._sessions_of_runs.get(run.id, ())
            if run.session_id not in known:  # else a deleted session's of the same id, not forgotten yet
                self._sessions_of_runs[run.id] = (*known, run.session_id)
        self._runs_changed(run.session_id, session)

    def _forget_run(self, run: Run) -> None:
        if self._find_run(run.session_id, run.id) is not None:
            return  # the session was made again, with a run of that id
        others = tuple(id for id in self._sessions_of_runs.get(run.id, ()) if id != run.session_id)
        if others:
            self._sessions_of_runs[run.id] = others
        else:
            self._sessions_of_runs.pop(run.id, None)

    def _runs_changed(self, session_id: str, session: _Session) -> None:
        self._revision += 1
        session.revision = self._revision
        self._watchers.changed(session_id, self._revision)


class _Session:
    """All that is stored under one session id."""

    __slots__ = ("log", "revision", "row", "runs")

    def __init__(self, revision: int) -> None:
        self.row: Session | None = None
        self.log: EventLog | None = None
        self.runs: RunQueue | None = None
        self.revision = revision


def _age(row: Session) -> tuple[datetime, str]:
    return row.created_at, row.id


async def _copy(record: R) -> R:
    """A copy that the caller may do with what he likes."""
    return await in_turn(lambda record: record.checked(), record)


async def _copies(records: list[R]) -> list[R]:
    return await in_turns(lambda record: record.checked(), records)


async def _in_turns_of_the_loop(pieces: Iterator[None]) -> None:
    for _ in pieces:
        await asyncio.sleep(0)
