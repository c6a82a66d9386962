"""Blobs in an object store, by the library `obstore`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Generator
from contextlib import contextmanager
from datetime import UTC
from hashlib import sha256
from typing import Any, TypeAlias

from asm_runtime import options
from asm_runtime.clock import Clock
from asm_runtime.errors import ArtifactNotFound, AsmError, StoreError
from asm_runtime.payload import JsonObject
from asm_runtime.ports import BlobInfo, BytesLike
from asm_runtime.records import Artifact
from asm_runtime.stores.artifacts.data import blocks, check_data, draft
from asm_runtime.stores.artifacts.keys import blob_key, blob_prefix
from asm_runtime.stores.artifacts.object_errors import translated
from asm_runtime.stores.artifacts.object_names import LONG, folder_of_prefix, key_of_object, object_name
from asm_runtime.stores.artifacts.pipe import Pipe
from asm_runtime.stores.artifacts.threads import done
from asm_runtime.tasks import start_task

__all__ = ["Client", "ServiceArtifacts"]

Client: TypeAlias = Any
"""Something of `obstore`, which need not be installed where this is type-checked."""

PART_BYTES = 6 << 20
"""How large a part of an upload is, and the largest blob that is put by one request. S3 takes 10 000 parts,
so blobs of up to 62 GB."""

PARTS_AT_ONCE = 2
"""How many parts are on their way at once. As many again are held in memory while they are gathered."""

LISTED_OBJECTS = 500
"""How many objects a list holds in memory."""


class ServiceArtifacts:
    """Keeps `asm_runtime.ports.ArtifactStore` in a service; see `ObjectArtifactStore`.

    Args:
        obstore: The module.
        client: One of its stores.
        backend: The `storage_backend` of the records.
        name: What names the store in errors.
        clock: The source of the records' times.
    """

    def __init__(self, obstore: Client, client: Client, *, backend: str, name: str, clock: Clock) -> None:
        self._obstore = obstore
        self._client = client
        self._backend = backend
        self._name = name
        self._clock = clock
        self._unsettled: dict[str, set[asyncio.Task[Any]]] = {}
        """Writes under way whose caller is gone, by key."""

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
            self._backend,
            session_id=session_id,
            run_id=run_id,
            content_type=content_type,
            metadata=metadata,
            created_at=self._clock.now(),
        )
        check_data(data)
        sums = _Sums()
        parts = sums.of(blocks(data, PART_BYTES))
        first = [part async for part in _some(parts, 2)]
        await self._settled(record.key)
        if len(first) < 2:
            data = bytes(first[0]) if first else b""
            await self._write(record.key, self._put_whole(record.key, data))
        else:
            await self._put_parts(record.key, first, parts)
        return record.replace(
            byte_size=sums.byte_size, checksum_sha256=sums.checksum, created_at=self._clock.now()
        )

    async def _put_whole(self, key: str, data: bytes) -> None:
        with self._translating():
            await self._obstore.put_async(self._client, object_name(key), data, use_multipart=False)

    async def _put_parts(self, key: str, first: list[memoryview], rest: AsyncIterator[memoryview]) -> None:
        """Have obstore take parts from a pipe. It is never cancelled, but told: then it removes its parts."""
        pipe: Pipe[memoryview] = Pipe()
        writing = start_task(self._put_piped(key, pipe))
        writing.add_done_callback(pipe.leave)
        try:
            while first:
                await pipe.give(first.pop(0))
            async for part in rest:
                if not await pipe.give(part):
                    break
            pipe.end()
        except BaseException as error:
            pipe.fail(_GivenUp())
            self._forsake(key, writing)
            if isinstance(error, Exception):
                await asyncio.wait([writing])
            raise
        await self._finished(key, writing)

    async def _put_piped(self, key: str, pipe: Pipe[memoryview]) -> None:
        try:
            with self._translating():
                await self._obstore.put_async(
                    self._client,
                    object_name(key),
                    pipe,
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
        except _GivenUp:
            pass

    async def get(self, key: str) -> bytes:
        """See `ArtifactStore`."""
        key = blob_key("key", key)
        with self._translating(key):
            found = await self._obstore.get_async(self._client, object_name(key))
            data = await found.bytes_async()
        _check_size(key, found, len(data))
        return await done(bytes, data) if len(data) > PART_BYTES else bytes(data)

    def stream(self, key: str, *, chunk_size: int = 262_144) -> AsyncIterator[bytes]:
        """See `ArtifactStore`."""
        return self._stream(blob_key("key", key), options.integer("chunk_size", chunk_size, minimum=1))

    async def _stream(self, key: str, chunk_size: int) -> AsyncIterator[bytes]:
        with self._translating(key):
            found = await self._obstore.get_async(self._client, object_name(key))
        pieces = found.stream(min_chunk_size=min(chunk_size, PART_BYTES)).__aiter__()
        total = 0
        while True:
            with self._translating():
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    break
            view = memoryview(piece)
            total += len(view)
            for start in range(0, len(view), chunk_size):
                yield bytes(view[start : start + chunk_size])
        _check_size(key, found, total)

    async def exists(self, key: str) -> bool:
        """See `ArtifactStore`."""
        key = blob_key("key", key)
        try:
            with self._translating(key):
                await self._obstore.head_async(self._client, object_name(key))
        except ArtifactNotFound:
            return False
        return True

    async def delete(self, key: str) -> None:
        """See `ArtifactStore`."""
        key = blob_key("key", key)
        await self._settled(key)
        await self._write(key, self._delete(key))

    async def _delete(self, key: str) -> None:
        try:
            with self._translating(key):
                await self._obstore.delete_async(self._client, object_name(key))
        except ArtifactNotFound:
            pass

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        """See `ArtifactStore`."""
        return self._list(blob_prefix("prefix", prefix))

    async def _list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        folder = folder_of_prefix(prefix)
        for place in (None,) if folder is None else (folder, LONG):
            listing = self._obstore.list(self._client, place, chunk_size=LISTED_OBJECTS).__aiter__()
            while True:
                with self._translating():
                    try:
                        found = await anext(listing)
                    except StopAsyncIteration:
                        break
                for one in found:
                    key = key_of_object(one["path"])
                    if key is not None and key.startswith(prefix):
                        modified_at = one["last_modified"].astimezone(UTC)
                        yield BlobInfo(key=key, byte_size=one["size"], modified_at=modified_at)

    # -- writes whose caller may go

    async def _write(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        await self._finished(key, start_task(work))

    async def _finished(self, key: str, writing: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._forsake(key, writing)
            raise

    def _forsake(self, key: str, writing: asyncio.Task[None]) -> None:
        """Let a write go on that nobody waits for; the next one of the key waits for it."""
        unsettled = self._unsettled.setdefault(key, set())
        unsettled.add(writing)

        def settled(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()
            unsettled.discard(task)
            if not unsettled and self._unsettled.get(key) is unsettled:
                del self._unsettled[key]

        writing.add_done_callback(settled)

    async def _settled(self, key: str) -> None:
        while unsettled := self._unsettled.get(key):
            await asyncio.wait(unsettled)

    @contextmanager
    def _translating(self, key: str | None = None) -> Generator[None]:
        """Have errors of the client become ours; of a missing object, where one is asked for by key."""
        _refuse_inherited()
        try:
            yield
        except (AsmError, _GivenUp):
            raise
        except FileNotFoundError as error:
            if key is not None and "NoSuchBucket" not in str(error):
                raise ArtifactNotFound(f"no artifact {key}", details={"key": key}) from None
            raise translated(error, self._name) from None
        except Exception as error:
            raise translated(error, self._name) from None


_used_in: int | None = None
"""The process in which the threads of obstore are. In one that was forked from it they are not, and whatever
is asked of them is never answered."""


def _refuse_inherited() -> None:
    global _used_in
    process = os.getpid()
    if _used_in is None:
        _used_in = process
    elif _used_in != process:
        raise StoreError(
            "obstore was in use when this process was forked, and does not work here: start processes by "
            "spawning them, or fork before the first use"
        )


class _GivenUp(Exception):
    """What obstore is told when a put is not to be finished."""


class _Sums:
    """Size and checksum of what goes by."""

    def __init__(self) -> None:
        self._sum = sha256()
        self.byte_size = 0

    @property
    def checksum(self) -> str:
        return self._sum.hexdigest()

    async def of(self, parts: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
        async for part in parts:
            self.byte_size += len(part)
            if len(part) > 65_536:
                await done(self._sum.update, part)
            else:
                self._sum.update(part)
            yield part


async def _some(parts: AsyncIterator[memoryview], count: int) -> AsyncIterator[memoryview]:
    """The first of them, and no further."""
    while count and (part := await anext(parts, None)) is not None:
        yield part
        count -= 1


def _check_size(key: str, found: Client, byte_size: int) -> None:
    if byte_size != found.meta["size"]:
        raise StoreError(f"artifact {key!r} was read in part: {byte_size} bytes of {found.meta['size']}")
