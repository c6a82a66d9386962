"""One write transaction: what its requests have in common, and what they leave behind.

The requests of a group run one after another in one transaction. Each checks first and then
writes: a refusal (an `AsmError`) leaves nothing written and fails alone. What they share, the
numbers of the logs and the record of what changed, is written once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from random import getrandbits
from typing import Any, Protocol, TypeAlias, cast

from msgspec.structs import force_setattr

from asm_runtime.payload import decode, encode
from asm_runtime.records import Artifact, Event, Fence, Run, Session
from asm_runtime.stores.sql.outcome import Appended, Deleted, Effect, RunsChanged
from asm_runtime.stores.sql.rows import (
    EVENT_COLUMNS,
    EventRow,
    Row,
    artifact_of,
    artifact_row,
    events_of,
    own_copy,
    run_of,
    run_row,
    session_of,
    session_row,
    text_of,
)
from asm_runtime.stores.sql.sqlite import artifact_statements, statements
from asm_runtime.stores.sql.sqlite.insertion import INSERT_EVENT, INSERT_SIZES, insertion

__all__ = ["Cursor", "SQLiteTransaction", "append_alone"]


class Cursor(Protocol):
    """What both drivers offer: sqlite3's cursor, and SQLAlchemy's over aiosqlite."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Any:
        """Run a statement."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """The rows that are left."""
        ...

    @property
    def rowcount(self) -> int:
        """How many rows the last statement changed."""
        ...

    @property
    def lastrowid(self) -> int | None:
        """The number of the row that the last statement inserted."""
        ...


MAX_CHANGE_BYTES = 4096
"""How long the list of sessions may be that a commit tells others of, some hundred of them: what
the change feed keeps is bounded in bytes."""


Head: TypeAlias = tuple[int, str, int]
"""The latest number and time of a log, and the size of its largest event."""

_EMPTY: Head = (0, "", 0)

_SIZE = EVENT_COLUMNS.index("byte_size")

PORTION_EVENTS = 256
PORTION_BYTES = 1 << 20
"""How much one statement writes or answers: each holds a copy of it."""


REMOVED_AT_ONCE = 500
BYTES_REMOVED_AT_ONCE = 4 * 1024 * 1024
"""How many events and runs of deleted sessions one transaction removes, and how large ones. About 10 ms."""


def append_alone(cursor: Cursor, row: EventRow) -> int:
    """What a `SQLiteTransaction` does whose only request is to append one event: most of a quiet store's.

    Returns:
        The number of the change.
    """
    session_id, at, size = row[0], row[4], row[_SIZE]
    cursor.execute(statements.HEAD, (session_id,))
    number, latest, largest = cursor.fetchone() or _EMPTY
    number += 1
    later = latest if latest > at else None
    force_setattr(row[-1], "sequence_number", number)
    cursor.execute(INSERT_EVENT, (*row[:-1], number, later))
    head = number, later or at, max(size, largest)
    cursor.execute(statements.RAISE_COUNTER, (session_id, *head, getrandbits(62), 0, 0))
    cursor.execute(statements.RECORD_CHANGE, (None, encode([session_id]).decode()))
    return cast(int, cursor.lastrowid)


class SQLiteTransaction:
    """The `Transaction` of a cursor.

    Args:
        cursor: Of a connection on which a write transaction has begun.
        node_id: Of the store that writes.
        now: The time of the transaction.
        careful: Look for duplicates before inserting. Without it an insert of an event that is
            stored already fails with an integrity error, and the group is run again with it: ids
            are new almost always, and the look-up would cost as much as the insert.
    """

    def __init__(self, cursor: Cursor, *, node_id: str, now: datetime, careful: bool) -> None:
        self.cursor = cursor
        self.node_id = node_id
        self.now = now
        self.effects: list[Effect] = []
        self.wrote = False
        """Whether there is anything to commit."""
        self._removed = 0
        self._removed_bytes = 0
        """How many rows of deleted sessions it has removed, and how large ones."""
        self._careful = careful
        self._heads: dict[str, Head] = {}
        self._raised: set[str] = set()
        self._revised: dict[str, int] = {}
        """Sessions whose runs have changed, and how many more are open."""
        self._deleted: set[str] = set()
        self._change: int | None = None

    def row(self, statement: str, *parameters: Any) -> Any:
        """The first row of a question, or None."""
        self.cursor.execute(statement, parameters)
        return self.cursor.fetchone()

    def write(self, statement: str, parameters: Sequence[Any]) -> int:
        """Run a statement that writes; returns how many rows it changed."""
        self.cursor.execute(statement, parameters)
        changed = self.cursor.rowcount
        self.wrote = self.wrote or changed > 0
        return changed

    def run_changed(self, session_id: str, *, opened: int = 0) -> None:
        """See `Transaction`."""
        change = self._change
        if change is None:
            change = self._change = int(self.row(statements.NEXT_CHANGE)[0])
        self._revised[session_id] = self._revised.get(session_id, 0) + opened
        self.effects.append(RunsChanged(session_id, change))

    def _deleted_now(self, session_id: str, *, existed: bool) -> None:
        """Note that the session is gone; what comes after starts again."""
        self._heads[session_id] = _EMPTY
        self._raised.discard(session_id)
        self._revised.pop(session_id, None)
        if existed:
            self._deleted.add(session_id)
        self.effects.append(Deleted(session_id))

    def append(self, batches: Sequence[Sequence[EventRow]]) -> list[list[Event]]:
        """See `Transaction`."""
        rows = [row for batch in batches for row in batch]
        self._read_heads({row[0] for row in rows})
        stored: dict[tuple[Any, ...], Event] | None = None
        if self._careful:
            stored = self._stored(batches)
            self._make_room(batches)
            rows = [row for row in rows if stored.setdefault(row[:2], row[-1]) is row[-1]]
        if rows:
            self._insert(rows, *self._placed(rows))
            self._raised.update([row[0] for row in rows])
            self.effects.append(Appended([row[-1] for row in rows]))
        if stored is None:
            return [[row[-1] for row in batch] for batch in batches]
        return [[_own(row[-1], stored[row[:2]]) for row in batch] for batch in batches]

    def _placed(self, rows: Sequence[EventRow]) -> tuple[list[int], list[str | None]]:
        """Give events their numbers; what `insertion` has to know besides their rows."""
        heads = self._heads
        numbers: list[int] = []
        laters: list[str | None] = []
        for row in rows:
            session_id, at, size = row[0], row[4], row[_SIZE]
            number, latest, largest = heads[session_id]
            number += 1
            later = latest if latest > at else None
            heads[session_id] = number, later or at, size if size > largest else largest
            force_setattr(row[-1], "sequence_number", number)
            numbers.append(number)
            laters.append(later)
        return numbers, laters

    def session_status(self, session_id: str) -> str | None:
        """See `Transaction`."""
        row = self.row(statements.SESSION_STATUS, session_id)
        return None if row is None else row[0]

    def stored_session(self, session_id: str) -> Session | None:
        """See `Transaction`."""
        row = self.row(statements.SESSION_ROW, session_id)
        return None if row is None else session_of(row)

    def run_state(self, session_id: str, run_id: str) -> tuple[str, int] | None:
        """See `Transaction`."""
        state: tuple[str, int] | None = self.row(statements.RUN_STATUS, session_id, run_id)
        return state

    def run_states(self, fences: Sequence[Fence]) -> dict[tuple[str, str], tuple[str, int]]:
        """See `Transaction`."""
        pairs = encode([(fence.session_id, fence.run_id) for fence in fences]).decode()
        found = decode(self.row(statements.FENCED_RUNS, pairs)[0])
        return {(session_id, run_id): (status, attempt) for session_id, run_id, status, attempt in found}

    def stored_run(self, session_id: str, run_id: str) -> Run | None:
        """See `Transaction`."""
        row = self.row(statements.GET_RUN, session_id, run_id)
        return None if row is None else run_of(row)

    def open_runs(self, session_id: str) -> int:
        """See `Transaction`."""
        count: int = self.row(statements.OPEN_RUNS, session_id)[0]
        return count + self._revised.get(session_id, 0)

    def before_enqueue(self, run: Run) -> tuple[str | None, int, Run | None]:
        """See `Transaction`."""
        status, open_runs, *columns = self.row(statements.ENQUEUE_FACTS, run.session_id, run.id)
        known = None if columns[0] is None else run_of(columns)
        return status, open_runs + self._revised.get(run.session_id, 0), known

    def before_claim(
        self, session_id: str, max_running: int, run_id: str | None
    ) -> tuple[str | None, int, Row] | None:
        """See `Transaction`."""
        if run_id is None:
            facts = self.row(statements.CLAIM_FIRST_FACTS, session_id, max_running)
        else:
            facts = self.row(statements.CLAIM_ONE_FACTS, session_id, max_running, run_id)
        return None if facts is None else (facts[0], facts[1], facts[2:])

    def artifact(self, id: str) -> Artifact | None:
        """See `Transaction`."""
        row = self.row(artifact_statements.ARTIFACT_OF_ID, id)
        return None if row is None else artifact_of(row)

    def live_artifact(self, key: str) -> Artifact | None:
        """See `Transaction`."""
        row = self.row(artifact_statements.LIVE_ARTIFACT, key)
        return None if row is None else artifact_of(row)

    def insert_artifact(self, artifact: Artifact) -> None:
        """See `Transaction`."""
        self.write(artifact_statements.INSERT_ARTIFACT, artifact_row(artifact))

    def delete_artifact(self, id: str) -> None:
        """See `Transaction`."""
        self.write(artifact_statements.DELETE_ARTIFACT, (text_of(self.now), id))

    def save_session(self, session: Session) -> None:
        """See `Transaction`."""
        self.write(statements.SAVE_SESSION, session_row(session))

    def save_run(self, run: Run) -> None:
        """See `Transaction`."""
        self.write(statements.SAVE_RUN, run_row(run))

    def claim(self, run: Run) -> None:
        """See `Transaction`."""
        assert run.started_at is not None
        self.write(
            statements.CLAIM_RUN, (run.owner, run.attempt, text_of(run.started_at), run.session_id, run.id)
        )

    def release(self, fence: Fence) -> bool:
        """See `Transaction`."""
        return self.write(statements.RELEASE_RUN, (fence.session_id, fence.run_id, fence.attempt)) > 0

    def unclaim(self, fence: Fence) -> bool:
        """See `Transaction`."""
        return self.write(statements.UNCLAIM_RUN, (fence.session_id, fence.run_id, fence.attempt)) > 0

    def delete_session(self, session_id: str) -> bool:
        """See `Transaction`."""
        gone = sum(self.write(statement, (session_id,)) for statement in statements.DELETE_SESSION)
        left = self.row(statements.LEFT_BEHIND, session_id)
        has_left = any(last is not None for last in left)
        self._deleted_now(session_id, existed=gone > 0 or has_left)
        if not has_left:
            return True
        self.write(statements.BEGIN_REMOVAL, (session_id, *(last or 0 for last in left)))
        return self.remove_left(session_id)

    def remove_left(self, session_id: str) -> bool:
        """See `Transaction`."""
        row = self.row(statements.REMOVAL, session_id)
        if row is None:
            return True
        last_sequence, last_position = row
        self._read_heads({session_id})
        events = session_id, self._heads[session_id][0], last_sequence
        runs = session_id, 0, last_position
        if not (
            self._remove_first(statements.REMOVED_EVENT_SIZES, statements.REMOVE_EVENTS, events)
            and self._remove_first(statements.REMOVED_RUN_SIZES, statements.REMOVE_RUNS, runs)
        ):
            return False
        self.write(statements.END_REMOVAL, (session_id,))
        return True

    def _remove_first(self, sizes_of: str, remove: str, interval: tuple[str, int, int]) -> bool:
        """Remove the first rows of an interval, as many as the transaction may; whether those were all."""
        count = REMOVED_AT_ONCE - self._removed
        room = BYTES_REMOVED_AT_ONCE - self._removed_bytes
        if count <= 0:
            return False
        sizes: list[int] = decode(self.row(sizes_of, *interval, count)[0])
        fitting = sum(used <= room for used in accumulate(sizes))
        if not self._removed:
            fitting = max(fitting, 1)  # one that is larger goes alone
        if fitting and sizes:
            self.write(remove, (*interval, fitting))
            self._removed += fitting
            self._removed_bytes += sum(sizes[:fitting])
        return len(sizes) <= fitting and len(sizes) < count

    def settle(self) -> int | None:
        """Write what the requests have in common.

        Returns:
            The number of this change; None: nothing has changed that others wait for.
        """
        revised, heads, revision = self._revised, self._heads, self._change or 0
        changed = list(self._raised | revised.keys() if revised else self._raised)
        counters = [
            (
                session_id,
                *heads.get(session_id, _EMPTY),
                getrandbits(62),
                revision if session_id in revised else 0,
                revised.get(session_id, 0),
            )
            for session_id in changed
        ]
        if len(counters) == 1:
            self.write(statements.RAISE_COUNTER, counters[0])
        elif counters:
            self.write(statements.RAISE_COUNTERS, (encode(counters).decode(),))
        changed += self._deleted.difference(changed)
        if not changed:
            return None
        names = encode(changed)
        if len(names) > MAX_CHANGE_BYTES:
            names = b"null"  # those who wait read again
        # Without a number it gets the next one.
        self.write(statements.RECORD_CHANGE, (self._change, names.decode()))
        return self.cursor.lastrowid

    def _read_heads(self, session_ids: set[str]) -> None:
        heads = self._heads
        unknown = session_ids.difference(heads)
        if len(unknown) == 1 and not self._careful:
            (session_id,) = unknown
            heads[session_id] = self.row(statements.HEAD, session_id) or _EMPTY
        elif unknown:
            statement = statements.REPAIRED_HEADS if self._careful else statements.HEADS
            heads.update(dict.fromkeys(unknown, _EMPTY))
            heads.update(decode(self.row(statement, encode(list(unknown)).decode())[0]))

    def _stored(self, batches: Sequence[Sequence[EventRow]]) -> dict[tuple[Any, ...], Event]:
        stored: dict[tuple[Any, ...], Event] = {}
        for portion in _portions([row for batch in batches for row in batch]):
            pairs = encode([row[:2] for row in portion]).decode()
            for event in events_of(self.row(statements.STORED_EVENTS, pairs)):
                if (event.sequence_number or 0) <= self._heads[event.session_id][0]:
                    stored[event.session_id, event.id] = event  # else it is being removed
        return stored

    def _make_room(self, batches: Sequence[Sequence[EventRow]]) -> None:
        """Remove what is in the way of new events of the log of a deleted session."""
        ids: dict[str, list[str]] = {}
        for batch in batches:
            for row in batch:
                ids.setdefault(row[0], []).append(row[1])
        for session_id in decode(self.row(statements.REMOVALS_OF, encode(list(ids)).decode())[0]):
            head, new = self._heads[session_id][0], ids[session_id]
            self.write(statements.REMOVE_EVENTS, (session_id, head, head + len(new), len(new)))
            self.write(statements.REMOVE_EVENTS_OF_IDS, (session_id, head, encode(new).decode()))

    def _insert(self, rows: Sequence[EventRow], numbers: Sequence[int], later: Sequence[str | None]) -> None:
        self.wrote = True
        count, done = len(rows), 0
        # How many such events have as many bytes as one statement should hold.
        room = max(1, PORTION_BYTES * count // (sum([row[_SIZE] for row in rows]) + 1))
        for size in INSERT_SIZES:
            while size <= room and count - done >= size:
                end = done + size
                self.cursor.execute(*insertion(rows[done:end], numbers[done:end], later[done:end]))
                done = end


def _own(event: Event, stored: Event) -> Event:
    """What the appender of an event is told of: nobody else has it."""
    return stored if stored is event else own_copy(stored)


def _portions(rows: Sequence[EventRow]) -> Iterator[list[EventRow]]:
    """Rows of events, few enough and small enough at a time."""
    portion: list[EventRow] = []
    byte_size = 0
    for row in rows:
        portion.append(row)
        byte_size += row[_SIZE]
        if len(portion) == PORTION_EVENTS or byte_size > PORTION_BYTES:
            yield portion
            portion, byte_size = [], 0
    if portion:
        yield portion
