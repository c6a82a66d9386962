"""What goes wrong below the store, and what its callers get."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from asm_runtime import Event, Run, Session
from asm_runtime.errors import StoreError, StoreUnavailable
from asm_runtime.ids import new_id
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import errors
from asm_runtime.stores.sql.sqlite.transaction import Cursor
from asm_runtime.testing.clock import JumpingClock
from tests.stores.sql.sqlite.inside import connections

ENDS_NO_STATEMENT = {"SQLITE_OK", "SQLITE_ROW", "SQLITE_DONE", "SQLITE_NOTICE", "SQLITE_WARNING"}


def primary_codes() -> set[str]:
    """The names of SQLite's primary result codes, as this Python knows them.

    The module has names of other things too, with numbers of the same size: those that begin like
    these, and those of the authoriser and of limits, which are no result codes.
    """
    others = ("SQLITE_LIMIT_", "SQLITE_CREATE_", "SQLITE_DROP_", "SQLITE_ALTER_")
    actions = {
        "ANALYZE", "ATTACH", "DELETE", "DENY", "DETACH", "FUNCTION", "IGNORE", "INSERT", "PRAGMA", "READ",
        "RECURSIVE", "REINDEX", "SAVEPOINT", "SELECT", "TRANSACTION", "UPDATE",
    }  # fmt: skip
    return {
        name
        for name in dir(sqlite3)
        if name.startswith("SQLITE_")
        and not name.startswith(others)
        and name.removeprefix("SQLITE_") not in actions
        and getattr(sqlite3, name) <= 0xFF
    }


def test_the_table_has_every_result_code_that_a_statement_can_end_with() -> None:
    assert set(errors.MEANINGS) == primary_codes() - ENDS_NO_STATEMENT


def test_an_extended_code_means_what_its_primary_one_does() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"
    made = errors.translated(error, "sqlite:///asm.db")
    assert type(made) is StoreUnavailable
    assert made.retryable
    assert made.__cause__ is error
    assert made.details == {"database": "sqlite:///asm.db", "sqlite_code": "SQLITE_IOERR_FSYNC"}


def test_an_error_without_a_code_is_the_drivers_own() -> None:
    made = errors.translated(sqlite3.ProgrammingError("Cannot operate on a closed database."), "x")
    assert type(made) is StoreError
    assert "closed database" in str(made)


@pytest.fixture
async def impatient(file: str) -> AsyncIterator[SQLSessionStore]:
    """A store that waits for no lock."""
    async with SQLSessionStore(f"sqlite:///{file}", busy_timeout_ms=0) as store:
        yield store


@pytest.fixture
async def other(impatient: SQLSessionStore, file: str) -> AsyncIterator[Any]:
    """Runs statements on another connection to the file."""
    connection = await asyncio.to_thread(sqlite3.connect, file, isolation_level=None, check_same_thread=False)

    async def execute(*statements: str) -> None:
        for statement in statements:
            await asyncio.to_thread(connection.execute, statement)

    yield execute
    connection.close()


def event(session_id: str = "s", **fields: Any) -> Event:
    return Event.new(type="custom", session_id=session_id, **fields)


async def test_writes_fail_while_another_connection_writes_and_reads_go_on(
    impatient: SQLSessionStore, other: Any
) -> None:
    (stored,) = await impatient.append_events([event()])
    await other("BEGIN IMMEDIATE", "DELETE FROM asm_events")
    with pytest.raises(StoreUnavailable, match="another connection held the database"):
        await impatient.append_event(event())
    assert await impatient.get_events("s") == [stored]
    await other("ROLLBACK")
    assert (await impatient.append_event_with_sequence(event())).sequence_number == 2


async def test_all_of_a_group_fail_while_the_database_is_locked(
    impatient: SQLSessionStore, other: Any
) -> None:
    await other("BEGIN IMMEDIATE")
    outcomes = await asyncio.gather(
        impatient.append_event(event()),
        impatient.save_session(Session.new(id="s", agent_id="a")),
        impatient.claim_run("s"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    await other("ROLLBACK")
    assert await impatient.get_latest_sequence("s") == 0


async def test_a_release_that_cannot_be_written_is_written_as_soon_as_it_can_be(file: str) -> None:
    clock = JumpingClock()
    async with SQLSessionStore(f"sqlite:///{file}", busy_timeout_ms=0, clock=clock) as store:
        await store.enqueue_run(Run.new(session_id="s", id="r"))
        claimed = await store.claim_run("s")
        assert claimed is not None
        connection = await asyncio.to_thread(
            sqlite3.connect, file, isolation_level=None, check_same_thread=False
        )
        await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await store.release_run(claimed.fence)
        assert await store.list_orphaned_runs() == []
        await asyncio.to_thread(connection.execute, "ROLLBACK")
        connection.close()
        while not (orphans := await store.list_orphaned_runs()):
            await clock.advance_ms(500)
        assert orphans == [claimed.replace(owner=None)]


async def test_a_full_disk_fails_the_request_that_needs_room_and_the_store_lives_on(
    store: SQLSessionStore,
) -> None:
    await store.append_event(event())

    def limit_pages(cursor: Cursor, more: int) -> None:
        cursor.execute("PRAGMA page_count")
        pages = cursor.fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count = {pages + more}")

    await connections(store).write(limit_pages, 2)
    outcomes = await asyncio.gather(
        store.append_event_with_sequence(event(id="before")),
        store.append_event_with_sequence(event(data={"large": "x" * 100_000})),
        store.append_event_with_sequence(event(id="after")),
        return_exceptions=True,
    )
    full = outcomes[1]
    assert isinstance(full, StoreUnavailable)
    assert "full" in str(full)
    assert isinstance(full.__cause__, sqlite3.Error)
    assert [
        outcome.sequence_number for outcome in (outcomes[0], outcomes[2]) if isinstance(outcome, Event)
    ] == [2, 3]
    await connections(store).write(limit_pages, 10_000)
    assert (await store.append_event_with_sequence(event())).sequence_number == 4


async def test_an_error_of_the_disk_at_a_read_is_translated(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR, "SQLITE_IOERR"
        raise error

    monkeypatch.setattr("asm_runtime.stores.sql.sqlite.reading.latest_sequence", fail)
    with pytest.raises(StoreUnavailable, match="the disk did not read or write"):
        await store.get_latest_sequence("s")


async def test_errors_of_the_file_system_are_translated(store: SQLSessionStore, file: str) -> None:
    await store.save_run(Run.new(session_id="s", id="r").replace(status="running", owner=new_id("nod_")))
    await asyncio.to_thread(shutil.rmtree, f"{file}-nodes")
    await asyncio.to_thread(Path(f"{file}-nodes").touch)
    for call in (store.claim_run("s"), store.list_orphaned_runs()):
        with pytest.raises(StoreUnavailable, match=r"Not a directory|File exists") as refused:
            await call
        assert isinstance(refused.value.__cause__, OSError)
    await store.append_event(event())


async def test_a_release_is_written_again_when_the_write_itself_failed(file: str) -> None:
    clock = JumpingClock()
    engine = await asyncio.to_thread(
        create_async_engine, f"sqlite+aiosqlite:///{file}", pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    async with SQLSessionStore(engine, clock=clock) as store, SQLSessionStore(f"sqlite:///{file}") as other:
        await store.enqueue_run(Run.new(session_id="s", id="r"))
        claimed = await store.claim_run("s")
        assert claimed is not None
        async with engine.connect():  # the application uses all of its pool
            with pytest.raises(StoreUnavailable, match="pool"):
                await store.release_run(claimed.fence)
            await clock.advance_ms(5_000)
        assert await other.list_orphaned_runs() == []
        while not (orphans := await other.list_orphaned_runs()):
            await clock.advance_ms(500)
        assert [run.id for run in orphans] == ["r"]
    await engine.dispose()


async def test_a_group_that_is_run_one_by_one_waits_for_a_lock_once(
    impatient: SQLSessionStore, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncio.to_thread(sqlite3.connect, file, isolation_level=None, check_same_thread=False)
    statements: list[str] = []
    is_busy = errors.ErrorTable.is_busy

    def taken(table: errors.ErrorTable, error: Exception) -> bool:
        """Asked when the group was refused: that is when another process takes the lock."""
        if not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")
        return is_busy(table, error)

    def prepare(cursor: Cursor) -> None:
        cursor.execute("PRAGMA page_count")
        cursor.execute(f"PRAGMA max_page_count = {cursor.fetchone()[0]}")
        cursor.connection.set_trace_callback(statements.append)  # type: ignore[attr-defined]  # sqlite3's

    await connections(impatient).write(prepare)
    monkeypatch.setattr(errors.ErrorTable, "is_busy", taken)
    outcomes = await asyncio.gather(
        *(impatient.append_event(event(data={"large": "x" * 20_000})) for _ in range(6)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 6
    assert {"locked" in str(outcome) for outcome in outcomes} == {True}
    assert sum(one.startswith("BEGIN") for one in statements) == 2  # the group, and the first alone
    connection.close()
