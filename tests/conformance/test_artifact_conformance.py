"""Every artifact store of this library passes the public suite. One class for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from asm_runtime.stores import (
    ArtifactRegistry,
    CompositeSessionStore,
    FileArtifactStore,
    InMemoryArtifactRegistry,
    InMemorySessionStore,
    ObjectArtifactStore,
    SQLSessionStore,
)
from asm_runtime.testing.artifact_conformance import ArtifactStoreConformance
from tests.s3 import S3Server, imported, s3_server


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


class TestObjectsInMemory(ArtifactStoreConformance):
    backend = "memory"
    in_memory = True

    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.client = imported("obstore.store").MemoryStore()

    def new_store(self, place: Path) -> ObjectArtifactStore:
        return ObjectArtifactStore(self.client)


class TestObjectsInFolder(ArtifactStoreConformance):
    backend = "file"

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        imported("obstore")

    def new_store(self, place: Path) -> ObjectArtifactStore:
        return ObjectArtifactStore(f"file://{place}/blobs")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


class TestS3(ArtifactStoreConformance):
    backend = "s3"

    @pytest.fixture(autouse=True)
    def bucket(self, server: S3Server, tmp_path: Path) -> None:
        self.server = server
        self.name = tmp_path.name.replace("_", "-").lower()[-60:].strip("-.")
        server.make_bucket(self.name)

    def new_store(self, place: Path) -> ObjectArtifactStore:
        return ObjectArtifactStore(self.server.client(self.name, prefix="blobs"))
