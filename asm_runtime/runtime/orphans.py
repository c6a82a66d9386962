"""Runs whose executor died: when one is due to be settled, and who looks for them.

A node's death rings no bell, so somebody has to look from time to time. If every server did, a
hundred thousand idle sessions would cost ten thousand queries a second: there is one `OrphanWatch`
a store, for all the servers on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from asm_runtime.clock import Clock, sleep
from asm_runtime.errors import ActorStopped, AsmError
from asm_runtime.ports import SessionStore
from asm_runtime.records import Run
from asm_runtime.runtime.foreign import answered
from asm_runtime.tasks import start_task

__all__ = ["LOST_ATTEMPTS", "OrphanWatch", "Orphans", "lost_attempts"]

logger = logging.getLogger(__name__)

DEFAULT_LEASE_TTL_MS = 10_000

LOST_ATTEMPTS = "lost_attempts"
"""In `run.metadata`: how many attempts were lost, as far as they are settled."""

LONGEST_PAUSE_S = 60.0

RETRY_DELAY_S = 1.0
"""Pause before an orphan is tried again that could not be settled, doubled each time."""


def lost_attempts(run: Run) -> int:
    """How many attempts of the run were lost and settled; one that a stop queued again is not lost."""
    lost: Any = run.metadata.get(LOST_ATTEMPTS)
    return lost if isinstance(lost, int) and lost > 0 else 0


class Orphans:
    """When a server settles the orphaned runs of its session.

    One that is to be queued again waits for its pause as the orphan that it is. So it holds its slot
    and its place, and a server that starts meanwhile sees all there is to know.

    Args:
        clock: The source of time.
        max_attempts: How many attempts may be lost, the last of them for good; None: none is queued again.
        backoff_s: The pause before the third attempt, doubled each time.
    """

    __slots__ = ("_backoff_s", "_clock", "_due", "_failures", "_max_attempts")

    def __init__(self, clock: Clock, *, max_attempts: int | None, backoff_s: float) -> None:
        self._clock = clock
        self._max_attempts = max_attempts
        self._backoff_s = backoff_s
        # By run and attempt, since they were first seen.
        self._due: dict[tuple[str, int], float] = {}
        self._failures: dict[tuple[str, int], int] = {}

    def seen(self, orphans: Iterable[Run]) -> list[Run]:
        """All orphans there are, as the store has them now; returns those that are due."""
        now = self._clock.monotonic()
        runs = {(run.id, run.attempt): run for run in orphans}
        self._due = {
            key: self._due[key] if key in self._due else now + self._pause_s(run) for key, run in runs.items()
        }
        self._failures = {key: count for key, count in self._failures.items() if key in runs}
        return [run for key, run in runs.items() if self._due[key] <= now]

    def failed(self, run: Run) -> None:
        """A due one could not be settled: it is due again after a pause."""
        key = (run.id, run.attempt)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._due[key] = self._clock.monotonic() + _doubled(RETRY_DELAY_S, failures)

    def run_ids(self) -> set[str]:
        """The orphans last seen."""
        return {run_id for run_id, _ in self._due}

    def next_in_s(self) -> float | None:
        """In how many seconds the next one will be due that is not due now."""
        now = self._clock.monotonic()
        return min((due - now for due in self._due.values() if due > now), default=None)

    def _pause_s(self, run: Run) -> float:
        lost = lost_attempts(run)
        is_over = self._max_attempts is None or lost + 1 >= self._max_attempts
        return 0.0 if is_over or not lost else _doubled(self._backoff_s, lost)


def _doubled(pause_s: float, times: int) -> float:
    """The first pause, doubled for each further time, at most `LONGEST_PAUSE_S`."""
    return min(pause_s * 2.0 ** min(times - 1, 32), LONGEST_PAUSE_S)


_watches: dict[int, OrphanWatch] = {}
"""By the store's id: a store of somebody else's may be neither hashable nor weakly referable."""


class OrphanWatch:
    """Tells the servers of a store which sessions have orphaned runs, every `lease_ttl_ms`."""

    def __init__(self, store: SessionStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        ttl_ms: Any = getattr(store, "lease_ttl_ms", None)
        usable = isinstance(ttl_ms, int | float) and ttl_ms > 0
        self._interval_s: float = (ttl_ms if usable else DEFAULT_LEASE_TTL_MS) / 1000
        # One server a session is the rule, and an idle one must cost little.
        self._servers: dict[str, Callable[[], None] | list[Callable[[], None]]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, store: SessionStore, clock: Clock) -> OrphanWatch:
        """The one watch of that store in this process, while anybody is registered with it."""
        watch = _watches.get(id(store))
        return cls(store, clock) if watch is None else watch

    def add(self, session_id: str, found: Callable[[], None]) -> None:
        """Call `found()` whenever that session has orphaned runs."""
        others = self._told(session_id)
        self._servers[session_id] = [*others, found] if others else found
        _watches[id(self._store)] = self
        if self._task is None or self._task.done():
            self._task = start_task(self._run())

    def remove(self, session_id: str, found: Callable[[], None]) -> None:
        """Call it no more; the last one ends the looking. Idempotent."""
        left = [other for other in self._told(session_id) if other != found]
        if left:
            self._servers[session_id] = left
        else:
            self._servers.pop(session_id, None)
        if not self._servers:
            _watches.pop(id(self._store), None)
            if self._task is not None:
                self._task.cancel()
                self._task = None

    def _told(self, session_id: str) -> list[Callable[[], None]]:
        told = self._servers.get(session_id, [])
        return [told] if callable(told) else told

    async def _run(self) -> None:
        while True:
            await sleep(self._clock, self._interval_s)
            try:
                orphans = await answered(self._store.list_orphaned_runs())
            except ActorStopped:
                return
            except AsmError as error:
                logger.warning("looking for orphaned runs failed: %r", error)
                continue
            for session_id in {run.session_id for run in orphans}:
                for found in self._told(session_id):
                    found()
