"""The statements about rows of artifacts, in SQLite's dialect. One row answers each, as in `statements`."""

from __future__ import annotations

from functools import lru_cache

_COLUMNS = (
    "id, session_id, run_id, key, content_type, byte_size, checksum_sha256, storage_backend, storage_ref, "
    "metadata, created_at, deleted_at"
)

ARTIFACT_OF_ID = f"SELECT {_COLUMNS} FROM asm_artifacts WHERE id = ?"

LIVE_ARTIFACT = f"SELECT {_COLUMNS} FROM asm_artifacts WHERE key = ? AND deleted_at IS NULL"

INSERT_ARTIFACT = f"INSERT INTO asm_artifacts ({_COLUMNS}) VALUES ({', '.join('?' * 12)})"

DELETE_ARTIFACT = "UPDATE asm_artifacts SET deleted_at = ? WHERE id = ?"

# How many, and how large in two parts: the sum of sizes may be past 64 bits.
ARTIFACT_STATS = """
SELECT count(*), coalesce(sum(byte_size >> 32), 0), coalesce(sum(byte_size & 0xffffffff), 0)
FROM asm_artifacts WHERE session_id = ? AND deleted_at IS NULL
"""


@lru_cache(maxsize=16)
def list_artifacts(*, by_session: bool, by_run: bool, include_deleted: bool) -> str:
    """Read rows in the order (created_at, id), as one JSON list.

    Parameters by name: session_id, run_id, prefix, after_time, after_id, limit.
    """
    where = "(created_at, id) > (:after_time, :after_id)"
    if by_session:
        # Of a session with many rows and a run with few, this reads too many: a run's session is known.
        where += " AND session_id = :session_id"
    if by_run:
        where += " AND +run_id = :run_id" if by_session else " AND run_id = :run_id"
    if not include_deleted:
        where += " AND +deleted_at IS NULL"
    return f"""SELECT json_group_array(json_array({_COLUMNS})) FROM (SELECT {_COLUMNS} FROM asm_artifacts
        WHERE {where} AND substr(key, 1, length(:prefix)) = :prefix
        ORDER BY created_at, id LIMIT :limit)"""
