"""What is stored: sessions, runs, events, artifacts, and the rules of their status.

Records are frozen. `X.new(...)` makes a valid one; `with_status` takes a legal step; `checked()`
is what a store does with a record that anybody may have made by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

import msgspec

from asm_runtime import options
from asm_runtime.errors import InvalidTransition, ValidationError
from asm_runtime.ids import new_id
from asm_runtime.payload import JsonObject, canonical, canonical_object

__all__ = [
    "OPEN_RUN_STATUSES",
    "TERMINAL_EVENT_TYPES",
    "Artifact",
    "Event",
    "EventType",
    "Fence",
    "Run",
    "RunStatus",
    "Session",
    "SessionStatus",
]


class SessionStatus(StrEnum):
    """The status of a session."""

    PENDING = "pending"
    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the status is final."""
        return not _SESSION_STEPS[self]


class RunStatus(StrEnum):
    """The status of a run."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"

    @property
    def is_terminal(self) -> bool:
        """Whether the status is final."""
        return not _RUN_STEPS[self]


_SESSION_STEPS: dict[SessionStatus, frozenset[SessionStatus]] = {
    SessionStatus.PENDING: frozenset((SessionStatus.ACTIVE, SessionStatus.CANCELLED, SessionStatus.FAILED)),
    SessionStatus.ACTIVE: frozenset(
        (SessionStatus.PAUSED, SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.CANCELLED)
    ),
    SessionStatus.PAUSED: frozenset(
        (SessionStatus.ACTIVE, SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.CANCELLED)
    ),
    SessionStatus.COMPLETED: frozenset(),
    SessionStatus.FAILED: frozenset(),
    SessionStatus.CANCELLED: frozenset(),
}

_RUN_STEPS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PENDING: frozenset((RunStatus.RUNNING, RunStatus.CANCELLED, RunStatus.FAILED)),
    RunStatus.RUNNING: frozenset(
        (
            RunStatus.COMPLETED,
            RunStatus.FAILED,
            RunStatus.CANCELLED,
            RunStatus.TIMEOUT,
            RunStatus.PENDING,  # queued again
        )
    ),
    RunStatus.COMPLETED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
    RunStatus.TIMEOUT: frozenset(),
}

OPEN_RUN_STATUSES = frozenset((RunStatus.PENDING, RunStatus.RUNNING))


class EventType(StrEnum):
    """The kind of an event."""

    SESSION_CREATED = "session_created"
    SESSION_STARTED = "session_started"
    SESSION_PAUSED = "session_paused"
    SESSION_RESUMED = "session_resumed"
    SESSION_COMPLETED = "session_completed"
    SESSION_FAILED = "session_failed"
    SESSION_CANCELLED = "session_cancelled"
    RUN_STARTED = "run_started"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    RUN_TIMEOUT = "run_timeout"
    MESSAGE_SENT = "message_sent"
    MESSAGE_RECEIVED = "message_received"
    MESSAGE_STREAMED = "message_streamed"
    TOOL_CALL_STARTED = "tool_call_started"
    TOOL_CALL_COMPLETED = "tool_call_completed"
    TOOL_CALL_FAILED = "tool_call_failed"
    ERROR_OCCURRED = "error_occurred"
    ERROR_RECOVERED = "error_recovered"
    TOKEN_USAGE_UPDATED = "token_usage_updated"
    TURN_COMPLETED = "turn_completed"
    WORKSPACE_SNAPSHOT_TAKEN = "workspace_snapshot_taken"
    WORKSPACE_DIFF_COMPUTED = "workspace_diff_computed"
    POLICY_VIOLATION = "policy_violation"
    TOOL_APPROVAL_REQUESTED = "tool_approval_requested"
    TOOL_APPROVAL_GRANTED = "tool_approval_granted"
    TOOL_APPROVAL_DENIED = "tool_approval_denied"
    CUSTOM = "custom"
    """An application's own kind, named in `data["name"]`."""


TERMINAL_EVENT_TYPES = frozenset(
    (EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELLED, EventType.RUN_TIMEOUT)
)
"""The events that end a run; a run has exactly one of them."""


