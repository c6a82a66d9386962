"""A run that is executed for its caller, who waits for it and may be cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from asm_runtime.actor import leave_behind
from asm_runtime.clock import Clock, all_done, sleep
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    Conflict,
    InvalidTransition,
    LeaseLost,
    NotFound,
)
from asm_runtime.observer import observer
from asm_runtime.payload import JsonObject
from asm_runtime.ports import EventCallback, RunResult, SessionStore
from asm_runtime.records import Run, RunStatus, SessionStatus
from asm_runtime.runtime.claims import Claims
from asm_runtime.runtime.execution import RELEASE_GRACE_S, RunExecution
from asm_runtime.runtime.foreign import answered
from asm_runtime.runtime.recorder import patiently
from asm_runtime.tasks import start_task

if TYPE_CHECKING:
    from asm_runtime.manager import SessionManager

__all__ = ["WRITE_GRACE_S", "Job", "seen_through"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

WRITE_GRACE_S = 1.0
"""How long the store may take, at least, to write what a cancelled caller waits for."""

RETRY_DELAY_S = 1.0
"""Pause before a run is watched again after the store failed."""


class Job:
    """Executes one run, and outlives its cancelled caller until the run's end is stored.

    Args:
        manager: Whose rules hold.
        callbacks: Given every stored event of the run.
        clock: The source of time.
        cancel_grace_ms: How long an adapter may take to stop, in milliseconds.
    """

    def __init__(
        self,
        manager: SessionManager,
        callbacks: Sequence[EventCallback],
        *,
        clock: Clock,
        cancel_grace_ms: int,
    ) -> None:
        self._manager = manager
        self._store = manager.store
        self._callbacks = callbacks
        self._clock = clock
        self._cancel_grace_ms = cancel_grace_ms
        self._execution: RunExecution | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._cancelled = False

    async def see_through(self, work: Coroutine[Any, Any, RunResult]) -> RunResult:
        """Await the work. A cancelled caller cancels the run, and leaves when its end is stored.

        It waits no longer than the adapter's grace, and as long again for a store that hangs; then
        the attempt is given up, so that its run is an orphan.
        """
        task = start_task(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await _undisturbed(self._wind_up(task))
            raise

    async def _wind_up(self, task: asyncio.Task[RunResult]) -> None:
        self._cancelled = True
        if self._execution is not None:
            self._execution.cancel("caller_cancelled")
        grace_s = self._cancel_grace_ms / 1000
        if not await all_done(self._clock, grace_s + max(grace_s, WRITE_GRACE_S), task):
            # The store hangs, or an event callback does.
            (self._attempt or task).cancel()
            if not await all_done(self._clock, WRITE_GRACE_S, task):
                task.cancel()
                await all_done(self._clock, RELEASE_GRACE_S, task)
        _leave(task)

    async def once(self, opening: dict[str, Any], input: Any, run_options: JsonObject) -> RunResult:
        """Make a session for the run, execute it, end the session."""
        manager = self._manager
        session = await manager.start_session(**opening)
        run: Run | None = None
        try:
            session = await manager.activate_session(session.id)
            run = await manager.accept_run(session.id, input, run_options=run_options)
            result = await self.execute(run.id, session.id, {})
        except Exception as error:
            await self._end_session(session.id, error)
            if isinstance(error, AsmError):
                error.session_id, error.run_id = session.id, run.id if run is not None else error.run_id
            raise
        if self._cancelled:
            await self._end_session(session.id, None)
            return result
        try:
            await patiently(self._clock, lambda: manager.complete_session(session.id))
        except AsmError as error:  # somebody else has changed it, or the store fails
            if isinstance(error, InvalidTransition) and error.from_status == SessionStatus.COMPLETED:
                return result
            error.session_id, error.run_id = session.id, run.id
            raise
        return result

    async def _end_session(self, session_id: str, error: Exception | None) -> None:
        """Cancel or fail the session of a run that did not complete; its own end may be there first."""
        manager = self._manager
        try:
            if self._cancelled or error is None:
                await patiently(self._clock, lambda: manager.cancel_session(session_id))
            else:
                await patiently(self._clock, lambda: manager.fail_session(session_id, error))
        except (InvalidTransition, NotFound):
            return
        except Exception as failure:  # the run's own error is what the caller is told
            logger.error("session %s could not be ended: %s", session_id, failure)

    async def execute(self, run_id: str, session_id: str | None, given: JsonObject) -> RunResult:
        """Claim the run, and execute it to its end."""
        store = self._store
        known = await answered(store.get_run(run_id, session_id=session_id))
        claims = Claims.on(store)
        run = await claims.claim(known.session_id, clock=self._clock, run_id=run_id)
        if run is None:
            raise await self._why_not(known)
        # No await until the attempt has its task: from there on it lets the claim go.
        execution = self._execution = RunExecution(
            store=store,
            adapter=self._manager.adapter,
            run=run,
            callbacks=self._callbacks,
            trace=observer().run(run, None, awaited=True),
            clock=self._clock,
            cancel_grace_ms=self._cancel_grace_ms,
            options=given,
        )
        claims.executes(run, execution.outcome)
        attempt = self._attempt = execution.start(start_task)
        watch = start_task(_watch(store, self._clock, execution))
        if self._cancelled:
            execution.cancel("caller_cancelled")
        observer().in_flight_changed(run.session_id, 1)
        try:
            await asyncio.wait([attempt])
        finally:
            observer().in_flight_changed(run.session_id, -1)
            watch.cancel()
            attempt.cancel()
        outcome = execution.outcome.result()
        if outcome.error is not None:
            raise outcome.error
        if outcome.result is None:
            raise outcome.given_up or LeaseLost(f"run {run.id} goes on elsewhere")
        return outcome.result

    async def _why_not(self, known: Run) -> AsmError:
        run = await answered(self._store.get_run(known.id, session_id=known.session_id))
        if run.status != RunStatus.PENDING:
            return Conflict(f"run {run.id} is {run.status}, not pending")
        session = await answered(self._store.get_session(run.session_id))
        if session.status == SessionStatus.ACTIVE:  # it became so after the claim
            return Conflict(f"run {run.id} could not be claimed")
        return InvalidTransition(
            f"session {session.id} is {session.status}: its runs do not start",
            from_status=session.status,
        )


async def seen_through(work: Coroutine[Any, Any, T], clock: Clock) -> T:
    """Await work that is done as a whole: a cancelled caller does not cut it short.

    It leaves when the work is done, or when a store hangs; then the work is left to itself.
    """
    task = start_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _undisturbed(all_done(clock, WRITE_GRACE_S, task))
        _leave(task)
        raise


async def _undisturbed(work: Coroutine[Any, Any, object]) -> None:
    """Await it, however often the caller is cancelled meanwhile."""
    task = start_task(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue


def _leave(task: asyncio.Task[Any]) -> None:
    """Nobody takes what the task gives; if it is not done it goes on."""
    if not task.done():
        logger.warning("a cancelled caller leaves work behind that the store holds up")
    leave_behind(task)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())


async def _watch(store: SessionStore, clock: Clock, execution: RunExecution) -> None:
    """Tell an execution when somebody else has ended its run."""
    claimed = execution.claimed
    revision: int | None = None
    while True:
        try:
            seen = await answered(store.wait_for_runs(claimed.session_id, after=revision, timeout_ms=None))
            run = await answered(store.get_run(claimed.id, session_id=claimed.session_id))
        except (ActorStopped, NotFound):
            execution.lost()
            return
        except AsmError as error:
            logger.warning("run %s is not watched for a while: %s", claimed.id, error)
            await sleep(clock, RETRY_DELAY_S)
            continue
        if run.status != RunStatus.RUNNING or run.attempt != claimed.attempt:
            execution.lost()
            return
        if seen == revision:  # answered early: that must not make us spin
            await sleep(clock, RETRY_DELAY_S)
        revision = seen
