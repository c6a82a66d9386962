"""What the requests of a group depend on, read before the first of them runs."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Sequence
from random import getrandbits
from typing import Any, TypeAlias

import msgspec

from asm_runtime.records import Artifact, Fence, Run
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.outcome import Request
from asm_runtime.stores.sql.postgres import artifact_statements, statements
from asm_runtime.stores.sql.postgres.connections import Connection
from asm_runtime.stores.sql.rows import EventRow, Row, artifact_of

__all__ = ["Counter", "Facts", "Key", "Needs", "StoredRun", "read_facts"]

Key: TypeAlias = tuple[str, str]
"""Of a run: session and id."""


class Needs:
    """What requests have to know, by session and by run.

    Args:
        requests: Of one transaction: none that deletes.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.sessions: set[str] = set()
        """Whose counters are needed: all."""
        self.events: dict[Key, None] = {}
        """Session and id of each new one."""
        self.statuses: set[str] = set()
        self.session_rows: set[str] = set()
        self.run_states: set[Key] = set()
        self.run_rows: set[Key] = set()
        self.positions: set[str] = set()
        """Sessions whose queues may get a run."""
        self.claims: dict[str, int] = {}
        """How many runs of each session may be running at most, as far as anybody asks."""
        self.artifact_ids: set[str] = set()
        self.artifact_keys: set[str] = set()
        self.touches: Count[str] = Count()
        """How many requests may change which runs of a session are pending or running."""
        self.may_change_runs = any(request[0] is not operations.append for request in requests)
        for operation, arguments in requests:
            _NEEDED[operation](self, *arguments)

    def _append(self, rows: Sequence[EventRow], fence: Fence | None) -> None:
        for row in rows:
            self.sessions.add(row[0])
            self.events[row[:2]] = None
        self._fenced(fence)

    def _fenced(self, fence: Fence | None) -> None:
        if fence is not None:
            self._run(fence.session_id, fence.run_id)

    def _run(self, session_id: str, run_id: str) -> None:
        self.sessions.add(session_id)
        self.run_states.add((session_id, run_id))

    def _save_session(self, session: Any, *_: object) -> None:
        self.sessions.add(session.id)
        self.statuses.add(session.id)

    def _save_run(self, run: Run, *_: object) -> None:
        self._run(run.session_id, run.id)
        self.positions.add(run.session_id)
        self.touches[run.session_id] += 1

    def _flush(
        self, result: Any, rows: Sequence[EventRow], fence: Fence | None, _: Any, __: Any,
        expected_session: Any, expected_run: Any,
    ) -> None:  # fmt: skip
        self._append(rows, fence)
        if result.session is not None:
            self._save_session(result.session)
            if expected_session is not None:
                self.session_rows.add(result.session.id)
        if result.run is not None:
            self._save_run(result.run)
            if expected_run is not None:
                self.run_rows.add((result.run.session_id, result.run.id))

    def _enqueue(self, run: Run, _: object) -> None:
        self.statuses.add(run.session_id)
        self._save_run(run)
        self.run_rows.add((run.session_id, run.id))

    def _claim(self, session_id: str, slots: int | None, run_id: str | None) -> None:
        self.sessions.add(session_id)
        self.statuses.add(session_id)
        self.claims[session_id] = max(self.claims.get(session_id, 0), slots or 0)
        self.touches[session_id] += 1
        if run_id is not None:
            self.run_rows.add((session_id, run_id))

    def _register(self, row: Artifact, _: object) -> None:
        self.artifact_ids.add(row.id)
        self.artifact_keys.add(row.key)

    def _delete_artifact(self, key: str, _: object) -> None:
        self.artifact_keys.add(key)

    def _release(self, fence: Fence) -> None:
        self._fenced(fence)

    def _unclaim(self, fence: Fence) -> None:
        self._fenced(fence)
        self.run_rows.add((fence.session_id, fence.run_id))
        self.touches[fence.session_id] += 1


_NEEDED: dict[Any, Any] = {
    operations.append: Needs._append,
    operations.save_session: Needs._save_session,
    operations.save_run: Needs._save_run,
    operations.flush: Needs._flush,
    operations.enqueue_run: Needs._enqueue,
    operations.claim_run: Needs._claim,
    operations.release_run: Needs._release,
    operations.unclaim_run: Needs._unclaim,
    operations.register_artifact: Needs._register,
    operations.delete_artifact: Needs._delete_artifact,
}


class Counter(msgspec.Struct, gc=False):
    """A session's row of counters, locked."""

    last_sequence: int
    latest_timestamp: str
    largest_event: int
    run_revision: int
    open_runs: int
    change: int | None
    """The number of this transaction's change of its runs, if it may make one."""
    is_new: bool
    """Whether this transaction has made it."""


class StoredRun(msgspec.Struct, gc=False):
    """A run as the requests before have left it."""

    status: str
    attempt: int
    position: int
    owner: str | None
    started_at: str | None
    row: Row | None
    """All columns of `RUN_COLUMNS`; None: not read."""


