"""The messages of a session so far, rebuilt from its log: what a run that continues it is given."""

from __future__ import annotations

from typing import Any

from asm_runtime.payload import JsonObject
from asm_runtime.ports import SessionStore
from asm_runtime.records import TERMINAL_EVENT_TYPES, Event, EventType
from asm_runtime.runtime.follow import PAGE_BYTES

__all__ = ["replay"]

_FIRST_PAGE, _PAGE = 64, 512
"""How many events are read at once: few where few messages are asked for, then more and more."""

_MESSAGE_TYPES = frozenset(
    (
        EventType.MESSAGE_SENT,
        EventType.MESSAGE_STREAMED,
        EventType.MESSAGE_RECEIVED,
        EventType.TOOL_CALL_STARTED,
        EventType.TOOL_CALL_COMPLETED,
        EventType.TOOL_CALL_FAILED,
        # What is streamed belongs to one attempt: here it begins, there it ends.
        EventType.RUN_STARTED,
        *TERMINAL_EVENT_TYPES,
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
    Where the limits cut, they cut in front of a message that somebody said: no tool call is left
    without the answer it belongs to, and no result without its call.

    The log is read from its end, and no further than the messages that are kept.

    Args:
        store: Where the log is.
        session_id: Whose log.
        without_run: Leave out what belongs to this run.
        max_messages: Keep this many, the newest.
        max_chars: Keep the newest that together have this many characters, tool payloads included.
    """
    messages = _Messages(max_messages, max_chars)
    before: int | None = None
    limit = _FIRST_PAGE
    while not messages.are_enough():
        page = await store.get_events(
            session_id,
            type=_MESSAGE_TYPES,
            before=before,
            order="desc",
            limit=limit,
            max_bytes=PAGE_BYTES,
        )
        if not page:
            messages.begin()
            break
        before = page[-1].sequence_number
        limit = min(2 * limit, _PAGE)
        for event in page:
            if event.run_id is None or event.run_id != without_run:
                messages.add(event)
    return messages.newest()


class _Entry:
    """A message, or the place for one that may have been streamed there, found while reading backwards."""

    __slots__ = ("_characters", "chunks", "is_loose", "is_open", "message", "run_id")

    def __init__(self, run_id: str | None, message: JsonObject | None, *, is_loose: bool = False) -> None:
        self.run_id = run_id
        self.message = message
        self.is_loose = is_loose  # a tool call or a result: it belongs to what was said before
        self._characters: int | None = None
        self.chunks: list[str] = []
        self.is_open = message is None  # whether there may be more of it further back

    def close(self) -> None:
        self.is_open = False
        if self.chunks:
            self.message = {"role": "assistant", "content": "".join(reversed(self.chunks))}
            self.chunks = []

    @property
    def characters(self) -> int:
        if self._characters is None:
            self._characters = _characters(self.message)
        return self._characters


class _Messages:
    """What a log says, event by event, from the newest back."""

    def __init__(self, max_messages: int | None, max_chars: int | None) -> None:
        self._max_messages = max_messages
        self._max_chars = max_chars
        self._entries: list[_Entry] = []
        self._streams: dict[str | None, _Entry | None] = {}  # where a run's chunks go; None: nowhere
        self._begun: set[str | None] = set()

    def add(self, event: Event) -> None:
        run_id, data = event.run_id, event.data
        if event.type == EventType.MESSAGE_STREAMED:
            if run_id not in self._streams:  # of a run that has not ended: it stands where it got to
                self._end_stream(run_id, _Entry(run_id, None))
            stream = self._streams[run_id]
            if stream is not None:
                stream.chunks.append(str(data.get("delta", data.get("content", ""))))
        elif event.type in (EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED):
            failed: JsonObject = {"is_error": True} if event.type == EventType.TOOL_CALL_FAILED else {}
            result: JsonObject = {"role": "tool", "content": "", **data, **failed}
            self._entries.append(_Entry(run_id, result, is_loose=True))
        elif event.type == EventType.RUN_STARTED:
            # What an earlier attempt had half streamed when it was lost is in no message.
            self._end_stream(run_id, None)
            if data.get("attempt") == 1:
                self._begun.add(run_id)
        elif event.type == EventType.MESSAGE_RECEIVED:
            self._end_stream(run_id, None)
            self._entries.append(_Entry(run_id, {"role": "assistant", **data}))
        else:
            if event.type == EventType.MESSAGE_SENT:
                self._entries.append(_Entry(run_id, {"role": "user", **data}))
            elif event.type == EventType.TOOL_CALL_STARTED:
                call: JsonObject = {"role": "assistant", "content": "", **data}
                self._entries.append(_Entry(run_id, call, is_loose=True))
            self._end_stream(run_id, None if run_id in self._begun else _Entry(run_id, None))

    def begin(self) -> None:
        """The log begins here."""
        for stream in self._streams.values():
            if stream is not None:
                stream.close()

    def _end_stream(self, run_id: str | None, next: _Entry | None) -> None:
        """Going back, no more belongs to the stream that is known; what comes belongs to the next."""
        stream = self._streams.get(run_id)
        if stream is not None:
            stream.close()
        self._streams[run_id] = next
        if next is not None:
            self._entries.append(next)

    def are_enough(self) -> bool:
        """Whether more was found than is kept."""
        if self._max_messages is None and self._max_chars is None:
            return False
        count = characters = 0
        for entry in self._entries:
            if entry.is_open:
                return False
            if entry.message is not None:
                count += 1
                characters += 0 if self._max_chars is None else entry.characters
                if self._passes(count, characters):
                    return True
        return False

    def newest(self) -> list[JsonObject]:
        """Those that are kept, oldest first."""
        kept: list[_Entry] = []
        is_cut = False
        characters = 0
        for entry in self._entries:
            if entry.message is None:
                continue
            characters += 0 if self._max_chars is None else entry.characters
            if self._passes(len(kept) + 1, characters):
                is_cut = True
                break
            kept.append(entry)
        kept.reverse()
        if is_cut:
            kept = _without_loose_ends(kept)
        return [entry.message for entry in kept if entry.message is not None]

    def _passes(self, count: int, characters: int) -> bool:
        return (self._max_messages is not None and count > self._max_messages) or (
            self._max_chars is not None and characters > self._max_chars
        )


def _without_loose_ends(entries: list[_Entry]) -> list[_Entry]:
    """Leave out what belongs to an answer that was cut off."""
    whole: list[_Entry] = []
    said: set[str | None] = set()
    for entry in entries:
        if not entry.is_loose:
            said.add(entry.run_id)
        if entry.run_id in said:
            whole.append(entry)
    return whole


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(item) for key, item in value.items() if key != "role")  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list):
        return sum(_characters(item) for item in value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return len(str(value))
