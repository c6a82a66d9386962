"""A PostgreSQL database, as a store uses it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

from asm_runtime.stores.sql.postgres.bell import Bell
from asm_runtime.stores.sql.postgres.connections import Connections, Settings
from asm_runtime.stores.sql.postgres.leases import Leases
from asm_runtime.stores.sql.postgres.opening import prepare
from asm_runtime.stores.sql.postgres.reader import Reader
from asm_runtime.stores.sql.postgres.writer import Writer

__all__ = ["PostgresDatabase"]


class PostgresDatabase:
    """See `stores.sql.database.Database`.

    Args:
        url: Of the database; with the password.
        node_id: Of the store.
        migrate: Whether to bring the schema up to date.
        lease_ttl_ms: How long a node counts as alive that renews nothing.
        pool_size: How many connections read.
        connect_timeout_ms: How long to wait for a connection.
        statement_timeout_ms: How long to wait for an answer.
    """

    def __init__(
        self,
        url: str,
        node_id: str,
        *,
        migrate: bool,
        lease_ttl_ms: int,
        pool_size: int,
        connect_timeout_ms: int,
        statement_timeout_ms: int,
    ) -> None:
        self._settings = Settings(
            url, connect_timeout=connect_timeout_ms / 1000, statement_timeout=statement_timeout_ms / 1000
        )
        self.name = self._settings.name
        self._migrate = migrate
        self._connections = Connections(self._settings, pool_size)
        self.reader = Reader(self._connections)
        self.changes = Bell(self._settings, self._connections, node_id)
        self.liveness = Leases(self._settings, self._connections, node_id, lease_ttl_ms)
        self.writer = Writer(self._settings, node_id, self.changes.ring)
        self._inherited: Callable[[str], None] | None = None

    async def open(self, inherited: Callable[[str], None]) -> bool:
        """See the protocol."""
        self._inherited = inherited
        _opened.add(self)
        await prepare(self._settings, migrate=self._migrate)
        try:
            has_removals = await self.reader.has_removals()
        except BaseException:
            self.close_soon()
            raise
        self.changes.open()
        return has_removals

    async def close(self) -> None:
        """See the protocol."""
        await self.writer.close()
        await self.changes.close()
        await self.liveness.leave()
        await self._connections.close()

    def close_soon(self) -> None:
        """See the protocol."""
        self.writer.close_soon()
        self.changes.close_soon()
        self.liveness.leave_soon()
        self._connections.close_soon()

    def leave_to_parent(self) -> None:
        """In a forked child: the parent talks on its connections."""
        if self._inherited is not None:
            self._inherited(
                "belongs to the process that this one was forked from: start processes with the `spawn` or "
                "`forkserver` method, or open the database after the fork"
            )


_opened: weakref.WeakSet[PostgresDatabase] = weakref.WeakSet()


def _leave_all() -> None:
    for database in list(_opened):
        database.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
