"""How a run ends: the final row and its one terminal event, made together to be written together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from datetime import datetime

import msgspec

from asm_runtime import options
from asm_runtime.errors import AsmError, RunCancelled, RunFailed, RunTimeout, ValidationError
from asm_runtime.payload import JsonObject, canonical, canonical_object, is_large, lossy
from asm_runtime.ports import ExecutionResult, ProviderResult, RunResult, SessionStore
from asm_runtime.records import TERMINAL_EVENT_TYPES, Event, EventType, Run, RunStatus, Session

__all__ = [
    "RunOutcome",
    "brief",
    "completed",
    "correlation_of",
    "ended",
    "error_of",
    "last_number_of",
    "outcome_of",
    "result_of",
    "run_error",
]

_TERMINAL_TYPE = {
    RunStatus.COMPLETED: EventType.RUN_COMPLETED,
    RunStatus.FAILED: EventType.RUN_FAILED,
    RunStatus.CANCELLED: EventType.RUN_CANCELLED,
    RunStatus.TIMEOUT: EventType.RUN_TIMEOUT,
}

_CLASS_OF_STATUS: dict[RunStatus, type[AsmError]] = {
    RunStatus.CANCELLED: RunCancelled,
    RunStatus.TIMEOUT: RunTimeout,
}

MAX_BRIEF_LENGTH = 500


class RunOutcome:
    """How a run ended, as it is stored: a result or an error.

    Neither, if this attempt did not end it. Then the run goes on elsewhere, or nobody executes it any
    more: `given_up` says why its end could not be written, and settling orphans decides about it.
    """

    __slots__ = ("error", "given_up", "last_sequence_number", "result")

    def __init__(
        self,
        *,
        result: RunResult | None = None,
        error: AsmError | None = None,
        given_up: AsmError | None = None,
        last_sequence_number: int = 0,
    ) -> None:
        self.result = result
        self.error = error
        self.given_up = given_up
        self.last_sequence_number = last_sequence_number

    @property
    def is_final(self) -> bool:
        """Whether this is how the run ended."""
        return self.result is not None or self.error is not None

    async def told(self) -> RunResult:
        """The result, or the error raised, for one of those who await the run: a copy of its own.

        An exception that many raise would gather the frames of all of them.
        """
        if self.error is not None:
            try:
                error = copy(self.error)
            except Exception:  # of somebody else's class
                raise self.error from self.error.__cause__
            error.__cause__ = self.error.__cause__
            raise error
        assert self.result is not None
        large = is_large(self.result.output) or is_large(self.result.provider_metadata)
        return await asyncio.to_thread(_copied, self.result) if large else _copied(self.result)


def _copied(result: RunResult) -> RunResult:
    return msgspec.structs.replace(
        result,
        output=canonical(result.output, "output"),
        token_usage=canonical(result.token_usage, "token_usage"),
        provider_metadata=canonical(result.provider_metadata, "provider_metadata"),
    )


def completed(run: Run, result: ProviderResult) -> Run:
    """The run with what its provider returned; the status is not changed yet.

    Raises:
        ValidationError: The result is nothing that can be stored; names the path.
    """
    facts = {
        "stop_reason": result.stop_reason,
        "provider_session_id": result.provider_session_id,
        "model": result.model,
    }
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return run.replace(
        output=canonical(result.output, "output"),
        token_usage=canonical_object(result.token_usage, "token_usage") or run.token_usage,
        cost_usd=result.cost_usd,
        provider_metadata=run.provider_metadata
        | canonical_object(result.metadata, "metadata")
        | canonical_object(known, "result"),
    ).checked()


def ended(
    run: Run,
    status: RunStatus,
    *,
    at: datetime,
    error: AsmError | None = None,
    reason: str | None = None,
    correlation_id: str | None = None,
    before: Sequence[Event] = (),
) -> ExecutionResult:
    """The write that ends a run: the row with its terminal status, and the terminal event.

    Args:
        run: As it stands, `pending` or `running`.
        status: How it ends.
        at: When.
        error: Why, unless it completed; a cancelled run has `RunCancelled(reason)`.
        reason: Of a cancellation.
        correlation_id: Of the event.
        before: Events of the run that are written in the same step, in front of the terminal one.
    """
    if status is RunStatus.CANCELLED and error is None:
        error = RunCancelled(f"run {run.id} was cancelled: {reason}", details={"reason": reason})
    final = run.with_status(status, at=at)
    if error is not None:
        final = final.replace(error=run_error(error))
    event = Event.new(
        type=_TERMINAL_TYPE[status],
        session_id=run.session_id,
        run_id=run.id,
        timestamp=at,
        data=_terminal_data(final, error),
        metadata={} if final.provider is None else {"provider": final.provider},
        provider=final.provider,
        correlation_id=correlation_id,
    )
    return ExecutionResult(run=final, events=[*before, event])


def _terminal_data(run: Run, error: AsmError | None) -> JsonObject:
    data: JsonObject = {"attempt": run.attempt}
    if error is not None:
        data |= {"error_code": error.code, "error_message": lossy(error.message)}
        if "reason" in error.details:
            data["reason"] = lossy(error.details["reason"])
        return data
    facts = {
        "stop_reason": run.provider_metadata.get("stop_reason"),
        "token_usage": run.token_usage or None,
        "cost_usd": run.cost_usd,
    }
    return data | {name: fact for name, fact in facts.items() if fact is not None}


def run_error(error: AsmError) -> JsonObject:
    """What is stored as `run.error`; whatever the details hold, it can be stored."""
    return lossy(error.to_dict())  # type: ignore[no-any-return]  # a dict gives a dict


def brief(error: AsmError) -> AsmError:
    """The same failure in a few plain words, which any store takes."""
    said: JsonObject = {"code": error.code, "message": _plain(error.message)}
    if "reason" in error.details:
        said["details"] = {"reason": _plain(error.details["reason"])}
    made = AsmError.from_dict(said)
    made.__cause__ = error
    return made


def _plain(text: object) -> str:
    """The beginning of a text, in ASCII."""
    escaped = str(lossy(text)).encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= MAX_BRIEF_LENGTH else escaped[:MAX_BRIEF_LENGTH] + "..."


def error_of(run: Run) -> AsmError:
    """The exception that a run which did not complete raises, today as on the day it ended."""
    if run.error:
        error = AsmError.from_dict(run.error)
    else:
        error = _CLASS_OF_STATUS.get(run.status, RunFailed)(f"run {run.id} ended as {run.status}")
    error.session_id, error.run_id = run.session_id, run.id
    return error


def result_of(run: Run, last_sequence_number: int) -> RunResult:
    """The result of a completed run.

    Raises:
        AsmError: It did not complete: its own error.
    """
    if run.status != RunStatus.COMPLETED:
        raise error_of(run)
    return RunResult(
        session_id=run.session_id,
        run_id=run.id,
        status=run.status,
        output=run.output,
        token_usage=run.token_usage,
        cost_usd=run.cost_usd,
        stop_reason=run.provider_metadata.get("stop_reason"),
        provider_metadata=run.provider_metadata,
        last_sequence_number=last_sequence_number,
    )


def outcome_of(run: Run, last_sequence_number: int) -> RunOutcome:
    """The outcome of a run that has ended."""
    try:
        result = result_of(run, last_sequence_number)
    except AsmError as error:
        return RunOutcome(error=error, last_sequence_number=last_sequence_number)
    return RunOutcome(result=result, last_sequence_number=last_sequence_number)


async def last_number_of(store: SessionStore, run: Run) -> int:
    """The number of a run's terminal event; 0 if the log has none (any more)."""
    last = await store.get_events(
        run.session_id, run_id=run.id, type=TERMINAL_EVENT_TYPES, order="desc", limit=1
    )
    return (last[0].sequence_number or 0) if last else 0


def correlation_of(session: Session | None) -> str | None:
    """The correlation id that a session gives to the events which the runtime makes in it."""
    found = session.metadata.get("correlation_id") if session is not None else None
    try:
        return options.optional_identifier("correlation_id", found)
    except ValidationError:  # nothing that an event can have
        return None