class Facts:
    """What is stored, as far as a group has to know it; its transaction keeps it up to date."""

    def __init__(self) -> None:
        self.xact = ""
        """The number of the transaction."""
        self.counters: dict[str, Counter] = {}
        self.removals: dict[str, tuple[int, int]] = {}
        """The last number and position of what deleted sessions have left."""
        self.stored_events: dict[Key, tuple[int, str, str]] = {}
        """By session and id: number, and two JSON texts."""
        self.statuses: dict[str, str] = {}
        self.session_rows: dict[str, Row] = {}
        self.runs: dict[Key, StoredRun] = {}
        self.last_positions: dict[str, int] = {}
        self.running: dict[str, int] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.live_artifacts: dict[str, Artifact] = {}
        """By key."""

    def run(self, key: Key) -> StoredRun | None:
        """A run that is none of those that a deleted session has left."""
        found = self.runs.get(key)
        if found is None or found.position <= self.removals.get(key[0], (0, 0))[1]:
            return None
        return found


async def read_facts(connection: Connection, needs: Needs, *, careful: bool) -> Facts:
    """Lock the counters of the sessions, then read what is needed: a constant number of statements."""
    facts = Facts()
    if needs.sessions:
        await _lock(connection, needs, facts)
    else:
        facts.xact = await connection.fetchval(statements.XACT)
    if needs.artifact_keys:
        await _read_artifacts(connection, needs, facts)
    has_runs = needs.run_states or needs.claims
    if careful or has_runs:
        # Without care new events may stand in the way of those that a deleted session has left; then the
        # insert fails and the group is run again with care.
        for row in await connection.fetch(statements.REMOVALS_OF, sorted(needs.sessions)):
            facts.removals[row[0]] = (row[1], row[2])
    if careful and needs.events:
        await _look_at_logs(connection, needs, facts)
    if needs.statuses:
        rows = await connection.fetch(statements.SESSION_STATUSES, list(needs.statuses))
        facts.statuses = dict(map(tuple, rows))
    if needs.session_rows:
        for row in await connection.fetch(statements.SESSION_ROWS, list(needs.session_rows)):
            facts.session_rows[row[0]] = tuple(row)
    if has_runs:
        await _read_runs(connection, needs, facts)
    return facts


async def _lock(connection: Connection, needs: Needs, facts: Facts) -> None:
    made = {session_id: getrandbits(62) for session_id in sorted(needs.sessions)}
    rows = await connection.fetch(
        statements.LOCK_COUNTERS, list(made), list(made.values()), needs.may_change_runs
    )
    for id, number, latest, largest, incarnation, revision, open_runs, change, xact in rows:
        facts.xact = xact
        facts.counters[id] = Counter(
            number, latest, largest, revision, open_runs, change, incarnation == made[id]
        )


async def _read_artifacts(connection: Connection, needs: Needs, facts: Facts) -> None:
    if needs.artifact_ids:
        rows = await connection.fetch(artifact_statements.ARTIFACTS_OF_IDS, list(needs.artifact_ids))
        facts.artifacts = {row[0]: artifact_of(row) for row in rows}
    rows = await connection.fetch(artifact_statements.LIVE_ARTIFACTS, list(needs.artifact_keys))
    for artifact in map(artifact_of, rows):
        facts.artifacts[artifact.id] = facts.live_artifacts[artifact.key] = artifact


async def _look_at_logs(connection: Connection, needs: Needs, facts: Facts) -> None:
    for id, number, latest in await connection.fetch(statements.ENDS_OF_LOGS, list(facts.counters)):
        counter = facts.counters[id]
        if number > counter.last_sequence:
            counter.last_sequence = number
            counter.latest_timestamp = max(counter.latest_timestamp, latest)
            counter.largest_event = 1 << 40  # any may have been the largest
    for id, number, short, payloads in await connection.fetch(
        statements.STORED_EVENTS, *_columns(needs.events)
    ):
        if number <= facts.counters[id].last_sequence:  # else it is being removed
            event_id = msgspec.json.decode(short)[1]
            facts.stored_events[id, event_id] = (number, short, payloads)


async def _read_runs(connection: Connection, needs: Needs, facts: Facts) -> None:
    states = needs.run_states - needs.run_rows
    if states:
        for row in await connection.fetch(statements.RUN_STATES, *_columns(states)):
            session_id, id, status, attempt, position, owner, started_at = row
            facts.runs[session_id, id] = StoredRun(status, attempt, position, owner, started_at, None)
    if needs.run_rows:
        _note_rows(facts, await connection.fetch(statements.RUN_ROWS, *_columns(needs.run_rows)))
    if needs.positions:
        rows = await connection.fetch(statements.LAST_POSITIONS, list(needs.positions))
        for id, last in rows:
            facts.last_positions[id] = max(last or 0, facts.removals.get(id, (0, 0))[1])
    if needs.claims:
        # As many more as the requests before may take away.
        ids = list(needs.claims)
        touches = [needs.touches[id] for id in ids]
        limits = [needs.claims[id] + needs.touches[id] for id in ids]
        facts.running = dict(map(tuple, await connection.fetch(statements.RUNNING_RUNS, ids, limits)))
        _note_rows(facts, await connection.fetch(statements.PENDING_RUNS, ids, touches))


def _note_rows(facts: Facts, rows: Iterable[Any]) -> None:
    for row in rows:
        *columns, position = row
        facts.runs[columns[0], columns[1]] = stored_run(tuple(columns), position)


def stored_run(row: Row, position: int) -> StoredRun:
    """The run of a whole row."""
    return StoredRun(row[2], row[4], position, row[3], row[12], row)


def _columns(pairs: Iterable[Key]) -> tuple[list[str], list[str]]:
    pairs = list(pairs)
    return [first for first, _ in pairs], [second for _, second in pairs]
