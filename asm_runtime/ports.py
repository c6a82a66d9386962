"""The protocols between the runtime and its stores and adapters, and what passes through them.

Each contract is written here once: an implementation's docstring says only what differs.
`asm_runtime.testing` holds a suite that shows whether a store keeps its contract.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from asm_runtime.artifacts import ArtifactRegistry, ArtifactStats, ArtifactStore, BlobInfo, BytesLike
from asm_runtime.payload import JsonObject
from asm_runtime.records import (
    Event,
    EventType,
    Fence,
    Run,
    RunStatus,
    Session,
    SessionStatus,
)

__all__ = [
    "ArtifactRegistry",
    "ArtifactStats",
    "ArtifactStore",
    "BlobInfo",
    "BytesLike",
    "Capability",
    "Emit",
    "ExecutionResult",
    "ExpectedStatus",
    "Fence",
    "Maintenance",
    "Order",
    "ProviderAdapter",
    "ProviderResult",
    "QueryAPI",
    "RunContext",
    "RunResult",
    "ServerStatus",
    "SessionStore",
]

ExpectedStatus: TypeAlias = str
"""A status, or `"absent"`: there must be no such row."""

Order: TypeAlias = Literal["asc", "desc"]


class ExecutionResult(msgspec.Struct, frozen=True):
    """What one atomic write carries: a session, a run, events; each optional."""

    session: Session | None = None
    run: Run | None = None
    events: Sequence[Event] = ()


class SessionStore(Protocol):
    """Where sessions, runs and events live. Every store is an actor: start it, stop it.

    All methods are coroutines and safe to call from any number of tasks at once. Cancelling a call
    that writes leaves the write done or not begun. No references are checked: an event, a run or a
    claim needs no session row.

    Raises, from every method:
        ActorStopped: The store is not started, or is stopped.
        ValidationError: An argument is not what is allowed; nothing was written.
        StoreUnavailable: The database is out of reach, locked or full; nothing was written.
        StoreError: The database failed in another way; nothing was written.
    """

    async def start(self) -> Any:
        """Open it; returns itself. Starting a running one does nothing."""
        ...

    async def stop(self) -> None:
        """Close it: calls under way are answered first, parked waiters with `[]`."""
        ...

    # -- sessions and runs

    async def save_session(self, session: Session, *, expected_status: ExpectedStatus | None = None) -> None:
        """Insert or replace the session with that id.

        Args:
            session: What to store.
            expected_status: Write only if the stored one has this status.

        Raises:
            Conflict: The stored status is not the expected one; or the session would become
                `completed` while it has `pending` or `running` runs.
            InvalidTransition: A terminal status is stored and this one differs.
        """
        ...

    async def get_session(self, session_id: str) -> Session:
        """The session with that id.

        Raises:
            SessionNotFound: There is none, or it is soft-deleted.
        """
        ...

    async def list_sessions(
        self,
        *,
        status: SessionStatus | str | Collection[SessionStatus | str] | None = None,
        agent_id: str | Collection[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Session]:
        """Sessions, oldest first (`created_at`, then `id`); soft-deleted ones are left out.

        Args:
            status: One, or a collection of them; an empty one matches nothing.
            agent_id: Likewise.
            limit: Maximum number, ≥ 1; None: all.
            offset: How many to skip, ≥ 0.
        """
        ...

    async def delete_session(self, session_id: str) -> None:
        """Remove the session with its runs, events, sequence counter and artifact rows. Idempotent.

        This store's waiters on it are answered with `[]`. A run in flight gets `LeaseLost` at its
        next write. A new session with that id starts at 1 again. The session is gone in one step; what it
        had may be removed in several, between which others write. The call returns when nothing is left,
        or when the rest has to wait for a database that refuses: then the store goes on by itself.
        """
        ...

    async def save_run(self, run: Run, *, expected_status: ExpectedStatus | None = None) -> None:
        """Insert or replace the run with that id in its session; its place in the queue stays.

        Raises:
            Conflict: The stored status is not the expected one.
            InvalidTransition: A terminal status is stored and this one differs.
        """
        ...

    async def get_run(self, run_id: str, *, session_id: str | None = None) -> Run:
        """The run with that id.

        Args:
            run_id: Its id, unique within its session.
            session_id: Its session; naming it spares a partitioned database the search.

        Raises:
            RunNotFound: There is none, or not in that session.
            Conflict: No session was named and runs of several sessions have that id.
        """
        ...

    async def list_runs(
        self,
        session_id: str,
        *,
        status: RunStatus | str | Collection[RunStatus | str] | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Run]:
        """The session's runs in the order in which the store first accepted them.

        Args:
            session_id: Whose runs; an unknown session has none.
            status: Only with this status or one of these; an empty collection matches nothing.
            limit: Maximum number, ≥ 1; None: all.
            after: The id of a run of the session, in whatever status now: only those accepted after
                it. The id of a page's last run is the cursor of the next page.

        Raises:
            RunNotFound: `after` names no run of the session; it may have been deleted meanwhile.
        """
        ...

    async def get_active_run(self, session_id: str) -> Run | None:
        """The run that is `running`, the earliest started if there are several; None if none is."""
        ...

    async def flush(
        self,
        result: ExecutionResult,
        *,
        fence: Fence | None = None,
        expected_session_status: ExpectedStatus | None = None,
        expected_run_status: ExpectedStatus | None = None,
        expected_session: Session | None = None,
        expected_run: Run | None = None,
    ) -> list[Event]:
        """Store a session, a run and events in one atomic write.

        The checks of `save_session`, `save_run` and `append_events` hold; that a session becomes
        `completed` is judged by the runs as they are after the write.

        A row may leave a status and come back to it, with other fields than before. To write back
        what was read, expect the whole row. A row that is written back unchanged guards the events.

        Args:
            result: What to store.
            fence: Write only while that run is `running` under that attempt; judged first.
            expected_session_status: Write only if the stored session has this status.
            expected_run_status: Likewise for the run.
            expected_session: Write only if the stored session equals this one, as JSON. It has the id
                of `result.session`.
            expected_run: Likewise for the run.

        Returns:
            The stored events, in input order.

        Raises:
            Conflict, InvalidTransition, LeaseLost: As there; nothing is visible.
        """
        ...

    # -- the log

    async def append_event(self, event: Event) -> None:
        """Like `append_event_with_sequence`, for callers that need no answer."""
        ...

    async def append_event_with_sequence(self, event: Event) -> Event:
        """Store an event under the next number of its session's log.

        Numbers are 1, 2, 3 … without gaps, under any concurrency, in any number of processes on one
        database, across crashes. When this returns, the event is as durable as the store promises.

        Returns:
            The stored event. If the session has an event with that id: that one, unchanged.
        """
        ...

    async def append_events(self, events: Sequence[Event], *, fence: Fence | None = None) -> list[Event]:
        """Store a batch, all or nothing, numbered in input order. It may span sessions.

        Args:
            events: What to store; a duplicate, of the store or in the batch, is idempotent.
            fence: Write only while that run is `running` under that attempt.

        Returns:
            The stored events, one for each input, in input order; `[]` for `[]`.

        Raises:
            LeaseLost: The fence does not hold.
        """
        ...

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
    ) -> list[Event]:
        """Read the log, or wait for it to grow.

        With `wait_timeout_ms` > 0 and nothing to answer, the caller is parked: the first append, by
        anyone, that brings matching events answers with them. A parked caller blocks nobody; one
        that is cancelled leaves nothing.

        Args:
            session_id: Whose log; an unknown one is empty.
            run_id: Only of this run or these; an empty collection matches nothing.
            type: Only of this type or these; likewise.
            since: Only with a timestamp strictly later.
            after: Only with a greater number: the cursor.
            before: Only with a smaller number.
            limit: Maximum number, ≥ 1; None: all.
            max_bytes: Stop before the event whose JSON (`msgspec.json.encode(event.to_dict())`) would
                take the sum past this, ≥ 1; the first is there in any case. None: no bound.
            order: By number, ascending (`asc`) or descending (`desc`).
            wait_timeout_ms: How long to wait for a first match, in milliseconds; 0: not at all.

        Returns:
            The matching events; `[]` if there are none, or none came in time, or the store stopped
            or the session was deleted meanwhile.
        """
        ...

    async def get_latest_sequence(self, session_id: str) -> int:
        """The greatest number ever given in that log; 0 for an unknown session."""
        ...

    # -- the queue

    async def enqueue_run(self, run: Run, *, max_open_runs: int | None = None) -> Run:
        """Accept a `pending` run as the last of its session's queue. One step, in any process.

        Args:
            run: Its id is new in its session.
            max_open_runs: How many `pending` and `running` runs the session may then have.

        Returns:
            The stored run. If that id is known with equal input: that run, unchanged, whatever its
            status and whatever the limit.

        Raises:
            Conflict: The id is known with another input.
            InvalidTransition: The session's row exists and is terminal.
            QueueFull: The limit is reached; nothing was stored.
        """
        ...

    async def claim_run(
        self,
        session_id: str,
        *,
        max_concurrent_runs: int | None = None,
        run_id: str | None = None,
    ) -> Run | None:
        """Take the first accepted `pending` run, or that one, for this node. One step, in any process.

        It becomes `running`, with this node as owner, `attempt` + 1 and `started_at`. A claim whose
        caller is cancelled leaves the run `pending` or orphaned.

        Args:
            session_id: Whose queue; if its row exists it must be `active`.
            max_concurrent_runs: Claim only if fewer runs of the session are `running`; None: no limit.
            run_id: Claim this one.

        Returns:
            The claimed run; None if there is none to claim, or no slot, or the session is not active.
        """
        ...

    async def release_run(self, fence: Fence) -> None:
        """Declare that this node no longer executes that attempt.

        If the run is still `running` under it, its owner is cleared: an orphan, at once. Otherwise
        nothing happens. Release in a `finally` what you claimed.
        """
        ...

    async def list_orphaned_runs(
        self, *, session_id: str | None = None, limit: int | None = None
    ) -> list[Run]:
        """Runs that are `running` although no live process executes them.

        That is: without an owner, or the owner's store was stopped, or the owner's process is dead.
        """
        ...

    async def wait_for_runs(
        self, session_id: str, *, after: int | None = None, timeout_ms: int | None
    ) -> int:
        """The session's run revision, a number that grows with every change of its runs, by anyone.

        It grows with a change of the session's own status too.

        Args:
            session_id: Whose runs.
            after: Wait until it is greater than this; None: answer at once.
            timeout_ms: How long to wait, in milliseconds; None: no limit.

        Returns:
            The revision, at the latest at the timeout, when the session is deleted or the store stops.
        """
        ...


# -- providers


class Emit(Protocol):
    """How an adapter reports an event."""

    def __call__(
        self,
        type: EventType | str,
        data: JsonObject | None = None,
        *,
        timestamp: datetime | None = None,
        metadata: JsonObject | None = None,
        id: str | None = None,
    ) -> Awaitable[None]:
        """Report an event; it is stored soon, in order.

        Waits while the run's buffer is full: the provider is slowed to the speed of the store.

        Args:
            type: An event type. `run_started` and the terminal types add their data to the run's
                `provider_metadata` and make no event: the run's own events are the runtime's.
            data: What happened, a JSON object.
            timestamp: When, timezone-aware; None: now.
            metadata: Merged into the event's metadata.
            id: The provider's own id for it; an id that comes again is stored once.

        Raises:
            ValidationError: An argument is not what is allowed.
            LeaseLost: The run has ended or is executed by another node.
        """
        ...


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is given besides the run and its session."""

    emit: Emit
    attempt: int
    adapter_opts: JsonObject = {}
    history: list[JsonObject] = []
    """The messages of the session so far, if the run is to continue it; else empty."""
    deadline: datetime | None = None
    """When the run's time limit is reached."""


class ProviderResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run went. What `Run` has no field for goes to its `provider_metadata`."""

    output: Any = None
    token_usage: JsonObject = {}
    stop_reason: str | None = None
    provider_session_id: str | None = None
    model: str | None = None
    cost_usd: float | None = None
    metadata: JsonObject = {}


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """Something an adapter can do."""

    name: str
    type: str
    """tool, resource, prompt, sampling, file_access, network_access or code_execution."""
    enabled: bool = True
    description: str | None = None
    config: JsonObject = {}
    permissions: list[str] = []


@runtime_checkable
class ProviderAdapter(Protocol):
    """Drives a provider. Any object with these members is an adapter."""

    name: str

    async def capabilities(self) -> list[Capability]:
        """What it can do."""
        ...

    async def execute(self, run: Run, session: Session, context: RunContext) -> ProviderResult:
        """Do the run.

        Runs in a task of its own; any number of runs at once. When the task is cancelled, whatever
        it started (an HTTP stream, an OS process group) must be gone when the task ends.

        Returns:
            How it went: the run completes.

        Raises:
            AsmError: The run fails with its code. Any other exception becomes a `ProviderError`.
        """
        ...

    async def cancel(self, run_id: str) -> None:
        """Stop that run, if it is executing; else do nothing. Its `execute` task is cancelled too."""
        ...

    def validate_config(self, config: JsonObject) -> None:
        """Check `adapter_opts` before a run is accepted.

        Raises:
            ValidationError: Something is unknown or not what is allowed.
        """
        ...


# -- results


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a completed run went."""

    session_id: str
    run_id: str
    status: RunStatus
    output: Any = None
    token_usage: JsonObject = {}
    cost_usd: float | None = None
    stop_reason: str | None = None
    provider_metadata: JsonObject = {}
    last_sequence_number: int
    """The number of the run's terminal event."""


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a session server last saw."""

    session_id: str
    in_flight_runs: list[str]
    """The runs it executes, in the order of their start."""
    in_flight_count: int
    queued_runs: list[str]
    """The session's queue, first in first out."""
    queued_count: int
    max_concurrent_runs: int
    max_queued_runs: int
    subscribers: int
    draining: bool


EventCallback: TypeAlias = Callable[[Event], object]
"""A function or coroutine function that is given every stored event of a run, in order."""


# -- around the store


class QueryAPI(Protocol):
    """Questions across sessions. Not implemented by this release's stores."""

    async def search_sessions(self, **filters: Any) -> Any:
        """Sessions by their fields, a page at a time."""
        ...

    async def search_runs(self, **filters: Any) -> Any:
        """Runs by their fields, a page at a time."""
        ...

    async def search_events(self, **filters: Any) -> Any:
        """Events of many sessions, a page at a time."""
        ...


class Maintenance(Protocol):
    """Retention. Not implemented by this release's stores."""

    async def prune_session_events(self, session_id: str, **policy: Any) -> int:
        """Remove old events of a session; returns how many."""
        ...
