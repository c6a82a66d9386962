"""What is read of the rows of artifacts, as jobs for a connection that reads."""

from __future__ import annotations

from typing import Any

from asm_runtime.payload import decode
from asm_runtime.ports import ArtifactStats
from asm_runtime.records import Artifact
from asm_runtime.stores.artifact_rules import RowFilter, not_found
from asm_runtime.stores.sql.rows import artifact_of, text_of
from asm_runtime.stores.sql.sqlite import artifact_statements as statements
from asm_runtime.stores.sql.sqlite.transaction import Cursor

__all__ = ["get", "page", "stats"]


def get(cursor: Cursor, key: str) -> Artifact:
    """The live row of a key."""
    cursor.execute(statements.LIVE_ARTIFACT, (key,))
    row = cursor.fetchone()
    if row is None:
        raise not_found(key)
    return artifact_of(row)


def page(cursor: Cursor, filter: RowFilter, limit: int) -> list[Artifact]:
    """The first rows that a filter wants."""
    statement = statements.list_artifacts(
        by_session=filter.session_id is not None,
        by_run=filter.run_id is not None,
        include_deleted=filter.include_deleted,
    )
    parameters: dict[str, Any] = {
        "session_id": filter.session_id,
        "run_id": filter.run_id,
        "prefix": filter.prefix,
        "after_time": "" if filter.after is None else text_of(filter.after[0]),
        "after_id": "" if filter.after is None else filter.after[1],
        "limit": limit,
    }
    cursor.execute(statement, parameters)
    return [artifact_of(row) for row in decode(cursor.fetchone()[0])]


def stats(cursor: Cursor, session_id: str) -> ArtifactStats:
    """The live rows of a session, counted."""
    cursor.execute(statements.ARTIFACT_STATS, (session_id,))
    count, upper, lower = cursor.fetchone()
    return ArtifactStats(artifact_count=count, total_bytes=(upper << 32) + lower)
