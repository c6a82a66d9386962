"""The schema: its steps, its version, and an application that runs them itself."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    NullPool,
    StaticPool,
    create_engine,
    create_mock_engine,
    inspect,
)
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.ext.asyncio import create_async_engine

from asm_runtime.errors import MigrationRequired, ValidationError
from asm_runtime.records import Artifact, Event, Run, Session
from asm_runtime.stores import SQLSessionStore, migrations
from asm_runtime.stores.sql import migrations as steps
from asm_runtime.stores.sql import schema, version
from asm_runtime.stores.sql.migrations.versions import v0001_first_tables

TABLES = {
    "asm_sessions",
    "asm_runs",
    "asm_events",
    "asm_session_sequences",
    "asm_artifacts",
    "asm_nodes",
    "asm_removals",
    "asm_changes",
}


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def tables_of(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def shape_of(connection: Connection) -> dict[str, str]:
    found = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: sql for name, sql in found if not name.startswith(version.VERSION_TABLE)}


def test_the_steps_arrive_at_the_schema(connection: Connection) -> None:
    migrations.upgrade(connection)
    migrated = shape_of(connection)
    context = MigrationContext.configure(connection, opts={"version_table": version.VERSION_TABLE})
    assert compare_metadata(context, schema.metadata) == []
    fresh = create_engine("sqlite://", poolclass=StaticPool)
    with fresh.connect() as other:
        schema.metadata.create_all(other)
        assert shape_of(other) == migrated
    fresh.dispose()


def test_on_postgresql_the_steps_arrive_at_the_schema_too() -> None:
    def ddl(make: Callable[[MockConnection], object]) -> set[str]:
        made: set[str] = set()

        def note(statement: Any, *_: Any, **__: Any) -> None:
            made.add(" ".join(str(statement.compile(dialect=engine.dialect)).split()))

        engine = create_mock_engine("postgresql+asyncpg://", note)
        make(engine)
        return made

    def step(engine: MockConnection) -> None:
        context = MigrationContext(engine.dialect, None, {"as_sql": True, "output_buffer": io.StringIO()})
        context.impl._exec = lambda construct, **_: engine.execute(construct)  # type: ignore[method-assign]
        v0001_first_tables.upgrade(Operations(context))

    wanted = ddl(lambda engine: schema.metadata.create_all(engine, checkfirst=False))
    assert ddl(step) == wanted
    (events,) = (statement for statement in wanted if statement.startswith("CREATE TABLE asm_events"))
    assert 'session_id TEXT COLLATE "C" NOT NULL, sequence_number BIGINT NOT NULL' in events
    assert {statement.split()[-1] for statement in wanted if "INDEX asm_events_type" in statement} == {
        "'message_streamed'"
    }


def test_keys_of_sessions_runs_events_and_counters_begin_with_the_session() -> None:
    for table, session in (
        (schema.sessions, "id"),
        (schema.runs, "session_id"),
        (schema.events, "session_id"),
        (schema.session_sequences, "session_id"),
    ):
        keys = [list(table.primary_key), *(list(index.columns) for index in table.indexes if index.unique)]
        assert {columns[0].name for columns in keys} == {session}, table.name


def test_the_tables_have_the_origins_names_and_columns_named_like_the_records(connection: Connection) -> None:
    migrations.upgrade(connection)
    assert tables_of(connection) == TABLES | {version.VERSION_TABLE}
    columns = {
        table: {column["name"] for column in inspect(connection).get_columns(table)} for table in TABLES
    }
    assert columns["asm_sessions"] == set(Session.__struct_fields__) | {"byte_size"}
    assert columns["asm_runs"] == set(Run.__struct_fields__) | {"position", "byte_size"}
    assert columns["asm_events"] == set(Event.__struct_fields__) | {"later_timestamp", "byte_size"}
    assert columns["asm_artifacts"] == set(Artifact.__struct_fields__)


def test_the_revisions_written_down_are_those_of_the_scripts() -> None:
    script = ScriptDirectory(str(Path(steps.__file__).parent))
    assert [one.revision for one in reversed(list(script.walk_revisions()))] == list(version.KNOWN)
    assert script.get_heads() == [version.KNOWN[-1]]


def test_a_downgrade_to_the_base_leaves_no_table_of_ours(connection: Connection) -> None:
    migrations.upgrade(connection)
    migrations.downgrade(connection, "base")
    assert tables_of(connection) == {version.VERSION_TABLE}
    migrations.upgrade(connection)
    assert tables_of(connection) >= TABLES


def test_upgrading_twice_does_nothing_more(connection: Connection) -> None:
    migrations.upgrade(connection)
    before = shape_of(connection)
    migrations.upgrade(connection)
    assert shape_of(connection) == before


def test_an_unknown_revision_is_refused(connection: Connection) -> None:
    with pytest.raises(ValidationError, match="nowhere"):
        migrations.upgrade(connection, "nowhere")


def test_what_it_did_is_committed_or_rolled_back_with_the_callers_transaction(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        migrations.upgrade(connection)
        connection.rollback()
    with engine.connect() as connection:
        assert tables_of(connection) == set()
        migrations.upgrade(connection)
        connection.commit()
    with engine.connect() as connection:
        assert tables_of(connection) >= TABLES


def test_an_applications_own_migration_may_call_it_and_keeps_its_own_alembic(connection: Connection) -> None:
    """Alembic's global `op` belongs to the application's migration, before and after."""
    application = MigrationContext.configure(connection)
    with Operations.context(application):
        migrations.upgrade(op.get_bind())
        op.create_table("of_the_application", Column("id", Integer))
    assert tables_of(connection) >= TABLES | {"of_the_application"}
    assert "alembic_version" not in tables_of(connection)


async def test_a_store_that_may_not_migrate_says_what_is_missing_and_which_command_mends_it(
    file: str,
) -> None:
    with pytest.raises(MigrationRequired, match=r"missing.*asm-runtime migrate sqlite:///") as refused:
        await SQLSessionStore(f"sqlite:///{file}", migrate=False).start()
    assert refused.value.details == {"found": None, "needed": version.KNOWN[-1]}
    async with SQLSessionStore(f"sqlite:///{file}", migrate=True):
        pass
    async with SQLSessionStore(f"sqlite:///{file}", migrate=False) as store:
        assert await store.list_sessions() == []


async def test_a_schema_of_a_newer_release_is_refused_and_left_alone(file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}"):
        pass
    with sqlite3.connect(file) as connection:
        connection.execute(f"UPDATE {version.VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    with pytest.raises(MigrationRequired, match="9999, which this release does not know"):
        await SQLSessionStore(f"sqlite:///{file}").start()


async def test_an_older_schema_is_brought_up_to_date_or_refused(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLSessionStore(f"sqlite:///{file}"):
        pass
    monkeypatch.setattr(version, "KNOWN", (*version.KNOWN, "0002"))
    with pytest.raises(MigrationRequired, match="at revision 0001, older than 0002"):
        await SQLSessionStore(f"sqlite:///{file}", migrate=False).start()


async def test_an_engine_on_a_schema_that_it_may_not_migrate_is_refused(file: str) -> None:
    for url in (f"sqlite+aiosqlite:///{file}", "sqlite+aiosqlite://"):
        engine = await asyncio.to_thread(create_async_engine, url)
        with pytest.raises(MigrationRequired):
            await SQLSessionStore(engine, migrate=False).start()
        await engine.dispose()
