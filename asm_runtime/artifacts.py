"""The protocols of artifacts: where blobs lie, and where it is written down which there are.

They are offered by `asm_runtime.ports`, as all protocols are.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from datetime import datetime
from typing import Protocol, TypeAlias

import msgspec

from asm_runtime.payload import JsonObject
from asm_runtime.records import Artifact

__all__ = ["ArtifactRegistry", "ArtifactStats", "ArtifactStore", "BlobInfo", "BytesLike"]

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""Any object with the buffer protocol will do; types cannot say so before Python 3.12."""


class BlobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A blob, as `ArtifactStore.list` finds it."""

    key: str
    byte_size: int
    modified_at: datetime
    """When it was last put, by the clock of whatever stores it."""


class ArtifactStats(msgspec.Struct, frozen=True, kw_only=True):
    """The live artifacts of a session, together."""

    artifact_count: int
    total_bytes: int


class ArtifactStore(Protocol):
    """Where blobs live. It needs no start and no stop.

    A key has 1 to 512 bytes of UTF-8 and no control characters (U+0000 to U+001F, U+007F to U+009F).
    Keys that differ are different blobs: `a/b`, `a//b`, `/a/b` and `../a`; `A` and `a`; `%2F` and `/`.

    Raises, from every method:
        ValidationError: An argument is not what is allowed; nothing was written.
        StoreUnavailable: The service or the disk is out of reach, full or closed to us just now.
        StoreError: It failed in another way.
    """

    async def put(
        self,
        key: str,
        data: BytesLike | AsyncIterable[BytesLike],
        *,
        session_id: str | None = None,
        run_id: str | None = None,
        content_type: str | None = None,
        metadata: JsonObject | None = None,
    ) -> Artifact:
        """Store a blob, in the place of the one that has this key.

        A reader meanwhile gets the old one or the new one. When this returns, the new one is as
        durable as the store promises. A put that fails, is cancelled or is killed leaves the old one,
        and nothing else that `list` shows. Of two puts at once, one is the last.

        Args:
            key: Its name.
            data: The bytes, or an async iterator of pieces, which are never all held in memory. What it
                raises is raised here.
            session_id: For the record.
            run_id: For the record.
            content_type: For the record, for instance `text/plain`.
            metadata: For the record, a JSON object.

        Returns:
            The record: size, SHA-256, `storage_backend` ("file", "s3", "memory" …), `storage_ref` (the
            key). It is stored nowhere: that is for a registry.
        """
        ...

    async def get(self, key: str) -> bytes:
        """Read a blob.

        Raises:
            ArtifactNotFound: No blob has that key.
        """
        ...

    def stream(self, key: str, *, chunk_size: int = 262_144) -> AsyncIterator[bytes]:
        """Read a blob piece by piece: one version from beginning to end, or an error.

        Args:
            key: Its name.
            chunk_size: How many bytes a piece has at most, ≥ 1.

        Raises:
            ArtifactNotFound: At the first step: no blob has that key.
        """
        ...

    async def exists(self, key: str) -> bool:
        """Whether a blob has that key."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a blob. Idempotent."""
        ...

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        """The blobs whose key begins so, in any order; however many there are, a few are held in memory.

        What is put or deleted meanwhile may be among them or not.
        """
        ...


class ArtifactRegistry(Protocol):
    """Which artifacts there are: their rows. It never touches a blob.

    Raises, from every method:
        ActorStopped: The session store in whose database the rows lie is not running.
        ValidationError: An argument is not what is allowed; nothing was written.
        StoreUnavailable, StoreError: As from a `SessionStore`; nothing was written.
    """

    async def register(self, artifact: Artifact, *, replace: bool | Artifact = False) -> Artifact:
        """Store a row, in one step.

        Args:
            artifact: The row; not a deleted one. Its session and run need not exist.
            replace: If a live row has the key, delete it softly. An artifact: only if it is that one,
                and there is one.

        Returns:
            The stored row. If that very row is stored and live: that one, nothing is written.

        Raises:
            Conflict: A live row has the key and is not to be replaced; or the id is taken.
        """
        ...

    async def get(self, key: str) -> Artifact:
        """The live row that has this key.

        Raises:
            ArtifactNotFound: There is none.
        """
        ...

    async def list_artifacts(
        self,
        *,
        session_id: str | None = None,
        run_id: str | None = None,
        prefix: str = "",
        include_deleted: bool = False,
        limit: int | None = None,
        after: Artifact | None = None,
    ) -> list[Artifact]:
        """Rows by `created_at`, then `id`.

        Args:
            session_id: Only of this session.
            run_id: Only of this run.
            prefix: Only those whose key begins so.
            include_deleted: Whether soft-deleted rows are among them.
            limit: Maximum number, ≥ 1; None: all.
            after: Only those that come after this row, there or not: the last of a page is the cursor
                of the next one.
        """
        ...

    async def session_stats(self, session_id: str) -> ArtifactStats:
        """How many live artifacts a session has, and how large they are; an unknown one has none."""
        ...

    async def delete(self, key: str | Artifact) -> None:
        """Delete the live row of a key softly: the key is free again. Idempotent.

        Args:
            key: Of which key; or an artifact: only if that is the live row.
        """
        ...
