"""Blobs in an object store: S3, GCS, Azure, a folder, or memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from datetime import timedelta
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import url2pathname

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.errors import DependencyMissing, ValidationError
from asm_runtime.payload import JsonObject
from asm_runtime.ports import ArtifactStore, BlobInfo, BytesLike
from asm_runtime.records import Artifact
from asm_runtime.stores.artifacts.files import FileArtifactStore
from asm_runtime.stores.artifacts.service import Client, ServiceArtifacts

__all__ = ["ObjectArtifactStore"]

RETRY_SECONDS = 30
"""For how long a request is repeated that the service does not answer, of a store that is made of a URL."""

_BACKENDS = {"S3Store": "s3", "GCSStore": "gcs", "AzureStore": "azure", "MemoryStore": "memory"}

_ALLOWED = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder, memory://"


class ObjectArtifactStore:
    """Keeps `asm_runtime.ports.ArtifactStore` in an object store, by the library `obstore` (extra `objects`).

    What `put` has returned from is as durable as the service says. A large blob is put in parts; those of a
    put that fails or is cancelled are removed. Of a process that is killed the service keeps the parts,
    where nobody reads or lists them, until a rule of the bucket removes them.

    A put that is cancelled while its last request is under way may be done; the next write of that key by
    this store waits until it is known. A failing service is a `StoreUnavailable` or a `StoreError`; neither
    holds what the client said, where there may be signed URLs.

    Objects are named like their keys, so that a list by a folder of keys asks for that folder alone. What
    is in the place besides is left alone. A folder of this machine is kept as `FileArtifactStore` keeps it.

    Args:
        url_or_obstore: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
            `file:///folder`, `memory://` (a new one), whose credentials and options `obstore` takes from
            the environment; or one of `obstore`'s stores, made with whatever options.
        clock: The source of the records' times.

    Raises:
        DependencyMissing: `obstore` is not installed.
    """

    def __init__(self, url_or_obstore: str | Client, *, clock: Clock = SYSTEM_CLOCK) -> None:
        try:
            obstore: Client = import_module("obstore")
            stores: Client = import_module("obstore.store")
        except ImportError as error:
            raise DependencyMissing(
                "ObjectArtifactStore needs obstore: install asm-runtime[objects]",
                details={"extra": "objects"},
            ) from error
        client, name = url_or_obstore, type(url_or_obstore).__name__
        if isinstance(url_or_obstore, str):
            client, name = _of_url(url_or_obstore, stores, clock)
        kind = type(client).__name__
        self._name = name
        self._store: ArtifactStore
        if kind == "LocalStore" and isinstance(client, stores.LocalStore):
            self._store = FileArtifactStore(_folder_of(client), clock=clock)
        elif isinstance(client, FileArtifactStore):
            self._store = client
        elif kind in _BACKENDS and isinstance(client, getattr(stores, kind)):
            self._store = ServiceArtifacts(obstore, client, backend=_BACKENDS[kind], name=name, clock=clock)
        else:
            raise options.refused("url_or_obstore", kind, f"{_ALLOWED}, or such a store of obstore")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

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
        return await self._store.put(
            key, data, session_id=session_id, run_id=run_id, content_type=content_type, metadata=metadata
        )

    async def get(self, key: str) -> bytes:
        """See `ArtifactStore`."""
        return await self._store.get(key)

    def stream(self, key: str, *, chunk_size: int = 262_144) -> AsyncIterator[bytes]:
        """See `ArtifactStore`."""
        return self._store.stream(key, chunk_size=chunk_size)

    async def exists(self, key: str) -> bool:
        """See `ArtifactStore`."""
        return await self._store.exists(key)

    async def delete(self, key: str) -> None:
        """See `ArtifactStore`."""
        await self._store.delete(key)

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        """See `ArtifactStore`."""
        return self._store.list(prefix)


def _of_url(url: str, stores: Client, clock: Clock) -> tuple[Client, str]:
    """The store that a URL means, and how it is named where everybody may read it.

    Raises:
        ValidationError: It means none. It is not repeated: there may be a password in it.
    """
    try:
        parts = urlsplit(url)
        name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme == "file":
            return FileArtifactStore(_folder_of_url(parts), clock=clock), name
        if parts.scheme == "memory":
            return stores.MemoryStore(), name
        # Without a retry it would be one lost connection; obstore's own 3 minutes are an outage.
        return stores.from_url(url, retry_config={"retry_timeout": timedelta(seconds=RETRY_SECONDS)}), name
    except Exception as error:
        scheme = url.partition(":")[0] if ":" in url else ""
        raise ValidationError(
            f"url_or_obstore must be {_ALLOWED}: one with the scheme {scheme[:20]!r} is refused "
            f"({type(error).__name__})",
            details={"option": "url_or_obstore", "value": scheme[:20]},
        ) from None


def _folder_of_url(parts: SplitResult) -> str:
    is_here = parts.netloc in ("", "localhost") and not parts.query and not parts.fragment
    if not is_here or not parts.path.startswith("/") or parts.path == "/":
        raise ValueError("not a folder of this machine")
    return url2pathname(parts.path)


def _folder_of(client: Any) -> str:
    if client.prefix is None:
        raise options.refused("url_or_obstore", "LocalStore", "a LocalStore with a prefix")
    return str(client.prefix)
