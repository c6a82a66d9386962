"""Every store of this library passes the public suite. One class for each way to open one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from asm_runtime.clock import Clock
from asm_runtime.stores import (
    ArtifactRegistry,
    CompositeSessionStore,
    FileArtifactStore,
    InMemorySessionStore,
    SQLSessionStore,
)
from asm_runtime.testing.store_conformance import SessionStoreConformance, SharedDataConformance


class TestInMemory(SessionStoreConformance):
    private = "lives in the memory of its process"

    def new_store(self, clock: Clock, place: Path) -> InMemorySessionStore:
        return InMemorySessionStore(clock=clock)


class TestSQLiteInMemory(SessionStoreConformance):
    private = "lives in the memory of its process"

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore("sqlite://", clock=clock)


class TestSQLiteFile(SharedDataConformance, SessionStoreConformance):
    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(f"sqlite:///{place}/asm.db", clock=clock)


class TestSQLiteEngine(SharedDataConformance, SessionStoreConformance):
    """Through an application's own engine on a file; the stores of a test share it."""

    @pytest.fixture(autouse=True)
    def own_engine(self, tmp_path: Path) -> None:
        # Not in new_store: SQLAlchemy looks at the file system when it makes an engine.
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/asm.db", poolclass=NullPool)

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(self.engine, clock=clock)


class TestSQLiteEngineInMemory(SharedDataConformance, SessionStoreConformance):
    """Through an application's own engine whose one connection is the database."""

    @pytest.fixture(autouse=True)
    async def own_engine(self) -> AsyncIterator[None]:
        self.engine = create_async_engine("sqlite+aiosqlite://")
        yield
        await self.engine.dispose()

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(self.engine, clock=clock)


class TestComposite(SharedDataConformance, SessionStoreConformance):
    """Of a file, with artifacts and their rows beside it."""

    def new_store(self, clock: Clock, place: Path) -> CompositeSessionStore:
        sessions = SQLSessionStore(f"sqlite:///{place}/asm.db", clock=clock)
        return CompositeSessionStore(
            sessions=sessions,
            artifacts=FileArtifactStore(place / "blobs"),
            registry=ArtifactRegistry(sessions),
            clock=clock,
        )


class TestPostgreSQL(SharedDataConformance, SessionStoreConformance):
    """One database, emptied before each test."""

    @pytest.fixture(autouse=True)
    def own_database(self, postgres_url: str) -> None:
        self.url = postgres_url

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(self.url, clock=clock)
