"""What the tests of manager, server and supervisor stand on: every real store, scripted providers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.ports import SessionStore
from asm_runtime.stores import InMemorySessionStore


@pytest.fixture(params=["memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionStore]:
    """A started store of each kind."""
    made: Any = InMemorySessionStore()
    async with made:
        yield made
