"""The tables, as SQLAlchemy Core: what the migrations arrive at, and what wider queries are built on.

Keys are text of any length and begin with the session, so that the tables can be partitioned by it;
numbers are 64 bits wide. A time is ISO 8601 text in UTC with six digits of a second and a `Z`, so
that text order is time order and nothing is rounded. A JSON column holds the JSON text.

No foreign keys: an event, a run or a claim needs no session row.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

__all__ = ["artifacts", "changes", "events", "metadata", "nodes", "runs", "session_sequences", "sessions"]

KEY = Text()
NUMBER = BigInteger()
TIME = Text()
JSON_TEXT = Text()

metadata = MetaData()

sessions = Table(
    "asm_sessions",
    metadata,
    Column("id", KEY, nullable=False),
    Column("agent_id", KEY, nullable=False),
    Column("status", KEY, nullable=False),
    Column("parent_session_id", KEY),
    Column("metadata", JSON_TEXT, nullable=False),
    Column("context", JSON_TEXT, nullable=False),
    Column("tags", JSON_TEXT, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("updated_at", TIME, nullable=False),
    Column("deleted_at", TIME),
    PrimaryKeyConstraint("id"),
    # The order of list_sessions is (created_at, id): each of these reads a page as one range.
    Index("asm_sessions_created_at", "created_at", "id"),
    Index("asm_sessions_status", "status", "created_at", "id"),
    Index("asm_sessions_agent_id", "agent_id", "created_at", "id"),
    Index("asm_sessions_deleted_at", "deleted_at"),
)

runs = Table(
    "asm_runs",
    metadata,
    Column("session_id", KEY, nullable=False),
    Column("id", KEY, nullable=False),
    Column("status", KEY, nullable=False),
    # The place in the order of acceptance, 1, 2, 3 … within the session; an upsert keeps it.
    Column("position", NUMBER, nullable=False),
    Column("owner", KEY),
    Column("attempt", NUMBER, nullable=False),
    Column("input", JSON_TEXT),
    Column("output", JSON_TEXT),
    Column("error", JSON_TEXT),
    Column("metadata", JSON_TEXT, nullable=False),
    Column("turn_count", NUMBER, nullable=False),
    Column("token_usage", JSON_TEXT, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("started_at", TIME),
    Column("ended_at", TIME),
    Column("provider", KEY),
    Column("provider_metadata", JSON_TEXT, nullable=False),
    Column("cost_usd", Float(53)),
    PrimaryKeyConstraint("session_id", "id"),
    Index("asm_runs_position", "session_id", "position", unique=True),
    # The queue: the first pending one, and how many are running.
    Index("asm_runs_queue", "session_id", "status", "position"),
    Index("asm_runs_id", "id"),
    Index("asm_runs_provider", "provider"),
    Index("asm_runs_started_at", "started_at"),
)

# What is running, in all sessions: orphans are looked for among these.
Index("asm_runs_running", runs.c.session_id, runs.c.position, sqlite_where=runs.c.status == text("'running'"))

events = Table(
    "asm_events",
    metadata,
    Column("session_id", KEY, nullable=False),
    Column("sequence_number", NUMBER, nullable=False),
    Column("id", KEY, nullable=False),
    Column("type", KEY, nullable=False),
    Column("run_id", KEY),
    Column("timestamp", TIME, nullable=False),
    Column("data", JSON_TEXT, nullable=False),
    Column("metadata", JSON_TEXT, nullable=False),
    Column("schema_version", NUMBER, nullable=False),
    Column("provider", KEY),
    Column("correlation_id", KEY),
    # Stored in the order of its key: a page of one session's log is one range of neighbours.
    PrimaryKeyConstraint("session_id", "sequence_number"),
    Index("asm_events_id", "session_id", "id", unique=True),
    Index("asm_events_type", "session_id", "type", "sequence_number"),
    Index("asm_events_timestamp", "timestamp"),
    sqlite_with_rowid=False,
)
# What an event does not have costs no index entry: the entries of one commit would else lie on as
# many pages as it has sessions. A provider's own entries lie in the order of time for the same reason.
Index(
    "asm_events_run_id",
    events.c.session_id,
    events.c.run_id,
    events.c.sequence_number,
    sqlite_where=events.c.run_id.is_not(None),
)
Index(
    "asm_events_provider",
    events.c.provider,
    events.c.timestamp,
    sqlite_where=events.c.provider.is_not(None),
)
Index(
    "asm_events_correlation_id",
    events.c.correlation_id,
    sqlite_where=events.c.correlation_id.is_not(None),
)

session_sequences = Table(
    "asm_session_sequences",
    metadata,
    Column("session_id", KEY, nullable=False),
    # The greatest number ever given in the session's log.
    Column("last_sequence", NUMBER, nullable=False),
    # The number of the last change (see asm_changes) to one of its runs or to its own status.
    Column("run_revision", NUMBER, nullable=False),
    Column("updated_at", TIME, nullable=False),
    PrimaryKeyConstraint("session_id"),
    sqlite_with_rowid=False,
)

artifacts = Table(
    "asm_artifacts",
    metadata,
    Column("id", KEY, nullable=False),
    Column("session_id", KEY),
    Column("run_id", KEY),
    Column("key", KEY, nullable=False),
    Column("content_type", KEY),
    Column("byte_size", NUMBER, nullable=False),
    Column("checksum_sha256", KEY, nullable=False),
    Column("storage_backend", KEY, nullable=False),
    Column("storage_ref", KEY, nullable=False),
    Column("metadata", JSON_TEXT, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("deleted_at", TIME),
    PrimaryKeyConstraint("id"),
    Index("asm_artifacts_session_id", "session_id"),
    Index("asm_artifacts_created_at", "created_at"),
)
# A key can be taken again after its artifact was deleted softly.
Index("asm_artifacts_key", artifacts.c.key, unique=True, sqlite_where=artifacts.c.deleted_at.is_(None))

nodes = Table(
    "asm_nodes",
    metadata,
    # Leases on a server database. On SQLite a lock file beside the database says who is alive, and
    # this table stays empty.
    Column("id", KEY, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("expires_at", TIME, nullable=False),
    PrimaryKeyConstraint("id"),
    Index("asm_nodes_expires_at", "expires_at"),
)

changes = Table(
    "asm_changes",
    metadata,
    # One row for each of the last commits, numbered 1, 2, 3 …: how a process that waits learns what
    # other processes have changed, at the cost of what changed.
    Column("number", Integer(), nullable=False),
    Column("session_ids", JSON_TEXT, nullable=False),
    PrimaryKeyConstraint("number"),
)
