"""Sessions and artifacts as one store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from asm_runtime import options
from asm_runtime.actor import Actor
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.payload import JsonObject
from asm_runtime.ports import (
    ArtifactRegistry,
    ArtifactStore,
    BlobInfo,
    BytesLike,
    ExecutionResult,
    ExpectedStatus,
    Order,
    SessionStore,
)
from asm_runtime.records import Artifact, Event, EventType, Fence, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.registered import RegisteredArtifacts
from asm_runtime.tasks import start_task

__all__ = ["CompositeSessionStore", "plain_store"]

T = TypeVar("T")

# Inside the class `list` is a method.
Sessions: TypeAlias = list[Session]
Runs: TypeAlias = list[Run]
Events: TypeAlias = list[Event]

SETTLE_SECONDS = 5.0
"""How long a stop waits for rows that are being replaced and blobs that are being removed."""


class CompositeSessionStore(Actor):
    """A session store and an artifact store behind one name, each asked directly.

    Without a registry blobs keep their keys and outlive their session. With one, an artifact is a row and
    its blob: `put` writes a new blob and replaces row and blob as one, everything else goes by live rows,
    and `delete_session` removes the blobs of the session too. A crash leaves at most a blob without a row.

    It starts what is not running, and stops that and nothing else.

    Args:
        sessions: Where sessions, runs and events live.
        artifacts: Where blobs live.
        registry: Where their rows live, for instance `ArtifactRegistry(sessions)`.
        prefix: What the names of blobs with a row begin with in `artifacts`. Blobs that begin so and have
            no row are taken for leftovers.
        clock: The source of its timers.
    """

    def __init__(
        self,
        *,
        sessions: SessionStore,
        artifacts: ArtifactStore,
        registry: ArtifactRegistry | None = None,
        prefix: str = "artifacts/",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(clock=clock)
        for name, store, method in (("sessions", sessions, "flush"), ("artifacts", artifacts, "put")):
            if not hasattr(store, method):
                raise options.refused(name, store, f"a store of {name}")
        self.sessions = sessions
        self.artifacts = artifacts
        self.registry = registry
        self.prefix = prefix
        self._registered = None if registry is None else RegisteredArtifacts(artifacts, registry, prefix)
        self._blobs: ArtifactStore = self._registered or artifacts
        self._started = AsyncExitStack()
        self._owns_sessions = False
        self._parked: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sessions!r} {self.artifacts!r}>"

    async def on_start(self) -> None:
        """Start what is not running."""
        async with AsyncExitStack() as started:
            for part in (self.sessions, self.artifacts, self.registry):
                if hasattr(part, "start") and not getattr(part, "is_running", False):
                    store: Any = part
                    await store.start()
                    started.push_async_callback(store.stop)
                    self._owns_sessions = self._owns_sessions or part is self.sessions
            self._started = started.pop_all()

    async def on_stop(self) -> None:
        """Answer those who wait, let replacements end, and stop what was started."""
        for task in self._parked:
            task.cancel()
        if self._registered is not None:
            await self._registered.settle(self._clock, SETTLE_SECONDS)
        await self._started.aclose()

    @property
    def _running(self) -> SessionStore:
        """The session store.

        Raises:
            ActorStopped: This store is not running.
        """
        if not self.is_running:
            raise self._gone()
        return self.sessions

    async def _parked_at(self, reading: Coroutine[Any, Any, T], missed: Callable[[], Awaitable[T]]) -> T:
        """Wait for an answer that may take long, until this store stops.

        Args:
            reading: What waits, in `sessions`.
            missed: The answer of a stop, where `sessions` goes on.
        """
        if self._owns_sessions:  # its stop answers
            return await reading
        task = start_task(reading)
        self._parked.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self.is_running or (caller is not None and caller.cancelling()):
                raise
        finally:
            self._parked.discard(task)
        return await missed()

    # -- sessions, runs, the log, the queue

    async def delete_session(self, session_id: str) -> None:
        """See `SessionStore`. With a registry the session's blobs go too, and it is not cancelled any more.

        A blob that cannot be removed is logged: it is a leftover without a row.
        """
        deletion = self._running.delete_session(session_id)
        if self._registered is None:
            await deletion
        else:
            await self._registered.delete_session(session_id, deletion)

    async def save_session(self, session: Session, *, expected_status: ExpectedStatus | None = None) -> None:
        """See `SessionStore`."""
        await self._running.save_session(session, expected_status=expected_status)

    async def get_session(self, session_id: str) -> Session:
        """See `SessionStore`."""
        return await self._running.get_session(session_id)

    async def list_sessions(
        self,
        *,
        status: SessionStatus | str | Collection[SessionStatus | str] | None = None,
        agent_id: str | Collection[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> Sessions:
        """See `SessionStore`."""
        return await self._running.list_sessions(status=status, agent_id=agent_id, limit=limit, offset=offset)

    async def save_run(self, run: Run, *, expected_status: ExpectedStatus | None = None) -> None:
        """See `SessionStore`."""
        await self._running.save_run(run, expected_status=expected_status)

    async def get_run(self, run_id: str, *, session_id: str | None = None) -> Run:
        """See `SessionStore`."""
        return await self._running.get_run(run_id, session_id=session_id)

    async def list_runs(
        self,
        session_id: str,
        *,
        status: RunStatus | str | Collection[RunStatus | str] | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Runs:
        """See `SessionStore`."""
        return await self._running.list_runs(session_id, status=status, limit=limit, after=after)

    async def get_active_run(self, session_id: str) -> Run | None:
        """See `SessionStore`."""
        return await self._running.get_active_run(session_id)

    async def flush(
        self,
        result: ExecutionResult,
        *,
        fence: Fence | None = None,
        expected_session_status: ExpectedStatus | None = None,
        expected_run_status: ExpectedStatus | None = None,
        expected_session: Session | None = None,
        expected_run: Run | None = None,
    ) -> Events:
        """See `SessionStore`."""
        return await self._running.flush(
            result,
            fence=fence,
            expected_session_status=expected_session_status,
            expected_run_status=expected_run_status,
            expected_session=expected_session,
            expected_run=expected_run,
        )

    async def append_event(self, event: Event) -> None:
        """See `SessionStore`."""
        await self._running.append_event(event)

    async def append_event_with_sequence(self, event: Event) -> Event:
        """See `SessionStore`."""
        return await self._running.append_event_with_sequence(event)

    async def append_events(self, events: Sequence[Event], *, fence: Fence | None = None) -> Events:
        """See `SessionStore`."""
        return await self._running.append_events(events, fence=fence)

    async def get_events(
        self,
        session_id: str,
        *,
        run_id: str | Collection[str] | None = None,
        type: EventType | str | Collection[EventType | str] | None = None,
        since: datetime | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        max_bytes: int | None = None,
        order: Order = "asc",
        wait_timeout_ms: int = 0,
    ) -> Events:
        """See `SessionStore`."""
        reading = self._running.get_events(
            session_id,
            run_id=run_id,
            type=type,
            since=since,
            after=after,
            before=before,
            limit=limit,
            max_bytes=max_bytes,
            order=order,
            wait_timeout_ms=wait_timeout_ms,
        )
        if not wait_timeout_ms:
            return await reading
        return await self._parked_at(reading, _no_events)

    async def get_latest_sequence(self, session_id: str) -> int:
        """See `SessionStore`."""
        return await self._running.get_latest_sequence(session_id)

    async def enqueue_run(self, run: Run, *, max_open_runs: int | None = None) -> Run:
        """See `SessionStore`."""
        return await self._running.enqueue_run(run, max_open_runs=max_open_runs)

    async def claim_run(
        self,
        session_id: str,
        *,
        max_concurrent_runs: int | None = None,
        run_id: str | None = None,
    ) -> Run | None:
        """See `SessionStore`."""
        return await self._running.claim_run(
            session_id, max_concurrent_runs=max_concurrent_runs, run_id=run_id
        )

    async def release_run(self, fence: Fence) -> None:
        """See `SessionStore`."""
        await self._running.release_run(fence)

    async def list_orphaned_runs(self, *, session_id: str | None = None, limit: int | None = None) -> Runs:
        """See `SessionStore`."""
        return await self._running.list_orphaned_runs(session_id=session_id, limit=limit)

    async def wait_for_runs(
        self, session_id: str, *, after: int | None = None, timeout_ms: int | None
    ) -> int:
        """See `SessionStore`."""

        def revision() -> Awaitable[int]:
            return self.sessions.wait_for_runs(session_id, timeout_ms=0)

        reading = self._running.wait_for_runs(session_id, after=after, timeout_ms=timeout_ms)
        return await self._parked_at(reading, revision)

    # -- artifacts

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
        """See `ArtifactStore`. With a registry the row is stored; its `storage_ref` is the blob's name."""
        return await self._running_blobs.put(
            key, data, session_id=session_id, run_id=run_id, content_type=content_type, metadata=metadata
        )

    async def get(self, key: str) -> bytes:
        """See `ArtifactStore`. With a registry, a blob that is not what its row says is a `StoreError`."""
        return await self._running_blobs.get(key)

    def stream(self, key: str, *, chunk_size: int = 262_144) -> AsyncIterator[bytes]:
        """See `ArtifactStore`, and `get`."""
        return self._running_blobs.stream(key, chunk_size=chunk_size)

    async def exists(self, key: str) -> bool:
        """See `ArtifactStore`."""
        return await self._running_blobs.exists(key)

    async def delete(self, key: str) -> None:
        """See `ArtifactStore`."""
        await self._running_blobs.delete(key)

    def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        """See `ArtifactStore`."""
        return self._running_blobs.list(prefix)

    @property
    def _running_blobs(self) -> ArtifactStore:
        if not self.is_running:
            raise self._gone()
        return self._blobs


def plain_store(store: Any) -> Any:
    """The session store that a composite one stands for; any other stands for itself."""
    while isinstance(store, CompositeSessionStore):
        store = store.sessions
    return store


async def _no_events() -> Events:
    return []
