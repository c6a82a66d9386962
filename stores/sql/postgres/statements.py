"""The statements of the hot path, in PostgreSQL's dialect.

What is about many rows takes one array for each column and turns them into rows with `unnest`: one round
trip, one plan, whatever their number. Whoever writes anything of a session holds the lock of its counter
row (`LOCK_COUNTERS`), taken in the order of the ids, so two transactions never wait for each other. What
a decision rests on is read by a statement after that one: under READ COMMITTED a statement sees what was
committed before it began, which is not what was committed while it waited for a lock.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from asm_runtime.stores.sql.rows import EVENT_COLUMNS

# -- columns, in the order of `rows`

SESSION_COLUMNS = (
    "id, agent_id, status, parent_session_id, metadata, context, tags, created_at, updated_at, deleted_at"
)
RUN_COLUMNS = (
    "session_id, id, status, owner, attempt, input, output, error, metadata, turn_count, token_usage, "
    "created_at, started_at, ended_at, provider, provider_metadata, cost_usd"
)

# An event as two JSON texts: see `rows.events_of`. `data` and `metadata` are JSON already.
_SHORT = (
    "json_build_array(sequence_number, id, type, run_id, timestamp, provider, correlation_id,"
    " nullif(schema_version, 1)"
)
_PAYLOADS = "CASE WHEN metadata = '{}' THEN data ELSE '[' || metadata || ',' || data || ']' END"

_NUMBERS = {
    "attempt", "byte_size", "position", "turn_count", "sequence_number", "schema_version",
}  # fmt: skip


def _arrays(columns: str) -> str:
    """One array parameter for each of these columns."""
    types = [
        "bigint" if name in _NUMBERS else "float8" if name == "cost_usd" else "text"
        for name in columns.split(", ")
    ]
    return ", ".join(f"${number}::{type}[]" for number, type in enumerate(types, 1))


def _excluded(columns: str, keys: int) -> str:
    return ", ".join(f"{name} = excluded.{name}" for name in columns.split(", ")[keys:])


def _live(session_id: str = "$1") -> str:
    """That a run is none of those that a deleted session of this id has left."""
    return f"position > coalesce((SELECT last_position FROM asm_removals WHERE session_id = {session_id}), 0)"


# -- transactions

# Whatever the application's default is.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

# The number of the transaction, by which it is found again.
XACT = "SELECT pg_current_xact_id()::text"

XACT_STATUS = "SELECT pg_xact_status($1::text::xid8)"

# -- counters

# Lock the counters of sessions, given in ascending order, and read them. One that is missing is made, with
# the incarnation that is given: its row is what others wait for. With it the number that a change of its
# runs has, if there may be one. From a sequence: it grows across a session that is deleted and made anew,
# and nobody waits for anybody to get one.
LOCK_COUNTERS = """
INSERT INTO asm_session_sequences AS c
    (session_id, last_sequence, latest_timestamp, largest_event, incarnation, run_revision, open_runs)
SELECT session_id, 0, '', 0, incarnation, 0, 0
FROM unnest($1::text[], $2::bigint[]) s (session_id, incarnation)
ON CONFLICT (session_id) DO UPDATE SET open_runs = c.open_runs
RETURNING session_id, last_sequence, latest_timestamp, largest_event, incarnation, run_revision, open_runs,
    CASE WHEN $3 THEN greatest(nextval('asm_changes_number_seq'), run_revision + 1) END AS change,
    pg_current_xact_id()::text AS xact
"""

RAISE_COUNTERS = """
UPDATE asm_session_sequences c SET last_sequence = s.last_sequence, latest_timestamp = s.latest_timestamp,
    largest_event = s.largest_event, run_revision = s.run_revision, open_runs = s.open_runs
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    s (session_id, last_sequence, latest_timestamp, largest_event, run_revision, open_runs)
WHERE c.session_id = s.session_id
"""

DELETE_COUNTERS = "DELETE FROM asm_session_sequences WHERE session_id = ANY ($1::text[])"

# The greatest number and the latest time by the events: a counter that somebody lost or reset does not
# stop the log.
ENDS_OF_LOGS = """
SELECT s.session_id, e.sequence_number, coalesce(e.later_timestamp, e.timestamp)
FROM unnest($1::text[]) s (session_id) CROSS JOIN LATERAL (
    SELECT sequence_number, later_timestamp, timestamp FROM asm_events
    WHERE session_id = s.session_id ORDER BY sequence_number DESC LIMIT 1) e
