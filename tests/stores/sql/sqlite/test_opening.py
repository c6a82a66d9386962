"""Opening a database: what a URL means, what is refused, what it costs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import AssertionPool, NullPool, StaticPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from asm_runtime import Event
from asm_runtime.errors import ActorStopped, StoreError, StoreUnavailable, ValidationError
from asm_runtime.ids import new_id
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import opening
from asm_runtime.stores.sql.sqlite.nodes import Nodes
from tests.stores.sql.conftest import ROOT
from tests.stores.sql.sqlite.inside import connections


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"])
async def test_three_slashes_are_a_relative_path_and_four_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.chdir(tmp_path)
    async with SQLSessionStore(f"{scheme}:///a b%20c.db") as store:
        await store.append_event(Event.new(type="custom", session_id="s"))
        assert repr(store) == "<SQLSessionStore sqlite:///a b%20c.db>"
    async with SQLSessionStore(f"{scheme}:///{tmp_path}/a b%20c.db") as store:
        assert await store.get_latest_sequence("s") == 1


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
async def test_without_a_path_it_is_private_and_in_memory(url: str) -> None:
    async with SQLSessionStore(url) as one, SQLSessionStore(url) as other:
        await one.append_event(Event.new(type="custom", session_id="s"))
        assert await one.get_latest_sequence("s") == 1
        assert await other.get_latest_sequence("s") == 0


@pytest.mark.parametrize(
    "target", ["", "asm.db", "sqlite:asm.db", "sqlite://host/asm.db", "sqlite:///a.db?mode=ro", 7, None]
)
def test_what_names_no_database_is_refused(target: Any) -> None:
    with pytest.raises(ValidationError, match="url_or_engine must be"):
        SQLSessionStore(target)


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "mysql"])
def test_a_server_database_is_refused_by_name_without_its_password(scheme: str) -> None:
    with pytest.raises(ValidationError, match="this release has no store for") as refused:
        SQLSessionStore(f"{scheme}://user:secret@host/db")
    assert scheme in str(refused.value)
    assert "secret" not in str(refused.value) + str(refused.value.details)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("synchronous", "OFF"),
        ("migrate", "yes"),
        ("busy_timeout_ms", -1),
        ("busy_timeout_ms", 1.5),
        ("lease_ttl_ms", 0),
        ("pool_size", 8),
        ("connect_timeout_ms", 1),
        ("statement_timeout_ms", 1),
        ("mailbox_limit", 0),
    ],
)
def test_a_bad_option_is_refused_by_name(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValidationError, match=option):
        SQLSessionStore("sqlite://", **options)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        SQLSessionStore("sqlite://", sync="FULL")  # type: ignore[call-arg]  # that is the point


async def test_a_directory_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=f"there is no directory {tmp_path}/missing"):
        await SQLSessionStore(f"sqlite:///{tmp_path}/missing/asm.db").start()
    assert os.listdir(tmp_path) == []


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "asm.db"
    file.write_bytes(b"no database " * 400)
    with pytest.raises(StoreError, match=f"sqlite:///{file}: the file is no SQLite database"):
        await SQLSessionStore(f"sqlite:///{file}").start()


async def test_a_directory_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await SQLSessionStore(f"sqlite:///{tmp_path}").start()


async def test_after_a_failed_start_it_can_be_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    store = SQLSessionStore(f"sqlite:///{folder}/asm.db")
    with pytest.raises(StoreUnavailable):
        await store.start()
    with pytest.raises(ActorStopped):
        await store.list_sessions()
    folder.mkdir()
    async with store:
        assert await store.list_sessions() == []


async def test_a_start_that_is_cancelled_leaves_nothing_open(file: str) -> None:
    for turns in range(6):
        store = SQLSessionStore(f"sqlite:///{file}")
        starting = asyncio.create_task(store.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        async with store:
            assert await store.list_sessions() == []
    assert [name for name in os.listdir(f"{file}-nodes") if name.startswith("nod_")] == []


async def test_a_file_is_in_wal_mode_and_synchronous_as_asked(file: str) -> None:
    for synchronous, number in (("FULL", 2), ("NORMAL", 1)):
        async with SQLSessionStore(f"sqlite:///{file}", synchronous=synchronous) as store:
            assert await _pragma(store, "journal_mode") == "wal"
            assert await _pragma(store, "synchronous") == number
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        assert await _pragma(store, "synchronous") == 2


async def _pragma(store: SQLSessionStore, name: str) -> Any:
    def ask(cursor: Any) -> Any:
        return cursor.execute(f"PRAGMA {name}").fetchone()[0]

    return await connections(store).write(ask)


async def test_a_file_of_an_application_in_another_mode_gets_our_tables_beside_its_own(file: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE of_the_application (id)")
    connection.close()
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        assert await _pragma(store, "journal_mode") == "wal"
    connection = sqlite3.connect(file)
    assert connection.execute("SELECT count(*) FROM of_the_application").fetchone() == (0,)
    connection.close()


async def test_an_opener_that_finds_others_at_it_for_too_long_gives_up(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "OPENING_TIMEOUT_MS", 0)
    await asyncio.to_thread(Path(file).touch)
    other = Nodes(file, new_id("nod_")).opening(0)
    await asyncio.to_thread(other.__enter__)
    store = SQLSessionStore(f"sqlite:///{file}")
    with pytest.raises(StoreUnavailable, match="another process"):
        await store.start()
    await asyncio.to_thread(other.__exit__, None, None, None)
    async with store:
        assert await store.list_sessions() == []


def test_opening_a_database_that_is_up_to_date_loads_neither_sqlalchemy_nor_alembic(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from asm_runtime.ids import new_id
from asm_runtime.stores import SQLSessionStore

async def main():
    async with SQLSessionStore("sqlite:///{tmp_path}/asm.db"):
        pass
    print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"sqlalchemy", "alembic"}}))

asyncio.run(main())
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert said == ["['alembic', 'sqlalchemy']\n", "[]\n"]


async def test_an_engine_is_shared_and_left_open(file: str) -> None:
    engine = await asyncio.to_thread(create_async_engine, f"sqlite+aiosqlite:///{file}")
    async with SQLSessionStore(engine) as store:
        await store.append_event(Event.new(type="custom", session_id="s"))
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT count(*) FROM asm_events")
        assert found.scalar() == 1
    await engine.dispose()


async def test_an_engine_of_another_kind_is_refused(file: str) -> None:
    engine = await asyncio.to_thread(create_engine, f"sqlite:///{file}")
    with pytest.raises(ValidationError, match="url_or_engine must be a URL or an AsyncEngine"):
        SQLSessionStore(engine)  # type: ignore[arg-type]  # that is the point


async def test_an_engine_and_a_url_share_one_file(file: str) -> None:
    engine = await asyncio.to_thread(create_async_engine, f"sqlite+aiosqlite:///{file}")
    async with SQLSessionStore(engine) as one, SQLSessionStore(f"sqlite:///{file}") as other:
        waiting = asyncio.create_task(one.get_events("s", wait_timeout_ms=60_000))
        (stored,) = await other.append_events([Event.new(type="custom", session_id="s")])
        assert await waiting == [stored]
    await engine.dispose()


async def test_an_engine_that_has_one_connection_for_everybody_is_refused_for_a_file(file: str) -> None:
    for pool in (StaticPool, AssertionPool):
        engine = await asyncio.to_thread(create_async_engine, f"sqlite+aiosqlite:///{file}", poolclass=pool)
        with pytest.raises(ValidationError, match="more than one connection"):
            await SQLSessionStore(engine).start()
        await engine.dispose()


async def test_in_memory_an_engine_must_have_one_connection_for_everybody() -> None:
    engine = await asyncio.to_thread(create_async_engine, "sqlite+aiosqlite://", poolclass=NullPool)
    with pytest.raises(ValidationError, match="StaticPool"):
        await SQLSessionStore(engine).start()
    await engine.dispose()


async def test_reads_beside_writes_on_one_connection_roll_nothing_back() -> None:
    engine = await asyncio.to_thread(create_async_engine, "sqlite+aiosqlite://")
    async with SQLSessionStore(engine) as store:

        async def read() -> None:
            for _ in range(20):
                await store.get_latest_sequence("s")

        async def append() -> list[Event]:
            return await store.append_events([Event.new(type="custom", session_id="s") for _ in range(200)])

        stored, _, _ = await asyncio.gather(append(), read(), read())
        assert await store.get_events("s") == stored
    await engine.dispose()


async def test_what_is_no_engine_is_refused_without_loading_one(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["sqlalchemy"] = None
from asm_runtime.errors import ValidationError
from asm_runtime.stores import SQLSessionStore
from pathlib import Path
from tests.stores.sql.sqlite.inside import connections
try:
    SQLSessionStore(Path("{tmp_path}/asm.db"))
except ValidationError as refused:
    print(refused)
"""
    said = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert "url_or_engine must be a URL or an AsyncEngine" in said.stdout, said.stderr


def test_a_path_that_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cannot be encoded"):
        SQLSessionStore(f"sqlite:///{tmp_path}/\ud800.db")
