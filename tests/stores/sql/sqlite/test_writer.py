"""What the writer says of a group besides its results."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from asm_runtime import Event, Run
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.rows import event_row
from asm_runtime.stores.sql.sqlite import changes, opening, writer
from asm_runtime.stores.sql.sqlite.writer import Groups
from tests.stores.sql.sqlite.inside import database


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """To a database in memory, with our tables."""
    with closing(opening.connect(":memory:", 0)) as connection:
        opening.upgrade_on(connection)
        yield connection


class Slow:
    """A cursor on which each statement takes a second, and a commit as long as it is told."""

    def __init__(self, connection: sqlite3.Connection, commit_seconds: float) -> None:
        self._cursor = connection.cursor()
        self._commit_seconds = commit_seconds
        self.now = 0.0

    def execute(self, sql: str, parameters: Any = ()) -> None:
        self._cursor.execute(sql, parameters)
        self.now += self._commit_seconds if sql == "COMMIT" else 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


@pytest.mark.parametrize(("commit_seconds", "sync_bound"), [(100.0, True), (0.1, False)])
def test_a_disk_that_is_slow_to_sync_is_told_from_one_that_is_not(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, commit_seconds: float, sync_bound: bool
) -> None:
    cursor: Any = Slow(connection, commit_seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: cursor.now)
    rows = [event_row(Event.new(type="custom", session_id="s")) for _ in range(3)]
    requests = [(operations.append, ([row], None)) for row in rows]
    outcome = Groups(name="d", node_id="n").run(cursor, requests, datetime(2024, 1, 1, tzinfo=UTC))
    assert (outcome.commits, outcome.sync_bound) == (1, sync_bound)


async def test_where_the_disk_is_slow_to_sync_a_large_group_is_one_transaction(file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        await store.append_event(Event.new(type="custom", session_id="s"))
        parts: list[int] = []
        write = database(store).writer.groups.run

        def counted(cursor: Any, requests: Any, now: datetime) -> Any:
            parts.append(len(requests))
            outcome = write(cursor, requests, now)
            outcome.sync_bound = True
            return outcome

        database(store).writer.groups.run = counted  # type: ignore[method-assign]
        for _ in range(2):
            await store.append_event(Event.new(type="custom", session_id="s"))
        parts.clear()
        await asyncio.gather(
            *(store.append_event(Event.new(type="custom", session_id="s")) for _ in range(100))
        )
        assert parts == [100]


def test_who_has_missed_more_changes_than_are_kept_is_told_that_anything_may_have_changed(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "FORGET_EVERY", 4)
    monkeypatch.setattr(writer, "FORGET_EVERY", 4)
    monkeypatch.setattr(changes, "KEPT_CHANGES", 8)
    cursor = connection.cursor()
    mine, others = Groups(name="d", node_id="mine"), Groups(name="d", node_id="others")

    def append(groups: Groups, session_id: str) -> list[str] | None:
        request = operations.append, ([event_row(Event.new(type="custom", session_id=session_id))], None)
        return groups.run(cursor, [request], datetime(2024, 1, 1, tzinfo=UTC)).foreign

    assert append(mine, "s") is None  # who looks for the first time knows nothing
    append(others, "a")
    append(others, "b")
    assert sorted(append(mine, "s") or ()) == ["a", "b"]
    assert append(mine, "s") == []
    append(others, "a")
    for _ in range(20):
        append(others, "b")
    assert append(mine, "s") is None
    append(others, "b")
    nothing = operations.claim_run, ("s", None, None)  # a group that changes nothing looks too
    assert mine.run(cursor, [nothing], datetime(2024, 1, 1, tzinfo=UTC)).foreign == ["b"]


def test_a_session_appended_to_and_deleted_in_one_group_leaves_nothing(
    connection: sqlite3.Connection,
) -> None:
    rows = [event_row(Event.new(type="custom", session_id="s")) for _ in range(3)]
    run = Run.new(session_id="s")
    requests: list[Any] = [
        (operations.append, (rows, None)),
        (operations.enqueue_run, (run, None)),
        (operations.delete_session, ("s",)),
    ]
    cursor = connection.cursor()
    outcome = Groups(name="d", node_id="n").run(cursor, requests, datetime(2024, 1, 1, tzinfo=UTC))
    assert outcome.results[1:] == [run, True]
    for table in ("asm_events", "asm_runs", "asm_session_sequences", "asm_removals"):
        assert cursor.execute(f"SELECT * FROM {table}").fetchall() == []
