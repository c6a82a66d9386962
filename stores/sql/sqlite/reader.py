"""The questions of a store, asked on connections that read."""

from __future__ import annotations

from collections.abc import Awaitable, Collection

from asm_runtime.ports import ArtifactStats
from asm_runtime.records import Artifact, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.artifact_rules import RowFilter
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.sql.database import Page
from asm_runtime.stores.sql.sqlite import artifact_rows, reading
from asm_runtime.stores.sql.sqlite.connections import Connections

__all__ = ["Reader"]


class Reader:
    """Has each question answered in one hop to a thread; see `stores.sql.database.Reader`."""

    def __init__(self, connections: Connections) -> None:
        self._read = connections.read

    def events(
        self,
        session_id: str,
        filter: EventFilter,
        *,
        limit: int,
        max_bytes: int,
        examined: int,
        has_room: bool,
    ) -> Awaitable[Page]:
        """See the protocol."""
        return self._read(reading.event_page, session_id, filter, limit, max_bytes, examined, has_room)

    def latest_sequence(self, session_id: str) -> Awaitable[int]:
        """See the protocol."""
        return self._read(reading.latest_sequence, session_id)

    def session(self, session_id: str) -> Awaitable[Session]:
        """See the protocol."""
        return self._read(reading.session, session_id)

    def sessions(
        self,
        statuses: frozenset[SessionStatus] | None,
        agent_ids: frozenset[str] | None,
        after: Session | None,
        offset: int,
        limit: int,
        max_bytes: int,
    ) -> Awaitable[tuple[list[Session], bool]]:
        """See the protocol."""
        return self._read(reading.list_sessions, statuses, agent_ids, after, offset, limit, max_bytes)

    def run(self, run_id: str, session_id: str | None) -> Awaitable[Run]:
        """See the protocol."""
        return self._read(reading.run, run_id, session_id)

    def runs(
        self,
        session_id: str,
        statuses: frozenset[RunStatus] | None,
        after: str | None,
        limit: int,
        max_bytes: int,
    ) -> Awaitable[tuple[list[Run], bool]]:
        """See the protocol."""
        return self._read(reading.list_runs, session_id, statuses, after, limit, max_bytes)

    def active_run(self, session_id: str) -> Awaitable[Run | None]:
        """See the protocol."""
        return self._read(reading.active_run, session_id)

    def run_revision(self, session_id: str) -> Awaitable[int]:
        """See the protocol."""
        return self._read(reading.run_revision, session_id)

    def owners(self, session_id: str | None) -> Awaitable[Collection[str | None]]:
        """See the protocol."""
        return self._read(reading.owners, session_id)

    def orphans(
        self,
        session_id: str | None,
        dead: Collection[str],
        after: tuple[str, int],
        limit: int,
        max_bytes: int,
    ) -> Awaitable[tuple[list[Run], tuple[str, int] | None]]:
        """See the protocol."""
        return self._read(reading.orphans, session_id, dead, after, limit, max_bytes)

    def removals(self, past: str, limit: int) -> Awaitable[list[str]]:
        """See the protocol."""
        return self._read(reading.removals, past, limit)

    def artifact(self, key: str) -> Awaitable[Artifact]:
        """See the protocol."""
        return self._read(artifact_rows.get, key)

    def artifacts(self, filter: RowFilter, limit: int) -> Awaitable[list[Artifact]]:
        """See the protocol."""
        return self._read(artifact_rows.page, filter, limit)

    def artifact_stats(self, session_id: str) -> Awaitable[ArtifactStats]:
        """See the protocol."""
        return self._read(artifact_rows.stats, session_id)
