"""Reads of any length, page by page, so that neither the event loop nor a reader is held up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection

from msgspec.structs import replace

from asm_runtime.errors import RunNotFound
from asm_runtime.records import Event, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.sql.database import Page, Reader

__all__ = ["Pages"]

PAGE_ROWS = 512
"""How many rows one read fetches."""

LISTED_ROWS = 128
"""How many sessions or runs one read fetches."""

PAGE_BYTES = 512 * 1024
"""How large one page may be; more only with one record. Decoding it takes 2 to 5 ms."""

EXAMINED_AT_FIRST = 500
EXAMINED = 2000
"""How many events a page looks at where no index says which are wanted. Some 2 ms."""


class Pages:
    """Has a reader answer in pages.

    The first page of an answer is read as soon as there is a connection. What follows, and a search that
    has not found anything yet, takes turns for one of them: however many go through long logs, there is a
    connection for short reads.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._turn = asyncio.Lock()

    async def events(self, session_id: str, filter: EventFilter) -> tuple[list[Event], int]:
        """The events that the filter wants and the latest number of the log, as of one moment."""
        if filter.matches_nothing:
            return [], await self._reader.latest_sequence(session_id)
        while True:
            found = await self._events(session_id, filter)
            if found is not None:
                return found

    async def _events(self, session_id: str, filter: EventFilter) -> tuple[list[Event], int] | None:
        """Once through the log; None if the session was deleted on the way."""
        events: list[Event] = []
        wanted = filter
        page = first = await self._page(session_id, filter, EXAMINED_AT_FIRST, has_room=True)
        while True:
            if page.incarnation != first.incarnation:
                return None
            events += page.events
            rest = _rest(wanted, page, first.head)
            if rest is None:
                return events, first.head or 0
            wanted = rest
            async with self._turn:
                page = await self._page(session_id, wanted, EXAMINED, has_room=not events)

    def _page(
        self, session_id: str, filter: EventFilter, examined: int, *, has_room: bool
    ) -> Awaitable[Page]:
        return self._reader.events(
            session_id, filter, limit=PAGE_ROWS, max_bytes=PAGE_BYTES, examined=examined, has_room=has_room
        )

    async def sessions(
        self,
        statuses: frozenset[SessionStatus] | None,
        agents: frozenset[str] | None,
        limit: int | None,
        offset: int,
    ) -> list[Session]:
        """Sessions, the oldest first."""
        sessions: list[Session] = []
        more = True
        while more and (limit is None or len(sessions) < limit):
            size = _smaller(LISTED_ROWS, None if limit is None else limit - len(sessions))
            after = sessions[-1] if sessions else None
            page, more = await self._reader.sessions(statuses, agents, after, offset, size, PAGE_BYTES)
            if page:  # else those that were to follow are gone
                sessions += page
                offset = 0
        return sessions

    async def runs(
        self, session_id: str, statuses: frozenset[RunStatus] | None, limit: int | None, after: str | None
    ) -> list[Run]:
        """A session's runs in the order of their acceptance, those accepted after a run."""
        while True:
            runs = await self._runs(session_id, statuses, limit, after)
            if runs is not None:
                return runs

    async def _runs(
        self, session_id: str, statuses: frozenset[RunStatus] | None, limit: int | None, after: str | None
    ) -> list[Run] | None:
        """Once through the runs; None if the session was deleted on the way."""
        runs: list[Run] = []
        cursor, more = after, True
        while more and (limit is None or len(runs) < limit):
            size = _smaller(LISTED_ROWS, None if limit is None else limit - len(runs))
            try:
                page, more = await self._reader.runs(session_id, statuses, cursor, size, PAGE_BYTES)
            except RunNotFound:
                if cursor == after:
                    raise
                return None
            if page:
                runs += page
                cursor = runs[-1].id
        return runs

    async def orphans(self, session_id: str | None, dead: Collection[str], limit: int | None) -> list[Run]:
        """Running runs without an owner or with one of these, of one session or of all."""
        runs: list[Run] = []
        after: tuple[str, int] | None = ("", 0)
        while after is not None and (limit is None or len(runs) < limit):
            size = _smaller(LISTED_ROWS, None if limit is None else limit - len(runs))
            page, after = await self._reader.orphans(session_id, dead, after, size, PAGE_BYTES)
            runs += page
        return runs


def _smaller(size: int, limit: int | None) -> int:
    return size if limit is None else min(size, limit)


def _rest(filter: EventFilter, page: Page, head: int | None) -> EventFilter | None:
    """What a filter still wants after a page, of a log that ended with `head`; None: nothing."""
    position = page.position
    limit = None if filter.limit is None else filter.limit - len(page.events)
    if position is None or limit == 0:
        return None
    after, before = filter.after, filter.before
    if head is not None:  # what was appended since is not in the answer
        before = head + 1 if before is None else min(before, head + 1)
    if filter.order == "asc":
        after = position
    else:
        before = position
    rest = replace(filter, after=after, before=before, limit=limit, max_bytes=page.room)
    return None if rest.matches_nothing else rest
