"""Connections to a SQLite file that write nothing, not even the files that SQLite puts beside it.

In WAL mode even a reader makes the log and its index, unless somebody else has them open. So a file at rest,
which has no log, is read as one that nobody changes. Whether that held is seen to before and after each
answer: a writer who comes makes the log before anything else. What was read meanwhile is dropped, and read
again beside the writer.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

from asm_runtime.errors import ActorStopped, StoreUnavailable, ValidationError
from asm_runtime.stores.sql import version
from asm_runtime.stores.sql.sqlite import errors, forks
from asm_runtime.stores.sql.sqlite.connections import LOOK_SECONDS, READERS
from asm_runtime.stores.sql.sqlite.files import DatabaseFiles
from asm_runtime.stores.sql.sqlite.nodes import Nodes
from asm_runtime.stores.sql.sqlite.opening import revision_of
from asm_runtime.stores.sql.sqlite.threads import ConnectionThreads
from asm_runtime.stores.sql.sqlite.transaction import Cursor

__all__ = ["ReadOnlyConnections"]

TRIES = 100
"""How often a writer may come or go while one question is answered."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_AtRest: TypeAlias = "tuple[int, ...]"


class ReadOnlyConnections:
    """Those to a file that is there already. Whoever may read it may use them.

    Args:
        path: The file.
        busy_timeout_ms: How long a statement waits for a lock of another connection.
    """

    is_shared = True
    has_joined = False

    def __init__(self, path: str, *, busy_timeout_ms: int) -> None:
        self.name = f"sqlite:///{path}"
        self._path = path
        self._busy_timeout_ms = busy_timeout_ms
        self._nodes: Nodes | None = None
        self._view: _View | None = None
        self._left: set[_View] = set()
        """Those that close."""
        self._closing = False

    async def open(self, node_id: str, first: Callable[[Cursor], T]) -> T:
        """See `Connections`."""
        try:
            found: T = await self._read(self._opened, (first,))
            self._nodes = Nodes(self._path, node_id)
            return found
        except BaseException:
            await self.close()
            raise

    async def join(self) -> None:
        """Who writes nothing owns nothing."""
        raise ValidationError(f"{self.name} is open for reading only: `read_only=True`")

    async def close(self) -> None:
        """See `Connections`."""
        self.close_soon()
        for view in self._left:
            await view.threads.close()

    def close_soon(self) -> None:
        """See `Connections`."""
        self._closing = True
        if self._view is not None:
            self._leave(self._view)

    def write(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """What only looks can be done by who reads."""
        return asyncio.ensure_future(self._read(job, args))

    def read(self, job: Callable[[Cursor, *Ts], T], *args: *Ts) -> Awaitable[T]:
        """See `Connections`."""
        return self._read(job, args)

    async def dead(self, node_ids: Collection[str]) -> Collection[str]:
        """See `Connections`."""
        nodes = self._nodes
        assert nodes is not None
        return await self.read(lambda _: nodes.dead(node_ids, tidy=False))

    async def _read(self, job: Callable[..., T], args: tuple[Any, ...]) -> T:
        for _ in range(TRIES):
            if self._closing:
                raise ActorStopped(f"{self.name} has closed")
            if self._view is None:
                self._view = _View(self._path, self.name, self._busy_timeout_ms)
            view = self._view
            try:
                found = await view.threads.run(view.answer, job, args)
                self._path = view.path
                return found
            except _OvertakenError:
                self._leave(view)
        raise StoreUnavailable(f"{self.name} is opened and closed all the time")

    def _leave(self, view: _View) -> None:
        if self._view is view:
            self._view = None
        view.threads.close_soon()
        self._left = {one for one in self._left if one.threads.at_work} | {view}

    def _opened(self, cursor: Cursor, first: Callable[[Cursor], T]) -> T:
        version.check(revision_of(cursor), self.name)
        return first(cursor)


class _OvertakenError(Exception):
    """The file is no longer at rest, or is again."""


class _View:
    """The connections of one time, at rest or not."""

    def __init__(self, path: str, name: str, busy_timeout_ms: int) -> None:
        self._name = name
        self._busy_timeout_ms = busy_timeout_ms
        self._files = DatabaseFiles(path, name)
        self._beginning = threading.Lock()
        self._has_begun = False
        self._at_rest: _AtRest | None = None
        """The file as it was; None: somebody may write to it."""
        self.threads = ConnectionThreads(self._connect, count=READERS, name="asm-sqlite-reader")

    @property
    def path(self) -> str:
        """The file itself, once there is a connection."""
        return self._files.path

    def answer(self, cursor: Cursor, job: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Run a job, if all is as it was when the connection was made, and still is after it."""
        with errors.translating(self._name):
            if self._at_rest is None:
                self._files.check(LOOK_SECONDS)
            else:
                self._check()
            try:
                found = job(cursor, *args)
            except sqlite3.Error:
                self._check()
                raise
            if self._at_rest is not None:
                self._check()
            return found

    def _connect(self) -> sqlite3.Connection:
        with errors.translating(self._name):
            with self._beginning:
                if not self._has_begun:
                    self._files.before_connecting()
                    forks.refuse_inherited(self.path, self._name)
                    self._at_rest = _at_rest(self.path)
                    self._has_begun = True
            place = Path(self.path).as_uri()
            how = "mode=ro" if self._at_rest is None else "immutable=1"
            connection = sqlite3.connect(
                f"{place}?{how}",
                uri=True,
                timeout=self._busy_timeout_ms / 1000,
                isolation_level=None,
                cached_statements=256,
            )
            connection.execute("PRAGMA query_only = 1")
            return connection

    def _check(self) -> None:
        if _at_rest(self.path) != self._at_rest:
            raise _OvertakenError from None


def _at_rest(path: str) -> _AtRest | None:
    """What a file is like that nobody writes to, and nobody has left while writing; else None."""
    found = os.stat(path)
    log = _size(f"{path}-wal")
    if _size(f"{path}-journal") is not None or log or (log == 0 and _size(f"{path}-shm") is not None):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None