class Fence(msgspec.Struct, frozen=True):
    """Names one attempt of one run: a write that carries it happens only while that attempt runs."""

    session_id: str
    run_id: str
    attempt: int


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What all records share: the round trip through JSON."""

    def checked(self) -> Self:
        """A copy in canonical form: plain values, UTC times, payloads of its own.

        Raises:
            ValidationError: A field is not what is allowed; names it.
        """
        raise NotImplementedError

    def to_dict(self) -> JsonObject:
        """A JSON object: times in ISO 8601, a status and a type as text."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]  # a Struct gives a dict

    @classmethod
    def from_dict(cls, fields: JsonObject) -> Self:
        """The record that `to_dict` described.

        Raises:
            ValidationError: A field is missing or not what is allowed.
        """
        try:
            return msgspec.convert(fields, cls).checked()
        except msgspec.ValidationError as refused:
            raise ValidationError(f"not the dict of a {cls.__name__}: {refused}") from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Session(_Record, frozen=True, kw_only=True):
    """A conversation with an agent: the owner of runs and of one event log."""

    id: str
    agent_id: str
    status: SessionStatus = SessionStatus.PENDING
    parent_session_id: str | None = None
    metadata: JsonObject = {}
    context: JsonObject = {}
    tags: list[str] = []
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None

    @classmethod
    def new(
        cls,
        *,
        agent_id: str,
        id: str | None = None,
        status: SessionStatus | str = SessionStatus.PENDING,
        parent_session_id: str | None = None,
        metadata: JsonObject | None = None,
        context: JsonObject | None = None,
        tags: Iterable[str] | None = None,
        created_at: datetime | None = None,
    ) -> Session:
        """A session that is `pending` unless told otherwise, created now, with an id of its own.

        Raises:
            ValidationError: A value is not what is allowed; names it.
        """
        created = datetime.now(UTC) if created_at is None else created_at
        return cls(
            id=new_id("ses_") if id is None else id,
            agent_id=agent_id,
            status=status,  # type: ignore[arg-type]  # checked() makes it the enum
            parent_session_id=parent_session_id,
            metadata={} if metadata is None else metadata,
            context={} if context is None else context,
            tags=[] if tags is None else tags,  # type: ignore[arg-type]  # checked() makes it a list
            created_at=created,
            updated_at=created,
        ).checked()

    def with_status(self, status: SessionStatus | str, *, at: datetime | None = None) -> Session:
        """A copy one step further.

        Args:
            status: The new status.
            at: When that happens; None: now.

        Raises:
            InvalidTransition: The table does not allow that step; carries `from_status`, `to_status`.
        """
        target = options.member("status", status, SessionStatus)
        source = options.member("status", self.status, SessionStatus)
        if target not in _SESSION_STEPS[source]:
            raise _no_such_step("session", self.id, source, target)
        return self.replace(status=target, updated_at=_time_of(at))

    def checked(self) -> Session:
        """A copy in canonical form, see the base class."""
        return Session(
            id=options.identifier("id", self.id),
            agent_id=options.identifier("agent_id", self.agent_id),
            status=options.member("status", self.status, SessionStatus),
            parent_session_id=options.optional_identifier("parent_session_id", self.parent_session_id),
            metadata=canonical_object(self.metadata, "metadata"),
            context=canonical_object(self.context, "context"),
            tags=_checked_tags(self.tags),
            created_at=options.utc("created_at", self.created_at),
            updated_at=options.utc("updated_at", self.updated_at),
            deleted_at=_optional_utc("deleted_at", self.deleted_at),
        )


