"""Connections to a SQLite database that the store opens itself: a file, or private and in memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, Protocol, TypeVar, TypeVarTuple

from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores.sql.sqlite import errors, forks
from asm_runtime.stores.sql.sqlite.files import DatabaseFiles
from asm_runtime.stores.sql.sqlite.nodes import Nodes
from asm_runtime.stores.sql.sqlite.opening import connect, is_ready, prepare_file, revision_of, upgrade_on
from asm_runtime.stores.sql.sqlite.threads import ConnectionThreads
from asm_runtime.stores.sql.sqlite.transaction import Cursor

__all__ = ["Connections", "FileConnections", "MemoryConnections"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READERS = 2

WAL_PAGES = 4000
"""After how many pages the log is folded into the database. With the default of 1000 and events of many
sessions, the same pages are written again and again: 12 000 events/s against 20 000. The index of a
log of up to 4062 pages is one block.
Source: sqlite.org/walformat.html, "WAL-Index Format"."""

LOG_BYTES = 32 * 1024 * 1024
"""The size to which the log is cut when it starts again, after a reader who held up its folding for long."""

LOOK_SECONDS = 0.01
"""How long it is taken for granted that the files are in their places, where nothing is acknowledged."""

WRITER_CACHE_KIB = 16_000
"""The ends of the logs of a few thousand sessions that are being written to."""


class Connections(Protocol):
    """Where a store's statements run. Jobs are plain functions that are given a cursor."""

    name: str
    """What names the database in errors."""
    is_shared: bool
    """Whether other processes or other stores may write to it."""

    @property
    def has_joined(self) -> bool:
        """See `Liveness`."""
        ...

    async def open(self, node_id: str, first: Callable[[Cursor], T]) -> T:
        """See `Database`.

        Args:
            node_id: Of the store.
            first: What is to be known first, as for `read`.
        """
        ...

    async def join(self) -> None:
        """See `Liveness`."""
        ...

    async def close(self) -> None:
        """See `Database`."""
        ...

    def close_soon(self) -> None:
        """See `Database`."""
        ...

    def write(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run a job on the connection that writes, one at a time; the job begins its transactions."""
        ...

    def read(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> Awaitable[T]:
        """Run a job on a connection that reads. Each statement sees all that is committed.

        Raises:
            StoreError: What the database's error means.
        """
        ...

    def dead(self, node_ids: Collection[str]) -> Awaitable[Collection[str]]:
        """See `Liveness`."""
        ...


class MemoryConnections:
    """Those to a database that nobody else sees and that ends with the store.

    Its one connection reads and writes.
    """

    name = "sqlite://"
    is_shared = False
    has_joined = True

    def __init__(self) -> None:
        self._threads: ConnectionThreads | None = None
        self._node_id: str | None = None

    async def open(self, node_id: str, first: Callable[[Cursor], T]) -> T:
        """Make it, with its tables."""
        self._node_id = node_id
        self._threads = ConnectionThreads(self._connect, name="asm-sqlite")
        try:
            return await self.read(first)
        except BaseException:
            await self.close()
            raise

    async def join(self) -> None:
        """Nobody else is there."""

    async def close(self) -> None:
        """See `Connections`."""
        if self._threads is not None:
            await self._threads.close()

    def close_soon(self) -> None:
        """See `Connections`."""
        if self._threads is not None:
            self._threads.close_soon()

    def write(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """See `Connections`."""
        assert self._threads is not None
        return self._threads.run(job, *args)

    def read(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> Awaitable[T]:
        """See `Connections`."""
        assert self._threads is not None
        return self._threads.run(_translated, self.name, job, args)

    async def dead(self, node_ids: Collection[str]) -> Collection[str]:
        """Nobody else is there."""
        return [id for id in node_ids if id != self._node_id]

    def _connect(self) -> sqlite3.Connection:
        with errors.translating(self.name):
            connection = connect(":memory:", 0)
            upgrade_on(connection)
            return connection


class FileConnections:
    """Those to a database file in WAL mode: one connection writes, others read beside it.

    Args:
        path: The file; made if it is missing.
        synchronous: `FULL` or `NORMAL`.
        migrate: Whether to bring the schema up to date.
        busy_timeout_ms: How long a statement waits for a lock of another connection.
    """

    is_shared = True

    def __init__(self, path: str, *, synchronous: str, migrate: bool, busy_timeout_ms: int) -> None:
        self.name = f"sqlite:///{path}"
        self._path = path
        self._synchronous = synchronous
        self._migrate = migrate
        self._busy_timeout_ms = busy_timeout_ms
        self._files: DatabaseFiles | None = None
        self._nodes: Nodes | None = None
        self._writer: ConnectionThreads | None = None
        self._readers: ConnectionThreads | None = None

    @property
    def has_joined(self) -> bool:
        """See `Connections`."""
        return self._nodes is not None and self._nodes.has_joined

    async def open(self, node_id: str, first: Callable[[Cursor], T]) -> T:
        """See `Connections`. The connection that writes is made for the first write."""
        self._files = DatabaseFiles(self._path, self.name)
        self._readers = ConnectionThreads(
            self._connect_reader, self._disconnect, count=READERS, name="asm-sqlite-reader"
        )
        self._writer = ConnectionThreads(self._connect_writer, self._disconnect, name="asm-sqlite-writer")
        try:
            return await self._readers.run(_translated, self.name, self._prepare, (node_id, first))
        except BaseException:
            await self.close()
            raise

    async def join(self) -> None:
        """See `Connections`."""
        nodes = self._nodes
        assert nodes is not None
        await self.read(lambda _: nodes.join())

    async def close(self) -> None:
        """See `Connections`."""
        self.close_soon()
        if self._readers is not None:
            await self._readers.close()

    def close_soon(self) -> None:
        """See `Connections`."""
        writer, readers, nodes = self._writer, self._readers, self._nodes
        if writer is None or readers is None or readers.closing:
            return

        def leave(_: Cursor) -> None:
            # The last connection to close deletes the log, which one that is being made would miss. And
            # the owner of a claim that is being written must be alive for those who read it.
            with forks.WAITING:
                writer.join()
            if nodes is not None:
                nodes.leave()

        writer.close_soon()
        if writer.at_work or self.has_joined:
            readers.run(leave)
        readers.close_soon()

    def write(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """See `Connections`."""
        assert self._writer is not None
        return self._writer.run(self._written, job, args)

    def read(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> Awaitable[T]:
        """See `Connections`."""
        assert self._readers is not None
        return self._readers.run(self._read, job, args)

    def dead(self, node_ids: Collection[str]) -> Awaitable[Collection[str]]:
        """Those whose process does not hold its lock."""
        nodes = self._nodes
        assert nodes is not None
        return self.read(lambda _: nodes.dead(node_ids))

    def _prepare(self, cursor: Cursor, node_id: str, first: Callable[[Cursor], T]) -> T:
        assert self._files is not None
        path = self._files.path
        self._nodes = nodes = Nodes(path, node_id)
        if not is_ready(cursor, self.name, migrate=self._migrate):
            prepare_file(path, self.name, nodes, busy_timeout_ms=self._busy_timeout_ms)
            revision_of(cursor)  # only who reads opens the log
        self._files.opened()
        return first(cursor)

    def _written(self, cursor: Cursor, job: Callable[..., T], args: tuple[Any, ...]) -> T:
        assert self._files is not None
        assert self._nodes is not None
        self._files.check(LOOK_SECONDS)  # to write beside somebody else's log would damage it
        result = job(cursor, *args)
        self._files.check()
        with suppress(OSError, StoreUnavailable):
            self._nodes.look()
        return result

    def _read(self, cursor: Cursor, job: Callable[..., T], args: tuple[Any, ...]) -> T:
        assert self._files is not None
        self._files.check(LOOK_SECONDS)
        return _translated(cursor, self.name, job, args)

    def _connect_writer(self) -> sqlite3.Connection:
        # On macOS a plain fsync leaves the data in the drive's cache. Elsewhere this does nothing.
        full = self._synchronous == "FULL"
        connection = self._connect(
            synchronous=self._synchronous,
            fullfsync=full,
            checkpoint_fullfsync=full,
            wal_autocheckpoint=WAL_PAGES,
            journal_size_limit=LOG_BYTES,
            cache_size=-WRITER_CACHE_KIB,
        )
        # SQLite opens the log at the first question. Until then the last reader to close deletes it.
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        return self._connect(query_only=True)

    def _connect(self, **settings: str | int) -> sqlite3.Connection:
        with errors.translating(self.name):
            assert self._files is not None
            self._files.before_connecting()
            forks.refuse_inherited(self._files.path, self.name)
            connection = connect(self._files.path, self._busy_timeout_ms)
            try:
                for name, value in settings.items():
                    connection.execute(f"PRAGMA {name} = {value}")
                self._files.check()  # else it may be that of another file
            except BaseException:
                connection.close()
                raise
            return connection

    def _disconnect(self, connection: sqlite3.Connection) -> None:
        assert self._files is not None
        if self._files.may_be_closed():
            connection.close()
        else:
            forks.never_free(connection)


def _translated(cursor: Cursor, name: str, job: Callable[..., T], args: tuple[Any, ...]) -> T:
    with errors.translating(name):
        return job(cursor, *args)
