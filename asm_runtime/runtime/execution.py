"""One attempt of one run, from its claim to its end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from asm_runtime.actor import leave_behind
from asm_runtime.clock import Clock, Timer, all_done, sleep
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    NotFound,
    ProviderError,
    RunCancelled,
    RunTimeout,
    StoreError,
)
from asm_runtime.observer import RunTrace, observer
from asm_runtime.options import identifier
from asm_runtime.payload import JsonObject
from asm_runtime.ports import (
    EventCallback,
    ExecutionResult,
    ProviderAdapter,
    ProviderResult,
    RunContext,
    SessionStore,
)
from asm_runtime.records import Event, EventType, Run, RunStatus, Session
from asm_runtime.runtime.endings import (
    RunOutcome,
    brief,
    completed,
    correlation_of,
    ended,
    last_number_of,
    outcome_of,
    result_of,
)
from asm_runtime.runtime.foreign import answered, own
from asm_runtime.runtime.recorder import MOVED_ON, RETRY_DELAYS_S, RunRecorder, patiently
from asm_runtime.runtime.run_options import RunOptions
from asm_runtime.runtime.transcript import replay
from asm_runtime.tasks import start_task

__all__ = ["RunExecution"]

logger = logging.getLogger(__name__)

RELEASE_GRACE_S = 1.0
"""How long the store may take to let a claim go; then nobody waits for that any longer."""

MAX_RELEASE_DELAY_S = 60.0

CALLBACK_GRACE_S = 5.0
"""How long one call of an event callback may take once its run has ended; then it is given up."""


class _Verdict:
    """What decides the attempt; the first one stands."""

    __slots__ = ("error", "requeue", "result", "status")

    def __init__(
        self,
        status: RunStatus | None,
        *,
        result: ProviderResult | None = None,
        error: AsmError | None = None,
        requeue: bool = False,
    ) -> None:
        self.status = status  # None: not ours to write
        self.result = result
        self.error = error
        self.requeue = requeue


class RunExecution:
    """Drives the adapter through one claimed attempt and writes how it ends, exactly once.

    `run()` is the work; it is given a task of its own and never raises `Exception`. Everything that
    can end the attempt (the adapter, a cancel, a timeout, a failing store, a lost lease) is a verdict,
    and the first one stands. Only then is the adapter stopped and the end written, in one fenced step.

    An end that the store refuses is written once more, with no more in it than any store takes. If
    that is refused too, or the task is cancelled, the attempt is given up: the claim is released, so
    the run is an orphan, and the outcome is not final.

    Args:
        store: Where the run lives.
        adapter: What executes it.
        run: As it was claimed.
        callbacks: Given every stored event of the run.
        trace: Told what happens.
        clock: The source of time.
        cancel_grace_ms: How long the adapter may take to stop, in milliseconds; then it is left behind.
        options: Run options laid over those that the run was accepted with, and stored.
    """

    def __init__(
        self,
        *,
        store: SessionStore,
        adapter: ProviderAdapter,
        run: Run,
        callbacks: Sequence[EventCallback],
        trace: RunTrace,
        clock: Clock,
        cancel_grace_ms: int,
        options: JsonObject | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.claimed = run
        self.outcome: asyncio.Future[RunOutcome] = loop.create_future()
        """Resolved when the attempt is over and its slot is free."""
        self.adapter_stopped = False
        """Whether what is left is for the store to do."""
        self._store = store
        self._adapter = adapter
        self._provider = run.provider
        self._callbacks = callbacks
        self._trace = trace
        self._clock = clock
        self._cancel_grace_ms = cancel_grace_ms
        self._laid_over = options
        self._options = RunOptions()
        self._session: Session | None = None
        self._recorder: RunRecorder | None = None
        self._context: RunContext | None = None
        self._verdict: asyncio.Future[_Verdict] = loop.create_future()
        self._run_timer: Timer | None = None
        self._idle_timer: Timer | None = None
        self._holds_claim = True

    # -- what may happen to it from outside; plain, the first one stands

    def cancel(self, reason: str) -> None:
        """Have the run end as `cancelled`."""
        error = RunCancelled(f"run {self.claimed.id} was cancelled: {reason}", details={"reason": reason})
        self._decide(_Verdict(RunStatus.CANCELLED, error=error))

    def requeue(self) -> None:
        """Have the run go back to the queue."""
        self._decide(_Verdict(None, requeue=True))

    def lost(self) -> None:
        """Have the adapter stopped; somebody else has decided on the run."""
        self._decide(_Verdict(None))

    # -- the attempt

    def start(self, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> asyncio.Task[None]:
        """Give the work a task, made by its owner's `spawn`; cancelling it gives the attempt up."""
        task = spawn(self.run())
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step runs nothing, not even a `finally`."""
        if not self.outcome.done():
            self._trace.abandoned()
            if self._holds_claim:
                self._begin_release()
            self.outcome.set_result(RunOutcome())

    async def run(self) -> None:
        """Execute the attempt to its end."""
        outcome = RunOutcome()
        try:
            verdict = await self._attempt()
            self.adapter_stopped = True
            outcome = await self._settle(verdict)
        except asyncio.CancelledError:
            if self._recorder is not None:
                self._recorder.abort()
            raise
        except Exception as error:
            outcome = RunOutcome(given_up=self._unwritten(error))
        finally:
            for timer in (self._run_timer, self._idle_timer):
                if timer is not None:
                    timer.cancel()
            if self._holds_claim:
                self._trace.abandoned()
                # Nobody waits for a store that hangs: the release is left to itself then.
                await all_done(self._clock, RELEASE_GRACE_S, self._begin_release())
            if not self.outcome.done():
                self.outcome.set_result(outcome)
        # A caller that awaits the outcome does not wait for callbacks: one of them may await it itself.
        if self._recorder is not None:
            try:
                await self._recorder.finish(CALLBACK_GRACE_S)
            finally:
                self._recorder.abort()

    async def _attempt(self) -> _Verdict:
        """Everything up to the verdict; the adapter has stopped when this returns."""
        if not self._verdict.done():
            preparing = start_task(self._prepare())
            either: set[asyncio.Future[Any]] = {preparing, self._verdict}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                preparing.cancel()
            await all_done(self._clock, RELEASE_GRACE_S, preparing)
        if not self._verdict.done():
            await self._drive()
        return await self._verdict

    async def _prepare(self) -> None:
        """Everything before the adapter; what goes wrong is a verdict."""
        try:
            await self._begin()
        except NotFound as error:  # the session: there is none, or it is soft-deleted
            self._fail(error)
        except MOVED_ON:
            self.lost()
        except Exception as error:
            self._fail(own(StoreError, "the store", error))

    async def _begin(self) -> None:
        """Write what precedes the adapter: the input's messages, once a run, and `run_started`."""
        run = self.claimed
        if self._laid_over:
            stored: Any = run.metadata.get("options")
            merged: JsonObject = (
                {**stored, **self._laid_over} if isinstance(stored, dict) else self._laid_over
            )
            run = run.replace(metadata=run.metadata | {"options": merged})
        options = self._options = RunOptions.of(run)
        deadline = None
        if options.run_timeout_ms is not None:
            deadline = self._deadline()
            self._run_timer = self._clock.call_later(options.run_timeout_ms / 1000, self._timed_out)
        self._provider = identifier("adapter.name", getattr(self._adapter, "name", None))
        session = await patiently(self._clock, lambda: self._store.get_session(run.session_id))
        self._session = session
        recorder = self._recorder = RunRecorder(
            store=self._store,
            fence=run.fence,
            provider=self._provider,
            correlation_id=correlation_of(session),
            trace=self._trace,
            callbacks=self._callbacks,
            clock=self._clock,
        )
        recorder.failure.add_done_callback(self._recorder_failed)
        self._trace.started(run, session)
        if self._laid_over:
            await self._flush(ExecutionResult(run=run))
            self.claimed = run
        started: JsonObject = {"attempt": run.attempt, "provider": self._provider}
        model = options.adapter_opts.get("model")
        if isinstance(model, str):
            started["model"] = model
        beginning = [
            *(
                recorder.event(EventType.MESSAGE_SENT, message, id=_message_event_id(run, index))
                for index, message in enumerate(_input_messages(run.input))
            ),
            recorder.event(EventType.RUN_STARTED, started),
        ]
        await patiently(self._clock, lambda: recorder.append(beginning))
        history: list[JsonObject] = []
        if options.continuation:
            history = await patiently(
                self._clock,
                lambda: replay(self._store, run.session_id, without_run=run.id, **options.continuation_opts),
            )
        self._context = RunContext(
            emit=recorder.emit,
            attempt=run.attempt,
            adapter_opts=options.adapter_opts,
            history=history,
            deadline=deadline,
        )

    async def _drive(self) -> None:
        """Have the adapter execute, until there is a verdict and the adapter has stopped."""
        assert self._session is not None
        assert self._context is not None
        assert self._recorder is not None
        provider = start_task(
            _executed(self._adapter, self.claimed, self._session, self._context),
            context=self._trace.execution_context(),
        )
        provider.add_done_callback(self._provider_ended)
        if self._options.idle_timeout_ms is not None:
            self._recorder.last_emit = self._clock.monotonic()  # its silence begins with its work
            self._watch_silence(self._recorder)
        try:
            await asyncio.wait([self._verdict])
        finally:
            if not provider.done():
                await self._stopped(provider)

    def _provider_ended(self, provider: asyncio.Task[ProviderResult]) -> None:
        if provider.cancelled():
            raised: BaseException | None = asyncio.CancelledError()
        else:
            raised = provider.exception()
        if raised is None:
            self._decide(_Verdict(RunStatus.COMPLETED, result=provider.result()))
            return
        error = own(ProviderError, str(self._provider), raised)
        if isinstance(error, RunCancelled):  # its provider was told elsewhere
            self._decide(_Verdict(RunStatus.CANCELLED, error=error))
        else:
            self._fail(error)

    def _recorder_failed(self, failure: asyncio.Future[Exception]) -> None:
        self._fail(own(StoreError, "the store", failure.result()))

    def _deadline(self) -> datetime | None:
        assert self._options.run_timeout_ms is not None
        try:
            return self._clock.now() + timedelta(milliseconds=self._options.run_timeout_ms)
        except OverflowError:  # after the year 9999
            return None

    def _timed_out(self) -> None:
        limit = self._options.run_timeout_ms
        self._decide_timeout(f"took longer than {limit} ms", {"kind": "run", "timeout_ms": limit})

    def _watch_silence(self, recorder: RunRecorder) -> None:
        limit = self._options.idle_timeout_ms
        assert limit is not None
        silent_ms = round((self._clock.monotonic() - recorder.silent_since) * 1000, 3)
        if silent_ms >= limit:
            self._decide_timeout(f"was silent for {limit} ms", {"kind": "idle", "timeout_ms": limit})
        elif not self._verdict.done():
            left_s = (limit - silent_ms) / 1000
            self._idle_timer = self._clock.call_later(left_s, self._watch_silence, recorder)

    def _decide_timeout(self, what: str, details: JsonObject) -> None:
        error = RunTimeout(f"run {self.claimed.id} {what}", details=details)
        self._decide(_Verdict(RunStatus.TIMEOUT, error=error))

    def _fail(self, error: AsmError) -> None:
        self._decide(_Verdict(RunStatus.FAILED, error=error))

    def _decide(self, verdict: _Verdict) -> None:
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    async def _stopped(self, provider: asyncio.Task[ProviderResult]) -> None:
        """Cancel the adapter both ways; returns when both are done, or the grace is over."""
        provider.cancel()
        told = start_task(self._tell_adapter())
        try:
            stopped = await all_done(self._clock, self._cancel_grace_ms / 1000, provider, told)
        finally:
            told.cancel()
        if not stopped:
            logger.warning(
                "%s did not stop run %s within %s ms and is left behind",
                self._provider, self.claimed.id, self._cancel_grace_ms,
            )  # fmt: skip
            provider.cancel()

    async def _tell_adapter(self) -> None:
        try:
            await self._adapter.cancel(self.claimed.id)
        except Exception:
            logger.exception("%s failed to cancel run %s", self._provider, self.claimed.id)

    # -- the end

    async def _settle(self, verdict: _Verdict) -> RunOutcome:
        """Write what was decided."""
        left = await self._recorder.close() if self._recorder is not None else []
        try:
            if verdict.requeue:
                return await self._put_back(left)
            if verdict.status is not None:
                return await self._write_end(verdict.status, verdict.error, verdict.result, left)
        except MOVED_ON:
            pass
        return await self._as_stored()

    async def _write_end(
        self, status: RunStatus, error: AsmError | None, result: ProviderResult | None, left: list[Event]
    ) -> RunOutcome:
        """The final row, and with it all that belongs to the run and is not stored yet.

        An unavailable store is tried again until it answers, or the task is cancelled: no run may
        stay `running` because of an outage that passes.
        """
        recorder = self._recorder
        refused = None if recorder is None else recorder.refused
        if recorder is not None and refused is not None:
            await recorder.store_singly(left)
            status, error, left = RunStatus.FAILED, own(StoreError, "the store", refused), []
        try:
            run = self._with_facts(result)
        except Exception as unusable:
            run = self._with_facts(None)
            status, error = RunStatus.FAILED, own(ProviderError, str(self._provider), unusable)
        try:
            return await self._end(run, status, error, left)
        except (*MOVED_ON, ActorStopped):
            raise
        except Exception as reason:
            logger.warning("the store refuses the end of run %s: %r", run.id, reason)
            refusal = own(StoreError, "the store", reason)
        is_whole = not left or recorder is None or await recorder.store_singly(left)
        if error is None or status is RunStatus.FAILED or not is_whole:
            status, error = RunStatus.FAILED, refusal
        return await self._end(self.claimed, status, brief(error), [])

    async def _end(
        self, run: Run, status: RunStatus, error: AsmError | None, left: list[Event]
    ) -> RunOutcome:
        """Write an end."""
        end = ended(
            run,
            status,
            at=self._clock.now(),
            error=error,
            correlation_id=correlation_of(self._session),
            before=left,
        )
        assert end.run is not None
        stored = await self._flush(end)
        self._holds_claim = False
        if self._recorder is not None:
            self._recorder.written(stored)
        self._trace.ended(end.run, stored)
        last = stored[-1].sequence_number or 0
        if error is None:
            return RunOutcome(result=result_of(end.run, last), last_sequence_number=last)
        error.session_id, error.run_id = run.session_id, run.id
        return RunOutcome(error=error, last_sequence_number=last)

    def _with_facts(self, result: ProviderResult | None) -> Run:
        """The run with what its adapter reported and returned, whether or not it completed."""
        run = self.claimed.replace(provider=self._provider)
        if self._recorder is not None:
            run = run.replace(
                provider_metadata=run.provider_metadata | self._recorder.facts,
                token_usage=self._recorder.token_usage or run.token_usage,
            )
        return run if result is None else completed(run, result)

    async def _flush(self, result: ExecutionResult) -> list[Event]:
        token = observer().write_began("flush", self.claimed.session_id, len(result.events), self._trace)
        try:
            stored = await patiently(
                self._clock,
                lambda: self._store.flush(
                    result, fence=self.claimed.fence, expected_run_status=RunStatus.RUNNING
                ),
            )
        except BaseException as error:
            observer().write_ended(token, None, error)
            raise
        observer().write_ended(token, stored, None)
        return stored

    async def _put_back(self, left: list[Event]) -> RunOutcome:
        """Queue the run again, in its old place."""
        pending = self.claimed.with_status(RunStatus.PENDING)
        try:
            await self._flush(ExecutionResult(run=pending, events=left))
        except (*MOVED_ON, ActorStopped):
            raise
        except Exception:
            if self._recorder is None or not left:
                raise
            await self._recorder.store_singly(left)
            await self._flush(ExecutionResult(run=pending))
        self._holds_claim = False
        logger.info("run %s is queued again", self.claimed.id)
        self._trace.requeued()
        return RunOutcome()

    async def _as_stored(self) -> RunOutcome:
        """The outcome that somebody else wrote, if the run has ended."""
        claimed = self.claimed
        try:
            run = await patiently(
                self._clock, lambda: self._store.get_run(claimed.id, session_id=claimed.session_id)
            )
            last = 0
            if run.status.is_terminal:
                last = await patiently(self._clock, lambda: last_number_of(self._store, run))
        except NotFound as gone:
            self._holds_claim = False
            self._trace.abandoned()
            gone.session_id, gone.run_id = claimed.session_id, claimed.id
            return RunOutcome(error=gone)
        self._holds_claim = run.status is RunStatus.RUNNING and run.attempt == claimed.attempt
        if not run.status.is_terminal:
            self._trace.abandoned()
            return RunOutcome()
        self._trace.ended(run)
        return outcome_of(run, last)

    def _unwritten(self, error: Exception) -> AsmError:
        """What is told of an attempt whose end could not be written."""
        run = self.claimed
        if isinstance(error, AsmError):
            logger.error("the end of run %s could not be written: %s", run.id, error)
        else:
            logger.error("executing run %s failed", run.id, exc_info=error)  # a defect of ours
        if isinstance(error, ActorStopped):
            told: AsmError = error
        else:
            told = StoreError(f"the end of run {run.id} could not be written; it is an orphan now")
            told.__cause__ = error
        told.session_id, told.run_id = run.session_id, run.id
        return told

    def _begin_release(self) -> asyncio.Task[None]:
        self._holds_claim = False
        release = start_task(_released(self._store, self.claimed, self._clock))
        leave_behind(release)
        return release


