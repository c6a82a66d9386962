"""What a store's requests do inside a write transaction.

Each is given the transaction and its arguments, in canonical form. It checks first, and raises
before it has written anything: a refusal needs no rollback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from asm_runtime.errors import AsmError, StoreError
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import (
    OPEN_RUN_STATUSES,
    Artifact,
    Event,
    Fence,
    Run,
    RunStatus,
    Session,
    SessionStatus,
)
from asm_runtime.stores import rules
from asm_runtime.stores.artifact_rules import Replaced, check_registration
from asm_runtime.stores.sql.rows import EventRow, run_of
from asm_runtime.stores.sql.transaction import Transaction

__all__ = [
    "append",
    "append_all",
    "claim_run",
    "delete_artifact",
    "delete_session",
    "enqueue_run",
    "flush",
    "register_artifact",
    "release_run",
    "remove_left",
    "save_run",
    "save_session",
    "unclaim_run",
]

S = TypeVar("S", SessionStatus, RunStatus)


def append(transaction: Transaction, rows: Sequence[EventRow], fence: Fence | None) -> list[Event]:
    """Store events, if the fence holds."""
    _check_fence(transaction, fence)
    return transaction.append([rows])[0]


def byte_size(operation: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    """How large the events are that a request writes."""
    if operation is append:
        rows: Sequence[EventRow] = arguments[0]
    elif operation is flush:
        rows = arguments[1]
    else:
        return 0
    return rows[0][8] if len(rows) == 1 else sum([row[8] for row in rows])


def append_all(
    transaction: Transaction, requests: Sequence[tuple[Sequence[EventRow], Fence | None]]
) -> list[list[Event] | AsmError]:
    """What `append` does for each of many requests, in the statements of one."""
    fences = {fence for _, fence in requests if fence is not None}
    if not fences:
        return list(transaction.append([rows for rows, _ in requests]))
    runs = transaction.run_states(list(fences))
    outcomes: list[list[Event] | AsmError | None] = []
    for _, fence in requests:
        try:
            if fence is not None:
                rules.check_fence(fence, *runs.get((fence.session_id, fence.run_id), (None, 0)))
            outcomes.append(None)
        except AsmError as refusal:
            outcomes.append(refusal)
    admitted = [rows for (rows, _), refusal in zip(requests, outcomes, strict=True) if refusal is None]
    stored = iter(transaction.append(admitted))
    return [next(stored) if refusal is None else refusal for refusal in outcomes]


def save_session(transaction: Transaction, session: Session, expected: str | None) -> None:
    """Upsert a session."""
    stored = _check_session(transaction, session, expected)
    if session.status is SessionStatus.COMPLETED:
        rules.check_completion(session, stored, transaction.open_runs(session.id))
    _write_session(transaction, session, stored)


def save_run(transaction: Transaction, run: Run, expected: str | None) -> None:
    """Upsert a run."""
    stored = _check_run(transaction, run, expected)
    _write_run(transaction, run, stored)


def flush(
    transaction: Transaction,
    result: ExecutionResult,
    rows: Sequence[EventRow],
    fence: Fence | None,
    expected_session_status: str | None,
    expected_run_status: str | None,
    expected_session: Session | None,
    expected_run: Run | None,
) -> list[Event]:
    """Store a session, a run and events (`rows`: those of the result), all or nothing."""
    session, run = result.session, result.run
    _check_fence(transaction, fence)
    stored_run = None if run is None else _check_run(transaction, run, expected_run_status, expected_run)
    stored_session = None
    if session is not None:
        stored_session = _check_session(transaction, session, expected_session_status, expected_session)
        if session.status is SessionStatus.COMPLETED:
            open_runs = transaction.open_runs(session.id)
            if run is not None and run.session_id == session.id:
                open_runs += (run.status in OPEN_RUN_STATUSES) - (stored_run in OPEN_RUN_STATUSES)
            rules.check_completion(session, stored_session, open_runs)
    if session is not None:
        _write_session(transaction, session, stored_session)
    if run is not None:
        _write_run(transaction, run, stored_run)
    return transaction.append([rows])[0]


def delete_session(transaction: Transaction, session_id: str) -> bool:
    """Delete a session: it is gone for everybody. Whether nothing is left of it either: see `remove_left`."""
    return transaction.delete_session(session_id)


def remove_left(transaction: Transaction, session_ids: Sequence[str]) -> list[str]:
    """Remove some of the events and runs that deleted sessions have left; of which nothing is left then."""
    return [session_id for session_id in session_ids if transaction.remove_left(session_id)]


def enqueue_run(transaction: Transaction, run: Run, max_open_runs: int | None) -> Run:
    """Accept a run, or find that it is accepted."""
    session_status, open_runs, stored = transaction.before_enqueue(run)
    known = rules.check_enqueue(
        run,
        stored,
        _stored_status(f"session {run.session_id}", session_status, SessionStatus),
        open_runs,
        max_open_runs,
    )
    if known is not None:
        return known
    _write_run(transaction, run, None)
    return run


def claim_run(
    transaction: Transaction, session_id: str, max_concurrent_runs: int | None, run_id: str | None
) -> Run | None:
    """Make a pending run this node's, if there is one and a slot for it."""
    facts = transaction.before_claim(session_id, max_concurrent_runs or 0, run_id)
    if facts is None:
        return None
    session_status, running, row = facts
    if session_status is not None and session_status != SessionStatus.ACTIVE:
        return None
    if max_concurrent_runs is not None and running >= max_concurrent_runs:
        return None
    pending = run_of(row)
    claimed = pending.with_status(RunStatus.RUNNING, at=transaction.now).replace(
        owner=transaction.node_id, attempt=pending.attempt + 1
    )
    transaction.claim(claimed)
    transaction.run_changed(session_id)
    return claimed