WHERE NOT EXISTS (SELECT 1 FROM asm_removals r WHERE r.session_id = s.session_id)
"""

LATEST_SEQUENCE = "SELECT last_sequence FROM asm_session_sequences WHERE session_id = $1"

RUN_REVISION = "SELECT run_revision FROM asm_session_sequences WHERE session_id = $1"

# What changes when a session's log or one of its runs does.
STATES = """
SELECT session_id, incarnation, last_sequence, run_revision FROM asm_session_sequences
WHERE session_id = ANY ($1::text[])
"""

# -- events

INSERT_EVENTS = f"""
INSERT INTO asm_events ({", ".join(EVENT_COLUMNS)}) SELECT * FROM unnest({_arrays(", ".join(EVENT_COLUMNS))})
"""

# One event, its number and its counter, in one statement: most of a quiet store's transactions.
APPEND_ONE = """
WITH raised AS (
    INSERT INTO asm_session_sequences AS c
        (session_id, last_sequence, latest_timestamp, largest_event, incarnation, run_revision, open_runs)
    VALUES ($1, 1, $5, $9, $12, 0, 0)
    ON CONFLICT (session_id) DO UPDATE SET last_sequence = c.last_sequence + 1,
        latest_timestamp = greatest(c.latest_timestamp, excluded.latest_timestamp),
        largest_event = greatest(c.largest_event, excluded.largest_event)
    RETURNING last_sequence, latest_timestamp)
INSERT INTO asm_events (session_id, id, type, run_id, timestamp, schema_version, provider, correlation_id,
    byte_size, metadata, data, sequence_number, later_timestamp)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, last_sequence,
    CASE WHEN latest_timestamp > $5 THEN latest_timestamp END
FROM raised RETURNING sequence_number
"""

# Which of these events are stored: session, number, what is short, the payloads.
STORED_EVENTS = f"""
SELECT i.session_id, e.sequence_number, {_SHORT}, i.session_id)::text, {_PAYLOADS}
FROM unnest($1::text[], $2::text[]) i (session_id, event_id)
    JOIN asm_events e ON e.session_id = i.session_id AND e.id = i.event_id
"""

# Make room for new events of a log whose deleted predecessor's are still being removed: by session, the
# latest number, up to which there will be new ones.
REMOVE_EVENTS_IN_THE_WAY = """
DELETE FROM asm_events e USING unnest($1::text[], $2::bigint[], $3::bigint[]) s (session_id, head, last)
WHERE e.session_id = s.session_id AND e.sequence_number > s.head AND e.sequence_number <= s.last
"""
REMOVE_EVENTS_OF_IDS = """
DELETE FROM asm_events e USING unnest($1::text[], $2::bigint[], $3::text[]) s (session_id, head, event_id)
WHERE e.session_id = s.session_id AND e.id = s.event_id AND e.sequence_number > s.head
"""

# -- what requests depend on

REMOVALS_OF = """
SELECT session_id, last_sequence, last_position FROM asm_removals WHERE session_id = ANY ($1::text[])
"""

SESSION_STATUSES = "SELECT id, status FROM asm_sessions WHERE id = ANY ($1::text[])"

SESSION_ROWS = f"SELECT {SESSION_COLUMNS} FROM asm_sessions WHERE id = ANY ($1::text[])"

_PAIRS = "unnest($1::text[], $2::text[]) s (of_session, run_id)"

RUN_STATES = f"""
SELECT session_id, id, status, attempt, position, owner, started_at
FROM {_PAIRS} JOIN asm_runs ON session_id = s.of_session AND id = s.run_id
"""

RUN_ROWS = f"""
SELECT {RUN_COLUMNS}, position FROM {_PAIRS} JOIN asm_runs ON session_id = s.of_session AND id = s.run_id
"""

# The last position in each session's queue.
LAST_POSITIONS = """
SELECT s.session_id, (SELECT max(position) FROM asm_runs r WHERE r.session_id = s.session_id)
FROM unnest($1::text[]) s (session_id)
"""

# How many runs of each session are running, counted up to a limit.
RUNNING_RUNS = f"""
SELECT s.session_id, (SELECT count(*) FROM (SELECT 1 FROM asm_runs r
    WHERE r.session_id = s.session_id AND status = 'running' AND {_live("s.session_id")}
    LIMIT s.limit) counted)
