"""The tables, as SQLAlchemy Core: what the migrations arrive at, and what wider queries are built on.

Keys are text of any length, compared by code point whatever the locale. Those of sessions, runs,
events and counters begin with the session, so that the tables can be partitioned by it; numbers are
64 bits wide. A time is ISO 8601 text in UTC with six digits of a second and a `Z`, so that text order
is time order and nothing is rounded. A JSON column holds the JSON text.

No foreign keys: an event, a run or a claim needs no session row.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import TEXT as TEXT_OF_POSTGRESQL

__all__ = [
    "artifacts",
    "changes",
    "events",
    "metadata",
    "nodes",
    "removals",
    "runs",
    "session_sequences",
    "sessions",
]

TEXT = Text().with_variant(TEXT_OF_POSTGRESQL(collation="C"), "postgresql")
KEY = TEXT
TIME = TEXT
JSON_TEXT = Text()
NUMBER = BigInteger()
# What SQLite counts up by itself, it wants to be called INTEGER.
COUNT = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData()


def _index_of_some(
    name: str, *columns: Column[Any], where: ColumnElement[bool], unique: bool = False
) -> None:
    """An index of some rows, on every database that has such."""
    Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


sessions = Table(
    "asm_sessions",
    metadata,
    Column("id", KEY, nullable=False),
    Column("agent_id", KEY, nullable=False),
    Column("status", KEY, nullable=False),
    Column("parent_session_id", KEY),
    # How many bytes its JSON columns have: how much of a list makes a page. What stands after a large
    # text is found only by reading all of it.
    Column("byte_size", NUMBER, nullable=False),
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
    # How many bytes its JSON columns have, which come after it.
    Column("byte_size", NUMBER, nullable=False),
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
    # All runs of a session in order.
    Index("asm_runs_position", "session_id", "position", unique=True),
    # The queue: the first pending one, and how many are running.
    Index("asm_runs_queue", "session_id", "status", "position"),
    # A run whose session the caller does not name.
    Index("asm_runs_id", "id"),
)

# What is running, in all sessions: orphans are looked for among these.
_index_of_some(
    "asm_runs_running", runs.c.session_id, runs.c.position, where=runs.c.status == text("'running'")
)

# Every index of the log is written with every event. These are what its statements need and no more:
# with one by time, by provider and by correlation id besides, a lone append wrote 9.5 pages and not 7.
# A heap and no table in the order of its key: there a row above 1 kB would fill a page of its own,
# 108 MB for 20 000 events of 1.5 kB instead of 52, and a group of many sessions' events would write a
# sixth more pages. A page of one log read from among 16 costs half as much again for it.
events = Table(
    "asm_events",
    metadata,
    Column("session_id", KEY, nullable=False),
    Column("sequence_number", NUMBER, nullable=False),
    Column("id", KEY, nullable=False),
    Column("type", KEY, nullable=False),
    Column("run_id", KEY),
    Column("timestamp", TIME, nullable=False),
    Column("schema_version", NUMBER, nullable=False),
    Column("provider", KEY),
    Column("correlation_id", KEY),
    # The latest time of the events before it in the log, if that is later than its own; else NULL.
    # So coalesce(later_timestamp, timestamp) never falls along a log, and where the events after some
    # time begin is found by bisection: an index by time costs a page a commit, and would have to sort.
    Column("later_timestamp", TIME),
    # How many bytes `metadata` and `data` have: how much of the log makes a page. They come last: what
    # comes after a large text is found only by reading all of it.
    Column("byte_size", NUMBER, nullable=False),
    Column("metadata", JSON_TEXT, nullable=False),
    Column("data", JSON_TEXT, nullable=False),
    # The log in order: one page is one range.
    PrimaryKeyConstraint("session_id", "sequence_number"),
    # An event that is appended again.
    Index("asm_events_id", "session_id", "id", unique=True),
)
_index_of_some(
    "asm_events_run_id",
    events.c.session_id,
    events.c.run_id,
    events.c.sequence_number,
    where=events.c.run_id.is_not(None),
)
# Without the pieces of streamed messages: they are most of a log, and nobody looks for them by type.
_index_of_some(
    "asm_events_type",
    events.c.session_id,
    events.c.type,
    events.c.sequence_number,
    where=events.c.type != text("'message_streamed'"),
)
session_sequences = Table(
    "asm_session_sequences",
    metadata,
    Column("session_id", KEY, nullable=False),
    # The greatest number ever given in the session's log.
    Column("last_sequence", NUMBER, nullable=False),
    # The latest time of an event ever stored in it; empty: there was none.
    Column("latest_timestamp", TIME, nullable=False),
    # The size of the largest event ever stored in it: where all are small, no page adds sizes up.
    Column("largest_event", NUMBER, nullable=False),
    # By chance: a session that is deleted and made again has another, so that nobody who reads in pages
    # takes the one for the rest of the other.
    Column("incarnation", NUMBER, nullable=False),
    # The number of the last change (see asm_changes) to one of its runs or to its own status.
    Column("run_revision", NUMBER, nullable=False),
    # How many of its runs are pending or running.
    Column("open_runs", NUMBER, nullable=False),
    PrimaryKeyConstraint("session_id"),
    sqlite_with_rowid=False,
)

# Deleted sessions whose events and runs are still being removed, a step at a time. Nobody sees them: the
# events past the latest number of the session made again, up to this one; the runs up to this position.
removals = Table(
    "asm_removals",
    metadata,
    Column("session_id", KEY, nullable=False),
    Column("last_sequence", NUMBER, nullable=False),
    Column("last_position", NUMBER, nullable=False),
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
    # The order of list_artifacts is (created_at, id): each of these reads a page as one range.
    Index("asm_artifacts_created_at", "created_at", "id"),
    Index("asm_artifacts_session_id", "session_id", "created_at", "id"),
)
_index_of_some(
    "asm_artifacts_run_id",
    artifacts.c.run_id,
    artifacts.c.created_at,
    artifacts.c.id,
    where=artifacts.c.run_id.is_not(None),
)
# A key can be taken again after its artifact was deleted softly.
_index_of_some("asm_artifacts_key", artifacts.c.key, unique=True, where=artifacts.c.deleted_at.is_(None))

nodes = Table(
    "asm_nodes",
    metadata,
    # Leases on a server database. On SQLite a lock file beside the database says who is alive, and
    # this table stays empty.
    Column("id", KEY, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("expires_at", TIME, nullable=False),
    PrimaryKeyConstraint("id"),
)

changes = Table(
    "asm_changes",
    metadata,
    # One row for each of the last commits, numbered 1, 2, 3 …: how a process that waits learns what
    # other processes have changed, at the cost of what changed.
    Column("number", COUNT, nullable=False),
    Column("session_ids", JSON_TEXT, nullable=False),
    PrimaryKeyConstraint("number"),
)