def release_run(transaction: Transaction, fence: Fence) -> None:
    """Clear the owner of a run that still runs under that attempt."""
    if transaction.release(fence):
        transaction.run_changed(fence.session_id)


def unclaim_run(transaction: Transaction, fence: Fence) -> None:
    """Put a run back in its place in the queue that was claimed for nobody."""
    if transaction.unclaim(fence):
        transaction.run_changed(fence.session_id)


def _check_fence(transaction: Transaction, fence: Fence | None) -> None:
    if fence is not None:
        rules.check_fence(fence, *(transaction.run_state(fence.session_id, fence.run_id) or (None, 0)))


def _check_session(
    transaction: Transaction, session: Session, expected: str | None, expected_row: Session | None = None
) -> SessionStatus | None:
    status = transaction.session_status(session.id)
    stored = _stored_status(f"session {session.id}", status, SessionStatus)
    rules.check_expected_status(session, stored, expected)
    if expected_row is not None:
        rules.check_expected_row(expected_row, transaction.stored_session(session.id))
    rules.check_status_kept(session, stored)
    return stored


def _check_run(
    transaction: Transaction, run: Run, expected: str | None, expected_row: Run | None = None
) -> RunStatus | None:
    status, _ = transaction.run_state(run.session_id, run.id) or (None, 0)
    stored = _stored_status(f"run {run.id} of session {run.session_id}", status, RunStatus)
    rules.check_expected_status(run, stored, expected)
    if expected_row is not None:
        rules.check_expected_row(expected_row, transaction.stored_run(run.session_id, run.id))
    rules.check_status_kept(run, stored)
    return stored


def _stored_status(name: str, text: str | None, kind: type[S]) -> S | None:
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise StoreError(
            f"{name} is stored with the status {text!r}, which this release does not know"
        ) from None


def _write_session(transaction: Transaction, session: Session, stored: SessionStatus | None) -> None:
    transaction.save_session(session)
    if stored is not session.status:
        transaction.run_changed(session.id)


def _write_run(transaction: Transaction, run: Run, stored: RunStatus | None) -> None:
    transaction.save_run(run)
    opened = (run.status in OPEN_RUN_STATUSES) - (stored in OPEN_RUN_STATUSES)
    transaction.run_changed(run.session_id, opened=opened)


def register_artifact(transaction: Transaction, row: Artifact, replace: Replaced) -> Artifact:
    """Store the row of an artifact, in the place of the live one that has its key or not."""
    live = transaction.live_artifact(row.key)
    known = check_registration(row, transaction.artifact(row.id), live, replace)
    if known is not None:
        return known
    if live is not None:
        transaction.delete_artifact(live.id)
    transaction.insert_artifact(row)
    return row


def delete_artifact(transaction: Transaction, key: str, id: str | None) -> None:
    """Delete the live row of a key softly; with an id, only that one."""
    live = transaction.live_artifact(key)
    if live is not None and id in (None, live.id):
        transaction.delete_artifact(live.id)
