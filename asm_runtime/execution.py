"""One attempt of one run, from its claim to its end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from asm_runtime.clock import Clock, Timer, sleep
from asm_runtime.endings import completed, correlation_of, ended, last_number_of, result_of
from asm_runtime.errors import (
    AsmError,
    Conflict,
    InvalidTransition,
    LeaseLost,
    NotFound,
    ProviderError,
    RunCancelled,
    RunTimeout,
    StoreError,
    StoreUnavailable,
)
from asm_runtime.observer import RunTrace, observer
from asm_runtime.payload import JsonObject, lossy
from asm_runtime.ports import (
    EventCallback,
    ExecutionResult,
    ProviderAdapter,
    ProviderResult,
    RunContext,
    RunResult,
    SessionStore,
)
from asm_runtime.recorder import RETRY_DELAYS_S, RunRecorder
from asm_runtime.records import Event, EventType, Run, RunStatus, Session
from asm_runtime.run_options import RunOptions
from asm_runtime.transcript import replay

__all__ = ["RunExecution", "RunOutcome"]

logger = logging.getLogger(__name__)

RELEASE_GRACE_S = 1.0
"""How long the store may take to let a claim go; then nobody waits for that any longer."""

_releases: set[asyncio.Task[None]] = set()
"""Keeps the last act of attempts alive that nobody waits for; the loop itself holds tasks weakly."""

_MOVED_ON = (LeaseLost, Conflict, InvalidTransition, NotFound)
"""What a fenced write raises when somebody else has ended, requeued, claimed or deleted the run."""


class RunOutcome:
    """How an attempt ended: a result, an error, or neither, if the run goes on elsewhere."""

    __slots__ = ("error", "last_sequence_number", "result")

    def __init__(
        self,
        *,
        result: RunResult | None = None,
        error: BaseException | None = None,
        last_sequence_number: int = 0,
    ) -> None:
        self.result = result
        self.error = error
        self.last_sequence_number = last_sequence_number

    @property
    def is_final(self) -> bool:
        """Whether this is how the run ended."""
        return self.result is not None or self.error is not None


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

    Cancelling that task abandons the attempt: the adapter is cancelled, the claim is released, no end
    is written, so the run is an orphan.

    Args:
        store: Where the run lives.
        adapter: What executes it.
        run: As it was claimed.
        callbacks: Given every stored event of the run.
        trace: Told what happens.
        clock: The source of time.
        cancel_grace_ms: How long the adapter may take to stop, in milliseconds; then it is left behind.
        save_run: Store the run's row before it starts, because the claimer changed its options.
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
        save_run: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.claimed = run
        self.outcome: asyncio.Future[RunOutcome] = loop.create_future()
        """Resolved when the attempt is over and its slot is free."""
        self._store = store
        self._adapter = adapter
        self._callbacks = callbacks
        self._trace = trace
        self._clock = clock
        self._cancel_grace_ms = cancel_grace_ms
        self._save_run = save_run
        self._options = RunOptions()
        self._session: Session | None = None
        self._recorder: RunRecorder | None = None
        self._verdict: asyncio.Future[_Verdict] = loop.create_future()
        self._run_timer: Timer | None = None
        self._idle_timer: Timer | None = None

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

    def start(self, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        """Give the work a task, made by its owner's `spawn`."""
        spawn(self.run()).add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step runs nothing, not even a `finally`."""
        if not self.outcome.done():
            self.outcome.set_result(RunOutcome())
            self._trace.abandoned()
            self._begin_release()

    async def run(self) -> None:
        """Execute the attempt to its end."""
        outcome = RunOutcome()
        settled = False
        try:
            verdict = await self._attempt()
            outcome, settled = await self._settle(verdict)
        except asyncio.CancelledError:
            if self._recorder is not None:
                self._recorder.abort()
            raise
        except AsmError as error:
            logger.error("the end of run %s could not be written: %s", self.claimed.id, error)
            outcome = RunOutcome(error=error)
        except Exception as error:
            # A defect of ours: the run must not stay `running`, and its server must not fall.
            logger.exception("executing run %s failed", self.claimed.id)
            outcome = RunOutcome(error=error)
        finally:
            for timer in (self._run_timer, self._idle_timer):
                if timer is not None:
                    timer.cancel()
            if not settled:
                await self._release()
            if not self.outcome.done():
                self.outcome.set_result(outcome)
        # Whoever awaits the outcome does not wait for callbacks: one of them may await it itself.
        if self._recorder is not None:
            try:
                await self._recorder.callbacks_done()
            finally:
                self._recorder.abort()

    async def _attempt(self) -> _Verdict:
        """Everything up to the verdict; the adapter has stopped when this returns."""
        if not self._verdict.done():
            try:
                recorder = await self._begin()
                history = await self._history()
            except _MOVED_ON:
                self.lost()
            except AsmError as error:
                self._fail(error)
            except Exception as error:
                self._fail(_wrapped(StoreError, "the store", error))
            else:
                await self._drive(recorder, history)
        return await self._verdict

    async def _begin(self) -> RunRecorder:
        """Write what precedes the adapter: the input's messages, once a run, and `run_started`."""
        run = self.claimed
        self._options = RunOptions.of(run)
        self._session = await self._store.get_session(run.session_id)
        recorder = self._recorder = RunRecorder(
            store=self._store,
            fence=run.fence,
            provider=self._adapter.name,
            correlation_id=correlation_of(self._session),
            trace=self._trace,
            callbacks=self._callbacks,
            clock=self._clock,
        )
        self._trace.started(run, self._session)
        if self._save_run:
            await self._store.flush(
                ExecutionResult(run=run), fence=run.fence, expected_run_status=RunStatus.RUNNING
            )
        started: JsonObject = {"attempt": run.attempt, "provider": self._adapter.name}
        model = self._options.adapter_opts.get("model")
        if isinstance(model, str):
            started["model"] = model
        messages = [
            recorder.event(EventType.MESSAGE_SENT, message, id=_message_event_id(run, index))
            for index, message in enumerate(_input_messages(run.input))
        ]
        await recorder.append([*messages, recorder.event(EventType.RUN_STARTED, started)])
        return recorder

    async def _history(self) -> list[JsonObject]:
        if not self._options.continuation:
            return []
        return await replay(
            self._store,
            self.claimed.session_id,
            without_run=self.claimed.id,
            **self._options.continuation_opts,
        )

    async def _drive(self, recorder: RunRecorder, history: list[JsonObject]) -> None:
        """Have the adapter execute, until there is a verdict and the adapter has stopped."""
        assert self._session is not None
        run_timeout_ms = self._options.run_timeout_ms
        context = RunContext(
            emit=recorder.emit,
            attempt=self.claimed.attempt,
            adapter_opts=self._options.adapter_opts,
            history=history,
            deadline=self._deadline(),
        )
        if self._verdict.done():
            return
        provider = asyncio.get_running_loop().create_task(
            _executed(self._adapter, self.claimed, self._session, context),
            context=self._trace.execution_context(),
        )
        provider.add_done_callback(self._provider_ended)
        recorder.failure.add_done_callback(self._recorder_failed)
        if run_timeout_ms is not None:
            self._run_timer = self._clock.call_later(run_timeout_ms / 1000, self._timed_out)
        if self._options.idle_timeout_ms is not None:
            recorder.last_emit = self._clock.monotonic()  # the adapter's silence begins with its work
            self._watch_silence(recorder)
        try:
            await asyncio.wait([self._verdict])
        except asyncio.CancelledError:
            provider.cancel()
            await self._stopped(provider)
            raise
        if not provider.done():
            await self._stopped(provider)

    def _provider_ended(self, provider: asyncio.Task[ProviderResult]) -> None:
        if provider.cancelled():
            error: BaseException | None = asyncio.CancelledError()
        else:
            error = provider.exception()
        if error is None:
            self._decide(_Verdict(RunStatus.COMPLETED, result=provider.result()))
        elif isinstance(error, RunCancelled):  # its provider was told elsewhere
            self._decide(_Verdict(RunStatus.CANCELLED, error=error))
        elif isinstance(error, AsmError):
            self._fail(error)
        else:
            self._fail(_wrapped(ProviderError, self._adapter.name, error))

    def _recorder_failed(self, failure: asyncio.Future[Exception]) -> None:
        if failure.cancelled():
            return
        error = failure.result()
        if isinstance(error, _MOVED_ON):
            self.lost()
        elif isinstance(error, AsmError):
            self._fail(error)
        else:
            self._fail(_wrapped(StoreError, "the store", error))

    def _deadline(self) -> datetime | None:
        if self._options.run_timeout_ms is None:
            return None
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
        """Cancel the adapter, and return when it has stopped or its grace is over."""
        provider.cancel()
        told = asyncio.get_running_loop().create_task(self._tell_adapter())
        over = asyncio.get_running_loop().create_task(sleep(self._clock, self._cancel_grace_ms / 1000))
        try:
            await asyncio.wait({provider, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            told.cancel()
        if not provider.done():
            logger.warning(
                "%s did not stop run %s within %s ms and is left behind",
                self._adapter.name, self.claimed.id, self._cancel_grace_ms,
            )  # fmt: skip
            provider.cancel()

    async def _tell_adapter(self) -> None:
        try:
            await self._adapter.cancel(self.claimed.id)
        except Exception:
            logger.exception("%s failed to cancel run %s", self._adapter.name, self.claimed.id)

    # -- the end

    async def _settle(self, verdict: _Verdict) -> tuple[RunOutcome, bool]:
        """Write the end; returns the outcome, and whether the claim needs no release."""
        left = await self._recorder.close() if self._recorder is not None else []
        if verdict.requeue:
            return await self._put_back(left)
        if verdict.status is None:
            return await self._as_stored()
        status, error = verdict.status, verdict.error
        run = self._with_facts(self.claimed)
        if verdict.result is not None:
            try:
                run = completed(run, verdict.result, provider=self._adapter.name)
            except AsmError as refused:
                status, error = RunStatus.FAILED, refused
        written = await self._write_end(run, status, error, left)
        if written is None:
            return await self._as_stored()
        final, stored = written
        if self._recorder is not None:
            self._recorder.written(stored)
        self._trace.ended(final, stored)
        last = stored[-1].sequence_number or 0
        if error is None:
            return RunOutcome(result=result_of(final, last), last_sequence_number=last), True
        error.session_id, error.run_id = final.session_id, final.id
        return RunOutcome(error=error, last_sequence_number=last), True

    def _with_facts(self, run: Run) -> Run:
        """The run with what its adapter reported, also where it did not live to return it."""
        if self._recorder is None:
            return run.replace(provider=self._adapter.name)
        return run.replace(
            provider=self._adapter.name,
            provider_metadata=run.provider_metadata | self._recorder.facts,
            token_usage=self._recorder.token_usage or run.token_usage,
        )

    async def _write_end(
        self, run: Run, status: RunStatus, error: AsmError | None, left: list[Event]
    ) -> tuple[Run, list[Event]] | None:
        """The final row and all events that belong to it in one step; None: the run has moved on.

        An unavailable store is tried again until it answers, or the task is cancelled: no run may
        stay `running` because of an outage that passes. What a store refuses for another reason is
        tried without the events that the adapter left behind, then given up to the release.
        """
        tries = 0
        while True:
            end = ended(
                run,
                status,
                at=self._clock.now(),
                error=error,
                correlation_id=correlation_of(self._session),
                before=left,
            )
            assert end.run is not None
            try:
                return end.run, await self._flush(end)
            except _MOVED_ON:
                return None
            except StoreUnavailable as unavailable:
                if status is RunStatus.COMPLETED and tries == len(RETRY_DELAYS_S):
                    logger.warning("run %s waits for its store to write its end", run.id)
                await sleep(self._clock, RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S) - 1)])
                tries += 1
                logger.debug("writing the end of run %s again: %s", run.id, unavailable)
            except StoreError as refused:
                if status is RunStatus.FAILED and not left:
                    raise
                status, error, left = RunStatus.FAILED, refused, []

    async def _flush(self, result: ExecutionResult) -> list[Event]:
        token = observer().write_began("flush", self.claimed.session_id, len(result.events), self._trace)
        try:
            stored = await self._store.flush(
                result, fence=self.claimed.fence, expected_run_status=RunStatus.RUNNING
            )
        except BaseException as error:
            observer().write_ended(token, None, error)
            raise
        observer().write_ended(token, stored, None)
        return stored

    async def _put_back(self, left: list[Event]) -> tuple[RunOutcome, bool]:
        """Queue the run again, in its old place."""
        pending = self.claimed.with_status(RunStatus.PENDING)
        try:
            await self._flush(ExecutionResult(run=pending, events=left))
        except _MOVED_ON:
            return await self._as_stored()
        logger.info("run %s is queued again", self.claimed.id)
        self._trace.requeued()
        return RunOutcome(), True

    async def _as_stored(self) -> tuple[RunOutcome, bool]:
        """The outcome that somebody else wrote, if the run has ended."""
        try:
            run = await self._store.get_run(self.claimed.id, session_id=self.claimed.session_id)
        except NotFound as gone:
            self._trace.abandoned()
            return RunOutcome(error=gone), True
        if not run.status.is_terminal:
            self._trace.abandoned()
            return RunOutcome(), run.attempt != self.claimed.attempt
        self._trace.ended(run)
        last = await last_number_of(self._store, run)
        try:
            return RunOutcome(result=result_of(run, last), last_sequence_number=last), True
        except AsmError as error:
            return RunOutcome(error=error, last_sequence_number=last), True

    async def _release(self) -> None:
        """Let the claim go.

        Whoever waits for the outcome or for a stop does not wait for a store that hangs: the release
        is left to itself then.
        """
        self._trace.abandoned()
        release = self._begin_release()
        over = asyncio.get_running_loop().create_task(sleep(self._clock, RELEASE_GRACE_S))
        try:
            await asyncio.wait({release, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()

    def _begin_release(self) -> asyncio.Task[None]:
        release = asyncio.get_running_loop().create_task(_released(self._store, self.claimed))
        _releases.add(release)
        release.add_done_callback(_releases.discard)
        return release


async def _released(store: SessionStore, run: Run) -> None:
    try:
        await store.release_run(run.fence)
    except Exception as error:
        logger.warning("run %s could not be released: %r", run.id, error)


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


def _wrapped(kind: type[AsmError], who: str, error: BaseException) -> AsmError:
    """What a foreign exception becomes. It may be one that cannot even say what it is."""
    name = type(error).__name__
    try:
        what = f"{name}: {lossy(str(error))}"
    except Exception:
        what = name
    wrapped = kind(f"{who} raised {what}", details={"exception": name})
    wrapped.__cause__ = error
    return wrapped


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
    """The same in every attempt: a message is sent once a run, whoever died in between."""
    digest = hashlib.blake2b(run.id.encode(), digest_size=12).hexdigest()
    return f"evt_{digest}_message_{index}"