FROM unnest($1::text[], $2::bigint[]) s (session_id, "limit")
"""

# The first pending runs of each session, a few.
PENDING_RUNS = f"""
SELECT {RUN_COLUMNS}, position
FROM unnest($1::text[], $2::bigint[]) s (of_session, "limit") CROSS JOIN LATERAL (
    SELECT * FROM asm_runs r WHERE r.session_id = s.of_session AND status = 'pending'
    AND {_live("s.of_session")} ORDER BY position LIMIT s.limit) r
"""

# -- sessions and runs

NEW_SESSION_COLUMNS = f"{SESSION_COLUMNS}, byte_size"

SAVE_SESSIONS = f"""
INSERT INTO asm_sessions ({NEW_SESSION_COLUMNS}) SELECT * FROM unnest({_arrays(NEW_SESSION_COLUMNS)})
ON CONFLICT (id) DO UPDATE SET {_excluded(NEW_SESSION_COLUMNS, 1)}
"""

NEW_RUN_COLUMNS = f"{RUN_COLUMNS}, byte_size, position"

SAVE_RUNS = f"""
INSERT INTO asm_runs ({NEW_RUN_COLUMNS}) SELECT * FROM unnest({_arrays(NEW_RUN_COLUMNS)})
ON CONFLICT (session_id, id) DO UPDATE SET {_excluded(NEW_RUN_COLUMNS, 2)}
"""

MOVE_RUNS = """
UPDATE asm_runs r SET status = s.status, owner = s.owner, attempt = s.attempt, started_at = s.started_at
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
    s (session_id, run_id, status, owner, attempt, started_at)
WHERE r.session_id = s.session_id AND r.id = s.run_id
"""

GET_SESSION = f"SELECT {SESSION_COLUMNS} FROM asm_sessions WHERE id = $1 AND deleted_at IS NULL"

GET_RUN = f"SELECT {RUN_COLUMNS} FROM asm_runs WHERE session_id = $1 AND id = $2 AND {_live()}"

FIND_RUN = f"SELECT {RUN_COLUMNS} FROM asm_runs WHERE id = $1 AND {_live('asm_runs.session_id')} LIMIT 2"

ACTIVE_RUN = f"""
SELECT {RUN_COLUMNS} FROM asm_runs WHERE session_id = $1 AND status = 'running' AND {_live()}
ORDER BY started_at NULLS LAST, position LIMIT 1
"""

SESSION_OWNERS = f"""
SELECT DISTINCT owner FROM asm_runs WHERE session_id = $1 AND status = 'running' AND {_live()}
"""
OWNERS = f"SELECT DISTINCT owner FROM asm_runs WHERE status = 'running' AND {_live('asm_runs.session_id')}"

# -- what deleted sessions have left

DELETE_SESSION = (
    "DELETE FROM asm_sessions WHERE id = $1",
    "DELETE FROM asm_artifacts WHERE session_id = $1",
    "DELETE FROM asm_session_sequences WHERE session_id = $1",
)

# The greatest number of an event and the greatest position of a run; NULL where there is none.
LEFT_BEHIND = """
SELECT (SELECT max(sequence_number) FROM asm_events WHERE session_id = $1),
    (SELECT max(position) FROM asm_runs WHERE session_id = $1)
"""

BEGIN_REMOVAL = """
INSERT INTO asm_removals (session_id, last_sequence, last_position) VALUES ($1, $2, $3)
ON CONFLICT (session_id) DO UPDATE SET
    last_sequence = excluded.last_sequence, last_position = excluded.last_position
"""

END_REMOVAL = "DELETE FROM asm_removals WHERE session_id = $1"

REMOVAL = """
SELECT last_sequence, last_position,
    coalesce((SELECT last_sequence FROM asm_session_sequences WHERE session_id = $1), 0)
FROM asm_removals WHERE session_id = $1
"""

ANY_REMOVAL = "SELECT EXISTS (SELECT 1 FROM asm_removals)"

REMOVALS = "SELECT session_id FROM asm_removals WHERE session_id > $1 ORDER BY session_id LIMIT $2"

# Remove the first events past a number, up to another: a few.
REMOVE_EVENTS = """
DELETE FROM asm_events WHERE session_id = $1 AND sequence_number IN (
    SELECT sequence_number FROM asm_events
    WHERE session_id = $1 AND sequence_number > $2 AND sequence_number <= $3
    ORDER BY sequence_number LIMIT $4)
