"""One write transaction: what its requests have in common, and what they leave behind.

The requests of a group run one after another in one transaction. Each checks first and then
writes: a refusal (an `AsmError`) leaves nothing written and fails alone. What they share, the
numbers of the logs and the record of what changed, is written once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from random import getrandbits
from typing import Any, Protocol, TypeAlias, cast

import msgspec
from msgspec.structs import force_setattr

from asm_runtime.payload import decode, encode
from asm_runtime.records import Event, Fence
from asm_runtime.stores import rules
from asm_runtime.stores.sql.rows import EVENT_COLUMNS, EventRow, events_of, own_copy
from asm_runtime.stores.sql.sqlite import statements
from asm_runtime.stores.sql.sqlite.insertion import INSERT_EVENT, INSERT_SIZES, insertion

__all__ = ["Appended", "Cursor", "Deleted", "Effect", "RunsChanged", "Transaction", "append_alone"]


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


class Appended(msgspec.Struct, frozen=True, gc=False):
    """New events are in the logs, in ascending order within each session."""

    events: list[Event]


class RunsChanged(msgspec.Struct, frozen=True, gc=False):
    """A run of the session, or the session's own status, has changed."""

    session_id: str
    revision: int


class Deleted(msgspec.Struct, frozen=True, gc=False):
    """The session is gone."""

    session_id: str


Effect: TypeAlias = "Appended | RunsChanged | Deleted"

Head: TypeAlias = tuple[int, str, int]
"""The latest number and time of a log, and the size of its largest event."""

_EMPTY: Head = (0, "", 0)

_SIZE = EVENT_COLUMNS.index("byte_size")

PORTION_EVENTS = 256
PORTION_BYTES = 1 << 20
"""How much one statement writes or answers: each holds a copy of it."""


def append_alone(cursor: Cursor, row: EventRow) -> int:
    """What a `Transaction` does whose only request is to append one event: most of a quiet store's.

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


class Transaction:
    """What the requests of one transaction share.

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
        self.removed = 0
        self.removed_bytes = 0
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

    def opened(self, session_id: str) -> int:
        """How many more of the session's runs are open than its counter says yet."""
        return self._revised.get(session_id, 0)

    def run_changed(self, session_id: str, *, opened: int = 0) -> None:
        """Note that a run of the session, or its own status, changes in this transaction.

        Args:
            session_id: Whose.
            opened: How many more runs are pending or running.
        """
        change = self._change
        if change is None:
            change = self._change = int(self.row(statements.NEXT_CHANGE)[0])
        self._revised[session_id] = self._revised.get(session_id, 0) + opened
        self.effects.append(RunsChanged(session_id, change))

    def deleted(self, session_id: str, *, existed: bool) -> None:
        """Note that the session is gone; what comes after begins anew."""
        self._heads[session_id] = _EMPTY
        self._raised.discard(session_id)
        self._revised.pop(session_id, None)
        if existed:
            self._deleted.add(session_id)
        self.effects.append(Deleted(session_id))

    def head(self, session_id: str) -> int:
        """The latest number of a log."""
        self._read_heads({session_id})
        return self._heads[session_id][0]

    def append(self, batches: Sequence[Sequence[EventRow]]) -> list[list[Event]]:
        """Number and insert events; returns, for each, the stored one.

        The events are the store's own copies, which nobody else holds yet: they get their numbers
        in place.
        """
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

    def fenced_runs(self, fences: Sequence[Fence]) -> dict[tuple[str, str], tuple[str, int]]:
        """Status and attempt of the runs that fences name, by session and run; what is missing, is not."""
        pairs = encode([(fence.session_id, fence.run_id) for fence in fences]).decode()
        found = decode(self.row(statements.FENCED_RUNS, pairs)[0])
        return {(session_id, run_id): (status, attempt) for session_id, run_id, status, attempt in found}

    def check_fence(self, fence: Fence | None) -> None:
        """See that a fence holds.

        Raises:
            LeaseLost: It does not.
        """
        if fence is not None:
            status, attempt = self.row(statements.RUN_STATUS, fence.session_id, fence.run_id) or (None, 0)
            rules.check_fence(fence, status, attempt)

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
            names = b"null"  # whoever waits reads again whatever it waits for
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
    """What whoever appends an event is told of: nobody else has it."""
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
