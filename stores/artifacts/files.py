"""Blobs in a folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeVar, TypeVarTuple

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.payload import JsonObject
from asm_runtime.ports import BlobInfo, BytesLike
from asm_runtime.records import Artifact
from asm_runtime.stores.artifacts.data import blocks, check_data, draft
from asm_runtime.stores.artifacts.disk_errors import translating
from asm_runtime.stores.artifacts.folder import Folder, Listing, OpenBlob, Upload
from asm_runtime.stores.artifacts.keys import blob_key, blob_prefix
from asm_runtime.stores.artifacts.threads import begun, done

__all__ = ["FileArtifactStore"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BLOCK_BYTES = 1 << 20
"""How much one thread writes at a time, and how much of a stream is held in memory."""

LISTED_FILES = 500
"""How many files one thread looks at at a time."""


class FileArtifactStore:
    """Keeps `asm_runtime.ports.ArtifactStore` in a folder of files.

    What `put` has returned from survives a power cut: file and folder are synced. Any number of stores,
    in any number of processes, may share a folder. What it makes is for its owner alone; what lies there
    besides is left alone. The file system is met in threads.

    A put that is cancelled while its file is being renamed may have put the new version.

    Args:
        root: The folder; made by the first put. Beside the files it holds one of temporary files, where
            what a killed process left is removed by the next put.
        clock: The source of the records' times.
    """

    def __init__(self, root: str | os.PathLike[str], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._folder = Folder(_root(root))
        self._clock = clock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._folder.given}>"

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
        """See `ArtifactStore`."""
        record = draft(
            key,
            "file",
            session_id=session_id,
            run_id=run_id,
            content_type=content_type,
            metadata=metadata,
            created_at=self._clock.now(),
        )
        check_data(data)
        upload = await self._in_thread(self._folder.begin, undo=Upload.drop)
        try:
            async for block in blocks(data, BLOCK_BYTES):
                await self._in_thread(upload.write, block)
            await self._in_thread(upload.finish, record.key)
        except BaseException as error:
            upload.is_wanted = False  # at once: another put of the key may follow
            dropped = begun(upload.drop)
            if isinstance(error, Exception):
                await asyncio.shield(dropped)
            raise
        return record.replace(
            byte_size=upload.byte_size, checksum_sha256=upload.checksum, created_at=self._clock.now()
        )

    async def get(self, key: str) -> bytes:
        """See `ArtifactStore`."""
        return await self._in_thread(self._folder.read, blob_key("key", key))

    def stream(self, key: str, *, chunk_size: int = 262_144) -> AsyncIterator[bytes]:
        """See `ArtifactStore`."""
        return self._stream(blob_key("key", key), options.integer("chunk_size", chunk_size, minimum=1))

    async def _stream(self, key: str, chunk_size: int) -> AsyncIterator[bytes]:
        blob = await self._in_thread(self._folder.open, key, undo=OpenBlob.close)
        try:
            while piece := await self._in_thread(blob.read, chunk_size):
                yield piece
        finally:
            await self._in_thread(blob.close)

    async def exists(self, key: str) -> bool:
        """See `ArtifactStore`."""
        return await self._in_thread(self._folder.exists, blob_key("key", key))

    async def delete(self, key: str) -> None:
        """See `ArtifactStore`. One that is cancelled leaves the blob there or gone."""
        key = blob_key("key", key)
        is_wanted = True
        try:
            await self._in_thread(self._folder.remove, key, lambda: is_wanted)
        finally:
            is_wanted = False  # another put of the key may follow

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        """See `ArtifactStore`. Looks at the names of all files, whatever the prefix."""
        return self._list(blob_prefix("prefix", prefix))

    async def _list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        listing = await self._in_thread(self._folder.list, prefix, undo=Listing.close)
        try:
            while (found := await self._in_thread(listing.next, LISTED_FILES)) is not None:
                for blob in found:
                    yield blob
        finally:
            await self._in_thread(listing.close)

    async def _in_thread(
        self, job: Callable[[*Ts], T], *args: *Ts, undo: Callable[[T], object] | None = None
    ) -> T:
        """See `threads.done`; errors of the system become ours."""
        return await done(self._translated, job, args, undo=undo)

    def _translated(self, job: Callable[..., T], args: tuple[Any, ...]) -> T:
        with translating(self._folder.given):
            return job(*args)


def _root(root: Any) -> str:
    try:
        path = os.fsdecode(root)
        os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        path = ""
    if not path or "\0" in path:
        raise options.refused("root", root, "the path of a folder")
    return path
