"""The server of one session: its queue, its slots, its subscribers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Unpack, cast

from asm_runtime import options
from asm_runtime.actor import Actor, answer
from asm_runtime.clock import all_done, fail_after
from asm_runtime.errors import (
    AwaitTimeout,
    Conflict,
    Draining,
    DrainTimeout,
    InvalidTransition,
    RunNotFound,
    SessionNotFound,
    StoreUnavailable,
)
from asm_runtime.manager import SessionManager
from asm_runtime.observer import observer
from asm_runtime.ports import EventCallback, ProviderAdapter, RunResult, ServerStatus, SessionStore
from asm_runtime.records import EventType, Run, RunStatus, Session, SessionStatus
from asm_runtime.runtime.answers import Answers
from asm_runtime.runtime.dispatcher import STORE_GRACE_S, Dispatcher
from asm_runtime.runtime.endings import RunOutcome
from asm_runtime.runtime.execution import RunExecution
from asm_runtime.runtime.foreign import store_errors
from asm_runtime.runtime.orphans import OrphanWatch
from asm_runtime.runtime.readers import Readers
from asm_runtime.runtime.run_options import RunOptionArgs, callbacks_of, stored_options
from asm_runtime.runtime.run_queue import Submission
from asm_runtime.runtime.server_options import ServerOptions, ServerSettings
from asm_runtime.runtime.subscription import Subscription
from asm_runtime.tasks import leave_behind

__all__ = ["ServerOptions", "SessionServer", "session_to_serve"]

logger = logging.getLogger(__name__)

LOOK_GRACE_S = 1.0
"""How long a call that does not wait for a run waits for the store."""


class SessionServer(Actor):
    """Serves one session: accepts runs, starts them in order, tells subscribers what happens.

    The queue is in the store. Any number of servers, in any number of processes, may serve one
    session: they share its queue and its slots. A server's own tasks talk to the store and the
    adapter; its state changes in plain steps between them, so nothing that hangs holds it up.
    A caller that waits for an answer gets `ActorStopped` if the server ends first.

    Args:
        store: Where the session lives; started, and stopped after the server, by its owner.
        adapter: What executes runs.
        session_id: The session to attach to. A `pending` one is activated, a `paused` one stays paused.
        session_opts: Arguments of `SessionManager.start_session`, to create one. Together with
            `session_id`: attach to that session if it exists, else create it, in one step.
        server_options: How it is served, see `ServerOptions`.

    Raises:
        ValidationError: An option is not what is allowed.
    """

    __slots__ = (
        "_adapter",
        "_answers",
        "_dispatcher",
        "_draining",
        "_had_grace",
        "_readers",
        "_serving",
        "_session_opts",
        "_settings",
        "_store",
        "_telemetry",
        "manager",
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
        **server_options: Unpack[ServerOptions],
    ) -> None:
        settings = self._settings = ServerSettings.of("SessionServer", server_options)
        super().__init__(clock=settings.clock)
        options.session_choice(session_id, session_opts)
        self._store = store
        self._adapter = adapter
        self.manager = SessionManager(
            store, adapter, clock=settings.clock, cancel_grace_ms=settings.cancel_grace_ms
        )
        self.session_id = options.identifier("session_id", session_id) if session_id is not None else ""
        self._session_opts = session_opts
        self._dispatcher: Dispatcher = cast(Dispatcher, None)  # made by the start
        self._readers: Readers | None = None
        self._answers: Answers | None = None
        self._draining = False
        self._serving = False
        self._had_grace = False
        self._telemetry: object = None

    @property
    def max_concurrent_runs(self) -> int:
        """How many runs of the session may be `running`."""
        return self._settings.max_concurrent_runs

    @property
    def max_queued_runs(self) -> int:
        """How many more may wait."""
        return self._settings.max_queued_runs

    # -- runs

    async def submit_run(
        self, input: Any, *, run_id: str | None = None, **run_options: Unpack[RunOptionArgs]
    ) -> str:
        """Accept a run: stored as `pending`, started as soon as a slot is free; returns its id.

        A caller that is cancelled leaves the run accepted or not.

        Args:
            input: For the adapter, JSON.
            run_id: The caller's own id. Submitted again with equal input, the same run is answered, always.
            run_options: See `asm_runtime.run_options.RunOptionArgs`.

        Raises:
            QueueFull: The session has as many open runs as it may have; nothing was stored.
            Draining: The server takes no new runs.
            InvalidTransition: The session has ended.
            Conflict: The id is known with another input.
        """
        self._check_running()
        stored = stored_options("submit_run", run_options, self._settings.default_run_options)
        known_id = None if run_id is None else options.identifier("run_id", run_id)
        run = self.manager.new_run(self.session_id, input, run_id=known_id, run_options=stored)
        return await self.call_deferred(self._submit, run, known_id is not None, callbacks_of(run_options))

    def _submit(
        self,
        reply: asyncio.Future[str],
        run: Run,
        may_be_known: bool,
        callbacks: Sequence[EventCallback],
    ) -> None:
        is_draining = self._draining
        if is_draining and not may_be_known:
            raise self._refusal_to_take()
        submission = self._dispatcher.queue.submitting(run, callbacks)  # a drain waits for it from now on
        work = self._submitted(reply, run, submission, is_draining)
        task = self._answers_here().find(reply, work)
        # Whether or not the task has run at all.
        task.add_done_callback(lambda _: self._dispatcher.answered(submission))

    async def _submitted(
        self, reply: asyncio.Future[str], run: Run, submission: Submission, is_draining: bool
    ) -> None:
        with store_errors():
            session = await self._store.get_session(self.session_id)
            if is_draining:
                await self._check_known(run.id)
            stored = await self._store.enqueue_run(run, max_open_runs=self._settings.most_open_runs)
        if stored.status == RunStatus.PENDING:
            self._dispatcher.submitted(submission, stored, session.agent_id)
        else:
            self._dispatcher.answered(submission)
        answer(reply, run.id)

    async def _check_known(self, run_id: str) -> None:
        """A draining server answers only for runs that were accepted before."""
        try:
            await self._store.get_run(run_id, session_id=self.session_id)
        except RunNotFound:
            raise self._refusal_to_take() from None

    def _refusal_to_take(self) -> Draining:
        return Draining(
            f"session {self.session_id} is draining here", details={"session_id": self.session_id}
        )

    async def await_run(self, run_id: str, *, timeout_ms: int | None = None) -> RunResult:
        """The result of a run, whenever and wherever it is executed.

        When it returns, the run's slot and its place in the queue are free, and its events are
        available to the live subscriptions. Cancelling stops the waiting only.

        Args:
            run_id: The run.
            timeout_ms: How long to wait, in milliseconds; 0: do not wait; None: no limit.

        Raises:
            RunNotFound: The session has no such run.
            AwaitTimeout: It has not ended in time; it goes on.
            ActorStopped: The server stopped before the run ended.
            AsmError: The run's own error, with `session_id` and `run_id`.
        """
        options.integer("timeout_ms", timeout_ms, minimum=0, optional=True)
        self._check_running()
        outcome = await self.call_deferred(self._await_run, run_id, timeout_ms)
        return await outcome.told()

    def _await_run(self, reply: asyncio.Future[RunOutcome], run_id: str, timeout_ms: int | None) -> None:
        def late() -> AwaitTimeout:
            return AwaitTimeout(
                f"run {run_id} has not ended within {timeout_ms} ms",
                details={"run_id": run_id, "timeout_ms": timeout_ms},
            )

        if timeout_ms == 0:
            fail_after(self._clock, LOOK_GRACE_S, reply, late)
            self._answers_here().find(reply, self._looked_at(reply, run_id, late))
        else:
            if timeout_ms is not None:
                fail_after(self._clock, timeout_ms / 1000, reply, late)
            self._readers_here().awaits(run_id, reply)

    async def _looked_at(
        self, reply: asyncio.Future[RunOutcome], run_id: str, late: Callable[[], AwaitTimeout]
    ) -> None:
        outcome = await self._readers_here().stored_outcome(run_id)
        if outcome is None:
            raise late()
        answer(reply, outcome)

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
        the run is terminal, at the latest after `cancel_grace_ms`: while the store does not answer its
        end is written later. One in flight elsewhere is ended at once, and its executor stops.
        Cancelling stops the waiting only.

        Raises:
            RunNotFound: The session has no such run.
            StoreUnavailable: It is not in flight here, and the store has not answered in
                `cancel_grace_ms` (at least a second): it may be cancelled or not.
        """
        await self.call_deferred(self._cancel_run, run_id)

    def _cancel_run(self, reply: asyncio.Future[None], run_id: str) -> None:
        execution = self._in_flight.get(run_id)
        if execution is not None:
            self._cancel_here(reply, execution, "cancelled")
            return
        answers = self._answers_here()
        ended: asyncio.Future[RunExecution | None] = asyncio.get_running_loop().create_future()
        fail_after(
            self._clock,
            max(self._settings.cancel_grace_s, LOOK_GRACE_S),
            ended,
            lambda: StoreUnavailable(f"the store does not say whether run {run_id} is cancelled"),
        )
        answers.find(ended, self._end_elsewhere(ended, run_id), is_seen_through=True)
        answers.find(reply, self._cancelled_elsewhere(reply, ended))

    async def interrupt_run(self, run_id: str) -> None:
        """Like `cancel_run` (reason `interrupted`), for a run in flight here only.

        Raises:
            RunNotFound: No such run is in flight here.
        """
        await self.call_deferred(self._interrupt_run, run_id)

    def _interrupt_run(self, reply: asyncio.Future[None], run_id: str) -> None:
        execution = self._in_flight.get(run_id)
        if execution is None:
            raise RunNotFound(f"run {run_id} is not in flight in this server", details={"run_id": run_id})
        self._cancel_here(reply, execution, "interrupted")

    def _cancel_here(self, reply: asyncio.Future[None], execution: RunExecution, reason: str) -> None:
        execution.cancel(reason)
        self._answers_here().find(reply, self._cancelled_here(reply, execution))

    async def _cancelled_here(
        self, reply: asyncio.Future[None], execution: RunExecution, *, waited_s: float = 0.0
    ) -> None:
        await self._dispatcher.ended([execution], waited_s=waited_s)
        answer(reply, None)

    async def _end_elsewhere(self, ended: asyncio.Future[RunExecution | None], run_id: str) -> None:
        """Cancel a run that was not in flight here; answers with its execution if it has become so."""
        with store_errors():
            run = await self._store.get_run(run_id, session_id=self.session_id)
            if run_id not in self._in_flight and not run.status.is_terminal:
                run = await self.manager.end_as_cancelled(run_id, self.session_id, reason="cancelled")
                self._dispatcher.ended_elsewhere(run)
                self._readers_here().changed(run_id)
        execution = self._in_flight.get(run_id)
        if execution is not None:
            execution.cancel("cancelled")
        answer(ended, execution)

    async def _cancelled_elsewhere(
        self, reply: asyncio.Future[None], ended: asyncio.Future[RunExecution | None]
    ) -> None:
        began = self._clock.monotonic()
        execution = await ended
        if execution is None:
            answer(reply, None)
        else:
            await self._cancelled_here(reply, execution, waited_s=self._clock.monotonic() - began)

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
        queued = self._dispatcher.queue.run_ids()
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
            await self.call_deferred(self._drain_here, timeout_ms, queued)
        except BaseException as raised:
            error = raised
            raise
        finally:
            observer().drain_ended(token, error)

    def _drain_here(self, reply: asyncio.Future[None], timeout_ms: int | None, queued: str) -> None:
        self._draining = True
        if queued == "leave":
            self._dispatcher.claiming = False
        self._dispatcher.drain(reply, queued)
        if timeout_ms is not None:
            fail_after(
                self._clock,
                timeout_ms / 1000,
                reply,
                lambda: DrainTimeout(
                    f"session {self.session_id} has not drained within {timeout_ms} ms",
                    details={"in_flight": list(self._in_flight), "timeout_ms": timeout_ms},
                ),
            )

    # -- lifecycle

    async def on_start(self) -> None:
        """Create the session or attach to it, then look after its queue."""
        session, is_new = await session_to_serve(self.manager, self.session_id or None, self._session_opts)
        self.session_id, self._session_opts = session.id, None  # a start that is tried again attaches
        with store_errors():
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
        assert self._context is not None
        self._dispatcher = Dispatcher(
            self.manager,
            self.session_id,
            self._settings,
            spawn=self.spawn,
            context=self._context,
            on_end=self._run_ended,
        )
        # Raises if the server has crashed meanwhile: so nothing is registered before.
        self._dispatcher.open(is_new=is_new)
        self._telemetry = observer().session_started(session)
        OrphanWatch.of(self._store, self._clock).add(self.session_id, self._dispatcher.look)
        self._serving = True

    async def on_stop(self) -> None:
        """Stop claiming, end the runs, bring the subscriptions up to there, release those who wait."""
        try:
            self._draining = True
            if self._settings.stop_drain_ms:
                drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._dispatcher.drain(drained, "run")
                if not await all_done(self._clock, self._settings.stop_drain_ms / 1000, drained):
                    logger.info("session %s stops with runs in flight", self.session_id)
            cancelled = self._dispatcher.close()
            in_time = await self._dispatcher.end_runs(requeue=self._settings.requeues)
            # A store that has not written the ends in time is not waited for again.
            until = self._clock.monotonic() + (STORE_GRACE_S if in_time else 0.0)
            if self._readers is not None:
                await self._readers.finish(grace_s=until - self._clock.monotonic())
            self._release(None)
            answers = [] if self._answers is None else self._answers.tasks
            if not await all_done(self._clock, until - self._clock.monotonic(), *cancelled, *answers):
                logger.warning(
                    "session %s leaves calls behind that its store does not answer", self.session_id
                )
            for task in cancelled:
                leave_behind(task)
            await self._dispatcher.forgotten()
        finally:
            self._had_grace = True
            self._release(None)

    def on_crash(self, reason: BaseException) -> None:
        """Runs in flight are abandoned, so they are orphans; callers that wait get `ActorStopped`."""
        if not self._serving:
            return
        for task in self._dispatcher.close():
            leave_behind(task)
        if self._readers is not None:
            self._readers.fail()
        self._release(reason)

    def task_grace_s(self) -> float:
        """Abandoned adapters have their grace, if they have not had it, and the store some time to let go."""
        return (0 if self._had_grace else self._settings.cancel_grace_s) + 2 * STORE_GRACE_S

    def _release(self, reason: BaseException | None) -> None:
        """Nothing is served any more. Idempotent."""
        if not self._serving:
            return
        self._serving = False
        OrphanWatch.of(self._store, self._clock).remove(self.session_id, self._dispatcher.look)
        self._dispatcher.close()
        self._dispatcher.forget()
        if self._readers is not None:
            self._readers.end()
        observer().session_stopped(self._telemetry, reason)

    # -- small facts

    def _check_running(self) -> None:
        if not self.is_running:
            raise self._gone()

    @property
    def _in_flight(self) -> dict[str, RunExecution]:
        return self._dispatcher.in_flight

    def _answers_here(self) -> Answers:
        if self._answers is None:
            self._answers = Answers()
        return self._answers

    def _readers_here(self) -> Readers:
        if self._readers is None:
            self._readers = Readers(
                self._store,
                self.session_id,
                clock=self._clock,
                in_flight=self._in_flight,
                waits=self._dispatcher.queue.has_accepted,
                answers=self._answers_here(),
                spawn=self.spawn,
                gone=self._gone,
            )
            if not self._serving:
                self._readers.end()
        return self._readers

    def _run_ended(self, run_id: str, outcome: RunOutcome) -> None:
        if self._readers is not None:
            self._readers.ended(run_id, outcome)


async def session_to_serve(
    manager: SessionManager, session_id: str | None, session_opts: Mapping[str, Any] | None
) -> tuple[Session, bool]:
    """The session of that id, or one made from the options; with both, made if there is none.

    Of any number of callers who make one and the same, one does so, and all have it.

    Returns:
        The session, and whether this call has made it.

    Raises:
        SessionNotFound: There is none, and no options to make one from.
        Conflict: There is one, of the id in the options, and no other id was named.
    """
    if session_id is None:
        return await manager.start_active_session(**(session_opts or {})), True
    try:
        with store_errors():
            return await manager.get_session(session_id), False
    except SessionNotFound:
        if session_opts is None:
            raise
    opts: dict[str, Any] = {**session_opts, "id": session_id}
    try:
        return await manager.start_active_session(**opts), True
    except Conflict:  # somebody else was first
        with store_errors():
            return await manager.get_session(session_id), False