"""

# The same of runs and their positions.
REMOVE_RUNS = """
DELETE FROM asm_runs WHERE session_id = $1 AND position IN (
    SELECT position FROM asm_runs WHERE session_id = $1 AND position <= $2 ORDER BY position LIMIT $3)
"""

# -- nodes

_NOW = "clock_timestamp() AT TIME ZONE 'UTC'"
_TIME = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
_LEASE = f"to_char({_NOW} + $2 * interval '1 millisecond', {_TIME})"

# Begin or renew a lease: by node, and how many milliseconds it lasts, by the database's clock.
RENEW_LEASE = f"""
INSERT INTO asm_nodes (id, started_at, expires_at) VALUES ($1, to_char({_NOW}, {_TIME}), {_LEASE})
ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at
"""

END_LEASE = "DELETE FROM asm_nodes WHERE id = $1"

# Forget nodes whose lease ran out long ago.
FORGET_NODES = f"DELETE FROM asm_nodes WHERE expires_at < to_char({_NOW} - interval '1 day', {_TIME})"

# Nodes that left or were never here, and those whose lease has run out. The latter only if the server has
# been up for as long as a lease lasts: while it was down nobody could renew one.
DEAD = f"""
SELECT s.id, n.id IS NULL AS has_left FROM unnest($1::text[]) s (id) LEFT JOIN asm_nodes n ON n.id = s.id
WHERE n.id IS NULL OR n.expires_at < to_char({_NOW}, {_TIME})
    AND pg_postmaster_start_time() < clock_timestamp() - $2 * interval '1 millisecond'
"""

# -- reading the log

_PAST_ALL = 2**63 - 1


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The form of a question for some of a session's events, in the order of their numbers."""

    descending: bool
    runs: bool
    """Whether it is filtered by run."""
    types: bool
    """By type."""
    since: bool
    """By time."""
    by_type: bool
    """Whether the index by type has all that is wanted."""


@lru_cache(maxsize=64)
def page(query: LogQuery) -> str:
    """Read one page of a log.

    Parameters: session, after, before, how many events, how many bytes; then those of the filter: runs,
    types, since. Each row has the log's latest number and its incarnation, how many events there were
    before they were measured, and an event: number, what is short, payloads. There is a row even if there
    is no event.

    One by runs or types reads a range of that index for each of them, merged by number.
    """
    number = 5

    def parameter() -> str:
        nonlocal number
        number += 1
        return f"${number}"

    where = [
        "session_id = $1",
        "sequence_number > c.passed",
        "sequence_number < $3",
        "sequence_number <= c.visible",
    ]
    passed, keys, ranged = "$2::bigint", "", ""
    if query.runs:
        runs = parameter()
        keys, ranged = f"unnest({runs}::text[])", "run_id"
    if query.types:
        types = parameter()
        if query.by_type and not query.runs:
            keys, ranged = f"unnest({types}::text[])", "type"
            where.append("type != 'message_streamed'")
        else:
            where.append(f"type = ANY ({types}::text[])")
    if query.since:
        since = parameter()
        where.append(f"timestamp > {since}")
        # How many events at the beginning are not later, nor any before them: see `later_timestamp` of
        # `schema`. Found in steps of halving width.
        passed = f"""greatest($2::bigint, CASE WHEN removing THEN 0 ELSE (
            WITH RECURSIVE search (passed, step) AS (
                SELECT 0::bigint, 1::bigint << 40
                UNION ALL
                SELECT search.passed + CASE WHEN {since} >= (
                        SELECT coalesce(later_timestamp, timestamp) FROM asm_events
                        WHERE session_id = $1 AND sequence_number >= search.passed + step
                        ORDER BY sequence_number LIMIT 1) THEN step ELSE 0 END, step / 2
                FROM search WHERE step > 0)
            SELECT max(search.passed) FROM search) END)"""
    direction = "DESC" if query.descending else "ASC"
    columns = (
        "sequence_number, id, type, run_id, timestamp, provider, correlation_id, schema_version, byte_size, "
        "metadata, data"
    )
    found = f"SELECT {columns} FROM asm_events WHERE {' AND '.join(where)}"
    if keys:
        found = f"""SELECT r.* FROM (SELECT DISTINCT key FROM {keys} k (key)) k CROSS JOIN LATERAL (
            {found} AND {ranged} = k.key ORDER BY sequence_number {direction} LIMIT $4) r"""
    return f"""
WITH counted AS (
    SELECT s.last_sequence, s.incarnation,
        EXISTS (SELECT 1 FROM asm_removals WHERE session_id = $1) AS removing
    FROM (SELECT 1) one LEFT JOIN asm_session_sequences s ON s.session_id = $1),
c AS MATERIALIZED (
    SELECT last_sequence, incarnation, {passed} AS passed,
        CASE WHEN removing THEN coalesce(last_sequence, 0) ELSE {_PAST_ALL} END AS visible
    FROM counted)
SELECT c.last_sequence, c.incarnation, p.found, p.sequence_number, p.short, p.payloads
FROM c LEFT JOIN LATERAL (
    SELECT sequence_number, found, {_SHORT})::text AS short, {_PAYLOADS} AS payloads FROM (
        SELECT e.*, count(*) OVER () AS found, sum(byte_size) OVER w AS used, row_number() OVER w AS place
        FROM ({found} ORDER BY sequence_number {direction} LIMIT $4) e
        WINDOW w AS (ORDER BY sequence_number {direction})) m
    WHERE used <= $5::bigint OR place = 1) p ON true
ORDER BY p.sequence_number {direction}
"""


