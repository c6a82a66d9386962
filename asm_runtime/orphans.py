"""Looking for runs whose executor died without a word, once a store for all the servers on it.

A node's death rings no bell, so somebody has to look from time to time. If every server did, a
hundred thousand idle sessions would cost ten thousand queries a second.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable

from asm_runtime.clock import Clock, sleep
from asm_runtime.errors import ActorStopped
from asm_runtime.ports import SessionStore

__all__ = ["OrphanWatch"]

logger = logging.getLogger(__name__)

DEFAULT_LEASE_TTL_MS = 10_000

_watches: weakref.WeakKeyDictionary[SessionStore, OrphanWatch] = weakref.WeakKeyDictionary()


class OrphanWatch:
    """Tells the servers of a store which sessions have orphaned runs, every `lease_ttl_ms`."""

    def __init__(self, store: SessionStore, clock: Clock) -> None:
        self._store = weakref.ref(store)
        self._clock = clock
        self._interval_s = getattr(store, "lease_ttl_ms", DEFAULT_LEASE_TTL_MS) / 1000
        # One server a session is the rule, and an idle one must cost little.
        self._servers: dict[str, Callable[[], None] | list[Callable[[], None]]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, store: SessionStore, clock: Clock) -> OrphanWatch:
        """The one watch of that store in this process."""
        watch = _watches.get(store)
        if watch is None:
            watch = _watches[store] = cls(store, clock)
        return watch

    def add(self, session_id: str, found: Callable[[], None]) -> None:
        """Call `found()` whenever that session has orphaned runs."""
        others = self._told(session_id)
        self._servers[session_id] = [*others, found] if others else found
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def remove(self, session_id: str, found: Callable[[], None]) -> None:
        """Call it no more; the last one ends the looking. Idempotent."""
        left = [other for other in self._told(session_id) if other != found]
        if left:
            self._servers[session_id] = left
        else:
            self._servers.pop(session_id, None)
        if not self._servers and self._task is not None:
            self._task.cancel()
            self._task = None

    def _told(self, session_id: str) -> list[Callable[[], None]]:
        told = self._servers.get(session_id, [])
        return [told] if callable(told) else told

    async def _run(self) -> None:
        while True:
            await sleep(self._clock, self._interval_s)
            store = self._store()
            if store is None:
                return
            try:
                orphans = await store.list_orphaned_runs()
            except ActorStopped:
                return
            except Exception as error:  # a store of somebody else's may raise anything
                logger.warning("looking for orphaned runs failed: %r", error)
                continue
            for session_id in {run.session_id for run in orphans}:
                for found in self._told(session_id):
                    found()
