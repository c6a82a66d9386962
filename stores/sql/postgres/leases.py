"""Who is alive, told by leases that each node renews.

A thread renews it on a connection of its own: code that holds up the event loop does not lose its runs.
All times are the server's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Collection
from contextlib import suppress

from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores.sql.postgres import statements
from asm_runtime.stores.sql.postgres.connections import Connection, Connections, Settings
from asm_runtime.stores.sql.postgres.errors import translated

__all__ = ["Leases"]

logger = logging.getLogger(__name__)

RENEWALS = 4
"""How often a lease is renewed while it lasts."""

RETRY_SECONDS = 0.2
"""After how long a renewal is tried again that failed."""


class Leases:
    """See `stores.sql.database.Liveness`.

    Args:
        settings: How to connect.
        connections: For the questions.
        node_id: Of the store.
        ttl_ms: How long a lease lasts.
    """

    def __init__(self, settings: Settings, connections: Connections, node_id: str, ttl_ms: int) -> None:
        self._settings = settings
        self._connections = connections
        self._node_id = node_id
        self._ttl_ms = ttl_ms
        self._renewing: _Renewing | None = None
        self._joining = asyncio.Lock()
        self._outage = _Outage(ttl_ms / 1000)

    @property
    def has_joined(self) -> bool:
        """See the protocol."""
        return self._renewing is not None

    async def join(self) -> None:
        """See the protocol."""
        async with self._joining:
            if self._renewing is not None:
                return
            await self._connections.read(self._renew)
            self._renewing = _Renewing(self._settings, self._node_id, self._ttl_ms, self._outage)
            self._renewing.start()

    async def leave(self) -> None:
        """Be a node no longer. Idempotent."""
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.stop()
            await asyncio.to_thread(renewing.join)

    def leave_soon(self) -> None:
        """The same, and wait for nothing."""
        if self._renewing is not None:
            self._renewing.stop()
            self._renewing = None

    async def dead(self, node_ids: Collection[str]) -> Collection[str]:
        """See the protocol."""
        others = [id for id in node_ids if id != self._node_id]
        if not others:
            return []
        try:
            rows = await self._connections.read(
                lambda connection: connection.fetch(statements.DEAD, others, self._ttl_ms)
            )
        except StoreUnavailable:
            self._outage.noticed()
            raise
        self._outage.ended()
        return [row["id"] for row in rows if row["has_left"] or not self._outage.is_recent]

    async def _renew(self, connection: Connection) -> None:
        await connection.execute(statements.RENEW_LEASE, self._node_id, self._ttl_ms)
        await connection.execute(statements.FORGET_NODES)


class _Outage:
    """When the database was out of reach: after that, who could not renew its lease has the time to do it.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_on = False
        self._recent_until = float("-inf")

    def noticed(self) -> None:
        """It is out of reach."""
        self._is_on = True

    def ended(self) -> None:
        """It is in reach."""
        if self._is_on:
            self._recent_until = time.monotonic() + self._seconds
            self._is_on = False

    @property
    def is_recent(self) -> bool:
        """Whether it ended not long ago."""
        return time.monotonic() < self._recent_until


class _Renewing(threading.Thread):
    """Renews a lease until it is stopped, then ends it."""

    def __init__(self, settings: Settings, node_id: str, ttl_ms: int, outage: _Outage) -> None:
        super().__init__(name=f"asm-lease-{node_id[-6:]}", daemon=True)
        self._settings = settings
        self._node_id = node_id
        self._ttl_ms = ttl_ms
        self._outage = outage
        self._is_stopped = False
        self._stopped = asyncio.Event()
        self._loop = asyncio.new_event_loop()

    def stop(self) -> None:
        """Have it end."""
        self._is_stopped = True
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._stopped.set)

    def run(self) -> None:
        """Renew it."""
        try:
            self._loop.run_until_complete(self._renew())
        except Exception:
            logger.exception("the lease of %s is renewed no more", self._node_id)
        finally:
            self._loop.close()

    async def _renew(self) -> None:
        connection: Connection | None = None
        usual = pause = self._ttl_ms / 1000 / RENEWALS
        while not await self._has_stopped_after(pause):
            pause = usual
            try:
                if connection is None or connection.is_closed():
                    connection = await self._settings.connect()
                await connection.execute(statements.RENEW_LEASE, self._node_id, self._ttl_ms)
                self._outage.ended()
            except Exception as error:
                if translated(error, self._settings.name) is None:
                    raise
                logger.debug("the lease of %s was not renewed: %r", self._node_id, error)
                self._outage.noticed()
                if connection is not None:
                    connection.terminate()
                connection, pause = None, min(usual, RETRY_SECONDS)
        await self._end(connection)

    async def _has_stopped_after(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)
        return self._is_stopped

    async def _end(self, connection: Connection | None) -> None:
        try:
            if connection is None or connection.is_closed():
                connection = await self._settings.connect()
            try:
                await connection.execute(statements.END_LEASE, self._node_id)
            finally:
                connection.terminate()
        except Exception as error:  # it runs out by itself
            if translated(error, self._settings.name) is None:
                raise
            logger.debug("the lease of %s was not ended: %r", self._node_id, error)
