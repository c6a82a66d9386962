"""What other stores have committed to the same database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from asm_runtime.payload import decode
from asm_runtime.stores.sql.sqlite import statements
from asm_runtime.stores.sql.sqlite.transaction import Cursor

if TYPE_CHECKING:
    import asyncio

    from asm_runtime.stores.sql.sqlite.connections import Connections

__all__ = ["ChangeFeed", "Changes"]

LOOK_EVERY_SECONDS = 0.03
"""How often a store looks for what other processes have committed, while somebody waits for it."""

KEPT_CHANGES = 512
"""How many commits the change feed reaches back. A waiter that missed more reads again."""

FORGET_EVERY = 64
"""After how many commits the older ones are deleted, and what others have left is looked for."""

_NEVER = 2**63 - 1


class ChangeFeed:
    """What others have committed since it was last looked at. Belongs to the writer."""

    def __init__(self) -> None:
        self._seen: int | None = None
        """The last number; None: before the first look."""
        self._changed: set[str] = set()
        self._missed = False

    def look(self, cursor: Cursor, before: int | None = None) -> None:
        """Note what is past the last look, up to our own change with the number `before`."""
        if self._seen is None:
            if before is None:
                cursor.execute(statements.NEXT_CHANGE)
                before = int(cursor.fetchone()[0])
            self._seen, self._missed = before - 1, True
        if before is None:
            before = _NEVER
        elif before == self._seen + 1:
            return
        cursor.execute(statements.CHANGES, (self._seen, before))
        first, last, lists = cursor.fetchone()
        if last is not None:
            changes = decode(lists)
            self._missed = self._missed or first > self._seen + 1 or None in changes
            self._changed.update(id for ids in changes for id in ids or ())
            self._seen = last

    def forget(self, cursor: Cursor, number: int) -> None:
        """Delete the changes that are too old to be kept; `number` is our own."""
        cursor.execute(statements.FORGET_CHANGES, (number - KEPT_CHANGES,))

    def committed(self, number: int) -> None:
        """Our own change with that number is no news; all before it were looked at."""
        self._seen = number

    def news(self, cursor: Cursor) -> list[str] | None:
        """Look, and `take`. If it is out of reach, those who wait look again."""
        with suppress(sqlite3.Error):
            self.look(cursor)
        return self.take()

    def take(self) -> list[str] | None:
        """The sessions that others have changed; None: more than is known."""
        changed, missed = self._changed, self._missed
        self._changed, self._missed = set(), False
        return None if missed else list(changed)


class Changes:
    """Looks into the feed where the connection that writes is; see `stores.sql.database.ChangeSource`."""

    def __init__(self, connections: Connections, feed: ChangeFeed) -> None:
        self._connections = connections
        self._feed = feed
        self.look_every_seconds = LOOK_EVERY_SECONDS if connections.is_shared else None

    def look(self, awaited: Collection[str]) -> asyncio.Future[list[str] | None]:
        """See the protocol."""
        return self._connections.write(self._feed.news)

    def listen(self, told: Callable[[Collection[str] | None], None]) -> None:
        """SQLite has no bell."""
