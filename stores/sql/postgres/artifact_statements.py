"""The statements about rows of artifacts, in PostgreSQL's dialect."""

from __future__ import annotations

from functools import lru_cache

_COLUMNS = (
    "id, session_id, run_id, key, content_type, byte_size, checksum_sha256, storage_backend, storage_ref, "
    "metadata, created_at, deleted_at"
)

ARTIFACTS_OF_IDS = f"SELECT {_COLUMNS} FROM asm_artifacts WHERE id = ANY ($1::text[])"

LIVE_ARTIFACTS = f"SELECT {_COLUMNS} FROM asm_artifacts WHERE key = ANY ($1::text[]) AND deleted_at IS NULL"

LIVE_ARTIFACT = f"SELECT {_COLUMNS} FROM asm_artifacts WHERE key = $1 AND deleted_at IS NULL"

INSERT_ARTIFACTS = f"""
INSERT INTO asm_artifacts ({_COLUMNS}) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[],
    $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
"""

DELETE_ARTIFACTS = """
UPDATE asm_artifacts SET deleted_at = $1 WHERE id = ANY ($2::text[]) AND deleted_at IS NULL
"""

ARTIFACT_STATS = """
SELECT count(*), coalesce(sum(byte_size), 0)::text FROM asm_artifacts
WHERE session_id = $1 AND deleted_at IS NULL
"""


@lru_cache(maxsize=16)
def list_artifacts(*, by_session: bool, by_run: bool, include_deleted: bool) -> str:
    """Read rows in the order (created_at, id).

    Parameters: time and id after which, prefix, limit; then session, run.
    """
    where = "(created_at, id) > ($1, $2) AND starts_with(key, $3)"
    if by_session:
        where += " AND session_id = $5"
    if by_run:
        where += f" AND run_id = {'$6' if by_session else '$5'}"
    if not include_deleted:
        where += " AND deleted_at IS NULL"
    return f"SELECT {_COLUMNS} FROM asm_artifacts WHERE {where} ORDER BY created_at, id LIMIT $4::bigint"
