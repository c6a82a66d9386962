"""One session, served: its queue, its slots, its subscribers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Mapping
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from asm_runtime import options
from asm_runtime.actor import Actor
from asm_runtime.clock import SYSTEM_CLOCK, Clock, Timer, sleep
from asm_runtime.endings import RunOutcome, last_number_of, outcome_of
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    AwaitTimeout,
    Draining,
    DrainTimeout,
    InvalidTransition,
    RunNotFound,
    StoreError,
    ValidationError,
)
from asm_runtime.execution import RunExecution
from asm_runtime.ids import new_id
from asm_runtime.manager import DEFAULT_CANCEL_GRACE_MS, SessionManager
from asm_runtime.observer import RunTrace, observer
from asm_runtime.orphans import OrphanWatch
from asm_runtime.ports import EventCallback, ProviderAdapter, RunResult, ServerStatus, SessionStore
from asm_runtime.readers import Readers
from asm_runtime.records import EventType, Run, RunStatus, SessionStatus
from asm_runtime.run_options import RunOptionArgs, callbacks_of, stored_options
from asm_runtime.run_queue import RunQueue
from asm_runtime.subscription import Subscription

__all__ = ["ServerOptions", "SessionServer"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_DELAY_S = 1.0
"""Pause before the next look after the store failed."""

RECOUNT_INTERVAL_S = 0.25
RECOUNT_SHARE = 20
"""A recount of the queue comes no sooner than this, and than so many times what the last one took."""

WRITE_GRACE_S = 1.0
"""How long the store may take to write what a stop leaves; then it is left to the next server."""


class ServerOptions(TypedDict, total=False):
    """The keyword arguments of a server beside its store, adapter and session."""

    max_concurrent_runs: int
    max_queued_runs: int
    default_run_options: Mapping[str, Any] | None
    on_orphan: Literal["fail", "requeue"]
    cancel_grace_ms: int
    stop_drain_ms: int
    clock: Clock


class SessionServer(Actor):
    """Serves one session: takes runs in, starts them in order, tells subscribers what happens.

    The queue is in the store. Any number of servers, in any number of processes, may serve one
    session: they share its queue and its slots. A server's own tasks talk to the store and the
    adapter; its state changes in plain steps between them, so nothing that hangs holds it up.

    Args:
        store: Where the session lives; started, and stopped after the server, by its owner.
        adapter: What executes runs.
        session_id: The session to attach to. A `pending` one is activated, a `paused` one left so.
        session_opts: Or: what to create one with, the arguments of `SessionManager.start_session`.
        max_concurrent_runs: How many runs of the session may be `running`, wherever; ≥ 1.
        max_queued_runs: How many more may be open; 0: accept only what can start.
        default_run_options: Laid under the options of every run that is submitted here.
        on_orphan: What happens to runs whose executor died: `fail` them, or `requeue` them.
        cancel_grace_ms: How long an adapter may take to stop, in milliseconds; then it is left behind.
        stop_drain_ms: How long `stop()` lets runs go on before it cancels them, in milliseconds.
        clock: The source of time.

    Raises:
        ValidationError: An option is not what is allowed.
    """

    __slots__ = (
        "_adapter",
        "_attached",
        "_callbacks",
        "_cancel_grace_ms",
        "_claiming",
        "_default_run_options",
        "_draining",
        "_in_flight",
        "_look_again",
        "_looking",
        "_on_orphan",
        "_queue",
        "_readers",
        "_recount_at",
        "_recount_timer",
        "_revision",
        "_session_opts",
        "_settled",
        "_stop_drain_ms",
        "_store",
        "_telemetry",
        "_traces",
        "_watch",
        "manager",
        "max_concurrent_runs",
        "max_queued_runs",
        "session_id",
    )

    session_id: str
    manager: SessionManager

    def __init__(
        self,
        *,
        store: SessionStore,
        adapter: ProviderAdapter,
        session_id: str | None = None,
        session_opts: Mapping[str, Any] | None = None,
        max_concurrent_runs: int = 1,
        max_queued_runs: int = 100,
        default_run_options: Mapping[str, Any] | None = None,
        on_orphan: Literal["fail", "requeue"] = "fail",
        cancel_grace_ms: int = DEFAULT_CANCEL_GRACE_MS,
        stop_drain_ms: int = 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(clock=clock)
        if (session_id is None) == (session_opts is None):
            raise ValidationError("give exactly one of session_id (attach) and session_opts (create)")
        self.max_concurrent_runs: int = options.integer("max_concurrent_runs", max_concurrent_runs, minimum=1)
        self.max_queued_runs: int = options.integer("max_queued_runs", max_queued_runs, minimum=0)
        stored_options("default_run_options", default_run_options or {})
        self._default_run_options = default_run_options or None
        self._on_orphan = options.choice("on_orphan", on_orphan, ("fail", "requeue"))
        self._cancel_grace_ms: int = options.integer("cancel_grace_ms", cancel_grace_ms, minimum=0)
        self._stop_drain_ms: int = options.integer("stop_drain_ms", stop_drain_ms, minimum=0)
        self._store = store
        self._adapter = adapter
        self.manager = SessionManager(store, adapter, clock=clock, cancel_grace_ms=cancel_grace_ms)
        self.session_id = options.identifier("session_id", session_id) if session_id is not None else ""
        self._session_opts = session_opts
        self._queue = RunQueue()
        self._in_flight: dict[str, RunExecution] = {}
        # What an idle server does without is made when it is needed.
        self._callbacks: dict[str, list[EventCallback]] | None = None
        self._traces: dict[str, RunTrace] | None = None
        self._settled: set[asyncio.Future[None]] | None = None
        self._readers: Readers | None = None
        self._watch: asyncio.Task[int] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_again = False
        self._revision: int | None = None
        self._recount_at = 0.0
        self._recount_timer: Timer | None = None
        self._claiming = True
        self._draining = False
        self._attached = False
        self._telemetry: object = None

    # -- runs

    async def submit_run(
        self, input: Any, *, run_id: str | None = None, **run_options: Unpack[RunOptionArgs]
    ) -> str:
        """Accept a run: stored as `pending`, started as soon as a slot is free; returns its id.

        A caller that is cancelled leaves the run accepted or not.

        Args:
            input: For the adapter, JSON.
            run_id: The caller's own id: the same again, with equal input, is answered, always.
            run_options: See `asm_runtime.run_options.RunOptionArgs`.

        Raises:
            QueueFull: The session has as many open runs as it may have; nothing was stored.
            Draining: The server takes no new runs.
            InvalidTransition: The session has ended.
            Conflict: The id is known with another input.
        """
        self._check_running()
        stored = stored_options("submit_run", run_options, self._default_run_options)
        callbacks = callbacks_of(run_options)
        session = await self._store.get_session(self.session_id)
        if self._draining:
            await self._known_while_draining(run_id)
        # With the id known beforehand, a run that starts at once finds its callbacks.
        run_id = new_id("run_") if run_id is None else options.identifier("run_id", run_id)
        if callbacks:
            self._callbacks = self._callbacks or {}
            self._callbacks.setdefault(run_id, []).extend(callbacks)
        self._queue.submitting()  # a drain that begins now waits for it
        waiting: str | None = None
        waits = False
        before = 0
        try:
            run = await self.manager.accept_run(
                self.session_id,
                input,
                run_id=run_id,
                run_options=stored,
                max_open_runs=self.max_concurrent_runs + self.max_queued_runs,
            )
            if run.status == RunStatus.PENDING:
                waiting = run_id
        finally:
            before = len(self._queue)
            # A server that has stopped meanwhile leaves the run to the next one.
            waits = self._queue.submitted(waiting) and not self._phase_ended()
            if waits:
                observer().queue_depth_changed(self.session_id, len(self._queue) - before)
            elif callbacks and waiting is None:
                (self._callbacks or {}).pop(run_id, None)
            self._tell_settled()
        if waits:
            trace = observer().run(run, session.agent_id)
            trace.queued(len(self._queue) - 1)
            self._traces = self._traces or {}
            self._traces[run_id] = trace
        self._look()
        return run_id

    async def _known_while_draining(self, run_id: str | None) -> None:
        """A draining server answers only for runs that it has accepted before."""
        refusal = Draining(
            f"session {self.session_id} is draining here", details={"session_id": self.session_id}
        )
        if run_id is None:
            raise refusal
        try:
            await self._store.get_run(run_id, session_id=self.session_id)
        except RunNotFound:
            raise refusal from None

    async def await_run(self, run_id: str, *, timeout_ms: int | None = None) -> RunResult:
        """The result of a run, whenever and wherever it is executed.

        When it returns, the run's slot and its place in the queue are free, and its events are
        available to the live subscriptions. Cancelling stops the waiting only.

        Args:
            run_id: Which.
            timeout_ms: How long to wait, in milliseconds; 0: look, do not wait; None: no limit.

        Raises:
            RunNotFound: The session has no such run.
            AwaitTimeout: It has not ended in time; it goes on.
            ActorStopped: The server stopped before the run ended.
            AsmError: The run's own error, with `session_id` and `run_id`.
        """
        options.integer("timeout_ms", timeout_ms, minimum=0, optional=True)
        self._check_running()

        def late() -> AwaitTimeout:
            return AwaitTimeout(
                f"run {run_id} has not ended within {timeout_ms} ms",
                details={"run_id": run_id, "timeout_ms": timeout_ms},
            )

        if timeout_ms == 0:
            found = await self._stored_outcome(run_id)
            if found is None:
                raise late()
            outcome = found
        else:
            outcome = await self._within(self._outcome_of(run_id), timeout_ms, late)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.result is not None
        return outcome.result

    async def execute_run(
        self,
        input: Any,
        *,
        await_timeout_ms: int | None = None,
        **run_options: Unpack[RunOptionArgs],
    ) -> RunResult:
        """`submit_run`, then `await_run`. Cancelling stops the waiting only."""
        run_id = await self.submit_run(input, **run_options)
        return await self.await_run(run_id, timeout_ms=await_timeout_ms)

    async def cancel_run(self, run_id: str) -> None:
        """End a run as `cancelled`; one that has ended is left alone.

        A queued run never starts. One in flight here: its adapter is stopped, and this returns when
        the run is terminal, at the latest after `cancel_grace_ms`. One in flight elsewhere is ended
        at once, and its executor stops. Cancelling stops the waiting only.

        Raises:
            RunNotFound: The session has no such run.
        """
        self._check_running()
        execution = self._in_flight.get(run_id)
        if execution is None:
            # In a task of its own: once begun, it is seen through.
            ending = self.spawn(self._cancel_elsewhere(run_id))
            await asyncio.wait([ending])
            if ending.cancelled():  # by the server's end, not by the caller
                raise self._gone()
            if (error := ending.result()) is not None:
                raise error
            execution = self._in_flight.get(run_id)
        if execution is not None:
            execution.cancel("cancelled")
            await asyncio.shield(execution.outcome)

    async def interrupt_run(self, run_id: str) -> None:
        """Like `cancel_run`, for a run in flight here only.

        Raises:
            RunNotFound: No such run is in flight here.
        """
        self._check_running()
        execution = self._in_flight.get(run_id)
        if execution is None:
            raise RunNotFound(f"run {run_id} is not in flight in this server", details={"run_id": run_id})
        execution.cancel("interrupted")
        await asyncio.shield(execution.outcome)

    # -- subscriptions

    def subscribe(
        self,
        *,
        from_sequence: int = 0,
        after: int | None = None,
        run_id: str | Collection[str] | None = None,
        type: EventType | str | Collection[EventType | str] | None = None,
        buffer: int = 1024,
    ) -> Subscription:
        """The session's events: what is stored, then what comes, each once, in order. Plain.

        Args:
            from_sequence: The first number, inclusive.
            after: Or: the cursor, exclusive. Resume with `after=subscription.cursor`.
            run_id: Only of this run or these.
            type: Only of this type or these.
            buffer: How many events may wait for a slow reader in memory, ≥ 1; past it the
                subscription reads from the store again and loses nothing.
        """
        self._check_running()
        return self._readers_here().subscribe(
            from_sequence=from_sequence, after=after, run_id=run_id, type=type, buffer=buffer
        )

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription's iteration at once. Plain, idempotent."""
        subscription.unsubscribe()

    # -- the server itself

    def status(self) -> ServerStatus:
        """What the server last saw. Plain: it answers while the store hangs."""
        self._check_running()
        queued = self._queue.run_ids()
        return ServerStatus(
            session_id=self.session_id,
            in_flight_runs=list(self._in_flight),
            in_flight_count=len(self._in_flight),
            queued_runs=queued,
            queued_count=len(queued),
            max_concurrent_runs=self.max_concurrent_runs,
            max_queued_runs=self.max_queued_runs,
            subscribers=0 if self._readers is None else self._readers.subscribers,
            draining=self._draining,
        )

    async def drain(
        self, *, timeout_ms: int | None = 60_000, queued: Literal["run", "leave"] = "run"
    ) -> None:
        """Refuse new runs here, and wait until those accepted here are done.

        Cancelling stops the waiting only: the server goes on refusing.

        Args:
            timeout_ms: How long to wait, in milliseconds; None: no limit.
            queued: `run`: wait for what was submitted here and is queued, too. `leave`: claim nothing
                more and wait for those in flight here; the rest is for other servers.

        Raises:
            DrainTimeout: They are not done in time; the server goes on refusing.
        """
        options.integer("timeout_ms", timeout_ms, minimum=0, optional=True)
        options.choice("queued", queued, ("run", "leave"))
        self._check_running()
        token = observer().drain_began(self.session_id)
        error: BaseException | None = None
        try:
            await self._drained(timeout_ms, queued)
        except BaseException as raised:
            error = raised
            raise
        finally:
            observer().drain_ended(token, error)

    # -- lifecycle

    async def on_start(self) -> None:
        """Create the session or attach to it, then look after its queue."""
        if self._session_opts is not None:
            session = await self.manager.start_session(**self._session_opts)
            self.session_id = session.id
            self._session_opts = None  # a start that is tried again attaches
        session = await self._store.get_session(self.session_id)
        if session.status == SessionStatus.PENDING:
            try:
                session = await self.manager.activate_session(self.session_id)
            except InvalidTransition:  # another server was first
                session = await self._store.get_session(self.session_id)
        if session.status.is_terminal:
            await self.manager.end_runs_of(session)
            raise InvalidTransition(
                f"session {session.id} is {session.status}: it cannot be served",
                from_status=session.status,
            )
        self._telemetry = observer().session_started(session)
        OrphanWatch.of(self._store, self._clock).add(self.session_id, self._look)
        self._attached = True
        self._watch_runs(None)

    async def on_stop(self) -> None:
        """Stop claiming, end the runs, bring the subscriptions up to there, release who waits."""
        self._draining = True
        if self._stop_drain_ms:
            try:
                await self._drained(self._stop_drain_ms, "run")
            except DrainTimeout:
                logger.info("session %s stops with runs in flight", self.session_id)
        self._claiming = False
        await self._stop_looking()
        await self._end_runs()
        if self._readers is not None:
            await self._readers.finish()
        self._release_waiting(None)

    def on_crash(self, reason: BaseException) -> None:
        """Runs in flight are abandoned, so orphans; whoever waits here gets `ActorStopped`."""
        self._claiming = False
        if self._watch is not None:
            self._watch.cancel()
        if self._readers is not None:
            self._readers.fail()
        self._release_waiting(reason)

    def _release_waiting(self, reason: BaseException | None) -> None:
        if self._attached:
            self._attached = False
            OrphanWatch.of(self._store, self._clock).remove(self.session_id, self._look)
            observer().session_stopped(self._telemetry, reason)
        if self._recount_timer is not None:
            self._recount_timer.cancel()
        observer().queue_depth_changed(self.session_id, -len(self._queue))
        for trace in (self._traces or {}).values():
            trace.abandoned()
        self._traces = None
        if self._readers is not None:
            self._readers.end()
        for settled in self._settled or ():
            if not settled.done():
                settled.set_result(None)

    async def _stop_looking(self) -> None:
        tasks: list[asyncio.Task[Any]] = [task for task in (self._watch, self._looking) if task is not None]
        self._watch = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _end_runs(self) -> None:
        """Cancel or requeue what is in flight; bounded by the adapters' grace and the store's."""
        executions = list(self._in_flight.values())
        for execution in executions:
            if self._on_orphan == "requeue":
                execution.requeue()
            else:
                execution.cancel("server_stopped")
            logger.info("run %s is stopped with its server", execution.claimed.id)
        if executions:
            over = self.spawn(sleep(self._clock, self._cancel_grace_ms / 1000 + WRITE_GRACE_S))
            ends = self.spawn(asyncio.wait([execution.outcome for execution in executions]))
            await asyncio.wait([ends, over], return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if not ends.done():
                ends.cancel()
                logger.warning("runs of session %s are abandoned by its server", self.session_id)

    # -- the queue

    def _watch_runs(self, revision: int | None) -> None:
        """Look for work, and again whenever anybody has changed the session's runs since. Plain.

        The store's own coroutine is the task: with a hundred thousand idle sessions, one more
        around it would be felt.
        """
        self._look()
        self._revision = revision
        # The actor's own context, not a copy for the task and another for its callback.
        waiting = self._store.wait_for_runs(self.session_id, after=revision, timeout_ms=None)
        self._watch = self._loop.create_task(waiting, context=self._context)
        self._watch.add_done_callback(self._runs_changed, context=self._context)

    def _runs_changed(self, watch: asyncio.Task[int]) -> None:
        if watch is not self._watch or not self._attached:
            return
        before = self._revision
        error = StoreError("the wait was cut off") if watch.cancelled() else watch.exception()
        if error is None and watch.result() != before:
            self._watch_runs(watch.result())
        elif isinstance(error, ActorStopped):
            logger.warning("the store of session %s stopped before its server", self.session_id)
        elif error is None or isinstance(error, Exception):
            # The store failed, or answered early: neither may make us spin.
            if error is not None:
                logger.warning("session %s waits for its store: %r", self.session_id, error)
            self._watch = None
            self.send_after(RETRY_DELAY_S, self._watch_runs, before)
        else:
            self.crash(error)

    def _look(self) -> None:
        """Have a task look at the queue; one that is looking already looks once more. Plain."""
        if self._looking is not None:
            self._look_again = True
        elif self._attached and self._claiming:
            self._looking = self.spawn(self._look_until_settled())

    async def _look_until_settled(self) -> None:
        try:
            self._look_again = True
            while self._look_again and self._claiming:
                self._look_again = False
                try:
                    await self._look_once()
                except ActorStopped:
                    return
                except Exception as error:  # a store of somebody else's may raise anything
                    logger.warning("session %s looks again soon: %r", self.session_id, error)
                    await sleep(self._clock, RETRY_DELAY_S)
                    self._look_again = True
        finally:
            self._looking = None

    async def _look_once(self) -> None:
        for orphan in await self._store.list_orphaned_runs(session_id=self.session_id):
            await self.manager.settle_orphan(orphan, requeue=self._on_orphan == "requeue")
        if self._in_flight:
            await self._drop_lost_runs()
        while self._claiming and len(self._in_flight) < self.max_concurrent_runs:
            run = await self._store.claim_run(self.session_id, max_concurrent_runs=self.max_concurrent_runs)
            if run is None:
                break
            self._execute(run)
        await self._recount_now_and_then()

    async def _drop_lost_runs(self) -> None:
        """Stop the adapters of runs that somebody else has ended or requeued."""
        executing = dict(self._in_flight)
        running = {
            run.id: run.attempt
            for run in await self._store.list_runs(self.session_id, status=RunStatus.RUNNING)
        }
        for run_id, execution in executing.items():
            if running.get(run_id) != execution.claimed.attempt:
                execution.lost()

    async def _recount_now_and_then(self) -> None:
        """Take the queue as the store has it: other servers submit, claim and cancel too.

        Reading it all after every change would make a long queue quadratic: it is read so seldom
        that it costs a few percent of the time, and once more when things have calmed down.
        """
        began = self._clock.monotonic()
        if began < self._recount_at:
            if self._recount_timer is None:
                # Not a timer of the actor, which is silent while a stop drains.
                self._recount_timer = self._clock.call_later(self._recount_at - began, self._recount_due)
            return
        self._queue.mark()
        pending = self._queue.run_ids()  # what holds if the store does not answer
        try:
            runs = await self._store.list_runs(self.session_id, status=RunStatus.PENDING)
            pending = [run.id for run in runs]
        finally:
            before = len(self._queue)
            gone = self._queue.recount(pending)
            observer().queue_depth_changed(self.session_id, len(self._queue) - before)
        for run_id in gone:
            (self._callbacks or {}).pop(run_id, None)
            trace = (self._traces or {}).pop(run_id, None)
            if trace is not None:
                trace.abandoned()
        self._tell_settled()
        ended = self._clock.monotonic()
        self._recount_at = ended + max(RECOUNT_INTERVAL_S, RECOUNT_SHARE * (ended - began))

    def _recount_due(self) -> None:
        self._recount_timer = None
        self._look()

    def _execute(self, run: Run) -> None:
        """Give a claimed run its execution. Plain: between claim and execution nothing can happen."""
        trace = (self._traces or {}).pop(run.id, None) or observer().run(run, None)
        if self._queue.left(run.id):
            observer().queue_depth_changed(self.session_id, -1)
        execution = RunExecution(
            store=self._store,
            adapter=self._adapter,
            run=run,
            callbacks=[
                *callbacks_of(self._default_run_options),
                *(self._callbacks or {}).pop(run.id, ()),
            ],
            trace=trace,
            clock=self._clock,
            cancel_grace_ms=self._cancel_grace_ms,
        )
        self._in_flight[run.id] = execution
        observer().in_flight_changed(self.session_id, 1)
        execution.outcome.add_done_callback(lambda _: self._ended(execution))
        execution.start(self.spawn)
        self._tell_changed(run.id)

    def _ended(self, execution: RunExecution) -> None:
        # A later attempt of the run may have its place: this one was taken away, and stopped slowly.
        if self._in_flight.get(execution.claimed.id) is execution:
            del self._in_flight[execution.claimed.id]
        observer().in_flight_changed(self.session_id, -1)
        self._tell_changed(execution.claimed.id)
        self._tell_settled()
        self._look()

    async def _cancel_elsewhere(self, run_id: str) -> AsmError | None:
        """Cancel a run that was not in flight here when this began."""
        try:
            run = await self._store.get_run(run_id, session_id=self.session_id)
            if run.id in self._in_flight or run.status.is_terminal:
                return None
            run = await self.manager.end_as_cancelled(run_id, self.session_id, reason="cancelled")
        except AsmError as error:
            return error
        if self._queue.left(run_id):
            observer().queue_depth_changed(self.session_id, -1)
            trace = (self._traces or {}).pop(run_id, None)
            if trace is not None:
                trace.ended(run)
        self._tell_settled()
        return None

    # -- waiting

    async def _outcome_of(self, run_id: str) -> RunOutcome:
        """How a run ends: from its execution here, or from the store when the log says so."""
        while True:
            execution = self._in_flight.get(run_id)
            if execution is not None:
                outcome = await asyncio.shield(execution.outcome)
                if outcome.is_final:
                    await self._readers_here().handed_out(outcome.last_sequence_number)
                    return outcome
            if self._phase_ended():
                raise self._gone()
            # Ask for the change before looking, so that none falls between.
            with self._readers_here().change_of(run_id) as change:
                await self._readers_here().started()
                stored = await self._stored_outcome(run_id)
                if stored is not None:
                    return stored
                if run_id not in self._in_flight:
                    await change

    def _readers_here(self) -> Readers:
        if self._readers is None:
            self._readers = Readers(
                self._store, self.session_id, clock=self._clock, spawn=self.spawn, gone=self._gone
            )
        return self._readers

    def _tell_changed(self, run_id: str) -> None:
        if self._readers is not None:
            self._readers.tell_changed(run_id)

    async def _stored_outcome(self, run_id: str) -> RunOutcome | None:
        """How it has ended, if it has and nothing of it is under way here."""
        run = await self._store.get_run(run_id, session_id=self.session_id)
        if not run.status.is_terminal or run_id in self._in_flight:
            return None
        last = await last_number_of(self._store, run)
        await self._readers_here().handed_out(last)
        return outcome_of(run, last)

    async def _drained(self, timeout_ms: int | None, queued: str) -> None:
        self._draining = True
        if queued == "leave":
            self._claiming = False
        await self._within(
            self._settled_down(queued),
            timeout_ms,
            lambda: DrainTimeout(
                f"session {self.session_id} has not drained within {timeout_ms} ms",
                details={"in_flight": list(self._in_flight), "timeout_ms": timeout_ms},
            ),
        )

    async def _settled_down(self, queued: str) -> None:
        if queued == "leave" and self._looking is not None:  # a claim under way counts as in flight
            await asyncio.wait([self._looking])
        while self._in_flight or (queued == "run" and self._queue.has_own):
            if self._phase_ended():
                raise self._gone()
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._settled = self._settled or set()
            self._settled.add(settled)
            try:
                await settled
            finally:
                self._settled.discard(settled)

    def _tell_settled(self) -> None:
        for settled in self._settled or ():
            if not settled.done():
                settled.set_result(None)

    async def _within(self, work: Awaitable[T], timeout_ms: int | None, late: Any) -> T:
        """Await the work, at most so long. The work is cancelled with its caller and at the timeout."""
        if timeout_ms is None:
            return await work
        task = asyncio.ensure_future(work)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(timeout_ms / 1000, _resolve, over)
        try:
            either: set[asyncio.Future[Any]] = {task, over}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise late()
        finally:
            timer.cancel()
            task.cancel()

    # -- small facts

    def _check_running(self) -> None:
        if not self.is_running:
            raise self._gone()

    def _phase_ended(self) -> bool:
        return not self._attached


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
