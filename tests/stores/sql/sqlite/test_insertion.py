"""How events get into the table: many in one statement, alone, and what is bound once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from asm_runtime import Event
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.outcome import Appended
from asm_runtime.stores.sql.rows import EVENT_COLUMNS, PLACED_COLUMNS, Row, drafted
from asm_runtime.stores.sql.sqlite import opening
from asm_runtime.stores.sql.sqlite.connections import MemoryConnections
from asm_runtime.stores.sql.sqlite.database import SQLiteDatabase
from asm_runtime.stores.sql.sqlite.insertion import INSERT_SIZES, SHARING, insert_events, insertion
from asm_runtime.stores.sql.sqlite.transaction import Cursor

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    connection = opening.connect(":memory:", 0)
    opening.upgrade_on(connection)
    yield connection
    connection.close()


def contents(cursor: Cursor, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
    cursor.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2")
    return cursor.fetchall()


def inserted(rows: list[Row]) -> tuple[str, list[Any]]:
    """The insertion of whole rows."""
    event = Event.new(type="custom", session_id="s")
    drafts = [(*row[:-PLACED_COLUMNS], event) for row in rows]
    return insertion(drafts, [row[-2] for row in rows], [row[-1] for row in rows])


@pytest.mark.parametrize("seed", range(20))
def test_every_row_arrives_whatever_it_shares_with_its_neighbours(
    database: sqlite3.Connection, seed: int
) -> None:
    random = Random(seed)
    differ = {name: random.random() < 0.4 for name in EVENT_COLUMNS}

    def value(name: str, number: int) -> Any:
        if name in ("schema_version", "byte_size", "sequence_number"):
            return number if name == "sequence_number" or differ[name] else 1
        if name in ("run_id", "provider", "correlation_id", "later_timestamp") and random.random() < 0.3:
            return None
        return f"{name} {number}" if name == "id" or differ[name] else name

    rows: list[Row] = [tuple(value(name, number) for name in EVENT_COLUMNS) for number in range(1, 100)]
    done = 0
    while done < len(rows):
        size = min(random.choice(INSERT_SIZES), len(rows) - done)
        database.execute(*inserted(rows[done : done + size]))
        done += size
    columns = ", ".join(EVENT_COLUMNS)
    assert sorted(contents(database.cursor(), "asm_events", columns), key=repr) == sorted(rows, key=repr)


def test_what_neighbours_share_is_bound_once() -> None:
    def row(number: int, **changes: Any) -> Row:
        fields: dict[str, Any] = dict.fromkeys(EVENT_COLUMNS, None)
        fields |= {"session_id": "s", "id": f"e{number}", "sequence_number": number, "data": f"{number}"}
        return tuple((fields | changes).values())

    alike = inserted([row(number) for number in range(64)])
    assert len(alike[1]) < 64 * 6
    for name in ("session_id", "run_id", "type", "provider", "metadata", "later_timestamp"):
        apart = inserted([*(row(number) for number in range(63)), row(63, **{name: "another"})])
        assert len(apart[1]) > len(alike[1])
        assert len(apart[1]) < 64 * len(EVENT_COLUMNS)
    few = inserted([row(number) for number in range(SHARING - 1)])
    assert len(few[1]) == (SHARING - 1) * len(EVENT_COLUMNS)


def test_the_sizes_of_inserts_end_at_one_and_fit_the_parameters_of_old_builds() -> None:
    assert INSERT_SIZES[-1] == 1
    assert sorted(INSERT_SIZES, reverse=True) == list(INSERT_SIZES)
    assert insert_events(max(INSERT_SIZES)).count("?") < 999


@pytest.mark.parametrize("seed", range(10))
async def test_an_event_that_is_appended_alone_leaves_what_one_in_a_batch_does(seed: int) -> None:
    random = Random(seed)
    log = [
        Event.new(
            type=random.choice(("custom", "message_streamed")),
            session_id=random.choice("st"),
            run_id=random.choice((None, "r")),
            timestamp=NOON + timedelta(seconds=random.randrange(9)),
            data={"a": "x" * random.randrange(50)},
        )
        for _ in range(30)
    ]
    tables: list[Any] = []
    numbers: list[Any] = []
    for size in (1, 30):
        database = SQLiteDatabase(MemoryConnections(), "n")
        await database.open(lambda _: None)
        stored: list[Event] = []
        for start in range(0, 30, size):
            rows = [drafted(event) for event in log[start : start + size]]
            outcome = await database.writer.write([(operations.append, (rows, None))], NOON)
            assert outcome.commits == 1
            (effect,) = outcome.effects
            assert isinstance(effect, Appended)
            assert effect.events == outcome.results[0]
            stored += outcome.results[0]
        numbers.append(stored)
        counters = "session_id, last_sequence, latest_timestamp, largest_event, run_revision, open_runs"
        tables.append(
            (
                await database.connections.read(contents, "asm_events"),
                await database.connections.read(contents, "asm_session_sequences", counters),
            )
        )
        await database.close()
    assert tables[0] == tables[1]
    assert numbers[0] == numbers[1]
