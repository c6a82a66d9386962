"""Every artifact store of this library passes the public suite. One class for each."""

from __future__ import annotations

from pathlib import Path

from asm_runtime.stores import FileArtifactStore
from asm_runtime.testing.artifact_conformance import ArtifactStoreConformance


class TestFiles(ArtifactStoreConformance):
    backend = "file"

    def new_store(self, place: Path) -> FileArtifactStore:
        return FileArtifactStore(place / "blobs")
