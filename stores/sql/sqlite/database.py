"""A SQLite database, as a store uses it."""

from __future__ import annotations

from collections.abc import Callable

from asm_runtime.stores.sql.sqlite import forks, reading
from asm_runtime.stores.sql.sqlite.changes import Changes
from asm_runtime.stores.sql.sqlite.connections import Connections
from asm_runtime.stores.sql.sqlite.reader import Reader
from asm_runtime.stores.sql.sqlite.writer import Writer

__all__ = ["SQLiteDatabase"]


class SQLiteDatabase:
    """What connections to a database are used for; see `stores.sql.database.Database`.

    Args:
        connections: Not opened yet.
        node_id: Of the store.
    """

    def __init__(self, connections: Connections, node_id: str) -> None:
        self.name = connections.name
        self.connections = connections
        self.writer = Writer(connections, node_id)
        self.reader = Reader(connections)
        self.liveness = connections
        self.changes = Changes(connections, self.writer.groups.feed)
        self._node_id = node_id
        self._inherited: Callable[[str], None] | None = None

    async def open(self, inherited: Callable[[str], None]) -> bool:
        """See the protocol."""
        self._inherited = inherited
        forks.keep(self)
        return await self.connections.open(self._node_id, reading.has_removals)

    async def close(self) -> None:
        """See the protocol."""
        await self.connections.close()

    def close_soon(self) -> None:
        """See the protocol."""
        self.connections.close_soon()

    def leave_to_parent(self) -> None:
        """See `forks.Inheritable`."""
        if self._inherited is not None:
            self._inherited(f"belongs to the process that this one was forked from: {forks.REMEDY}")
