"""Following a session's log: pages until the reader has caught up, then whatever comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from asm_runtime.clock import Clock, sleep
from asm_runtime.errors import SessionNotFound
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, EventType

__all__ = ["PAGE_BYTES", "follow"]

PAGE_BYTES = 1024 * 1024
"""How much of a log a reader takes at once; more only with one event."""


async def follow(
    store: SessionStore,
    session_id: str,
    *,
    clock: Clock,
    after: int,
    limit: int,
    poll_interval_ms: int,
    wait_timeout_ms: int,
    run_id: str | Collection[str] | None = None,
    type: EventType | str | Collection[EventType | str] | None = None,
    has_row: bool = False,
) -> AsyncIterator[list[Event]]:
    """Batches of events, ascending, without a gap or a repeat; ends when the session is deleted.

    A batch is empty when a look has found nothing new. `has_row`: the caller knows that the session has
    its row, so it is deleted if the first look finds none.

    A store that ignores `wait_timeout_ms` is not polled faster than `poll_interval_ms`.
    """
    cursor = after
    # The greatest number that the log was seen to have: one below it means that the log is gone.
    greatest = await store.get_latest_sequence(session_id)
    exists = has_row or (not greatest and await _exists(store, session_id))
    while True:
        asked = clock.monotonic()
        events = await store.get_events(
            session_id,
            run_id=run_id,
            type=type,
            after=cursor,
            limit=limit,
            max_bytes=PAGE_BYTES,
            wait_timeout_ms=wait_timeout_ms,
        )
        if events:
            cursor = events[-1].sequence_number or cursor
            greatest = max(greatest, cursor)
            yield events
            continue
        latest = await store.get_latest_sequence(session_id)
        if latest < greatest:
            return
        greatest = latest
        if not greatest:
            # An empty log says nothing: only its row can tell that the session is gone. A log may also
            # be one without a row.
            existed, exists = exists, await _exists(store, session_id)
            if existed and not exists:
                return
        waited_ms = (clock.monotonic() - asked) * 1000
        yield events
        if waited_ms < min(wait_timeout_ms, poll_interval_ms) or not wait_timeout_ms:
            await sleep(clock, poll_interval_ms / 1000)


async def _exists(store: SessionStore, session_id: str) -> bool:
    try:
        await store.get_session(session_id)
    except SessionNotFound:
        return False
    return True
