"""A session's log, a page at a time: what is stored, and what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from asm_runtime.clock import SYSTEM_CLOCK
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event
from asm_runtime.runtime.follow import PAGE_BYTES, follow

__all__ = ["PAGE", "before_last", "following", "stored"]

PAGE = 500
"""How many records are read at once, and so held."""

WAIT_MS = 30_000
"""How long one long poll lasts; then the next begins."""

POLL_MS = 250
"""The pause between reads of a store that knows no long poll."""


async def stored(
    store: SessionStore, session_id: str, *, after: int = 0, limit: int | None = None, **filters: Any
) -> AsyncIterator[list[Event]]:
    """Pages of what is stored.

    Args:
        store: Where.
        session_id: Whose.
        after: The cursor.
        limit: Maximum number of events; None: no limit.
        filters: Those of `SessionStore.get_events`.
    """
    cursor, left = after, limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        page = await store.get_events(session_id, after=cursor, limit=size, max_bytes=PAGE_BYTES, **filters)
        if not page:
            return
        yield page
        cursor = page[-1].sequence_number or cursor
        left = None if left is None else left - len(page)


async def before_last(store: SessionStore, session_id: str, count: int, **filters: Any) -> int:
    """The cursor from which on there are as many events, or fewer if there are not as many.

    Reads backwards and keeps nothing of it: the events themselves are read again.
    """
    cursor = await store.get_latest_sequence(session_id)
    while count > 0:
        page = await store.get_events(
            session_id, before=cursor + 1, limit=min(PAGE, count), order="desc", **filters
        )
        if not page:
            return 0
        cursor = (page[-1].sequence_number or 1) - 1
        count -= len(page)
    return cursor


def following(
    store: SessionStore, session_id: str, *, after: int = 0, **filters: Any
) -> AsyncIterator[list[Event]]:
    """Pages of what is stored and then of whatever comes, from any process, until the session is deleted."""
    return follow(
        store,
        session_id,
        clock=SYSTEM_CLOCK,
        after=after,
        limit=PAGE,
        poll_interval_ms=POLL_MS,
        wait_timeout_ms=WAIT_MS,
        **filters,
    )
