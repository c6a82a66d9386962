"""Blobs whose keys are rows of a registry: what is put is replaced as one, with its row.

A blob is put under a new name, then its row takes the place of the old one, then the old blob goes. So
a reader by rows gets one version, and a crash leaves at most a blob without a row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable
from hashlib import sha256
from typing import Any, TypeAlias, TypeVar

from asm_runtime import options
from asm_runtime.clock import Clock, all_done
from asm_runtime.errors import ActorStopped, ArtifactNotFound, AsmError, Conflict, StoreError
from asm_runtime.ids import new_id
from asm_runtime.payload import JsonObject
from asm_runtime.ports import ArtifactRegistry, ArtifactStore, BlobInfo, BytesLike
from asm_runtime.records import Artifact
from asm_runtime.stores.artifacts.keys import MAX_KEY_BYTES, blob_key, blob_prefix
from asm_runtime.stores.artifacts.threads import done
from asm_runtime.tasks import start_task

__all__ = ["RegisteredArtifacts"]

T = TypeVar("T")

# Inside the class `list` is a method.
Rows: TypeAlias = list[Artifact]

logger = logging.getLogger(__name__)

_NAME_BYTES = len(new_id("art_"))

PAGE_ROWS = 500
"""How many rows a list reads at a time."""

REMOVED_AT_ONCE = 8
"""How many blobs of a deleted session are removed side by side."""

HASHED_AT_ONCE = 65_536
"""How many bytes are hashed on the event loop; more are in a thread."""


class RegisteredArtifacts:
    """Keeps `asm_runtime.ports.ArtifactStore` by the live rows of a registry.

    Args:
        artifacts: Where the blobs lie.
        registry: Where their rows lie.
        prefix: What the names of new blobs begin with.
    """

    def __init__(self, artifacts: ArtifactStore, registry: ArtifactRegistry, prefix: str) -> None:
        self._artifacts = artifacts
        self._registry = registry
        self._prefix = blob_prefix("prefix", prefix)
        if len(self._prefix.encode()) + _NAME_BYTES > MAX_KEY_BYTES:
            raise options.refused("prefix", prefix, f"at most {MAX_KEY_BYTES - _NAME_BYTES} bytes long")
        self._tasks: set[asyncio.Task[Any]] = set()

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
        """See `ArtifactStore`. From the moment when the blob is whole, a put is not cancelled any more."""
        key, id = blob_key("key", key), new_id("art_")
        name = f"{self._prefix}{id}"
        try:
            blob = await self._artifacts.put(
                name,
                data,
                session_id=session_id,
                run_id=run_id,
                content_type=content_type,
                metadata=metadata,
            )
        except asyncio.CancelledError:
            self._begun(self._remove(name))  # it may be there already
            raise
        return await self._whole(self._registered(blob.replace(id=id, key=key, storage_ref=name)))

    async def get(self, key: str) -> bytes:
        """See `ArtifactStore`.

        Raises:
            StoreError: The blob is missing, or is not what its row says.
        """
        row = await self._registry.get(blob_key("key", key))
        while True:
            try:
                data = await self._artifacts.get(row.storage_ref)
            except ArtifactNotFound:
                row = await self._newer(row)
                continue
            check = _Check(row)
            await check.add(data)
            check.end()
            return data

    def stream(self, key: str, *, chunk_size: int = 262_144) -> AsyncIterator[bytes]:
        """See `ArtifactStore`.

        Raises:
            StoreError: The blob is missing; or, at the end at the latest, it is not what its row says.
        """
        return self._stream(blob_key("key", key), options.integer("chunk_size", chunk_size, minimum=1))

    async def _stream(self, key: str, chunk_size: int) -> AsyncIterator[bytes]:
        row = await self._registry.get(key)
        while True:
            pieces = self._artifacts.stream(row.storage_ref, chunk_size=chunk_size)
            try:
                piece = await anext(pieces, None)
                break
            except ArtifactNotFound:
                row = await self._newer(row)
        check = _Check(row)
        try:
            while piece is not None:
                await check.add(piece)
                yield piece
                piece = await anext(pieces, None)
        except ArtifactNotFound as error:
            raise StoreError(f"the blob of artifact {key!r} was removed while it was read") from error
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        check.end()

    async def exists(self, key: str) -> bool:
        """See `ArtifactStore`."""
        try:
            await self._registry.get(blob_key("key", key))
        except ArtifactNotFound:
            return False
        return True

    async def delete(self, key: str) -> None:
        """See `ArtifactStore`. Once begun it is not cancelled any more."""
        await self._whole(self._deleted(blob_key("key", key)))

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        """See `ArtifactStore`."""
        return self._list(blob_prefix("prefix", prefix))

    async def _list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        after: Artifact | None = None
        while True:
            rows = await self._registry.list_artifacts(prefix=prefix, limit=PAGE_ROWS, after=after)
            for row in rows:
                yield BlobInfo(key=row.key, byte_size=row.byte_size, modified_at=row.created_at)
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1]

    async def delete_session(self, session_id: str, deletion: Coroutine[Any, Any, None]) -> None:
        """Delete a session by `deletion`, and its blobs.

        One that is put meanwhile may stay, without a row. Once begun it is not cancelled any more.
        """
        await self._whole(self._session_deleted(session_id, deletion))

    async def settle(self, clock: Clock, seconds: float) -> None:
        """Let what is under way end, but wait no longer than this; the rest is cancelled."""
        if not await all_done(clock, seconds, *self._tasks):
            for task in self._tasks:
                task.cancel()

    # -- steps that are done whole, whatever is cancelled

    async def _registered(self, row: Artifact) -> Artifact:
        try:
            old = await self._exchanged(row)
        except ActorStopped:
            raise  # the row may be there: a blob too many is better than one too few
        except AsmError:
            await self._remove(row.storage_ref)
            raise
        if old is not None and old.storage_ref != row.storage_ref:
            await self._remove(old.storage_ref)
        return row

    async def _exchanged(self, row: Artifact) -> Artifact | None:
        """Store a row; returns the one that it took the place of, which nobody else has replaced then."""
        old = await self._live(row.key)
        while True:
            try:
                await self._registry.register(row, replace=old or False)
                return old
            except Conflict:
                before, old = old, await self._live(row.key)
                if (before and before.id) == (old and old.id):
                    raise

    async def _deleted(self, key: str) -> None:
        row = await self._live(key)
        if row is not None:
            # That one only: another that took its place has come after this call.
            await self._registry.delete(row)
            await self._remove(row.storage_ref)

    async def _session_deleted(self, session_id: str, deletion: Coroutine[Any, Any, None]) -> None:
        try:
            rows = await self._rows_of(session_id)
        except BaseException:
            deletion.close()
            raise
        await deletion
        live = [row for row in rows if row.deleted_at is None]
        if live and (await self._registry.session_stats(session_id)).artifact_count:
            for row in live:  # the registry is in another database than the sessions
                await self._registry.delete(row)
        # A row that was deleted softly may have left its blob. One that was made by hand may be registered
        # under another key too.
        left = [
            row for row in rows if row.deleted_at is not None and row.storage_ref.startswith(self._prefix)
        ]
        await self._remove_all(row.storage_ref for row in live + left)

    async def _rows_of(self, session_id: str) -> Rows:
        rows: Rows = []
        after: Artifact | None = None
        while True:
            page = await self._registry.list_artifacts(
                session_id=session_id, include_deleted=True, limit=PAGE_ROWS, after=after
            )
            rows += page
            if len(page) < PAGE_ROWS:
                return rows
            after = page[-1]

    async def _remove_all(self, names: Iterable[str]) -> None:
        waiting = iter(names)

        async def remove_some() -> None:
            for name in waiting:
                await self._remove(name)

        await asyncio.gather(*(remove_some() for _ in range(REMOVED_AT_ONCE)))

    async def _remove(self, name: str) -> None:
        """Remove a blob that no live row names. Where that fails it waits for who cleans up."""
        try:
            await self._artifacts.delete(name)
        except Exception as error:
            logger.warning("the blob %s has no row any more and could not be removed: %r", name, error)

    async def _live(self, key: str) -> Artifact | None:
        try:
            return await self._registry.get(key)
        except ArtifactNotFound:
            return None

    async def _newer(self, row: Artifact) -> Artifact:
        """The row that took the place of one whose blob is gone."""
        newer = await self._registry.get(row.key)
        if newer.id == row.id:
            raise StoreError(
                f"the blob of artifact {row.key!r} is missing: {row.storage_ref}",
                details={"key": row.key, "storage_ref": row.storage_ref},
            )
        return newer

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._begun(work))

    def _begun(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = start_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone


class _Check:
    """Holds what is read of a blob against its row."""

    def __init__(self, row: Artifact) -> None:
        self._row = row
        self._sum = sha256()
        self._byte_size = 0

    async def add(self, piece: bytes) -> None:
        """What was read next."""
        self._byte_size += len(piece)
        if len(piece) > HASHED_AT_ONCE:
            await done(self._sum.update, piece)
        else:
            self._sum.update(piece)
        if self._byte_size > self._row.byte_size:
            raise self._unlike()

    def end(self) -> None:
        """See that it was all, and what the row says."""
        if (self._byte_size, self._sum.hexdigest()) != (self._row.byte_size, self._row.checksum_sha256):
            raise self._unlike()

    def _unlike(self) -> StoreError:
        return StoreError(
            f"the blob of artifact {self._row.key!r} is not what its row says: {self._row.storage_ref}",
            details={"key": self._row.key, "storage_ref": self._row.storage_ref},
        )
