"""Random lives of two stores on one file: callers that give up, sessions deleted, outages, stores that crash.

`ASM_SOAK=200 pytest tests/stores/sql/test_lives.py` lives that many times as long.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import TypeVar

import pytest

from asm_runtime import Event, Run
from asm_runtime.errors import ActorStopped, LeaseLost, StoreUnavailable
from asm_runtime.ports import ExecutionResult
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import transaction

STEPS = int(os.environ.get("ASM_SOAK", "24"))
KEPT, DELETED = "kept", "deleted"
CALLERS = 6

T = TypeVar("T")


class Span:
    """When a call began, and when it was known to be done; None: it may have been done, or not."""

    def __init__(self, began: int) -> None:
        self.began = began
        self.done: int | None = None


class Life:
    def __init__(self, file: str, seed: int) -> None:
        self.random = Random(seed)
        self.stores: list[SQLSessionStore] = []
        self._file = file
        self._moment = 0
        self._appended: dict[str, dict[str, Span]] = {KEPT: {}, DELETED: {}}
        self._enqueued: dict[str, dict[str, Span]] = {KEPT: {}, DELETED: {}}
        self._deletions: list[Span] = []
        self._claims: set[tuple[str, int]] = set()
        """All that were ever given, of the session that is kept."""
        self._held: set[str] = set()
        """Of those runs, which somebody may still execute."""
        self._released: set[str] = set()
        self._completed: set[str] = set()

    def _now(self) -> int:
        self._moment += 1
        return self._moment

    async def open(self) -> None:
        """Add a store."""
        while True:
            with suppress(StoreUnavailable):
                self.stores.append(
                    await SQLSessionStore(f"sqlite:///{self._file}", busy_timeout_ms=20).start()
                )
                return

    async def _tried(self, span: Span, call: Callable[[SQLSessionStore], Awaitable[T]]) -> T | None:
        """Try until it is done, through whichever store there is, unless the caller gives up."""
        while True:
            task = asyncio.ensure_future(call(self.random.choice(self.stores)))
            if self.random.random() < 0.15:
                for _ in range(self.random.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                result = await task
            except (StoreUnavailable, ActorStopped):
                await asyncio.sleep(0.002)
            except asyncio.CancelledError:
                return None
            else:
                span.done = self._now()
                return result

    # -- what callers do

    async def call(self, steps: int) -> None:
        """Do one thing after another."""
        things = [self._append, self._append, self._run, self._run, self._read, self._delete]
        for _ in range(steps):
            await self.random.choice(things)()

    async def _append(self) -> None:
        session_id = self.random.choice([KEPT, DELETED])
        count = self.random.choice([1, 1, 7])
        batch = [Event.new(type="custom", session_id=session_id) for _ in range(count)]
        span = Span(self._now())
        self._appended[session_id].update((event.id, span) for event in batch)
        stored = await self._tried(span, lambda store: store.append_events(batch))
        assert stored is None or [event.id for event in stored] == [event.id for event in batch]

    async def _run(self) -> None:
        session_id = self.random.choice([KEPT, DELETED])
        run, span = Run.new(session_id=session_id, input=1), Span(self._now())
        self._enqueued[session_id][run.id] = span
        await self._tried(span, lambda store: store.enqueue_run(run))

        async def claim(store: SQLSessionStore) -> tuple[SQLSessionStore, Run | None]:
            return store, await store.claim_run(session_id)

        claimant, claimed = await self._tried(Span(0), claim) or (None, None)
        if claimant is None or claimed is None:
            return
        if session_id == KEPT:
            assert (claimed.id, claimed.attempt) not in self._claims
            self._claims.add((claimed.id, claimed.attempt))
            self._held.add(claimed.id)
        if self.random.random() < 0.3:
            with suppress(StoreUnavailable, ActorStopped):  # it is owed then; or the node is no more
                await claimant.release_run(claimed.fence)
            if session_id == KEPT:
                self._released.add(claimed.id)
            return
        end = ExecutionResult(run=claimed.with_status("completed"))
        span = Span(0)
        try:
            await self._tried(span, lambda store: store.flush(end, fence=claimed.fence))
        except LeaseLost:  # it was written by a store that crashed, or deleted
            if session_id == KEPT:
                stored = await self._tried_for_sure(lambda store: store.get_run(claimed.id, session_id=KEPT))
                assert stored.status == "completed"
        else:
            if span.done is not None and session_id == KEPT:
                self._completed.add(claimed.id)

    async def _tried_for_sure(self, call: Callable[[SQLSessionStore], Awaitable[T]]) -> T:
        while True:
            with suppress(StoreUnavailable, ActorStopped):
                return await call(self.random.choice(self.stores))
            await asyncio.sleep(0.002)

    async def _read(self) -> None:
        session_id = self.random.choice([KEPT, DELETED])
        known = {id for id, span in self._appended[session_id].items() if span.done is not None}
        found = await self._tried_for_sure(lambda store: store.get_events(session_id))
        assert [event.sequence_number for event in found] == list(range(1, len(found) + 1))
        assert session_id == DELETED or known <= {event.id for event in found}

    async def _delete(self) -> None:
        span = Span(self._now())
        self._deletions.append(span)
        await self._tried(span, lambda store: store.delete_session(DELETED))

    async def follow(self, over: asyncio.Event) -> None:
        """Read the kept log to its end, by long polls."""
        cursor = 0
        while True:
            last = over.is_set()
            wait_ms = 0 if last else 200
            found = await self._tried_for_sure(
                lambda store: store.get_events(KEPT, after=cursor, wait_timeout_ms=wait_ms)  # noqa: B023
            )
            assert [event.sequence_number for event in found] == list(
                range(cursor + 1, cursor + 1 + len(found))
            )
            cursor += len(found)
            if last and not found:
                return

    # -- what happens to them

    async def disturb(self) -> None:
        """Lock the database for longer than anybody waits; stop and crash stores."""
        while True:
            await asyncio.sleep(self.random.random() * 0.05)
            if self.random.random() < 0.5:
                await asyncio.to_thread(self._lock, self.random.random() * 0.06)
                continue
            await self.open()
            gone = self.stores.pop(self.random.randrange(2))
            if self.random.random() < 0.5:
                await gone.stop()
            else:
                gone.crash(RuntimeError("it was told to"))

    def _lock(self, seconds: float) -> None:
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=1)
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
            threading.Event().wait(seconds)
        connection.close()

    # -- what must hold in the end

    async def check(self) -> None:
        """See that what was acknowledged is there, and nothing that was deleted."""
        store = self.stores[0]
        for session_id in (KEPT, DELETED):
            log, runs = await store.get_events(session_id), await store.list_runs(session_id)
            assert [event.sequence_number for event in log] == list(range(1, len(log) + 1))
            self._check(session_id, self._appended[session_id], [event.id for event in log])
            self._check(session_id, self._enqueued[session_id], [run.id for run in runs])
            assert [event.id for event in await self.stores[1].get_events(session_id)] == [
                event.id for event in log
            ]
        stored = {run.id: run for run in await store.list_runs(KEPT)}
        assert all(stored[id].status == "completed" for id in self._completed)
        while await self._is_held_by_nobody(store):
            await asyncio.sleep(0.01)  # a debt is on its way
        assert self._released <= {run.id for run in await store.list_orphaned_runs(session_id=KEPT)}

    async def _is_held_by_nobody(self, store: SQLSessionStore) -> bool:
        orphans = {run.id for run in await store.list_orphaned_runs(session_id=KEPT)}
        running = {run.id for run in await store.list_runs(KEPT, status="running")}
        return bool(running - orphans - (self._held - self._released))

    def _check(self, session_id: str, written: dict[str, Span], found: list[str]) -> None:
        assert len(set(found)) == len(found)
        assert set(found) <= set(written)
        deletions = self._deletions if session_id == DELETED else []
        for id, span in written.items():
            if span.done is None:
                continue
            if all(one.done is not None and one.done < span.began for one in deletions):
                assert id in found
            if any(one.done is not None and one.began > span.done for one in deletions):
                assert id not in found


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_acknowledged_is_kept_and_what_was_deleted_gone_whatever_happens(
    file: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "REMOVED_AT_ONCE", 3)
    life, over = Life(file, seed), asyncio.Event()
    await life.open()
    await life.open()
    followers = [asyncio.create_task(life.follow(over)) for _ in range(2)]
    disturbing = asyncio.create_task(life.disturb())
    try:
        await asyncio.gather(*(life.call(STEPS) for _ in range(CALLERS)))
    finally:
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)
        over.set()
    await asyncio.gather(*followers)
    await life.check()
    for store in life.stores:
        await store.stop()
