"""Reads of any length, page by page, so that neither the event loop nor a reader is held up."""

from __future__ import annotations

from typing import Any

from asm_runtime.errors import RunNotFound
from asm_runtime.records import Event, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.sql import reading
from asm_runtime.stores.sql.database import Database
from asm_runtime.stores.sql.reading import Page
from asm_runtime.stores.sql.rows import events_of, run_of, session_of
from asm_runtime.stores.waiters import EventFilter

__all__ = ["Pages"]

PAGE_ROWS = 256
"""How many rows one read fetches. Decoding as many small events takes the loop about 0.2 ms."""

PAGE_TEXT = 512 * 1024
"""How long, in characters, the page of a log should be at most: about 2 ms of decoding."""


class Pages:
    """Reads a database in pages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def events(self, session_id: str, filter: EventFilter) -> tuple[list[Event], int]:
        """The events that the filter wants and the latest number of the log, as of one moment."""
        if filter.matches_nothing:
            return [], await self._database.read(reading.latest_sequence, session_id)
        while True:
            found = await self._events(session_id, filter)
            if found is not None:
                return found

    async def _events(self, session_id: str, filter: EventFilter) -> tuple[list[Event], int] | None:
        """Once through the log; None if the session was deleted on the way."""
        size = _smaller(PAGE_ROWS, filter.limit)
        page = await self._database.read(
            reading.event_page, session_id, filter, filter.after, filter.before, size
        )
        head = page.head
        events = await self._decoded(session_id, filter, filter.after, filter.before, page)
        more = len(events) == page.limit
        while more and (filter.limit is None or len(events) < filter.limit):
            # The next page begins with the last event of this one: if it is not there any more, the
            # session was deleted, and its successor must not be taken for the rest.
            last = events[-1]
            assert last.sequence_number is not None
            after, before = filter.after, head + 1 if filter.before is None else min(filter.before, head + 1)
            if filter.order == "asc":
                after = last.sequence_number - 1
            else:
                before = last.sequence_number + 1
            size = _smaller(_rows_for(page), None if filter.limit is None else filter.limit - len(events))
            page = await self._database.read(reading.event_page, session_id, filter, after, before, size + 1)
            following = await self._decoded(session_id, filter, after, before, page)
            if not following or following[0].id != last.id:
                return None
            events += following[1:]
            more = len(following) == page.limit
        return events, head

    async def _decoded(
        self, session_id: str, filter: EventFilter, after: int, before: int | None, page: Page
    ) -> list[Event]:
        if page.text is None:
            return []
        events = events_of(page.text)
        if events is None:
            return await self._database.read(
                reading.events_by_row, session_id, filter, after, before, page.limit
            )
        return events

    async def sessions(
        self,
        statuses: frozenset[SessionStatus] | None,
        agents: frozenset[str] | None,
        limit: int | None,
        offset: int,
    ) -> list[Session]:
        """Sessions, the oldest first."""
        sessions: list[Session] = []
        after: tuple[str, str] = ("", "")
        while limit is None or len(sessions) < limit:
            size = _smaller(PAGE_ROWS, None if limit is None else limit - len(sessions))
            rows: list[list[Any]] = await self._database.read(
                reading.list_sessions, statuses, agents, after, size, offset
            )
            sessions += map(session_of, rows)
            if len(rows) < size:
                break
            after, offset = (rows[-1][7], rows[-1][0]), 0
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
        cursor = after
        while limit is None or len(runs) < limit:
            size = _smaller(PAGE_ROWS, None if limit is None else limit - len(runs))
            try:
                rows = await self._database.read(reading.list_runs, session_id, statuses, cursor, size)
            except RunNotFound:
                if cursor == after:
                    raise
                return None
            runs += map(run_of, rows)
            if len(rows) < size:
                break
            cursor = runs[-1].id
        return runs


def _smaller(size: int, limit: int | None) -> int:
    return size if limit is None else min(size, limit)


def _rows_for(page: Page) -> int:
    """How many events like those of a page make a page."""
    length = len(page.text or "") // page.limit + 1
    return max(1, min(PAGE_ROWS, PAGE_TEXT // length))
