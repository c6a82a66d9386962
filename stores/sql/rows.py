"""Records as rows and back.

JSON columns hold the text that msgspec makes of the value, so numbers and keys come back exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from asm_runtime.errors import StoreError
from asm_runtime.payload import JsonObject, decode, encode, json_pieces
from asm_runtime.records import Artifact, Event, EventType, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores import rules

__all__ = [
    "EVENT_COLUMNS",
    "PLACED_COLUMNS",
    "EventRow",
    "Row",
    "artifact_of",
    "artifact_row",
    "drafted",
    "drafted_few",
    "event_of",
    "event_row",
    "event_rows",
    "events_of",
    "large_drafted",
    "large_event_row",
    "own_copy",
    "run_of",
    "run_row",
    "session_of",
    "session_row",
    "text_of",
]

Row = tuple[Any, ...]
EVENT_COLUMNS = (
    "session_id", "id", "type", "run_id", "timestamp", "schema_version", "provider", "correlation_id",
    "byte_size", "metadata", "data", "sequence_number", "later_timestamp",
)  # fmt: skip

PLACED_COLUMNS = 2
"""The last of them, which its place in the log gives an event: its number, and the latest time before it if
that is later than its own."""

EventRow = tuple[Any, ...]
"""The other columns of an event on its way into the log, and the event itself. One tuple and not two: each
that is made is one more for the garbage collector to look at."""


def text_of(at: datetime) -> str:
    """A UTC time as stored: always as long, so that text order is time order."""
    text = encode(at).decode()[1:-1]  # a quarter of the time of isoformat()
    return text if len(text) == 27 else text[:-1] + ".000000Z"


def _texts_of(times: Sequence[datetime]) -> list[str]:
    """`text_of` for one or more."""
    texts = encode(times).decode()[2:-2].split('","')
    return [text if len(text) == 27 else text[:-1] + ".000000Z" for text in texts]


def event_row(event: Event) -> EventRow:
    """An event in canonical form, with its row as far as it is known."""
    return _event_row(event, text_of(event.timestamp), encode(event.metadata), encode(event.data))


def event_rows(events: Sequence[Event]) -> list[EventRow]:
    """The same for several, one or more."""
    times = _texts_of([event.timestamp for event in events])
    return [
        _event_row(event, at, encode(event.metadata), encode(event.data))
        for event, at in zip(events, times, strict=True)
    ]


def large_event_row(event: Event) -> EventRow:
    """The same for one, encoded in pieces: see `payload.json_pieces`."""
    pieces = [list(json_pieces(payload)) for payload in (event.metadata, event.data)]
    size = sum(len(piece) for text in pieces for piece in text)
    metadata, data = ("".join(piece.decode() for piece in text) for text in pieces)
    row = _event_row(event, text_of(event.timestamp), b"", b"")
    return (*row[:8], size, metadata, data, event)


def drafted(event: Event) -> EventRow:
    """The `event_row` of an event that a caller passed in.

    Raises:
        ValidationError: One of its fields is not what is allowed.
    """
    return event_row(rules.checked("event", event, Event))


def drafted_few(events: Sequence[Event]) -> list[EventRow]:
    """The same for several, one or more."""
    return event_rows([event.checked() for event in events])


def large_drafted(event: Event) -> EventRow:
    """The same by `large_event_row`."""
    return large_event_row(event.checked())


def _event_row(event: Event, at: str, metadata: bytes, data: bytes) -> EventRow:
    return (
        event.session_id,
        event.id,
        str.__str__(event.type),
        event.run_id,
        at,
        event.schema_version,
        event.provider,
        event.correlation_id,
        len(metadata) + len(data),
        metadata.decode(),
        data.decode(),
        event,
    )


class _Short(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is short of an event, as `statements` makes it."""

    sequence_number: int
    id: str
    type: EventType
    run_id: str | None
    timestamp: datetime
    provider: str | None
    correlation_id: str | None
    schema_version: int | None
    """None: the first."""
    session_id: str = ""
    """Only where events of several sessions are asked for."""


_decode_short = msgspec.json.Decoder(list[_Short]).decode
_decode_payloads = msgspec.json.Decoder(list[JsonObject | tuple[JsonObject, JsonObject]]).decode


def events_of(lists: Sequence[str | None], session_id: str = "") -> list[Event]:
    """The events of two JSON lists, as `statements` makes them.

    Args:
        lists: What is short of each event, and its payloads, without brackets; None for empty ones.
        session_id: Whose they are, if they do not say it themselves.

    Raises:
        ValueError: One of them cannot be read, or has a type that this release does not know.
    """
    short, payloads = lists
    if short is None or payloads is None:
        return []
    return [
        Event(
            id=one.id,
            type=one.type,
            session_id=one.session_id or session_id,
            run_id=one.run_id,
            timestamp=one.timestamp,
            data=both if isinstance(both, dict) else both[1],
            metadata={} if isinstance(both, dict) else both[0],
            sequence_number=one.sequence_number,
            schema_version=one.schema_version or 1,
            provider=one.provider,
            correlation_id=one.correlation_id,
        )
        for one, both in zip(_decode_short(f"[{short}]"), _decode_payloads(f"[{payloads}]"), strict=True)
    ]


