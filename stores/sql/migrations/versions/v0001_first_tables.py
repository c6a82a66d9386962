"""The first tables: sessions, runs, events, counters, artifacts, nodes, changes.

Written out, not taken from `schema`: that module says what the newest step arrives at.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade(op: Operations) -> None:
    """Create them."""
    _create_sessions(op)
    _create_runs(op)
    _create_events(op)
    _create_artifacts(op)
    op.create_table(
        "asm_session_sequences",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("latest_timestamp", TEXT, nullable=False),
        sa.Column("largest_event", sa.BigInteger, nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
        sa.Column("run_revision", sa.BigInteger, nullable=False),
        sa.Column("open_runs", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("session_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "asm_removals",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("last_position", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("session_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "asm_nodes",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("started_at", TEXT, nullable=False),
        sa.Column("expires_at", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "asm_changes",
        sa.Column("number", COUNT, nullable=False),
        sa.Column("session_ids", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )


def downgrade(op: Operations) -> None:
    """Drop them, with everything in them."""
    for table in (
        "asm_changes",
        "asm_nodes",
        "asm_removals",
        "asm_artifacts",
        "asm_session_sequences",
        "asm_events",
        "asm_runs",
        "asm_sessions",
    ):
        op.drop_table(table)


def _create_sessions(op: Operations) -> None:
    op.create_table(
        "asm_sessions",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("agent_id", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("parent_session_id", TEXT),
        sa.Column("byte_size", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("context", sa.Text, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("updated_at", TEXT, nullable=False),
        sa.Column("deleted_at", TEXT),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("asm_sessions_created_at", "asm_sessions", ["created_at", "id"])
    op.create_index("asm_sessions_status", "asm_sessions", ["status", "created_at", "id"])
    op.create_index("asm_sessions_agent_id", "asm_sessions", ["agent_id", "created_at", "id"])


def _create_runs(op: Operations) -> None:
    op.create_table(
        "asm_runs",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("owner", TEXT),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("byte_size", sa.BigInteger, nullable=False),
        sa.Column("input", sa.Text),
        sa.Column("output", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("turn_count", sa.BigInteger, nullable=False),
        sa.Column("token_usage", sa.Text, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("started_at", TEXT),
        sa.Column("ended_at", TEXT),
        sa.Column("provider", TEXT),
        sa.Column("provider_metadata", sa.Text, nullable=False),
        sa.Column("cost_usd", sa.Float(53)),
        sa.PrimaryKeyConstraint("session_id", "id"),
    )
    op.create_index("asm_runs_position", "asm_runs", ["session_id", "position"], unique=True)
    op.create_index("asm_runs_queue", "asm_runs", ["session_id", "status", "position"])
    op.create_index(
        "asm_runs_running",
        "asm_runs",
        ["session_id", "position"],
        **_partial("status = 'running'"),
    )
    op.create_index("asm_runs_id", "asm_runs", ["id"])


def _create_events(op: Operations) -> None:
    op.create_table(
        "asm_events",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("sequence_number", sa.BigInteger, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("run_id", TEXT),
        sa.Column("timestamp", TEXT, nullable=False),
        sa.Column("schema_version", sa.BigInteger, nullable=False),
        sa.Column("provider", TEXT),
        sa.Column("correlation_id", TEXT),
        sa.Column("later_timestamp", TEXT),
        sa.Column("byte_size", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "sequence_number"),
    )
    op.create_index("asm_events_id", "asm_events", ["session_id", "id"], unique=True)
    op.create_index(
        "asm_events_run_id",
        "asm_events",
        ["session_id", "run_id", "sequence_number"],
        **_partial("run_id IS NOT NULL"),
    )
    op.create_index(
        "asm_events_type",
        "asm_events",
        ["session_id", "type", "sequence_number"],
        **_partial("type != 'message_streamed'"),
    )


def _create_artifacts(op: Operations) -> None:
    op.create_table(
        "asm_artifacts",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("session_id", TEXT),
        sa.Column("run_id", TEXT),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("content_type", TEXT),
        sa.Column("byte_size", sa.BigInteger, nullable=False),
        sa.Column("checksum_sha256", TEXT, nullable=False),
        sa.Column("storage_backend", TEXT, nullable=False),
        sa.Column("storage_ref", TEXT, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("deleted_at", TEXT),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("asm_artifacts_created_at", "asm_artifacts", ["created_at", "id"])
    op.create_index("asm_artifacts_session_id", "asm_artifacts", ["session_id", "created_at", "id"])
    op.create_index(
        "asm_artifacts_run_id",
        "asm_artifacts",
        ["run_id", "created_at", "id"],
        **_partial("run_id IS NOT NULL"),
    )
    op.create_index(
        "asm_artifacts_key", "asm_artifacts", ["key"], unique=True, **_partial("deleted_at IS NULL")
    )


def _partial(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
