"""Every store of this library passes the public suite. One class for each way to open one."""

from __future__ import annotations

from pathlib import Path

from asm_runtime.clock import Clock
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.testing.store_conformance import SessionStoreConformance


class TestInMemory(SessionStoreConformance):
    private = "lives in the memory of its process"

    def new_store(self, clock: Clock, place: Path) -> InMemorySessionStore:
        return InMemorySessionStore(clock=clock)
