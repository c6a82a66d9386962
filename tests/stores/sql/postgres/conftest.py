"""A store on the worker's PostgreSQL database, and one beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from asm_runtime.stores import SQLSessionStore

Ask = Callable[..., Awaitable[list[Any]]]


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[SQLSessionStore]:
    async with SQLSessionStore(postgres_url) as store:
        yield store


@pytest.fixture
async def second(store: SQLSessionStore, postgres_url: str) -> AsyncIterator[SQLSessionStore]:
    async with SQLSessionStore(postgres_url) as second:
        yield second


@pytest.fixture
async def ask(postgres_url: str) -> AsyncIterator[Ask]:
    """Asks the server beside the stores."""
    import asyncpg

    connection = await asyncpg.connect(postgres_url)
    yield connection.fetch
    await connection.close()
