"""A SQLite database behind an application's own AsyncEngine, whose pool is shared."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import weakref
from collections.abc import Callable, Collection, Generator
from contextlib import closing, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import AssertionPool, Connection, StaticPool
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from asm_runtime import options
from asm_runtime.errors import DependencyMissing, StoreError, StoreUnavailable
from asm_runtime.stores.sql import version
from asm_runtime.stores.sql.sqlite import errors, forks
from asm_runtime.stores.sql.sqlite.files import DatabaseFiles
from asm_runtime.stores.sql.sqlite.nodes import Nodes
from asm_runtime.stores.sql.sqlite.opening import connect, is_ready, prepare_file, revision_of
from asm_runtime.stores.sql.sqlite.transaction import Cursor

__all__ = ["EngineConnections"]

BUSY_TIMEOUT_MS = 10_000
"""How long the preparation of a file waits for locks of others; later the engine's own setting holds."""

LOOK_SECONDS = 0.05
"""How often a write looks whether the file is still in its place: the look takes a thread."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class EngineConnections:
    """Runs jobs on connections from the engine's pool, on the driver's cursor underneath.

    A connection is taken for a job and given back after it. Of a database in memory the pool has one
    connection for everybody: jobs take turns, and the application must not use it meanwhile.

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
        if find_spec("greenlet") is None:
            raise DependencyMissing("an AsyncEngine needs greenlet: install sqlalchemy[asyncio]")
        self.name = str(engine.url)
        self.is_shared = True
        self._engine = engine
        self._migrate = migrate
        self._node_id: str | None = None
        self._nodes: Nodes | None = None
        """None: it is in memory."""
        self._files: DatabaseFiles | None = None
        self._writing = asyncio.Lock()
        self._reading: asyncio.Lock | None = None
        """In memory the one for writing: on its one connection, everything takes turns."""
        self._jobs: set[asyncio.Task[Any]] = set()
        self._working = forks.Working()

    @property
    def has_joined(self) -> bool:
        """See `Connections`."""
        return self._nodes is None or self._nodes.has_joined

    async def open(self, node_id: str, first: Callable[[Cursor], T]) -> T:
        """See `Connections`."""
        self._node_id = node_id
        forks.keep(self)
        await self._refuse_inherited()
        path = await self._run(None, self._opened_path)
        try:
            if path:
                self._nodes = Nodes(path, node_id)
                await self._in_thread(self._prepare_file, path, self._nodes)
            else:
                _in_memory.add(node_id)
                self._reading = self._writing = _turns.setdefault(self._engine, self._writing)
                upgrade = await asyncio.to_thread(_loaded_upgrade)
                await self._run(self._writing, self._prepare_memory, upgrade)
            return await self.read(first)
        except BaseException:
            await self.close()
            raise

    async def join(self) -> None:
        """See `Connections`."""
        if self._nodes is not None:
            await self._in_thread(self._nodes.join)

    async def close(self) -> None:
        """See `Connections`. The engine stays as it is."""
        while self._jobs:
            await asyncio.wait(self._jobs)
        if self._nodes is not None:
            await self._in_thread(self._nodes.leave)
        _in_memory.discard(self._node_id)

    def close_soon(self) -> None:
        """See `Connections`."""
        if self._nodes is not None:
            asyncio.get_running_loop().run_in_executor(None, self._nodes.leave)
        _in_memory.discard(self._node_id)

    def leave_to_parent(self) -> None:
        """See `forks.Inheritable`. The connections of aiosqlite are kept by the threads that are gone."""
        _inherited.add(self._engine)

    def write(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """See `Connections`."""
        return self._begun(self._writing, _on_cursor, job, args)

    async def read(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> T:
        """See `Connections`."""
        return await self._run(self._reading, _on_cursor, job, args)

    async def dead(self, node_ids: Collection[str]) -> Collection[str]:
        """See `Connections`."""
        if self._nodes is None:
            return [id for id in node_ids if id not in _in_memory]
        return await self._in_thread(self._nodes.dead, node_ids)

    def _prepare_file(self, path: str, nodes: Nodes) -> None:
        """On a connection beside the engine's: it takes a lock and reads scripts."""
        files = DatabaseFiles(path, self.name)
        files.before_connecting()
        with closing(connect(path, BUSY_TIMEOUT_MS)) as connection:
            ready = is_ready(connection.cursor(), self.name, migrate=self._migrate)
        if not ready:
            prepare_file(path, self.name, nodes, busy_timeout_ms=BUSY_TIMEOUT_MS)
        files.opened(with_log=False)  # which the pool may close and open again
        self._files = files

    async def _in_thread(self, job: Callable[[*Ts], T], *args: *Ts) -> T:
        """Do what may touch the disk."""

        def at_work() -> T:
            with self._working, errors.translating(self.name):
                return job(*args)

        return await asyncio.to_thread(at_work)

    async def _run(self, turn: asyncio.Lock | None, job: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Run a job; a caller that is cancelled does not break the connection."""
        return await asyncio.shield(self._begun(turn, job, *args))

    def _begun(
        self, turn: asyncio.Lock | None, job: Callable[[Connection, *Ts], T], *args: *Ts
    ) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(self._in_turn(turn, job, *args))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def _in_turn(self, turn: asyncio.Lock | None, job: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        async with nullcontext() if turn is None else turn:
            result = await self._on_connection(job, *args)
            if turn is self._writing and self._files is not None and not self._files.is_fresh(LOOK_SECONDS):
                await self._in_thread(self._files.check)
            return result

    async def _on_connection(self, job: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        with self._translating():
            async with self._engine.connect() as connection:
                return await connection.run_sync(job, *args)

    @contextmanager
    def _translating(self) -> Generator[None]:
        try:
            yield
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

    async def _refuse_inherited(self) -> None:
        """See that the engine's connections were not made before this process was forked.

        Raises:
            StoreError: They were, and have no threads here: whatever is asked of them, they do not answer.
        """
        await self._in_thread(forks.refuse_inherited, self._engine.url.database or "", self.name)
        left_behind = self._engine in _inherited
        if not left_behind:
            with self._translating():
                connection = await self._engine.connect()
                driver: Any = (await connection.get_raw_connection()).driver_connection
                thread = getattr(driver, "_thread", driver)  # up to aiosqlite 0.21 a connection is one itself
                left_behind = isinstance(thread, threading.Thread) and not thread.is_alive()
                if left_behind:
                    forks.never_free(connection)  # to give it back would be to ask it to roll back
                else:
                    await connection.close()
        if left_behind:
            raise StoreError(f"{self.name} was in use when this process was forked: {forks.REMEDY}")

    def _opened_path(self, connection: Connection) -> str:
        """The database's file; empty if it is in memory.

        Raises:
            ValidationError: The engine's pool cannot be shared.
        """
        path: str = _on_cursor(connection, _path, ())
        shares_one = isinstance(self._engine.pool, StaticPool | AssertionPool)
        if path and shares_one:
            # To give the connection back rolls back what others have begun on it.
            raise options.refused(
                "url_or_engine", self._engine, "an engine whose pool has more than one connection to a file"
            )
        if not path and not shares_one and "cache=shared" not in self.name:
            raise options.refused(
                "url_or_engine", self._engine, "an engine with a StaticPool, for a database in memory"
            )
        return path

    def _prepare_memory(self, connection: Connection, upgrade: Callable[[Connection], None]) -> None:
        revision = _on_cursor(connection, revision_of, ())
        if self._migrate and version.can_be_upgraded(revision):
            with connection.begin():
                upgrade(connection)
        else:
            version.check(revision, self.name)


_turns: weakref.WeakKeyDictionary[AsyncEngine, asyncio.Lock] = weakref.WeakKeyDictionary()
"""Whose turn it is on the connection of an engine in memory, shared by its stores."""

_in_memory: set[str | None] = set()
"""The nodes of this process whose databases are in memory."""

_inherited: weakref.WeakSet[AsyncEngine] = weakref.WeakSet()
"""The engines that stores used when this process was forked."""


def _loaded_upgrade() -> Callable[[Connection], None]:
    """For a thread: Alembic and its scripts are read from the disk."""
    from asm_runtime.stores.sql import migrations

    migrations.load()
    return migrations.upgrade


def _path(cursor: Cursor) -> str:
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
