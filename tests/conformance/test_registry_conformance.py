"""Every registry of artifacts of this library passes the public suite. One class for each way to open one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from asm_runtime.clock import Clock
from asm_runtime.stores import (
    ArtifactRegistry,
    CompositeSessionStore,
    FileArtifactStore,
    InMemoryArtifactRegistry,
    InMemorySessionStore,
    SQLSessionStore,
)
from asm_runtime.testing.registry_conformance import ArtifactRegistryConformance


class TestInMemory(ArtifactRegistryConformance):
    def new_store(self, clock: Clock, place: Path) -> InMemorySessionStore:
        return InMemorySessionStore(clock=clock)

    def new_registry(self, store: Any) -> InMemoryArtifactRegistry:
        return InMemoryArtifactRegistry(store)


class TestInMemoryComposite(ArtifactRegistryConformance):
    def new_store(self, clock: Clock, place: Path) -> CompositeSessionStore:
        return CompositeSessionStore(
            sessions=InMemorySessionStore(clock=clock), artifacts=FileArtifactStore(place / "blobs")
        )

    def new_registry(self, store: Any) -> InMemoryArtifactRegistry:
        return InMemoryArtifactRegistry(store)


class TestSQLiteFile(ArtifactRegistryConformance):
    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(f"sqlite:///{place}/asm.db", clock=clock)

    def new_registry(self, store: Any) -> ArtifactRegistry:
        return ArtifactRegistry(store)


class TestSQLiteInMemory(TestSQLiteFile):
    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore("sqlite://", clock=clock)


class TestSQLiteEngine(ArtifactRegistryConformance):
    """Beside the store, through an application's own engine."""

    needs_store = False

    @pytest.fixture(autouse=True)
    def own_engine(self, tmp_path: Path, clock: Clock) -> None:
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/asm.db", poolclass=NullPool)
        self.deletions = clock

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(self.engine, clock=clock)

    def new_registry(self, store: Any) -> ArtifactRegistry:
        return ArtifactRegistry(self.engine, clock=self.deletions)


class TestSQLiteEngineInMemory(TestSQLiteEngine):
    @pytest.fixture(autouse=True)
    async def own_engine(self, clock: Clock) -> AsyncIterator[None]:
        self.engine = create_async_engine("sqlite+aiosqlite://")
        self.deletions = clock
        yield
        await self.engine.dispose()


class TestPostgreSQL(TestSQLiteFile):
    @pytest.fixture(autouse=True)
    def own_database(self, postgres_url: str) -> None:
        self.url = postgres_url

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(self.url, clock=clock)
