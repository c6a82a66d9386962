"""What every store decides alike: the checks of arguments, and of a write against what is stored.

Plain functions without a store: each is given what the store has read inside its atomic step, and
raises what the contract says, or returns what is to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from asm_runtime import options
from asm_runtime.errors import Conflict, InvalidTransition, LeaseLost, QueueFull, ValidationError
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Event, Fence, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.pace import in_turn, in_turns

__all__ = [
    "ABSENT",
    "check_completion",
    "check_enqueue",
    "check_expected_row",
    "check_expected_status",
    "check_fence",
    "check_status_kept",
    "checked",
    "checked_events",
    "checked_fence",
    "checked_pending",
    "checked_result",
    "copied",
    "events_in",
    "expected_row",
    "expected_run_status",
    "expected_session_status",
    "optional_fence",
    "same_json",
]

ABSENT = "absent"
"""The expected status of a row that must not be there."""

R = TypeVar("R", Session, Run, Event)

_sorted_json = msgspec.json.Encoder(order="sorted").encode


# -- arguments, before the store is asked


def checked(name: str, record: Any, kind: type[R]) -> R:
    """The record in canonical form, a copy that nobody else holds.

    Raises:
        ValidationError: It is no such record, or one of its fields is not what is allowed.
    """
    if not isinstance(record, kind):
        raise options.refused(name, record, f"a {kind.__name__}")
    return record.checked()


async def copied(name: str, record: Any, kind: type[R]) -> R:
    """Like `checked`; a large record does not hold up the event loop."""
    return await in_turn(lambda record: checked(name, record, kind), record)


def events_in(name: str, events: Any) -> list[Event]:
    """The events that a list or another sequence holds, as they are.

    Raises:
        ValidationError: It is no sequence, or holds something else.
    """
    if not isinstance(events, Sequence) or isinstance(events, str | bytes):
        raise options.refused(name, events, "a sequence of events")
    items: list[Any] = [*events]  # pyright: ignore[reportUnknownVariableType]
    for index, event in enumerate(items):
        if not isinstance(event, Event):
            raise options.refused(f"{name}[{index}]", event, "a Event")
    return items


async def checked_events(name: str, events: Any) -> list[Event]:
    """Like `copied`, for a list or another sequence of events."""
    return await in_turns(lambda event: event.checked(), events_in(name, events))


async def checked_pending(run: Any) -> Run:
    """Like `copied`, for a run that asks for a place in the queue."""
    copy = await copied("run", run, Run)
    if copy.status is not RunStatus.PENDING:
        raise options.refused("run.status", copy.status, "pending")
    return copy


def checked_fence(fence: Any) -> Fence:
    """A fence of plain values.

    Raises:
        ValidationError: It is none.
    """
    if not isinstance(fence, Fence):
        raise options.refused("fence", fence, "a Fence")
    return Fence(
        options.identifier("fence.session_id", fence.session_id),
        options.identifier("fence.run_id", fence.run_id),
        options.integer("fence.attempt", fence.attempt, minimum=0),
    )


def optional_fence(fence: Any) -> Fence | None:
    """Like `checked_fence`, or None."""
    return None if fence is None else checked_fence(fence)


async def checked_result(
    result: Any, expected_session_status: str | None, expected_run_status: str | None
) -> ExecutionResult:
    """What `flush` is to write, in canonical form.

    Raises:
        ValidationError: A part is not what is allowed, or a status is expected of a part that is missing.
    """
    if not isinstance(result, ExecutionResult):
        raise options.refused("result", result, "an ExecutionResult")
    session = None if result.session is None else await copied("result.session", result.session, Session)
    run = None if result.run is None else await copied("result.run", result.run, Run)
    for name, part, expected in (
        ("session", session, expected_session_status),
        ("run", run, expected_run_status),
    ):
        if part is None and expected is not None:
            raise ValidationError(f"expected_{name}_status needs a result.{name} to expect it of")
    return ExecutionResult(session, run, await checked_events("result.events", result.events))


async def expected_row(name: str, expected: R | None, written: R | None, kind: type[R]) -> R | None:
    """The row that a write expects to find, in canonical form.

    Raises:
        ValidationError: It is none, or not the one that is written.
    """
    if expected is None:
        return None
    row = await copied(name, expected, kind)
    if written is None or _key(row) != _key(written):
        raise ValidationError(f"{name} needs the same {kind.__name__.lower()} in the result")
    return row


def expected_session_status(name: str, expected: Any) -> str | None:
    """A session status, `"absent"`, or None."""
    return _expected(name, expected, SessionStatus)


def expected_run_status(name: str, expected: Any) -> str | None:
    """A run status, `"absent"`, or None."""
    return _expected(name, expected, RunStatus)


def _expected(name: str, expected: Any, kind: type[SessionStatus] | type[RunStatus]) -> str | None:
    if expected is None:
        return None
    if isinstance(expected, str) and expected == ABSENT:
        return ABSENT
    try:
        return kind(expected)
    except ValueError:
        raise options.refused(name, expected, f"one of {', '.join(kind)}, {ABSENT} or None") from None


# -- a write against what is stored, inside the store's atomic step


def check_expected_status(record: Session | Run, stored: str | None, expected: str | None) -> None:
    """Hold the stored status (None: no such row) against the expected one (None: any).

    Raises:
        Conflict: They differ.
    """
    if expected is None or (stored or ABSENT) == expected:
        return
    raise Conflict(
        f"{_kind(record)} {record.id} is {_shown(stored)}, not {expected}",
        details={"stored_status": None if stored is None else str(stored), "expected_status": str(expected)},
    )


def check_expected_row(expected: Session | Run | None, stored: Session | Run | None) -> None:
    """Hold the stored row (None: there is none) against the expected one (None: any), as JSON.

    Raises:
        Conflict: They differ.
    """
    if expected is None or (stored is not None and same_json(stored, expected)):
        return
    raise Conflict(
        f"{_kind(expected)} {expected.id} has changed",
        details={
            "stored_status": None if stored is None else str(stored.status),
            "expected_status": str(expected.status),
        },
    )


def check_status_kept(record: Session | Run, stored: SessionStatus | RunStatus | None) -> None:
    """See that a terminal status (None: no such row) is not overwritten by a different one.

    Raises:
        InvalidTransition: It would be.
    """
    if stored is not None and stored != record.status and stored.is_terminal:
        raise InvalidTransition(
            f"{_kind(record)} {record.id} is {stored} and cannot become {record.status}",
            from_status=stored,
            to_status=record.status,
        )


def check_completion(session: Session, stored: SessionStatus | None, open_runs: int) -> None:
    """See that a session does not become `completed` with runs that are `pending` or `running`.

    Args:
        session: What is to be stored.
        stored: The stored status; None: no such row.
        open_runs: How many open runs the session has after the write.

    Raises:
        Conflict: It would.
    """
    if session.status is SessionStatus.COMPLETED and stored != SessionStatus.COMPLETED and open_runs:
        raise Conflict(
            f"session {session.id} has {open_runs} open runs and cannot become completed",
            details={"open_runs": open_runs},
        )


def check_enqueue(
    run: Run,
    stored: Run | None,
    session_status: SessionStatus | None,
    open_runs: int,
    max_open_runs: int | None,
) -> Run | None:
    """Decide about a run that asks for a place in the queue.

    Args:
        run: The run that asks.
        stored: The run that has its id in its session.
        session_status: Of the session's row; None: it has none.
        open_runs: How many of its runs are `pending` or `running`.
        max_open_runs: How many there may be; None: any number.

    Returns:
        The stored run, if this is the same one again; None: it is to be stored.

    Raises:
        Conflict: The id is taken by a run with another input.
        InvalidTransition: The session is terminal.
        QueueFull: There is no place.
    """
    if stored is not None:
        if same_json(stored.input, run.input):
            return stored
        raise Conflict(f"run {run.id} is stored with another input", details={"run_id": run.id})
    if session_status is not None and session_status.is_terminal:
        raise InvalidTransition(
            f"session {run.session_id} is {session_status} and takes no runs", from_status=session_status
        )
    if max_open_runs is not None and open_runs >= max_open_runs:
        raise QueueFull(
            f"session {run.session_id} has {open_runs} open runs, as many as it may have",
            details={"open_runs": open_runs, "max_open_runs": max_open_runs},
        )
    return None


def check_fence(fence: Fence | None, status: str | None, attempt: int) -> None:
    """Hold a fence against the run it names.

    Args:
        fence: None: nothing to hold.
        status: The stored status; None: no such run.
        attempt: The stored attempt.

    Raises:
        LeaseLost: The run is not `running` under that attempt.
    """
    if fence is None or (status == RunStatus.RUNNING and attempt == fence.attempt):
        return
    now = _shown(status) if status is None else f"{status} in attempt {attempt}"
    raise LeaseLost(
        f"run {fence.run_id} is {now}, not running in attempt {fence.attempt}",
        details={
            "session_id": fence.session_id,
            "run_id": fence.run_id,
            "attempt": fence.attempt,
            "stored_status": None if status is None else str(status),
            "stored_attempt": None if status is None else attempt,
        },
    )


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: 1, 1.0 and True differ, the order of keys does not matter."""
    return _sorted_json(one) == _sorted_json(other)


def _kind(record: Session | Run) -> str:
    return "session" if isinstance(record, Session) else "run"


def _key(record: Session | Run | Event) -> tuple[str, str]:
    return ("" if isinstance(record, Session) else record.session_id, record.id)


def _shown(status: str | None) -> str:
    return ABSENT if status is None else str(status)