async def _released(store: SessionStore, run: Run, clock: Clock) -> None:
    """Tried until the store has done it: a claim that is kept keeps its run from everybody."""
    delay = RETRY_DELAYS_S[0]
    while True:
        try:
            await answered(store.release_run(run.fence))
            return
        except ActorStopped:  # which lets it go too
            return
        except Exception as error:
            logger.warning("run %s could not be released, which is tried again: %s", run.id, error)
        await sleep(clock, delay)
        delay = min(2 * delay, MAX_RELEASE_DELAY_S)


async def _executed(
    adapter: ProviderAdapter, run: Run, session: Session, context: RunContext
) -> ProviderResult:
    result: Any = await adapter.execute(run, session, context)
    if not isinstance(result, ProviderResult):
        raise ProviderError(
            f"{adapter.name} returned a {type(result).__name__}, not a ProviderResult",
            details={"returned": type(result).__name__},
        )
    return result


def _input_messages(input: Any) -> list[JsonObject]:
    """The messages that an input sends; most inputs of a command send none."""
    if not isinstance(input, dict):
        return []
    messages: Any = input.get("messages")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if isinstance(messages, list):
        return [message for message in messages if isinstance(message, dict)]  # pyright: ignore[reportUnknownVariableType]
    prompt: Any = input.get("prompt")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return []


def _message_event_id(run: Run, index: int) -> str:
    """The same in every attempt: a message is sent once a run, also if an attempt died in between."""
    digest = hashlib.blake2b(run.id.encode(), digest_size=12).hexdigest()
    return f"evt_{digest}_message_{index}"
