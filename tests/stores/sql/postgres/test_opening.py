"""Opening a store on a PostgreSQL server, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from asm_runtime.errors import MigrationRequired, StoreError, StoreUnavailable, ValidationError
from asm_runtime.records import Event
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql import version
from tests.stores.sql.postgres.conftest import Ask

SECRET = "hunter2"


@pytest.fixture
async def empty(postgres_url: str, ask: Ask) -> AsyncIterator[str]:
    """The URL of a schema without tables."""
    name = f"empty_{uuid4().hex[:8]}"
    await ask(f"CREATE SCHEMA {name}")
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}search_path={name}"
    await ask(f"DROP SCHEMA {name} CASCADE")


async def test_without_a_schema_it_says_what_is_missing_and_changes_nothing(empty: str, ask: Ask) -> None:
    for migrate in (None, False):
        with pytest.raises(MigrationRequired, match=r"missing.*asm-runtime migrate postgresql://") as refused:
            await SQLSessionStore(empty, migrate=migrate).start()
        assert refused.value.details == {"found": None, "needed": version.KNOWN[-1]}
    schema = empty.rpartition("=")[2]
    assert await ask("SELECT 1 FROM pg_tables WHERE schemaname = $1", schema) == []


async def test_stores_that_migrate_at_once_all_open(empty: str) -> None:
    async def open_and_append(index: int) -> int | None:
        async with SQLSessionStore(empty, migrate=True) as store:
            event = Event.new(type="custom", session_id="s", data={"index": index})
            return (await store.append_event_with_sequence(event)).sequence_number

    numbers = await asyncio.gather(*map(open_and_append, range(4)))
    assert sorted(number or 0 for number in numbers) == [1, 2, 3, 4]


async def test_a_schema_of_a_newer_release_is_refused(empty: str, ask: Ask) -> None:
    async with SQLSessionStore(empty, migrate=True):
        pass
    schema = empty.rpartition("=")[2]
    await ask(f"UPDATE {schema}.{version.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(MigrationRequired, match="9999, which this release does not know"):
        await SQLSessionStore(empty, migrate=True).start()


async def test_a_server_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    store = SQLSessionStore(f"postgresql://bob:{SECRET}@127.0.0.1:{unused_tcp_port}/db")
    with pytest.raises(StoreUnavailable) as refused:
        await store.start()
    assert SECRET not in f"{store!r} {refused.value!r} {vars(refused.value)}"


async def test_a_database_that_is_not_there_is_no_matter_of_waiting(postgres_url: str) -> None:
    url = urlsplit(postgres_url)._replace(path="/nosuch").geturl()
    with pytest.raises(StoreError, match="no such database") as refused:
        await SQLSessionStore(url).start()
    assert not refused.value.retryable


@pytest.mark.parametrize(
    ("option", "value"),
    [("synchronous", "FULL"), ("busy_timeout_ms", 1), ("read_only", True), ("pool_size", 0)],
)
def test_an_option_of_another_database_is_refused_by_name(option: str, value: Any) -> None:
    options: Any = {option: value}
    with pytest.raises(ValidationError, match=option):
        SQLSessionStore("postgresql://host/db", **options)


@pytest.mark.parametrize("rest", [f"bob:{SECRET}@host:port/db", f"bob:{SECRET}@[bad/db"])
def test_a_url_that_cannot_be_read_is_refused_without_its_password(rest: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SQLSessionStore(f"postgresql://{rest}")
    assert SECRET not in f"{refused.value!r} {vars(refused.value)}"
