"""Who waits is told of what others have committed: by NOTIFY, and by looking now and then.

A bell is rung after the commit, on a connection of its own: inside the transaction it would keep all
others from committing at once. What is committed while one is under way goes into the next: one round trip
for any number of sessions. It is a hint; one that is lost is made up for by the next look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from random import uniform
from typing import Any

import msgspec

from asm_runtime.stores.sql.postgres import statements
from asm_runtime.stores.sql.postgres.connections import Connection, Connections, Settings

__all__ = ["Bell"]

logger = logging.getLogger(__name__)

CHANNEL = "asm_runtime"

PAYLOAD_BYTES = 7999
"""Source: postgresql.org/docs/current/sql-notify.html: shorter than 8000 bytes."""

LOOK_EVERY_SECONDS = 0.9
"""How often somebody who waits looks: a lost bell delays nobody by more than a second."""

MAX_PAUSE_SECONDS = 1.0


class Bell:
    """See `stores.sql.database.ChangeSource`.

    Args:
        settings: How to connect.
        connections: For the looks.
        node_id: Of the store: it does not hear its own bell.
    """

    look_every_seconds = LOOK_EVERY_SECONDS

    def __init__(self, settings: Settings, connections: Connections, node_id: str) -> None:
        self._settings = settings
        self._connections = connections
        self._node_id = node_id
        self._told: Callable[[Collection[str] | None], None] | None = None
        self._rings: set[str] = set()
        self._has_rung = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._known: dict[str, tuple[int, ...]] = {}

    def listen(self, told: Callable[[Collection[str] | None], None]) -> None:
        """See the protocol."""
        self._told = told

    def open(self) -> None:
        """Begin to listen and to ring."""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def close(self) -> None:
        """Ring what is to be rung, then be silent. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def close_soon(self) -> None:
        """Be silent at once."""
        if self._task is not None:
            self._task.cancel()

    def ring(self, session_ids: Sequence[str]) -> None:
        """Tell the other stores that these sessions have changed."""
        self._rings.update(session_ids)
        self._has_rung.set()

    async def look(self, awaited: Collection[str]) -> Collection[str] | None:
        """See the protocol."""
        ids = list(awaited)
        if not ids:
            return ids
        rows = await self._connections.read(lambda connection: connection.fetch(statements.STATES, ids))
        states = {row[0]: tuple(row[1:]) for row in rows}
        changed = [id for id in ids if id not in self._known or self._known[id] != states.get(id, ())]
        self._known = {id: states.get(id, ()) for id in ids}
        return changed

    async def _serve(self) -> None:
        pause = 0.05
        while True:
            connection: Connection | None = None
            try:
                connection = await self._settings.connect()
                await connection.add_listener(CHANNEL, self._heard)
                self._tell(None)  # of what was rung meanwhile
                pause = 0.05
                connection.add_termination_listener(lambda _: self._has_rung.set())
                while not connection.is_closed():
                    await self._ring_all(connection)
            except Exception as error:
                logger.debug("%s: the bell is out of order: %r", self._settings.name, error)
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(uniform(pause / 2, pause))
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    async def _ring_all(self, connection: Connection) -> None:
        await self._has_rung.wait()
        self._has_rung.clear()
        if not self._rings:
            return
        rings, self._rings = self._rings, set()
        payload = msgspec.json.encode((self._node_id, list(rings)))
        if len(payload) > PAYLOAD_BYTES:
            payload = msgspec.json.encode((self._node_id, None))  # whoever waits reads again
        await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload.decode())

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        try:
            node_id, session_ids = msgspec.json.decode(str(payload), type=tuple[str, list[str] | None])
        except msgspec.MsgspecError:
            session_ids, node_id = None, ""  # rung by hand, or by another release
        if node_id != self._node_id:
            self._tell(session_ids)

    def _tell(self, session_ids: Collection[str] | None) -> None:
        if self._told is not None:
            self._told(session_ids)
