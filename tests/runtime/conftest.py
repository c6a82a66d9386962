"""What the tests of manager, server and supervisor stand on: every real store, scripted providers."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.ports import SessionStore
from asm_runtime.stores import InMemorySessionStore, SQLSessionStore
from asm_runtime.stores.sql.sqlite.threads import ConnectionThreads
from asm_runtime.testing import JumpingClock


@pytest.fixture(autouse=True)
def time_waits_for_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps while a thread reads the disk would have time-outs pass that nothing caused."""
    made: weakref.WeakSet[ConnectionThreads] = weakref.WeakSet()
    make, settle = ConnectionThreads.__init__, JumpingClock._settle

    def noted(threads: ConnectionThreads, *args: Any, **options: Any) -> None:
        make(threads, *args, **options)
        made.add(threads)

    async def settle_all(clock: JumpingClock) -> None:
        await settle(clock)
        while any(threads._unanswered or (threads.closing and threads.at_work) for threads in made):
            await asyncio.sleep(0.0005)
            await settle(clock)

    monkeypatch.setattr(ConnectionThreads, "__init__", noted)
    monkeypatch.setattr(JumpingClock, "_settle", settle_all)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionStore]:
    """A started store of each kind."""
    made: Any = (
        InMemorySessionStore()
        if request.param == "memory"
        else SQLSessionStore(f"sqlite:///{tmp_path}/sessions.db", synchronous="NORMAL")
    )
    async with made:
        yield made
