"""The messages of a session so far, rebuilt from its log: what a run that continues it is given."""

from __future__ import annotations

from collections import deque
from typing import Any

from asm_runtime.follow import PAGE_BYTES
from asm_runtime.payload import JsonObject
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, EventType

__all__ = ["replay"]

_PAGE = 500

_MESSAGE_TYPES = frozenset(
    (
        EventType.MESSAGE_SENT,
        EventType.MESSAGE_STREAMED,
        EventType.MESSAGE_RECEIVED,
        EventType.TOOL_CALL_STARTED,
        EventType.TOOL_CALL_COMPLETED,
        EventType.TOOL_CALL_FAILED,
    )
)


async def replay(
    store: SessionStore,
    session_id: str,
    *,
    without_run: str | None = None,
    max_messages: int | None = None,
    max_chars: int | None = None,
) -> list[JsonObject]:
    """The session's messages, oldest first, each an object with `role` and `content`.

    The chunks of a streamed message are joined, and replaced by the whole one where it was stored.

    Args:
        store: Where the log is.
        session_id: Whose log.
        without_run: Leave out what belongs to this run.
        max_messages: Keep so many, the newest.
        max_chars: Keep the newest that together have so many characters, tool payloads included.
    """
    messages: deque[JsonObject] = deque(maxlen=max_messages)
    streaming: dict[str | None, list[str]] = {}
    cursor = 0
    while page := await store.get_events(
        session_id, type=_MESSAGE_TYPES, after=cursor, limit=_PAGE, max_bytes=PAGE_BYTES
    ):
        cursor = page[-1].sequence_number or cursor
        for event in page:
            if event.run_id is None or event.run_id != without_run:
                _add(messages, streaming, event)
    for run_id in tuple(streaming):
        _end_stream(messages, streaming, run_id)
    return _newest(list(messages), max_chars)


def _add(messages: deque[JsonObject], streaming: dict[str | None, list[str]], event: Event) -> None:
    data = event.data
    if event.type == EventType.MESSAGE_STREAMED:
        streaming.setdefault(event.run_id, []).append(str(data.get("delta", data.get("content", ""))))
    elif event.type == EventType.MESSAGE_RECEIVED:
        streaming.pop(event.run_id, None)
        messages.append({"role": "assistant", **data})
    elif event.type == EventType.MESSAGE_SENT:
        _end_stream(messages, streaming, event.run_id)
        messages.append({"role": "user", **data})
    elif event.type == EventType.TOOL_CALL_STARTED:
        _end_stream(messages, streaming, event.run_id)
        messages.append({"role": "assistant", "content": "", **data})
    else:
        failed: JsonObject = {"is_error": True} if event.type == EventType.TOOL_CALL_FAILED else {}
        messages.append({"role": "tool", "content": "", **data, **failed})


def _end_stream(
    messages: deque[JsonObject], streaming: dict[str | None, list[str]], run_id: str | None
) -> None:
    chunks = streaming.pop(run_id, None)
    if chunks:
        messages.append({"role": "assistant", "content": "".join(chunks)})


def _newest(messages: list[JsonObject], max_chars: int | None) -> list[JsonObject]:
    if max_chars is None:
        return messages
    kept = len(messages)
    room = max_chars
    while kept and (room := room - _characters(messages[kept - 1])) >= 0:
        kept -= 1
    return messages[kept:]


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(item) for key, item in value.items() if key != "role")  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list):
        return sum(_characters(item) for item in value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return len(str(value))
