"""The questions of a store, each one statement on a connection that reads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

from asm_runtime.errors import Conflict, RunNotFound, SessionNotFound
from asm_runtime.ports import ArtifactStats
from asm_runtime.records import Artifact, Event, EventType, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.artifact_rules import RowFilter, not_found
from asm_runtime.stores.filters import EventFilter, byte_size
from asm_runtime.stores.sql.database import Page
from asm_runtime.stores.sql.postgres import artifact_statements, statements
from asm_runtime.stores.sql.postgres.connections import Connection, Connections
from asm_runtime.stores.sql.rows import artifact_of, event_of, events_of, run_of, session_of, text_of

__all__ = ["Reader"]

_PAST_ALL = 2**63 - 1


class Reader:
    """See `stores.sql.database.Reader`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def events(
        self,
        session_id: str,
        filter: EventFilter,
        *,
        limit: int,
        max_bytes: int,
        examined: int,
        has_room: bool,
    ) -> Page:
        """See the protocol. However many it looks at: no other reader waits for it."""
        limit = limit if filter.limit is None else min(limit, filter.limit)
        room = filter.max_bytes
        max_bytes = max_bytes if room is None else min(max_bytes, room)
        query = statements.LogQuery(
            descending=filter.order == "desc",
            runs=filter.run_ids is not None,
            types=filter.types is not None,
            since=filter.since is not None,
            by_type=filter.types is not None and EventType.MESSAGE_STREAMED not in filter.types,
        )
        before = _PAST_ALL if filter.before is None else min(filter.before, _PAST_ALL)
        parameters: list[Any] = [session_id, min(filter.after, _PAST_ALL), before, limit, max_bytes]
        if filter.run_ids is not None:
            parameters.append(list(filter.run_ids))
        if filter.types is not None:
            parameters.append([str.__str__(type) for type in filter.types])
        if filter.since is not None:
            parameters.append(text_of(filter.since))
        rows = await self._fetch(statements.page(query), *parameters)
        head, incarnation, found, *_ = rows[0]
        events: list[Event] = []
        position = None
        if found is not None:
            events = _events_of(rows, session_id)
            if found == limit or found > len(events):
                position = events[-1].sequence_number
        if room is not None:
            used = [*accumulate(byte_size(event) for event in events)]
            count = sum(one <= room for one in used)
            if count < len(events):
                events, position = events[: max(count, int(has_room))], None
            room -= used[-1] if used else 0
        return Page(head, incarnation, events, position, room)

    async def latest_sequence(self, session_id: str) -> int:
        """See the protocol."""
        return await self._number(statements.LATEST_SEQUENCE, session_id)

    async def session(self, session_id: str) -> Session:
        """See the protocol."""
        rows = await self._fetch(statements.GET_SESSION, session_id)
        if not rows:
            raise SessionNotFound(f"no session {session_id}", details={"session_id": session_id})
        return session_of(rows[0])

    async def sessions(
        self,
        statuses: frozenset[SessionStatus] | None,
        agent_ids: frozenset[str] | None,
        after: Session | None,
        offset: int,
        limit: int,
        max_bytes: int,
    ) -> tuple[list[Session], bool]:
        """See the protocol."""
        past = ("", "") if after is None else (text_of(after.created_at), after.id)
        parameters: list[Any] = [*past, limit, min(offset, _PAST_ALL - limit), max_bytes]
        if statuses is not None:
            parameters.append(_texts(statuses))
        if agent_ids is not None:
            parameters.append(_texts(agent_ids))
        statement = statements.list_sessions(statuses=statuses is not None, agents=agent_ids is not None)
        rows = await self._fetch(statement, *parameters)
        return [session_of(row) for row in rows], _has_more(rows, limit)

    async def run(self, run_id: str, session_id: str | None) -> Run:
        """See the protocol."""
        if session_id is None:
            rows = await self._fetch(statements.FIND_RUN, run_id)
        else:
            rows = await self._fetch(statements.GET_RUN, session_id, run_id)
        if not rows:
            place = "" if session_id is None else f" in session {session_id}"
            raise RunNotFound(f"no run {run_id}{place}", details={"run_id": run_id, "session_id": session_id})
        if len(rows) > 1:
            raise Conflict(
                f"runs of several sessions have the id {run_id}: name the session", details={"run_id": run_id}
            )
        return run_of(rows[0])

    async def runs(
        self,
        session_id: str,
        statuses: frozenset[RunStatus] | None,
        after: str | None,
        limit: int,
        max_bytes: int,
    ) -> tuple[list[Run], bool]:
        """See the protocol."""
        parameters: list[Any] = [session_id, limit, max_bytes]
        if statuses is not None:
            parameters.append(_texts(statuses))
        if after is not None:
            parameters.append(after)
        statement = statements.list_runs(statuses=statuses is not None, resumed=after is not None)
        rows = await self._fetch(statement, *parameters)
        if not rows and after is not None:
            await self.run(after, session_id)  # the last one, or none
        return [run_of(row) for row in rows], _has_more(rows, limit)

    async def active_run(self, session_id: str) -> Run | None:
        """See the protocol."""
        rows = await self._fetch(statements.ACTIVE_RUN, session_id)
        return run_of(rows[0]) if rows else None

    async def run_revision(self, session_id: str) -> int:
        """See the protocol."""
        return await self._number(statements.RUN_REVISION, session_id)

    async def owners(self, session_id: str | None) -> Collection[str | None]:
        """See the protocol."""
        if session_id is None:
            rows = await self._fetch(statements.OWNERS)
        else:
            rows = await self._fetch(statements.SESSION_OWNERS, session_id)
        return [row[0] for row in rows]

    async def orphans(
        self,
        session_id: str | None,
        dead: Collection[str],
        after: tuple[str, int],
        limit: int,
        max_bytes: int,
    ) -> tuple[list[Run], tuple[str, int] | None]:
        """See the protocol."""
        past = after[0] if session_id is None else session_id, after[1]
        statement = statements.list_orphans(of_one=session_id is not None)
        rows = await self._fetch(statement, *past, limit, max_bytes, list(dead))
        following = (rows[-1][0], rows[-1]["position"]) if _has_more(rows, limit) else None
        return [run_of(row) for row in rows], following

    async def removals(self, past: str, limit: int) -> list[str]:
        """See the protocol."""
        return [row[0] for row in await self._fetch(statements.REMOVALS, past, limit)]

    async def has_removals(self) -> bool:
        """Whether deleted sessions have left something."""
        return bool((await self._fetch(statements.ANY_REMOVAL))[0][0])

    async def artifact(self, key: str) -> Artifact:
        """See the protocol."""
        rows = await self._fetch(artifact_statements.LIVE_ARTIFACT, key)
        if not rows:
            raise not_found(key)
        return artifact_of(rows[0])

    async def artifacts(self, filter: RowFilter, limit: int) -> list[Artifact]:
        """See the protocol."""
        statement = artifact_statements.list_artifacts(
            by_session=filter.session_id is not None,
            by_run=filter.run_id is not None,
            include_deleted=filter.include_deleted,
        )
        past = ("", "") if filter.after is None else (text_of(filter.after[0]), filter.after[1])
        named = [one for one in (filter.session_id, filter.run_id) if one is not None]
        rows = await self._fetch(statement, *past, filter.prefix, limit, *named)
        return [artifact_of(row) for row in rows]

    async def artifact_stats(self, session_id: str) -> ArtifactStats:
        """See the protocol."""
        ((count, total),) = await self._fetch(artifact_statements.ARTIFACT_STATS, session_id)
        return ArtifactStats(artifact_count=count, total_bytes=int(total))

    async def _number(self, statement: str, session_id: str) -> int:
        rows = await self._fetch(statement, session_id)
        return int(rows[0][0]) if rows else 0

    async def _fetch(self, statement: str, *parameters: Any) -> list[Any]:
        async def job(connection: Connection) -> list[Any]:
            rows: list[Any] = await connection.fetch(statement, *parameters)
            return rows

        return await self._connections.read(job)


def _events_of(rows: Sequence[Any], session_id: str) -> list[Event]:
    lists = ",".join([row[4] for row in rows]), ",".join([row[5] for row in rows])
    try:
        return events_of(lists, session_id)
    except ValueError:
        return [event_of(row[3:], session_id) for row in rows]  # one of them raises, and is named


def _has_more(rows: Sequence[Any], limit: int) -> bool:
    """Whether others may follow these rows of a list."""
    if not rows:
        return False
    found: int = rows[0]["found"]
    return found == limit or found > len(rows)


def _texts(values: Collection[str]) -> list[str]:
    return [str.__str__(value) for value in values]
