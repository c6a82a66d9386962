"""A SQLite database behind an application's own AsyncEngine, whose pool is shared."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import weakref
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from asm_runtime import options
from asm_runtime.errors import StoreError, StoreUnavailable
from asm_runtime.stores.sql import errors, version
from asm_runtime.stores.sql.nodes import Nodes
from asm_runtime.stores.sql.opening import connect, prepare_file
from asm_runtime.stores.sql.transaction import Cursor

__all__ = ["EngineDatabase"]

BUSY_TIMEOUT_MS = 10_000
"""How long the preparation of a file waits for locks of others; later the engine's own setting holds."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class EngineDatabase:
    """Runs jobs on connections from the engine's pool, on the driver's cursor underneath.

    A connection is taken for a job and given back after it. Where the pool has one connection for
    everybody (a database in memory), jobs take turns, and the application must not keep a
    transaction open on it.

    Args:
        engine: On `sqlite+aiosqlite`. It is never disposed.
        migrate: Whether to bring the schema up to date.

    Raises:
        ValidationError: It is no such engine.
    """

    def __init__(self, engine: Any, *, migrate: bool) -> None:
        if not isinstance(engine, AsyncEngine):
            raise options.refused("url_or_engine", engine, "a URL or an AsyncEngine")
        if (engine.dialect.name, engine.dialect.driver) != ("sqlite", "aiosqlite"):
            raise options.refused(
                "url_or_engine", engine, "an AsyncEngine on sqlite+aiosqlite, in this release"
            )
        self.name = str(engine.url)
        self.is_shared = True
        self._engine = engine
        self._migrate = migrate
        self._node_id: str | None = None
        self._nodes: Nodes | None = None
        self._writing = asyncio.Lock()
        self._reading: asyncio.Lock | None = None
        """In memory the one for writing: on its one connection, everything takes turns."""
        self._jobs: set[asyncio.Task[Any]] = set()

    async def open(self, node_id: str) -> None:
        """See `Database`."""
        self._node_id = node_id
        path = await self._run(None, _on_cursor, _path, ())
        try:
            if path:
                await asyncio.to_thread(self._join, path, node_id)
            else:
                _in_memory.add(node_id)
                self._reading = self._writing = _turns.setdefault(self._engine, self._writing)
                upgrade = await asyncio.to_thread(_loaded_upgrade)
                await self._run(self._writing, self._prepare_memory, upgrade)
        except sqlite3.Error as error:
            await self.close()
            raise errors.translated(error, self.name) from error
        except BaseException:
            await self.close()
            raise

    def _join(self, path: str, node_id: str) -> None:
        """Make the file ready, on a connection beside the engine's: it takes a lock and reads scripts."""
        nodes = Nodes(os.path.realpath(path))
        with closing(connect(path, BUSY_TIMEOUT_MS)) as connection:
            prepare_file(connection, self.name, nodes, migrate=self._migrate)
        nodes.join(node_id)
        self._nodes = nodes

    async def close(self) -> None:
        """See `Database`. The engine stays as it is."""
        while self._jobs:
            await asyncio.wait(self._jobs)
        if self._nodes is not None:
            await asyncio.to_thread(self._nodes.leave)
        _in_memory.discard(self._node_id)

    def close_soon(self) -> None:
        """See `Database`."""
        if self._nodes is not None:
            asyncio.get_running_loop().run_in_executor(None, self._nodes.leave)
        _in_memory.discard(self._node_id)

    async def write(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> T:
        """See `Database`."""
        return await self._run(self._writing, _on_cursor, job, args)

    async def read(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> T:
        """See `Database`."""
        return await self._run(self._reading, _on_cursor, job, args)

    async def dead(self, node_ids: list[str]) -> list[str]:
        """See `Database`."""
        if self._nodes is None:
            return [id for id in node_ids if id not in _in_memory]
        return await asyncio.to_thread(self._nodes.dead, node_ids)

    async def _run(self, turn: asyncio.Lock | None, job: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Run a job in a task of its own: a caller that is cancelled must not break the connection."""
        task = asyncio.get_running_loop().create_task(self._in_turn(turn, job, *args))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return await asyncio.shield(task)

    async def _in_turn(self, turn: asyncio.Lock | None, job: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        async with nullcontext() if turn is None else turn:
            return await self._on_connection(job, *args)

    async def _on_connection(self, job: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        try:
            async with self._engine.connect() as connection:
                return await connection.run_sync(job, *args)
        except sqlite3.Error as error:
            raise errors.translated(error, self.name) from error
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise errors.translated(error.orig, self.name) from error
            raise StoreError(f"{self.name}: {error}") from error
        except PoolTimeout as error:
            raise StoreUnavailable(f"{self.name}: the engine's pool has no connection: {error}") from error
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name}: {error}") from error

    def _prepare_memory(self, connection: Connection, upgrade: Callable[[Connection], None]) -> None:
        revision = _on_cursor(connection, version.found, ())
        if self._migrate and version.can_be_upgraded(revision):
            with connection.begin():
                upgrade(connection)
        else:
            version.check(revision, self.name)


_turns: weakref.WeakKeyDictionary[AsyncEngine, asyncio.Lock] = weakref.WeakKeyDictionary()
"""Whose turn it is on the connection of an engine in memory, shared by its stores."""

_in_memory: set[str | None] = set()
"""The nodes of this process whose databases are in memory."""


def _loaded_upgrade() -> Callable[[Connection], None]:
    """For a thread: Alembic and its scripts are read from the disk."""
    from asm_runtime.stores.sql import migrations

    migrations.load()
    return migrations.upgrade


def _path(cursor: Cursor) -> str:
    """The database's file; empty if it is in memory."""
    cursor.execute("PRAGMA database_list")
    path: str = cursor.fetchone()[2]
    return path


def _on_cursor(connection: Connection, job: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    raw = connection.connection.dbapi_connection
    assert raw is not None
    cursor: Any = raw.cursor()
    try:
        return job(cursor, *args)
    finally:
        cursor.close()