# -- lists of sessions and runs


def _measured(found: str, columns: str, order: str, max_bytes: str) -> str:
    """The first of these rows, as many as are small enough together, or one: columns, how many there were."""
    return f"""
SELECT {columns}, found FROM (
    SELECT r.*, count(*) OVER () AS found, sum(byte_size) OVER w AS used, row_number() OVER w AS place
    FROM ({found}) r WINDOW w AS (ORDER BY {order})) m
WHERE used <= {max_bytes}::bigint OR place = 1 ORDER BY {order}
"""


@lru_cache(maxsize=8)
def list_sessions(*, statuses: bool, agents: bool) -> str:
    """Read sessions in the order (created_at, id); last how many there were before they were measured.

    Parameters: time and id after which, limit, offset, bytes; then statuses, agents. Like `page` it merges
    ranges of an index: of the statuses, else of the agents.
    """
    found = "SELECT * FROM asm_sessions WHERE (created_at, id) > ($1, $2) AND deleted_at IS NULL"
    if statuses and agents:
        found += " AND agent_id = ANY ($7::text[])"
    if statuses or agents:
        column = "status" if statuses else "agent_id"
        found = f"""SELECT r.* FROM unnest($6::text[]) k (key) CROSS JOIN LATERAL (
            {found} AND {column} = k.key ORDER BY created_at, id LIMIT $3::bigint + $4::bigint) r"""
    found += " ORDER BY created_at, id LIMIT $3::bigint OFFSET $4::bigint"
    return _measured(found, SESSION_COLUMNS, "created_at, id", "$5")


@lru_cache(maxsize=4)
def list_runs(*, statuses: bool, resumed: bool) -> str:
    """Read a session's runs in the order of acceptance; last how many there were before they were measured.

    Parameters: session, limit, bytes; then statuses; then the run after which.
    """
    found = f"SELECT * FROM asm_runs WHERE session_id = $1 AND {_live()}"
    if resumed:
        after = "$5" if statuses else "$4"
        found += f""" AND position > (
            SELECT position FROM asm_runs WHERE session_id = $1 AND id = {after} AND {_live()})"""
    if statuses:
        found = f"""SELECT r.* FROM unnest($4::text[]) k (key) CROSS JOIN LATERAL (
            {found} AND status = k.key ORDER BY position LIMIT $2::bigint) r"""
    return _measured(f"{found} ORDER BY position LIMIT $2::bigint", RUN_COLUMNS, "position", "$3")


@lru_cache(maxsize=2)
def list_orphans(*, of_one: bool) -> str:
    """Read running runs without an owner or with one of these; last their position and how many there were.

    Parameters: session and position after which, limit, bytes, owners.
    """
    after = "session_id = $1 AND position > $2" if of_one else "(session_id, position) > ($1, $2)"
    found = f"""SELECT * FROM asm_runs WHERE status = 'running' AND {after}
        AND {_live("asm_runs.session_id")} AND (owner IS NULL OR owner = ANY ($5::text[]))
        ORDER BY session_id, position LIMIT $3::bigint"""
    return _measured(found, f"{RUN_COLUMNS}, position", "session_id, position", "$4")