def own_copy(event: Event) -> Event:
    """The same event with payloads of its own."""
    return msgspec.json.decode(encode(event), type=Event)


def event_of(row: Row, session_id: str) -> Event:
    """The event of a row, as `statements.page_by_rows` makes it.

    Raises:
        StoreError: The row holds what this release cannot read; names it.
    """
    number, *texts = row
    try:
        return events_of(texts, session_id)[0]
    except ValueError as error:
        raise StoreError(
            f"event {number} of session {session_id} cannot be read: {error}",
            details={"session_id": session_id, "sequence_number": number},
        ) from error


def session_row(session: Session) -> Row:
    """A session's columns, in the order of the statement that saves it."""
    payloads = [_json(value) for value in (session.metadata, session.context, session.tags)]
    return (
        session.id,
        session.agent_id,
        str.__str__(session.status),
        session.parent_session_id,
        *_texts(payloads),
        text_of(session.created_at),
        text_of(session.updated_at),
        _optional_text(session.deleted_at),
        sum(map(len, payloads)),
    )


def session_of(row: Sequence[Any]) -> Session:
    """The session of such a row.

    Raises:
        StoreError: The row holds what this release cannot read; names it.
    """
    try:
        return Session(
            id=row[0],
            agent_id=row[1],
            status=SessionStatus(row[2]),
            parent_session_id=row[3],
            metadata=decode(row[4]),
            context=decode(row[5]),
            tags=decode(row[6]),
            created_at=datetime.fromisoformat(row[7]),
            updated_at=datetime.fromisoformat(row[8]),
            deleted_at=_optional_time(row[9]),
        )
    except (ValueError, TypeError, msgspec.DecodeError) as error:
        raise StoreError(
            f"session {row[0]} cannot be read: {error}", details={"session_id": row[0]}
        ) from error


def run_row(run: Run) -> Row:
    """A run's columns, in the order of the statement that saves it."""
    optional = [b"" if value is None else _json(value) for value in (run.input, run.output, run.error)]
    payloads = [_json(value) for value in (run.metadata, run.token_usage, run.provider_metadata)]
    metadata, token_usage, provider_metadata = _texts(payloads)
    return (
        run.session_id,
        run.id,
        str.__str__(run.status),
        run.owner,
        run.attempt,
        *(text or None for text in _texts(optional)),
        metadata,
        run.turn_count,
        token_usage,
        text_of(run.created_at),
        _optional_text(run.started_at),
        _optional_text(run.ended_at),
        run.provider,
        provider_metadata,
        run.cost_usd,
        sum(map(len, optional)) + sum(map(len, payloads)),
    )


def run_of(row: Sequence[Any]) -> Run:
    """The run of such a row.

    Raises:
        StoreError: The row holds what this release cannot read; names it.
    """
    try:
        return Run(
            session_id=row[0],
            id=row[1],
            status=RunStatus(row[2]),
            owner=row[3],
            attempt=row[4],
            input=_optional_value(row[5]),
            output=_optional_value(row[6]),
            error=_optional_value(row[7]),
            metadata=decode(row[8]),
            turn_count=row[9],
            token_usage=decode(row[10]),
            created_at=datetime.fromisoformat(row[11]),
            started_at=_optional_time(row[12]),
            ended_at=_optional_time(row[13]),
            provider=row[14],
            provider_metadata=decode(row[15]),
            cost_usd=row[16],
        )
    except (ValueError, TypeError, msgspec.DecodeError) as error:
        raise StoreError(
            f"run {row[1]} of session {row[0]} cannot be read: {error}",
            details={"session_id": row[0], "run_id": row[1]},
        ) from error


def artifact_row(artifact: Artifact) -> Row:
    """An artifact's columns, in the order of its fields."""
    return (
        artifact.id,
        artifact.session_id,
        artifact.run_id,
        artifact.key,
        artifact.content_type,
        artifact.byte_size,
        artifact.checksum_sha256,
        artifact.storage_backend,
        artifact.storage_ref,
        encode(artifact.metadata).decode(),
        text_of(artifact.created_at),
        _optional_text(artifact.deleted_at),
    )


def artifact_of(row: Sequence[Any]) -> Artifact:
    """The artifact of such a row.

    Raises:
        StoreError: The row holds what this release cannot read; names it.
    """
    try:
        return Artifact(
            id=row[0],
            session_id=row[1],
            run_id=row[2],
            key=row[3],
            content_type=row[4],
            byte_size=row[5],
            checksum_sha256=row[6],
            storage_backend=row[7],
            storage_ref=row[8],
            metadata=decode(row[9]),
            created_at=datetime.fromisoformat(row[10]),
            deleted_at=_optional_time(row[11]),
        )
    except (ValueError, TypeError, msgspec.DecodeError) as error:
        raise StoreError(f"artifact {row[0]} cannot be read: {error}", details={"id": row[0]}) from error


def _optional_text(at: datetime | None) -> str | None:
    return None if at is None else text_of(at)


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _json(value: Any) -> bytes:
    return b"".join(json_pieces(value))


def _texts(payloads: list[bytes]) -> list[str]:
    return [payload.decode() for payload in payloads]


def _optional_value(text: str | None) -> Any:
    return None if text is None else decode(text)
