"""The rules of sessions and runs: what may happen to them, and what the log says when it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Any, Unpack

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.errors import (
    AsmError,
    CapabilityMissing,
    Conflict,
    InvalidTransition,
    LeaseLost,
    NotFound,
    ProviderError,
    RunFailed,
)
from asm_runtime.observer import observer
from asm_runtime.payload import JsonObject, canonical_object, lossy
from asm_runtime.ports import (
    ExecutionResult,
    ProviderAdapter,
    RunResult,
    SessionStore,
)
from asm_runtime.records import OPEN_RUN_STATUSES, Event, EventType, Run, RunStatus, Session, SessionStatus
from asm_runtime.runtime.endings import correlation_of, ended
from asm_runtime.runtime.follow import follow
from asm_runtime.runtime.foreign import own, store_errors
from asm_runtime.runtime.job import Job, seen_through
from asm_runtime.runtime.orphans import LOST_ATTEMPTS, lost_attempts
from asm_runtime.runtime.run_options import RunOptionArgs, callbacks_of, stored_options

__all__ = ["SessionManager"]

_PAGE = 500

DEFAULT_CANCEL_GRACE_MS = 5_000


class SessionManager:
    """Changes sessions and runs by the rules, and executes runs in the caller's task.

    It has no state of its own: any number of managers, in any number of processes, may work on one
    store. Every change is a compare-and-set that is written together with its event.

    Args:
        store: Where sessions live; started and stopped by its owner.
        adapter: What executes runs.
        clock: The source of time.
        cancel_grace_ms: How long an adapter may take to stop, in milliseconds; then it is left behind.
    """

    __slots__ = ("_cancel_grace_ms", "_clock", "adapter", "store")

    def __init__(
        self,
        store: SessionStore,
        adapter: ProviderAdapter,
        *,
        clock: Clock = SYSTEM_CLOCK,
        cancel_grace_ms: int = DEFAULT_CANCEL_GRACE_MS,
    ) -> None:
        self.store = store
        self.adapter = adapter
        self._clock = clock
        self._cancel_grace_ms: int = options.integer("cancel_grace_ms", cancel_grace_ms, minimum=0)

    # -- sessions

    async def start_session(
        self,
        *,
        agent_id: str,
        id: str | None = None,
        metadata: JsonObject | None = None,
        context: JsonObject | None = None,
        tags: Iterable[str] | None = None,
        parent_session_id: str | None = None,
    ) -> Session:
        """Create a `pending` session; logs `session_created` in the same write.

        Raises:
            Conflict: There is a session with that id.
            ValidationError: A value is not what is allowed.
        """
        session = self._new_session(
            agent_id=agent_id,
            id=id,
            metadata=metadata,
            context=context,
            tags=tags,
            parent_session_id=parent_session_id,
        )
        return await self._stored_new(session, EventType.SESSION_CREATED)

    async def start_active_session(self, **session_opts: Any) -> Session:
        """Like `start_session` and `activate_session`, in one write."""
        session = self._new_session(**session_opts)
        active = session.with_status(SessionStatus.ACTIVE, at=session.created_at)
        return await self._stored_new(active, EventType.SESSION_CREATED, EventType.SESSION_STARTED)

    async def get_session(self, session_id: str) -> Session:
        """The session as it is stored.

        Raises:
            SessionNotFound: There is none.
        """
        return await self.store.get_session(session_id)

    async def activate_session(self, session_id: str) -> Session:
        """`pending` → `active`: its runs may start.

        Raises:
            InvalidTransition: It is not pending.
        """
        return await self._change_session(
            session_id, SessionStatus.ACTIVE, EventType.SESSION_STARTED, only_from=SessionStatus.PENDING
        )

    async def pause_session(self, session_id: str) -> Session:
        """`active` → `paused`: running runs go on, none starts.

        Raises:
            InvalidTransition: It is not active.
        """
        return await self._change_session(session_id, SessionStatus.PAUSED, EventType.SESSION_PAUSED)

    async def resume_session(self, session_id: str) -> Session:
        """`paused` → `active`: its queue goes on.

        Raises:
            InvalidTransition: It is not paused.
        """
        return await self._change_session(
            session_id, SessionStatus.ACTIVE, EventType.SESSION_RESUMED, only_from=SessionStatus.PAUSED
        )

    async def complete_session(self, session_id: str) -> Session:
        """End it as `completed`.

        Raises:
            Conflict: It has open runs.
            InvalidTransition: It is not active or paused.
        """
        return await self._change_session(session_id, SessionStatus.COMPLETED, EventType.SESSION_COMPLETED)

    async def fail_session(self, session_id: str, error: AsmError | Exception | str) -> Session:
        """End it as `failed`, and its pending and running runs as `cancelled`, wherever they run.

        Cancelling the caller does not cut it short.

        Args:
            session_id: The session.
            error: The reason; the log keeps its code and message.

        Raises:
            InvalidTransition: It has ended already.
        """
        if not isinstance(error, AsmError):
            error = RunFailed(lossy(str(error)) or type(error).__name__, code="error")
        data: JsonObject = {"error_code": lossy(error.code), "error_message": lossy(error.message)}
        return await self._end_session(session_id, SessionStatus.FAILED, EventType.SESSION_FAILED, data)

    async def cancel_session(self, session_id: str) -> Session:
        """End it as `cancelled`, and its pending and running runs too, wherever they run.

        Cancelling the caller does not cut it short.

        Raises:
            InvalidTransition: It has ended already.
        """
        return await self._end_session(session_id, SessionStatus.CANCELLED, EventType.SESSION_CANCELLED)

    # -- runs

    async def start_run(
        self,
        session_id: str,
        input: Any,
        *,
        required_capabilities: Collection[str] = (),
        optional_capabilities: Collection[str] = (),
    ) -> Run:
        """Accept a run: `pending`, the last of the session's queue.

        Args:
            session_id: Its session.
            input: For the adapter, JSON.
            required_capabilities: Types of capability that the adapter must have, enabled.
            optional_capabilities: Types that it may lack; those are named in the run's metadata.

        Raises:
            SessionNotFound: There is no such session.
            InvalidTransition: The session has ended.
            CapabilityMissing: The adapter lacks a required one.
        """
        session = await self.store.get_session(session_id)
        _refuse_ended(session)
        metadata: JsonObject = {}
        if required_capabilities or optional_capabilities:
            had = {found.type for found in await self.adapter.capabilities() if found.enabled}
            missing = sorted(set(required_capabilities) - had)
            if missing:
                raise CapabilityMissing(
                    f"{self.adapter.name} lacks {', '.join(missing)}", details={"missing": missing}
                )
            if degraded := sorted(set(optional_capabilities) - had):
                metadata["missing_capabilities"] = degraded
        return await self.accept_run(session_id, input, metadata=metadata)

    async def accept_run(
        self,
        session_id: str,
        input: Any,
        *,
        run_id: str | None = None,
        run_options: JsonObject | None = None,
        max_open_runs: int | None = None,
        metadata: JsonObject | None = None,
    ) -> Run:
        """Store a run as the last of its session's queue."""
        run = self.new_run(session_id, input, run_id=run_id, run_options=run_options, metadata=metadata)
        return await self.store.enqueue_run(run, max_open_runs=max_open_runs)

    def new_run(
        self,
        session_id: str,
        input: Any,
        *,
        run_id: str | None = None,
        run_options: JsonObject | None = None,
        metadata: JsonObject | None = None,
    ) -> Run:
        """What every queue accepts: a run with its options, and its submitter's trace context. Plain."""
        facts: JsonObject = dict(metadata or {})
        if run_options:
            adapter_opts = run_options.get("adapter_opts")
            if adapter_opts:
                try:
                    self.adapter.validate_config(adapter_opts)
                except Exception as error:
                    told = own(ProviderError, self.adapter.name, error)
                    raise told from told.__cause__
            facts["options"] = run_options
        if trace_context := observer().trace_context():
            facts["trace_context"] = trace_context
        return Run.new(
            session_id=session_id,
            input=input,
            id=run_id,
            metadata=facts,
            provider=self.adapter.name,
            created_at=self._clock.now(),
        )

    async def execute_run(
        self, run_id: str, *, session_id: str | None = None, **run_options: Unpack[RunOptionArgs]
    ) -> RunResult:
        """Execute a pending run here, to its end.

        Cancelling the caller cancels the run: `run_cancelled` (reason `caller_cancelled`) is stored
        and the adapter has ended before `CancelledError` leaves. If the store hangs for longer
        than the grace for an adapter, the run is left as an orphan.

        Args:
            run_id: The run.
            session_id: Its session, if known.
            run_options: Replace those it was accepted with, and are stored.

        Raises:
            RunNotFound: There is no such run.
            Conflict: It is not pending: done, or taken by a server.
            InvalidTransition: Its session is not active.
            StoreError: Its end could not be written: it is an orphan.
            AsmError: The run's own error, with `session_id` and `run_id`.
        """
        given = stored_options("execute_run", run_options)
        job = self._job(run_options)
        return await job.see_through(job.execute(run_id, session_id, given))

    async def run_once(
        self,
        input: Any,
        *,
        agent_id: str | None = None,
        metadata: JsonObject | None = None,
        context: JsonObject | None = None,
        tags: Iterable[str] | None = None,
        **run_options: Unpack[RunOptionArgs],
    ) -> RunResult:
        """A session for one run: create, activate, execute, complete (or fail) it.

        Cancelling the caller cancels the run and then the session before `CancelledError` leaves.

        Args:
            input: For the adapter, JSON.
            agent_id: Of the session; None: the adapter's name.
            metadata: Of the session; `provider` is the adapter's name.
            context: Of the session.
            tags: Of the session.
            run_options: See `asm_runtime.run_options.RunOptionArgs`.

        Raises:
            AsmError: The run's own error, with `session_id` and `run_id`; the session is failed.
        """
        given = stored_options("run_once", run_options)
        job = self._job(run_options)
        opening = {
            "agent_id": self.adapter.name if agent_id is None else agent_id,
            "metadata": canonical_object(metadata, "metadata") | {"provider": self.adapter.name},
            "context": context,
            "tags": tags,
        }
        return await job.see_through(job.once(opening, input, given))

    async def cancel_run(self, run_id: str, *, session_id: str | None = None) -> Run:
        """End a run as `cancelled`; one that has ended is returned as it is.

        A pending run never starts. A running one is ended at once; the process that executes it
        notices and stops its adapter.

        Raises:
            RunNotFound: There is no such run.
        """
        return await self.end_as_cancelled(run_id, session_id, reason="cancelled")

    async def end_as_cancelled(self, run_id: str, session_id: str | None, *, reason: str) -> Run:
        """Write `run_cancelled` for a run that is not executed here, also if others try to."""
        while True:
            run = await self.store.get_run(run_id, session_id=session_id)
            if run.status.is_terminal:
                return run
            end = ended(
                run,
                RunStatus.CANCELLED,
                at=self._clock.now(),
                reason=reason,
                correlation_id=await self._correlation_id(run.session_id),
            )
            try:
                await self.store.flush(
                    end,
                    fence=run.fence if run.status == RunStatus.RUNNING else None,
                    expected_run=run,
                )
            except (Conflict, InvalidTransition, LeaseLost):
                continue  # it moved on between the look and the write
            assert end.run is not None
            return end.run

    async def settle_orphan(self, run: Run, *, max_attempts: int | None = None) -> None:
        """End a run whose executor is dead, or queue it again; nothing if that has been done already.

        Two that settle the same orphan do not both win: the write carries the dead attempt's fence.

        Args:
            run: As it was listed.
            max_attempts: Queue it again unless this many attempts were lost; None: never.
        """
        listed, lost = run, lost_attempts(run) + 1
        run = run.replace(metadata=run.metadata | {LOST_ATTEMPTS: lost})
        if max_attempts is not None and lost < max_attempts:
            result = ExecutionResult(run=run.with_status(RunStatus.PENDING))
        else:
            error = RunFailed(
                f"run {run.id} was left behind by {run.owner or 'its executor'}"
                + ("" if max_attempts is None else f" for the last of {max_attempts} times"),
                code="orphaned" if max_attempts is None else "max_attempts_exceeded",
                details={"owner": run.owner, "attempt": run.attempt, LOST_ATTEMPTS: lost},
            )
            result = ended(
                run,
                RunStatus.FAILED,
                at=self._clock.now(),
                error=error,
                correlation_id=await self._correlation_id(run.session_id),
            )
        try:
            await self.store.flush(result, fence=run.fence, expected_run=listed)
        except (Conflict, InvalidTransition, LeaseLost):
            return

    async def end_runs_of(self, session: Session) -> None:
        """End the runs that a cancelled or failed session has left open, as `cancelled`.

        Also those of a session whose end was written by a process that died before it ended them.
        """
        if session.status not in (SessionStatus.CANCELLED, SessionStatus.FAILED):
            return
        reason = f"session_{session.status}"
        while open_runs := await self.store.list_runs(session.id, status=OPEN_RUN_STATUSES, limit=_PAGE):
            for run in open_runs:
                try:
                    await self.end_as_cancelled(run.id, session.id, reason=reason)
                except NotFound:
                    return  # the session was deleted meanwhile

    # -- reading

    async def get_session_events(self, session_id: str, **filters: Any) -> list[Event]:
        """A session's events; the filters are those of `SessionStore.get_events`."""
        return await self.store.get_events(session_id, **filters)

    async def get_session_runs(self, session_id: str, **filters: Any) -> list[Run]:
        """A session's runs as accepted; the filters, for pages too, are those of `SessionStore.list_runs`."""
        return await self.store.list_runs(session_id, **filters)

    async def stream_session_events(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        poll_interval_ms: int = 250,
        wait_timeout_ms: int = 0,
        run_id: str | Collection[str] | None = None,
        type: EventType | str | Collection[EventType | str] | None = None,
        until: Callable[[Event], object] | None = None,
    ) -> AsyncIterator[Event]:
        """A session's events from a cursor on, without a gap or a repeat, as they come.

        Ends after the event for which `until` is true, or when the session is deleted.

        Args:
            session_id: The session.
            after: The cursor: the last number already seen.
            limit: The page size.
            poll_interval_ms: The pause between reads of a log that has not grown.
            wait_timeout_ms: > 0: the store waits this long instead (long poll).
            run_id: Only of this run or these.
            type: Only of this type or these.
            until: A plain function of the event; the first for which it is true is the last one.
        """
        options.integer("limit", limit, minimum=1)
        options.integer("after", after, minimum=0)
        options.integer("poll_interval_ms", poll_interval_ms, minimum=1)
        options.integer("wait_timeout_ms", wait_timeout_ms, minimum=0)
        batches = follow(
            self.store,
            session_id,
            clock=self._clock,
            after=after,
            limit=limit,
            poll_interval_ms=poll_interval_ms,
            wait_timeout_ms=wait_timeout_ms,
            run_id=run_id,
            type=type,
        )
        async for batch in batches:
            for event in batch:
                yield event
                if until is not None and until(event):
                    return

    # -- the inside

    def _new_session(
        self,
        *,
        agent_id: str,
        id: str | None = None,
        metadata: JsonObject | None = None,
        context: JsonObject | None = None,
        tags: Iterable[str] | None = None,
        parent_session_id: str | None = None,
    ) -> Session:
        return Session.new(
            agent_id=agent_id,
            id=id,
            metadata={"provider": self.adapter.name} | canonical_object(metadata, "metadata"),
            context=context,
            tags=tags,
            parent_session_id=parent_session_id,
            created_at=self._clock.now(),
        )

    async def _stored_new(self, session: Session, *types: EventType) -> Session:
        events = [self._session_event(session, type, {}) for type in types]
        with store_errors():
            await self.store.flush(
                ExecutionResult(session=session, events=events), expected_session_status="absent"
            )
        return session

    async def _change_session(
        self,
        session_id: str,
        status: SessionStatus,
        type: EventType,
        *,
        data: JsonObject | None = None,
        only_from: SessionStatus | None = None,
    ) -> Session:
        """One step of the status machine, together with its event; what others change is kept."""
        while True:
            before = await self.store.get_session(session_id)
            now = self._clock.now()
            after = before.with_status(status, at=now)
            if only_from is not None and before.status != only_from:
                raise InvalidTransition(
                    f"session {session_id} is {before.status}, not {only_from}",
                    from_status=before.status,
                    to_status=status,
                )
            try:
                await self.store.flush(
                    ExecutionResult(session=after, events=[self._session_event(after, type, data)]),
                    expected_session=before,
                )
            except Conflict:
                if await self.store.get_session(session_id) == before:
                    raise  # open runs, not a competitor
                continue
            return after

    async def _end_session(
        self, session_id: str, status: SessionStatus, type: EventType, data: JsonObject | None = None
    ) -> Session:
        """The session's end, then those of its runs: once begun, all of it is written."""

        async def ending() -> Session:
            try:
                session = await self._change_session(session_id, status, type, data=data)
            except InvalidTransition:
                await self.end_runs_of(await self.store.get_session(session_id))
                raise
            await self.end_runs_of(session)
            return session

        return await seen_through(ending(), self._clock)

    def _job(self, run_options: Mapping[str, object]) -> Job:
        return Job(self, callbacks_of(run_options), clock=self._clock, cancel_grace_ms=self._cancel_grace_ms)

    def _session_event(self, session: Session, type: EventType, data: JsonObject | None) -> Event:
        return Event.new(
            type=type,
            session_id=session.id,
            data=data,
            metadata={"provider": self.adapter.name},
            timestamp=session.updated_at,
            provider=self.adapter.name,
            correlation_id=correlation_of(session),
        )

    async def _correlation_id(self, session_id: str) -> str | None:
        try:
            return correlation_of(await self.store.get_session(session_id))
        except NotFound:
            return None


def _refuse_ended(session: Session) -> None:
    if session.status.is_terminal:
        raise InvalidTransition(
            f"session {session.id} is {session.status} and takes no runs", from_status=session.status
        )
