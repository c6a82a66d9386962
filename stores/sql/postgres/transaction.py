"""One write transaction: its facts are read before its requests run, what they write is sent after them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import force_setattr

from asm_runtime.records import Artifact, Event, Fence, Run, RunStatus, Session
from asm_runtime.stores.sql.outcome import Appended, Effect, RunsChanged
from asm_runtime.stores.sql.postgres import artifact_statements, statements
from asm_runtime.stores.sql.postgres.connections import Connection
from asm_runtime.stores.sql.postgres.facts import Facts, Key, StoredRun, stored_run
from asm_runtime.stores.sql.rows import (
    EVENT_COLUMNS,
    EventRow,
    Row,
    artifact_row,
    events_of,
    own_copy,
    run_of,
    run_row,
    session_of,
    session_row,
    text_of,
)

__all__ = ["PostgresTransaction"]

_SIZE = EVENT_COLUMNS.index("byte_size")


class PostgresTransaction:
    """The `Transaction` of a group.

    Args:
        facts: What its requests depend on.
        node_id: Of the store that writes.
        now: The time of the transaction.
        careful: Whether the facts say which of the events are stored already.
    """

    def __init__(self, facts: Facts, *, node_id: str, now: datetime, careful: bool) -> None:
        self.node_id = node_id
        self.now = now
        self.effects: list[Effect] = []
        self._facts = facts
        self._careful = careful
        self._events: list[tuple[EventRow, int, str | None]] = []
        self._stored: dict[Key, Event] = {}
        """Events of the log, and those that were appended just now."""
        self._first: dict[str, int] = {}
        """The latest number of each log before the first event of this transaction."""
        self._raised: set[str] = set()
        """Sessions whose counters have changed."""
        self._sessions: dict[str, Row] = {}
        self._saved: set[Key] = set()
        self._sizes: dict[Key, int] = {}
        """How many bytes the JSON columns of a run that is saved have."""
        self._moved: set[Key] = set()
        """Runs of which no more than status, owner, attempt and start have changed."""
        self._inserted: dict[str, Artifact] = {}
        self._deleted: set[str] = set()
        """Artifacts."""
        if careful:
            for (session_id, id), (_, short, payloads) in facts.stored_events.items():
                self._stored[session_id, id] = events_of((short, payloads))[0]

    # -- what is stored

    def session_status(self, session_id: str) -> str | None:
        """See `Transaction`."""
        return self._facts.statuses.get(session_id)

    def stored_session(self, session_id: str) -> Session | None:
        """See `Transaction`."""
        row = self._facts.session_rows.get(session_id)
        return None if row is None else session_of(row)

    def run_state(self, session_id: str, run_id: str) -> tuple[str, int] | None:
        """See `Transaction`."""
        run = self._facts.run((session_id, run_id))
        return None if run is None else (run.status, run.attempt)

    def run_states(self, fences: Sequence[Fence]) -> dict[Key, tuple[str, int]]:
        """See `Transaction`."""
        keys = [(fence.session_id, fence.run_id) for fence in fences]
        states = ((key, self.run_state(*key)) for key in keys)
        return {key: state for key, state in states if state is not None}

    def stored_run(self, session_id: str, run_id: str) -> Run | None:
        """See `Transaction`."""
        run = self._facts.run((session_id, run_id))
        return None if run is None or run.row is None else run_of(run.row)

    def open_runs(self, session_id: str) -> int:
        """See `Transaction`."""
        return self._facts.counters[session_id].open_runs

    def before_enqueue(self, run: Run) -> tuple[str | None, int, Run | None]:
        """See `Transaction`."""
        open_runs = self._facts.counters[run.session_id].open_runs
        return self.session_status(run.session_id), open_runs, self.stored_run(run.session_id, run.id)

    def before_claim(
        self, session_id: str, max_running: int, run_id: str | None
    ) -> tuple[str | None, int, Row] | None:
        """See `Transaction`."""
        run = self._first_pending(session_id) if run_id is None else self._facts.run((session_id, run_id))
        if run is None or run.status != RunStatus.PENDING or run.row is None:
            return None
        return self.session_status(session_id), self._facts.running.get(session_id, 0), run.row

    def _first_pending(self, session_id: str) -> StoredRun | None:
        pending = [
            run
            for key, run in self._facts.runs.items()
            if key[0] == session_id
            and run.status == RunStatus.PENDING
            and run.row is not None
            and self._facts.run(key) is not None
        ]
        return min(pending, key=lambda run: run.position, default=None)

    # -- what is written

    def artifact(self, id: str) -> Artifact | None:
        """See `Transaction`."""
        return self._facts.artifacts.get(id)

    def live_artifact(self, key: str) -> Artifact | None:
        """See `Transaction`."""
        return self._facts.live_artifacts.get(key)

    def insert_artifact(self, artifact: Artifact) -> None:
        """See `Transaction`."""
        self._facts.artifacts[artifact.id] = self._facts.live_artifacts[artifact.key] = artifact
        self._inserted[artifact.id] = artifact

    def delete_artifact(self, id: str) -> None:
        """See `Transaction`."""
        deleted = self._facts.artifacts[id].replace(deleted_at=self.now)
        self._facts.artifacts[id] = deleted
        self._facts.live_artifacts.pop(deleted.key, None)
        if id in self._inserted:
            self._inserted[id] = deleted
        else:
            self._deleted.add(id)

    def append(self, batches: Sequence[Sequence[EventRow]]) -> list[list[Event]]:
        """See `Transaction`."""
        appended: list[Event] = []
        answers: list[list[Event]] = []
        for batch in batches:
            answer: list[Event] = []
            for row in batch:
                event: Event = row[-1]
                known = self._stored.get(row[:2]) if self._careful else None
                if known is not None:
                    answer.append(own_copy(known))
                    continue
                if self._careful:
                    self._stored[row[:2]] = event
                self._place(row)
                appended.append(event)
                answer.append(event)
            answers.append(answer)
        if appended:
            self.effects.append(Appended(appended))
        return answers

    def _place(self, row: EventRow) -> None:
        """Give an event its number."""
        session_id, at, size = row[0], row[4], row[_SIZE]
        counter = self._facts.counters[session_id]
        self._first.setdefault(session_id, counter.last_sequence)
        counter.last_sequence += 1
        latest = counter.latest_timestamp
        later = latest if latest > at else None
        counter.latest_timestamp = later or at
        counter.largest_event = max(counter.largest_event, size)
        force_setattr(row[-1], "sequence_number", counter.last_sequence)
        self._events.append((row, counter.last_sequence, later))
        self._raised.add(session_id)

    def save_session(self, session: Session) -> None:
        """See `Transaction`."""
        row = session_row(session)
        self._sessions[session.id] = row
        self._facts.statuses[session.id] = row[2]
        self._facts.session_rows[session.id] = row[:-1]

    def save_run(self, run: Run) -> None:
        """See `Transaction`."""
        row = run_row(run)
        key = run.session_id, run.id
        known = self._facts.run(key)
        if known is None:
            position = self._facts.last_positions[run.session_id] + 1
            self._facts.last_positions[run.session_id] = position
        else:
            position = known.position
        self._set_run(key, stored_run(row[:-1], position))
        self._saved.add(key)
        self._sizes[key] = row[-1]
        self._moved.discard(key)

    def claim(self, run: Run) -> None:
        """See `Transaction`."""
        assert run.started_at is not None
        self._move(run.session_id, run.id, run.status, run.owner, run.attempt, text_of(run.started_at))

    def release(self, fence: Fence) -> bool:
        """See `Transaction`."""
        run = self._running(fence)
        if run is None or run.owner is None:
            return False
        self._move(fence.session_id, fence.run_id, run.status, None, run.attempt, run.started_at)
        return True

    def unclaim(self, fence: Fence) -> bool:
        """See `Transaction`."""
        run = self._running(fence)
        if run is None:
            return False
        self._move(fence.session_id, fence.run_id, RunStatus.PENDING, None, run.attempt, None)
        return True

    def _running(self, fence: Fence) -> StoredRun | None:
        run = self._facts.run((fence.session_id, fence.run_id))
        if run is None or (run.status, run.attempt) != (RunStatus.RUNNING, fence.attempt):
            return None
        return run

    def _move(
        self, session_id: str, run_id: str, status: str, owner: str | None, attempt: int, started: str | None
    ) -> None:
        key = session_id, run_id
        known = self._facts.runs[key]
        status = str.__str__(status)
        row = known.row
        if row is not None:
            row = (*row[:2], status, owner, attempt, *row[5:12], started, *row[13:])
        self._set_run(key, StoredRun(status, attempt, known.position, owner, started, row))
        if key not in self._saved:
            self._moved.add(key)

    def _set_run(self, key: Key, run: StoredRun) -> None:
        known = self._facts.run(key)
        was_running = known is not None and known.status == RunStatus.RUNNING
        if key[0] in self._facts.running:
            self._facts.running[key[0]] += (run.status == RunStatus.RUNNING) - was_running
        self._facts.runs[key] = run

    def run_changed(self, session_id: str, *, opened: int = 0) -> None:
        """See `Transaction`."""
        counter = self._facts.counters[session_id]
        assert counter.change is not None
        counter.run_revision = counter.change
        counter.open_runs = max(counter.open_runs + opened, 0)
        self._raised.add(session_id)
        self.effects.append(RunsChanged(session_id, counter.run_revision))

    def delete_session(self, session_id: str) -> bool:
        """See `Transaction`. Not here: see `removing`."""
        raise NotImplementedError

    def remove_left(self, session_id: str) -> bool:
        """See `Transaction`. Not here: see `removing`."""
        raise NotImplementedError

    # -- the end

    @property
    def changed(self) -> list[str]:
        """The sessions whose logs or runs have changed."""
        return list(self._raised)

    @property
    def has_written(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._raised or self._sessions or self._saved or self._moved) or bool(
            self._inserted or self._deleted
        )

    async def settle(self, connection: Connection) -> None:
        """Send what the requests have written: a constant number of statements."""
        if self._events:
            await self._insert_events(connection)
        if self._sessions:
            await connection.execute(statements.SAVE_SESSIONS, *_turned(self._sessions.values()))
        if self._saved:
            rows = [self._whole(key) for key in self._saved]
            await connection.execute(statements.SAVE_RUNS, *_turned(rows))
        if self._moved:
            moved = [(*key, self._facts.runs[key]) for key in self._moved]
            values = [(sid, rid, r.status, r.owner, r.attempt, r.started_at) for sid, rid, r in moved]
            await connection.execute(statements.MOVE_RUNS, *_turned(values))
        if self._raised:
            counters = [(id, self._facts.counters[id]) for id in sorted(self._raised)]
            raised = [
                (id, c.last_sequence, c.latest_timestamp, c.largest_event, c.run_revision, c.open_runs)
                for id, c in counters
            ]
            await connection.execute(statements.RAISE_COUNTERS, *_turned(raised))
        if self._deleted:
            await connection.execute(
                artifact_statements.DELETE_ARTIFACTS, text_of(self.now), list(self._deleted)
            )
        if self._inserted:
            rows = [artifact_row(artifact) for artifact in self._inserted.values()]
            await connection.execute(artifact_statements.INSERT_ARTIFACTS, *_turned(rows))
        unused = [
            id for id, counter in self._facts.counters.items() if counter.is_new and id not in self._raised
        ]
        if unused:  # they were made only to be locked
            await connection.execute(statements.DELETE_COUNTERS, unused)

    def _whole(self, key: Key) -> Row:
        run = self._facts.runs[key]
        assert run.row is not None
        return (*run.row, self._sizes[key], run.position)

    async def _insert_events(self, connection: Connection) -> None:
        in_the_way = [id for id in self._first if id in self._facts.removals]
        if in_the_way:
            heads = [(id, self._first[id], self._facts.counters[id].last_sequence) for id in in_the_way]
            await connection.execute(statements.REMOVE_EVENTS_IN_THE_WAY, *_turned(heads))
            ids = [
                (row[0], self._first[row[0]], row[1])
                for row, _, _ in self._events
                if row[0] in self._facts.removals
            ]
            await connection.execute(statements.REMOVE_EVENTS_OF_IDS, *_turned(ids))
        rows = [(*row[:-1], number, later) for row, number, later in self._events]
        await connection.execute(statements.INSERT_EVENTS, *_turned(rows))


def _turned(rows: Any) -> list[list[Any]]:
    """The columns of rows."""
    return [list(column) for column in zip(*rows, strict=True)]
