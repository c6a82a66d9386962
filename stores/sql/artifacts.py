"""The rows of artifacts in a SQL database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

from msgspec.structs import replace as changed

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.ids import new_id
from asm_runtime.ports import ArtifactStats, SessionStore
from asm_runtime.records import Artifact
from asm_runtime.stores import artifact_rules
from asm_runtime.stores.artifact_rules import RowFilter
from asm_runtime.stores.composite import plain_store
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.database import Reader
from asm_runtime.stores.sql.store import SQLSessionStore
from asm_runtime.stores.sql.target import DatabaseOptions, database_of
from asm_runtime.stores.sql.transaction import Transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["ArtifactRegistry"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PAGE_ROWS = 128
"""How many rows one read fetches; what is in their metadata has no bound."""


class ArtifactRegistry:
    """Keeps `asm_runtime.ports.ArtifactRegistry` in the table `asm_artifacts`. No start, no stop.

    With a store its writes go with the store's groups, and `delete_session` removes the session's rows.

    Args:
        store_or_engine: An `SQLSessionStore`, or a `CompositeSessionStore` of one; or an application's
            `AsyncEngine` on a database whose schema is up to date, else every call is a
            `MigrationRequired`. Its pool is shared and never disposed.
        clock: The source of the time of a deletion, with an engine; a store has its own.
    """

    def __init__(self, store_or_engine: SessionStore | AsyncEngine, *, clock: Clock = SYSTEM_CLOCK) -> None:
        plain = plain_store(store_or_engine)
        if isinstance(plain, SQLSessionStore):
            self._access: _Access = _ByStore(plain)
        elif isinstance(plain, str):
            raise options.refused("store_or_engine", "a text", "an SQLSessionStore or an AsyncEngine")
        else:
            self._access = _ByEngine(plain, clock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._access.name}>"

    async def register(self, artifact: Artifact, *, replace: bool | Artifact = False) -> Artifact:
        """See `ArtifactRegistry`."""
        row, replaced = artifact_rules.new_row(artifact), artifact_rules.replaced(replace)
        return (await self._access.write(operations.register_artifact, row, replaced)).checked()

    async def get(self, key: str) -> Artifact:
        """See `ArtifactRegistry`."""
        key = options.identifier("key", key)
        return await self._access.read(lambda reader: reader.artifact(key))

    async def list_artifacts(
        self,
        *,
        session_id: str | None = None,
        run_id: str | None = None,
        prefix: str = "",
        include_deleted: bool = False,
        limit: int | None = None,
        after: Artifact | None = None,
    ) -> list[Artifact]:
        """See `ArtifactRegistry`. Read in pages: what is registered meanwhile may be among them."""
        filter = RowFilter.checked(
            session_id=session_id,
            run_id=run_id,
            prefix=prefix,
            include_deleted=include_deleted,
            limit=limit,
            after=after,
        )
        found: list[Artifact] = []
        while True:
            count = PAGE_ROWS if filter.limit is None else min(PAGE_ROWS, filter.limit - len(found))
            page = await self._access.read(partial(_page, filter, count))
            found += page
            if len(page) < count or len(found) == filter.limit:
                return found
            filter = changed(filter, after=(page[-1].created_at, page[-1].id))

    async def session_stats(self, session_id: str) -> ArtifactStats:
        """See `ArtifactRegistry`."""
        session_id = options.identifier("session_id", session_id)
        return await self._access.read(lambda reader: reader.artifact_stats(session_id))

    async def delete(self, key: str | Artifact) -> None:
        """See `ArtifactRegistry`."""
        await self._access.write(operations.delete_artifact, *artifact_rules.one_row(key))


class _Access(Protocol):
    """A way to the tables."""

    @property
    def name(self) -> str:
        """What names the database."""
        ...

    async def write(self, operation: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        """Run an operation in a transaction; one that is cancelled is done or not begun."""
        ...

    async def read(self, question: Callable[[Reader], Awaitable[T]]) -> T:
        """Have a question answered."""
        ...


class _ByStore:
    """Through a session store that is running."""

    def __init__(self, store: SQLSessionStore) -> None:
        self._store = store
        self.name = repr(store)

    async def write(self, operation: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        return await self._store._write(operation, *args)

    async def read(self, question: Callable[[Reader], Awaitable[T]]) -> T:
        with await self._store._under_way():
            return await question(self._store._database.reader)


class _ByEngine:
    """Through an engine whose pool it shares."""

    def __init__(self, engine: Any, clock: Clock) -> None:
        self._database = database_of(engine, new_id("nod_"), DatabaseOptions(migrate=False))
        self.name = self._database.name
        self._clock = clock
        self._opening = asyncio.Lock()
        self._is_open = False

    async def write(self, operation: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        await self._open()
        outcome = await asyncio.shield(self._database.writer.write([(operation, args)], self._clock.now()))
        result: T | Exception = outcome.results[0]
        if isinstance(result, Exception):
            raise result
        return result

    async def read(self, question: Callable[[Reader], Awaitable[T]]) -> T:
        await self._open()
        return await question(self._database.reader)

    async def _open(self) -> None:
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open:
                await self._database.open(self._inherited)
                self._is_open = True

    def _inherited(self, reason: str) -> None:
        """In a forked child: to open it again says what is wrong."""
        self._is_open = False


def _page(filter: RowFilter, limit: int, reader: Reader) -> Awaitable[list[Artifact]]:
    return reader.artifacts(filter, limit)
