"""What the tests of manager, server and supervisor stand on: every real store, scripted providers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.ports import SessionStore
from asm_runtime.stores import InMemorySessionStore, SQLSessionStore


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
