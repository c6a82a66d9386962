"""What a caller puts: bytes at once or in pieces, made into blocks."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from datetime import datetime
from hashlib import sha256
from typing import Any

from asm_runtime import options
from asm_runtime.payload import JsonObject
from asm_runtime.ports import BytesLike
from asm_runtime.records import Artifact
from asm_runtime.stores.artifacts.keys import blob_key

__all__ = ["blocks", "check_data", "draft"]

_ALLOWED = "bytes-like, or an async iterator of bytes-like pieces"
_NOTHING = sha256().hexdigest()


def draft(
    key: str,
    backend: str,
    *,
    session_id: str | None,
    run_id: str | None,
    content_type: str | None,
    metadata: JsonObject | None,
    created_at: datetime,
) -> Artifact:
    """The record of a blob that is to be put, without its size and checksum.

    Raises:
        ValidationError: One of the values is not what is allowed.
    """
    key = blob_key("key", key)
    return Artifact.new(
        key=key,
        storage_backend=backend,
        storage_ref=key,
        byte_size=0,
        checksum_sha256=_NOTHING,
        session_id=session_id,
        run_id=run_id,
        content_type=content_type,
        metadata=metadata,
        created_at=created_at,
    )


def check_data(data: Any) -> None:
    """See that `blocks` can be made of it.

    Raises:
        ValidationError: It is neither bytes-like nor an async iterator.
    """
    if not isinstance(data, AsyncIterable):
        _viewed(data)


async def blocks(data: BytesLike | AsyncIterable[BytesLike], byte_size: int) -> AsyncIterator[memoryview]:
    """The data in blocks of that size, the last one shorter; nothing for nothing.

    A block does not change when its caller uses the buffer again.

    Raises:
        ValidationError: A piece is not bytes-like.
    """
    if not isinstance(data, AsyncIterable):
        view = _viewed(data)
        for start in range(0, len(view), byte_size):
            block = view[start : start + byte_size]
            yield block if isinstance(data, bytes) else memoryview(bytes(block))
        return
    gathered = bytearray()
    async for piece in data:
        rest = _viewed(piece)
        while len(rest):
            fitting = rest[: byte_size - len(gathered)]
            gathered += fitting
            rest = rest[len(fitting) :]
            if len(gathered) == byte_size:
                yield memoryview(gathered)
                gathered = bytearray()
    if gathered:
        yield memoryview(gathered)


def _viewed(data: Any) -> memoryview:
    try:
        view = memoryview(data)
    except TypeError:
        raise options.refused("data", data, _ALLOWED) from None
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    return memoryview(view.tobytes())
