"""Rows of artifacts in memory, by id, key, session and time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from datetime import datetime
from itertools import islice

from asm_runtime.ports import ArtifactStats
from asm_runtime.records import Artifact
from asm_runtime.stores.artifact_rules import Replaced, RowFilter, check_registration, not_found

__all__ = ["ArtifactRows"]

_Age = tuple[datetime, str]


class ArtifactRows:
    """The rows of one store. Plain and synchronous: callers take turns."""

    def __init__(self) -> None:
        self._rows: dict[str, Artifact] = {}
        self._live: dict[str, str] = {}
        """The ids of live rows, by key."""
        self._order: list[_Age] = []
        self._of_sessions: dict[str, list[_Age]] = {}

    def register(self, row: Artifact, replace: Replaced, now: datetime) -> Artifact:
        """Store a row; see `ArtifactRegistry`."""
        live = self._live_row(row.key)
        known = check_registration(row, self._rows.get(row.id), live, replace)
        if known is not None:
            return known
        if live is not None:
            self._rows[live.id] = live.replace(deleted_at=now)
        self._rows[row.id] = row
        self._live[row.key] = row.id
        insort(self._order, _age(row))
        if row.session_id is not None:
            insort(self._of_sessions.setdefault(row.session_id, []), _age(row))
        return row

    def get(self, key: str) -> Artifact:
        """The live row of a key."""
        row = self._live_row(key)
        if row is None:
            raise not_found(key)
        return row

    def list(self, filter: RowFilter) -> list[Artifact]:
        """The rows that a filter wants, in order."""
        order = self._order
        if filter.session_id is not None:
            order = self._of_sessions.get(filter.session_id, [])
        start = 0 if filter.after is None else bisect_right(order, filter.after)
        rows: Iterable[Artifact] = (self._rows[id] for _, id in islice(order, start, None))
        return [*islice((row for row in rows if filter.wants(row)), filter.limit)]

    def stats(self, session_id: str) -> ArtifactStats:
        """The live rows of a session, counted."""
        rows = [self._rows[id] for _, id in self._of_sessions.get(session_id, ())]
        sizes = [row.byte_size for row in rows if row.deleted_at is None]
        return ArtifactStats(artifact_count=len(sizes), total_bytes=sum(sizes))

    def delete(self, key: str, id: str | None, now: datetime) -> None:
        """Delete the live row of a key softly, or only the one with that id."""
        row = self._live_row(key)
        if row is not None and id in (None, row.id):
            del self._live[key]
            self._rows[row.id] = row.replace(deleted_at=now)

    def forget(self, session_id: str) -> None:
        """Remove the rows of a session."""
        for age in self._of_sessions.pop(session_id, ()):
            row = self._rows.pop(age[1])
            if row.deleted_at is None:
                del self._live[row.key]
            del self._order[bisect_left(self._order, age)]

    def _live_row(self, key: str) -> Artifact | None:
        id = self._live.get(key)
        return None if id is None else self._rows[id]


def _age(row: Artifact) -> _Age:
    return row.created_at, row.id
