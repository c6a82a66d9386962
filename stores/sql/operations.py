"""What a store's requests do inside a write transaction.

Each is given the transaction and its arguments, in canonical form. It checks first, and raises
before it has written anything: a refusal needs no rollback.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from asm_runtime.errors import AsmError, StoreError
from asm_runtime.payload import decode
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import OPEN_RUN_STATUSES, Event, Fence, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores import rules
from asm_runtime.stores.sql.rows import EventRow, run_of, run_row, session_of, session_row, text_of
from asm_runtime.stores.sql.sqlite import statements
from asm_runtime.stores.sql.sqlite.transaction import Transaction

__all__ = [
    "append",
    "append_all",
    "claim_run",
    "delete_session",
    "enqueue_run",
    "flush",
    "release_run",
    "remove_left",
    "save_run",
    "save_session",
    "unclaim_run",
]

S = TypeVar("S", SessionStatus, RunStatus)

REMOVED_AT_ONCE = 500
BYTES_REMOVED_AT_ONCE = 4 * 1024 * 1024
"""How many events and runs of deleted sessions one transaction removes, and how large ones. About 10 ms."""


def append(transaction: Transaction, rows: Sequence[EventRow], fence: Fence | None) -> list[Event]:
    """Store events, if the fence holds."""
    transaction.check_fence(fence)
    return transaction.append([rows])[0]


def byte_size(rows: Sequence[EventRow], fence: Fence | None) -> int:
    """How much an append writes: its arguments are those of `append`."""
    return rows[0][8] if len(rows) == 1 else sum([row[8] for row in rows])


def append_all(
    transaction: Transaction, requests: Sequence[tuple[Sequence[EventRow], Fence | None]]
) -> list[list[Event] | AsmError]:
    """What `append` does for each of many requests, in the statements of one."""
    fences = {fence for _, fence in requests if fence is not None}
    if not fences:
        return list(transaction.append([rows for rows, _ in requests]))
    runs = transaction.fenced_runs(list(fences))
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
        rules.check_completion(session, stored, _open_runs(transaction, session.id))
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
    transaction.check_fence(fence)
    stored_run = None if run is None else _check_run(transaction, run, expected_run_status, expected_run)
    stored_session = None
    if session is not None:
        stored_session = _check_session(transaction, session, expected_session_status, expected_session)
        if session.status is SessionStatus.COMPLETED:
            open_runs = _open_runs(transaction, session.id)
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
    gone = sum(transaction.write(statement, (session_id,)) for statement in statements.DELETE_SESSION)
    left = transaction.row(statements.LEFT_BEHIND, session_id)
    has_left = any(last is not None for last in left)
    transaction.deleted(session_id, existed=gone > 0 or has_left)
    if not has_left:
        return True
    transaction.write(statements.BEGIN_REMOVAL, (session_id, *(last or 0 for last in left)))
    return _remove(transaction, session_id)


def remove_left(transaction: Transaction, session_ids: Sequence[str]) -> list[str]:
    """Remove some of the events and runs that deleted sessions have left; of which nothing is left then."""
    return [session_id for session_id in session_ids if _remove(transaction, session_id)]


def _remove(transaction: Transaction, session_id: str) -> bool:
    row = transaction.row(statements.REMOVAL, session_id)
    if row is None:
        return True
    last_sequence, last_position = row
    events = session_id, transaction.head(session_id), last_sequence
    runs = session_id, 0, last_position
    if not (
        _remove_first(transaction, statements.REMOVED_EVENT_SIZES, statements.REMOVE_EVENTS, events)
        and _remove_first(transaction, statements.REMOVED_RUN_SIZES, statements.REMOVE_RUNS, runs)
    ):
        return False
    transaction.write(statements.END_REMOVAL, (session_id,))
    return True


def _remove_first(
    transaction: Transaction, sizes_of: str, remove: str, interval: tuple[str, int, int]
) -> bool:
    """Remove the first rows of an interval, as many as the transaction may; whether those were all."""
    count = REMOVED_AT_ONCE - transaction.removed
    room = BYTES_REMOVED_AT_ONCE - transaction.removed_bytes
    if count <= 0:
        return False
    sizes: list[int] = decode(transaction.row(sizes_of, *interval, count)[0])
    fitting = sum(used <= room for used in accumulate(sizes))
    if not transaction.removed:
        fitting = max(fitting, 1)  # one that is larger goes alone
    if fitting and sizes:
        transaction.write(remove, (*interval, fitting))
        transaction.removed += fitting
        transaction.removed_bytes += sum(sizes[:fitting])
    return len(sizes) <= fitting and len(sizes) < count


def enqueue_run(transaction: Transaction, run: Run, max_open_runs: int | None) -> Run:
    """Accept a run, or find that it is accepted."""
    session_status, open_runs, *columns = transaction.row(statements.ENQUEUE_FACTS, run.session_id, run.id)
    known = rules.check_enqueue(
        run,
        None if columns[0] is None else run_of(columns),
        _stored_status(f"session {run.session_id}", session_status, SessionStatus),
        open_runs + transaction.opened(run.session_id),
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
    limit = max_concurrent_runs or 0
    if run_id is None:
        facts = transaction.row(statements.CLAIM_FIRST_FACTS, session_id, limit)
    else:
        facts = transaction.row(statements.CLAIM_ONE_FACTS, session_id, limit, run_id)
    if facts is None:
        return None
    session_status, running, *columns = facts
    if session_status is not None and session_status != SessionStatus.ACTIVE:
        return None
    if max_concurrent_runs is not None and running >= max_concurrent_runs:
        return None
    pending = run_of(columns)
    claimed = pending.with_status(RunStatus.RUNNING, at=transaction.now).replace(
        owner=transaction.node_id, attempt=pending.attempt + 1
    )
    transaction.write(
        statements.CLAIM_RUN,
        (claimed.owner, claimed.attempt, text_of(transaction.now), session_id, claimed.id),
    )
    transaction.run_changed(session_id)
    return claimed


def release_run(transaction: Transaction, fence: Fence) -> None:
    """Clear the owner of a run that still runs under that attempt."""
    if transaction.write(statements.RELEASE_RUN, (fence.session_id, fence.run_id, fence.attempt)):
        transaction.run_changed(fence.session_id)


def unclaim_run(transaction: Transaction, fence: Fence) -> None:
    """Put a run back in its place in the queue that was claimed for nobody."""
    if transaction.write(statements.UNCLAIM_RUN, (fence.session_id, fence.run_id, fence.attempt)):
        transaction.run_changed(fence.session_id)


def _check_session(
    transaction: Transaction, session: Session, expected: str | None, expected_row: Session | None = None
) -> SessionStatus | None:
    row = transaction.row(statements.SESSION_STATUS, session.id)
    stored = _stored_status(f"session {session.id}", row and row[0], SessionStatus)
    rules.check_expected_status(session, stored, expected)
    if expected_row is not None:
        known = transaction.row(statements.SESSION_ROW, session.id)
        rules.check_expected_row(expected_row, None if known is None else session_of(known))
    rules.check_status_kept(session, stored)
    return stored


def _check_run(
    transaction: Transaction, run: Run, expected: str | None, expected_row: Run | None = None
) -> RunStatus | None:
    row = transaction.row(statements.RUN_STATUS, run.session_id, run.id)
    stored = _stored_status(f"run {run.id} of session {run.session_id}", row and row[0], RunStatus)
    rules.check_expected_status(run, stored, expected)
    if expected_row is not None:
        known = transaction.row(statements.GET_RUN, run.session_id, run.id)
        rules.check_expected_row(expected_row, None if known is None else run_of(known))
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


def _open_runs(transaction: Transaction, session_id: str) -> int:
    count: int = transaction.row(statements.OPEN_RUNS, session_id)[0]
    return count


def _write_session(transaction: Transaction, session: Session, stored: SessionStatus | None) -> None:
    transaction.write(statements.SAVE_SESSION, session_row(session))
    if stored is not session.status:
        transaction.run_changed(session.id)


def _write_run(transaction: Transaction, run: Run, stored: RunStatus | None) -> None:
    transaction.write(statements.SAVE_RUN, run_row(run))
    opened = (run.status in OPEN_RUN_STATUSES) - (stored in OPEN_RUN_STATUSES)
    transaction.run_changed(run.session_id, opened=opened)