class Run(_Record, frozen=True, kw_only=True):
    """One execution of an agent inside a session; while `pending`, a place in the session's queue."""

    id: str
    session_id: str
    status: RunStatus = RunStatus.PENDING
    input: Any = None
    output: Any = None
    error: JsonObject | None = None
    metadata: JsonObject = {}
    turn_count: int = 0
    token_usage: JsonObject = {}
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    provider: str | None = None
    provider_metadata: JsonObject = {}
    cost_usd: float | None = None
    owner: str | None = None
    """The id of the node that claimed it; None before that, and after that node released it."""
    attempt: int = 0
    """How many times it was claimed: 0, then 1, 2 …; the fencing token of its executor."""

    @classmethod
    def new(
        cls,
        *,
        session_id: str,
        input: Any = None,
        id: str | None = None,
        metadata: JsonObject | None = None,
        provider: str | None = None,
        created_at: datetime | None = None,
    ) -> Run:
        """A `pending` run, created now, with an id of its own.

        Raises:
            ValidationError: A value is not what is allowed; names it.
        """
        return cls(
            id=new_id("run_") if id is None else id,
            session_id=session_id,
            input=input,
            metadata={} if metadata is None else metadata,
            created_at=datetime.now(UTC) if created_at is None else created_at,
            provider=provider,
        ).checked()

    @property
    def fence(self) -> Fence:
        """The fence of the current attempt."""
        return Fence(self.session_id, self.id, self.attempt)

    def with_status(self, status: RunStatus | str, *, at: datetime | None = None) -> Run:
        """A copy one step further.

        `running` sets `started_at`, a terminal status `ended_at`; `pending` clears `owner` and
        `started_at`. `attempt` stays: only a claim changes it.

        Args:
            status: The new status.
            at: When that happens; None: now.

        Raises:
            InvalidTransition: The table does not allow that step; carries `from_status`, `to_status`.
        """
        target = options.member("status", status, RunStatus)
        source = options.member("status", self.status, RunStatus)
        if target not in _RUN_STEPS[source]:
            raise _no_such_step("run", self.id, source, target)
        if target is RunStatus.RUNNING:
            return self.replace(status=target, started_at=_time_of(at))
        if target is RunStatus.PENDING:
            return self.replace(status=target, started_at=None, owner=None)
        return self.replace(status=target, ended_at=_time_of(at))

    def checked(self) -> Run:
        """A copy in canonical form, see the base class."""
        return Run(
            id=options.identifier("id", self.id),
            session_id=options.identifier("session_id", self.session_id),
            status=options.member("status", self.status, RunStatus),
            input=canonical(self.input, "input"),
            output=canonical(self.output, "output"),
            error=None if self.error is None else canonical_object(self.error, "error"),
            metadata=canonical_object(self.metadata, "metadata"),
            turn_count=options.integer("turn_count", self.turn_count, minimum=0),
            token_usage=canonical_object(self.token_usage, "token_usage"),
            created_at=options.utc("created_at", self.created_at),
            started_at=_optional_utc("started_at", self.started_at),
            ended_at=_optional_utc("ended_at", self.ended_at),
            provider=options.optional_identifier("provider", self.provider),
            provider_metadata=canonical_object(self.provider_metadata, "provider_metadata"),
            cost_usd=_checked_cost(self.cost_usd),
            owner=options.optional_identifier("owner", self.owner),
            attempt=options.integer("attempt", self.attempt, minimum=0),
        )


# Without the garbage collector, which would go through all of a long log again and again, a tenth of a second
# at a time for 100 000 events: payloads are JSON, and JSON has no cycles.
class Event(_Record, frozen=True, kw_only=True, gc=False):
    """One entry of a session's log."""

    id: str
    type: EventType
    session_id: str
    run_id: str | None = None
    timestamp: datetime
    data: JsonObject = {}
    metadata: JsonObject = {}
    sequence_number: int | None = None
    """Its place in the log, 1, 2, 3 …; None until it is stored."""
    schema_version: int = 1
    provider: str | None = None
    correlation_id: str | None = None

    @classmethod
    def new(
        cls,
        *,
        type: EventType | str,
        session_id: str,
        run_id: str | None = None,
        data: JsonObject | None = None,
        metadata: JsonObject | None = None,
        id: str | None = None,
        timestamp: datetime | None = None,
        sequence_number: int | None = None,
        schema_version: int = 1,
        provider: str | None = None,
        correlation_id: str | None = None,
    ) -> Event:
        """An event that happens now, with an id of its own.

        Raises:
            ValidationError: A value is not what is allowed; names it.
        """
        return cls(
            id=new_id("evt_") if id is None else id,
            type=type,  # type: ignore[arg-type]  # checked() makes it the enum
            session_id=session_id,
            run_id=run_id,
            timestamp=datetime.now(UTC) if timestamp is None else timestamp,
            data={} if data is None else data,
            metadata={} if metadata is None else metadata,
            sequence_number=sequence_number,
            schema_version=schema_version,
            provider=provider,
            correlation_id=correlation_id,
        ).checked()

    @property
    def is_terminal(self) -> bool:
        """Whether it ends its run."""
        return self.type in TERMINAL_EVENT_TYPES

    def checked(self) -> Event:
        """A copy in canonical form, see the base class."""
        sequence_number = self.sequence_number
        schema_version = self.schema_version
        run_id, provider, correlation_id = self.run_id, self.provider, self.correlation_id
        return Event(
            id=options.identifier("id", self.id),
            type=self.type if type(self.type) is EventType else options.member("type", self.type, EventType),
            session_id=options.identifier("session_id", self.session_id),
            run_id=None if run_id is None else options.identifier("run_id", run_id),
            timestamp=options.utc("timestamp", self.timestamp),
            data=canonical_object(self.data, "data"),
            metadata={} if self.metadata == {} else canonical_object(self.metadata, "metadata"),
            sequence_number=None
            if sequence_number is None
            else options.integer("sequence_number", sequence_number, minimum=1),
            schema_version=1
            if type(schema_version) is int and schema_version == 1
            else options.integer("schema_version", schema_version, minimum=1),
            provider=None if provider is None else options.identifier("provider", provider),
            correlation_id=None
            if correlation_id is None
            else options.identifier("correlation_id", correlation_id),
        )


