"""Every artifact store of this library passes the public suite. One class for each."""

from __future__ import annotations

from pathlib import Path

from asm_runtime.stores import (
    ArtifactRegistry,
    CompositeSessionStore,
    FileArtifactStore,
    InMemoryArtifactRegistry,
    InMemorySessionStore,
    SQLSessionStore,
)
from asm_runtime.testing.artifact_conformance import ArtifactStoreConformance


class TestFiles(ArtifactStoreConformance):
    backend = "file"

    def new_store(self, place: Path) -> FileArtifactStore:
        return FileArtifactStore(place / "blobs")


class TestComposite(ArtifactStoreConformance):
    """Without a registry: the blobs as they are."""

    backend = "file"

    def new_store(self, place: Path) -> CompositeSessionStore:
        return CompositeSessionStore(
            sessions=InMemorySessionStore(), artifacts=FileArtifactStore(place / "blobs")
        )


class TestRegisteredInMemory(ArtifactStoreConformance):
    backend = "file"
    refs_are_keys = False
    private = "its rows live in the memory of its process"

    def new_store(self, place: Path) -> CompositeSessionStore:
        sessions = InMemorySessionStore()
        return CompositeSessionStore(
            sessions=sessions,
            artifacts=FileArtifactStore(place / "blobs"),
            registry=InMemoryArtifactRegistry(sessions),
        )


class TestRegisteredInSQLite(ArtifactStoreConformance):
    backend = "file"
    refs_are_keys = False

    def new_store(self, place: Path) -> CompositeSessionStore:
        sessions = SQLSessionStore(f"sqlite:///{place}/asm.db")
        return CompositeSessionStore(
            sessions=sessions,
            artifacts=FileArtifactStore(place / "blobs"),
            registry=ArtifactRegistry(sessions),
        )