class Artifact(_Record, frozen=True, kw_only=True):
    """What is known of a stored blob; the blob itself lies in an artifact store."""

    id: str
    session_id: str | None = None
    run_id: str | None = None
    key: str
    content_type: str | None = None
    byte_size: int
    checksum_sha256: str
    storage_backend: str
    storage_ref: str
    metadata: JsonObject = {}
    created_at: datetime
    deleted_at: datetime | None = None

    @classmethod
    def new(
        cls,
        *,
        key: str,
        byte_size: int,
        checksum_sha256: str,
        storage_backend: str,
        storage_ref: str,
        session_id: str | None = None,
        run_id: str | None = None,
        content_type: str | None = None,
        metadata: JsonObject | None = None,
        id: str | None = None,
        created_at: datetime | None = None,
    ) -> Artifact:
        """The row of a blob that was stored now.

        Raises:
            ValidationError: A value is not what is allowed; names it.
        """
        return cls(
            id=new_id("art_") if id is None else id,
            session_id=session_id,
            run_id=run_id,
            key=key,
            content_type=content_type,
            byte_size=byte_size,
            checksum_sha256=checksum_sha256,
            storage_backend=storage_backend,
            storage_ref=storage_ref,
            metadata={} if metadata is None else metadata,
            created_at=datetime.now(UTC) if created_at is None else created_at,
        ).checked()

    def checked(self) -> Artifact:
        """A copy in canonical form, see the base class."""
        checksum = options.identifier("checksum_sha256", self.checksum_sha256)
        if len(checksum) != 64 or set(checksum) - _HEX_DIGITS:
            raise options.refused("checksum_sha256", checksum, "64 lower-case hex digits")
        return Artifact(
            id=options.identifier("id", self.id),
            session_id=options.optional_identifier("session_id", self.session_id),
            run_id=options.optional_identifier("run_id", self.run_id),
            key=options.identifier("key", self.key),
            content_type=options.optional_identifier("content_type", self.content_type),
            byte_size=options.integer("byte_size", self.byte_size, minimum=0),
            checksum_sha256=checksum,
            storage_backend=options.identifier("storage_backend", self.storage_backend),
            storage_ref=options.identifier("storage_ref", self.storage_ref),
            metadata=canonical_object(self.metadata, "metadata"),
            created_at=options.utc("created_at", self.created_at),
            deleted_at=_optional_utc("deleted_at", self.deleted_at),
        )


_HEX_DIGITS = frozenset("0123456789abcdef")


def _time_of(at: datetime | None) -> datetime:
    return datetime.now(UTC) if at is None else options.utc("at", at)


def _optional_utc(name: str, value: datetime | None) -> datetime | None:
    return None if value is None else options.utc(name, value)


def _checked_tags(tags: Any) -> list[str]:
    if type(tags) is list and not tags:
        return []
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise options.refused("tags", tags, "a list of strings")
    copy: list[Any] = canonical(list(tags), "tags")  # pyright: ignore[reportUnknownArgumentType]
    for tag in copy:
        if not isinstance(tag, str):
            raise options.refused("tags", tag, "a list of strings")
    return copy


def _checked_cost(cost: Any) -> float | None:
    if cost is None:
        return None
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        raise options.refused("cost_usd", cost, "a number or None")
    try:
        amount = float(cost)
    except OverflowError:
        raise options.refused("cost_usd", cost, "a number or None") from None
    return canonical(amount, "cost_usd")  # type: ignore[no-any-return]  # a float gives a float


def _no_such_step(kind: str, id: str, source: str, target: str) -> InvalidTransition:
    return InvalidTransition(
        f"{kind} {id} is {source} and cannot become {target}", from_status=source, to_status=target
    )
