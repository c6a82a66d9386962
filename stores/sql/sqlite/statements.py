"""The statements of the hot path, in SQLite's dialect.

Python's driver gives the interpreter lock away at each step of a statement and has to win it back:
beside a busy event loop that takes up to five milliseconds. So everything here is made of few
steps: a question has one row for its answer, however many rows it is about, and a write carries
many rows. Measured beside a busy loop: a page of 100 events in 100 rows takes 132 ms and as one
JSON list 11 ms; 256 rows through `executemany` take 1.4 s and in multi-row inserts 40 ms.

Parameters are JSON where there may be any number of values: `json_each(?)` turns them into rows.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

# -- columns, in the order of `rows`

_SESSION_COLUMNS = (
    "id, agent_id, status, parent_session_id, metadata, context, tags, created_at, updated_at, deleted_at"
)
_RUN_COLUMNS = (
    "session_id, id, status, owner, attempt, input, output, error, metadata, turn_count, token_usage, "
    "created_at, started_at, ended_at, provider, provider_metadata, cost_usd"
)

# An event as two JSON texts: what is short, and `data`, or `[metadata, data]` where there is metadata. Those
# are JSON already and go in as they are: SQLite does not parse them. Many events are two lists: 100 take
# 80 µs, as one JSON object each 270 µs. What is written small costs less: so the usual version is null.
_SHORT = "sequence_number, id, type, run_id, timestamp, provider, correlation_id, nullif(schema_version, 1)"
_PAYLOADS = "CASE WHEN metadata = '{}' THEN data ELSE '[' || metadata || ',' || data || ']' END"
_EVENT = f"json_array({_SHORT}) AS short, {_PAYLOADS} AS payloads"
_AS_LISTS = "group_concat(short), group_concat(payloads)"

# -- the log

# The latest number, the latest time and the largest event of a log.
HEAD = "SELECT last_sequence, latest_timestamp, largest_event FROM asm_session_sequences WHERE session_id = ?"

# The same of each of these sessions, as one JSON object.
HEADS = """
SELECT json_group_object(c.session_id, json_array(c.last_sequence, c.latest_timestamp, c.largest_event))
FROM json_each(?) s CROSS JOIN asm_session_sequences c ON c.session_id = s.value
"""

# The same by the events too: a counter that somebody lost or reset does not stop the log. How large the
# largest was is not looked up: any may have been.
REPAIRED_HEADS = """
SELECT json_group_object(s.value, json_array(
    max(coalesce(c.last_sequence, 0), coalesce(e.sequence_number, 0)),
    max(coalesce(c.latest_timestamp, ''), coalesce(e.later_timestamp, e.timestamp, '')),
    coalesce(c.largest_event, CASE WHEN e.sequence_number IS NULL THEN 0 ELSE 1 << 40 END)))
FROM json_each(?) s
    LEFT JOIN asm_session_sequences c ON c.session_id = s.value
    LEFT JOIN asm_events e ON e.session_id = s.value
        AND e.sequence_number = (SELECT max(l.sequence_number) FROM asm_events l WHERE l.session_id = s.value)
        AND NOT EXISTS (SELECT 1 FROM asm_removals r WHERE r.session_id = s.value)
"""


def _live(session_id: str = "?1") -> str:
    """That a run is none of those that a deleted session of this id has left."""
    return f"position > coalesce((SELECT last_position FROM asm_removals WHERE session_id = {session_id}), 0)"


# Status and attempt of runs, given as pairs of session and run, as one JSON list.
FENCED_RUNS = f"""
SELECT json_group_array(json_array(r.session_id, r.id, r.status, r.attempt))
FROM json_each(?) f CROSS JOIN asm_runs r
    ON r.session_id = json_extract(f.value, '$[0]') AND r.id = json_extract(f.value, '$[1]')
    AND r.{_live("r.session_id")}
"""

# Which of these events, given as pairs of session and event id, are stored, as lists; each with its
# session.
STORED_EVENTS = f"""
SELECT {_AS_LISTS} FROM (SELECT json_array({_SHORT}, session_id) AS short, {_PAYLOADS} AS payloads FROM (
    SELECT e.* FROM json_each(?) i CROSS JOIN asm_events e
        ON e.session_id = json_extract(i.value, '$[0]') AND e.id = json_extract(i.value, '$[1]')))
"""

LATEST_SEQUENCE = "SELECT last_sequence FROM asm_session_sequences WHERE session_id = ?"

_COUNTER_COLUMNS = (
    "session_id, last_sequence, latest_timestamp, largest_event, incarnation, run_revision, open_runs"
)
_RAISE = """
ON CONFLICT (session_id) DO UPDATE SET
    last_sequence = max(last_sequence, excluded.last_sequence),
    latest_timestamp = max(latest_timestamp, excluded.latest_timestamp),
    largest_event = max(largest_event, excluded.largest_event),
    run_revision = max(run_revision, excluded.run_revision),
    open_runs = max(open_runs + excluded.open_runs, 0)
"""

# Raise a session's counters: 0 and the empty time leave what is stored, so does the incarnation, and
# open runs are added.
RAISE_COUNTER = f"""
INSERT INTO asm_session_sequences ({_COUNTER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)
{_RAISE}"""

# The same for a list of such values.
RAISE_COUNTERS = f"""
INSERT INTO asm_session_sequences ({_COUNTER_COLUMNS})
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
    json_extract(value, '$[6]')
FROM json_each(?) WHERE true
{_RAISE}"""

RUN_REVISION = "SELECT run_revision FROM asm_session_sequences WHERE session_id = ?"

# -- the change feed

NEXT_CHANGE = "SELECT coalesce(max(number), 0) + 1 FROM asm_changes"

RECORD_CHANGE = "INSERT INTO asm_changes (number, session_ids) VALUES (?, ?)"

FORGET_CHANGES = "DELETE FROM asm_changes WHERE number <= ?"

# What was changed between two numbers: the first and the last change that is known, and their sessions.
CHANGES = """
SELECT min(number), max(number), json_group_array(json(session_ids)) FROM asm_changes
WHERE number > ? AND number < ?
"""

# -- sessions

_SESSION_VALUES = ", ".join("?" * 11)
_NEW_SESSION_COLUMNS = f"{_SESSION_COLUMNS}, byte_size"

SAVE_SESSION = f"""
INSERT INTO asm_sessions ({_NEW_SESSION_COLUMNS}) VALUES ({_SESSION_VALUES})
ON CONFLICT (id) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _NEW_SESSION_COLUMNS.split(", ")[1:])}
"""

SESSION_STATUS = "SELECT status FROM asm_sessions WHERE id = ?"

SESSION_ROW = f"SELECT {_SESSION_COLUMNS} FROM asm_sessions WHERE id = ?"

GET_SESSION = f"SELECT {_SESSION_COLUMNS} FROM asm_sessions WHERE id = ? AND deleted_at IS NULL"

DELETE_SESSION = (
    "DELETE FROM asm_sessions WHERE id = ?",
    "DELETE FROM asm_artifacts WHERE session_id = ?",
    "DELETE FROM asm_session_sequences WHERE session_id = ?",
)

# -- what deleted sessions have left

# The greatest number of an event and the greatest position of a run; NULL where there is none.
LEFT_BEHIND = """
SELECT (SELECT max(sequence_number) FROM asm_events WHERE session_id = ?1),
    (SELECT max(position) FROM asm_runs WHERE session_id = ?1)
"""

BEGIN_REMOVAL = """
INSERT INTO asm_removals (session_id, last_sequence, last_position) VALUES (?, ?, ?)
ON CONFLICT (session_id) DO UPDATE SET
    last_sequence = excluded.last_sequence, last_position = excluded.last_position
"""

END_REMOVAL = "DELETE FROM asm_removals WHERE session_id = ?"

REMOVAL = "SELECT last_sequence, last_position FROM asm_removals WHERE session_id = ?"

ANY_REMOVAL = "SELECT EXISTS (SELECT 1 FROM asm_removals)"

# A few of those past one, as a JSON list.
REMOVALS = """
SELECT json_group_array(session_id) FROM (
    SELECT session_id FROM asm_removals WHERE session_id > ? ORDER BY session_id LIMIT ?)
"""

# Which of these sessions have one, as a JSON list.
REMOVALS_OF = """
SELECT json_group_array(r.session_id) FROM json_each(?) s CROSS JOIN asm_removals r ON r.session_id = s.value
"""

# How large the first events past a number, up to another, are, as a JSON list.
REMOVED_EVENT_SIZES = """
SELECT json_group_array(byte_size) FROM (SELECT byte_size FROM asm_events
    WHERE session_id = ? AND sequence_number > ? AND sequence_number <= ? ORDER BY sequence_number LIMIT ?)
"""

# Remove the first events past a number, up to another.
REMOVE_EVENTS = """
DELETE FROM asm_events WHERE session_id = ?1 AND sequence_number > ?2 AND sequence_number <= (
    SELECT max(sequence_number) FROM (SELECT sequence_number FROM asm_events
        WHERE session_id = ?1 AND sequence_number > ?2 AND sequence_number <= ?3
        ORDER BY sequence_number LIMIT ?4))
"""

# The same of runs and their positions.
REMOVED_RUN_SIZES = """
SELECT json_group_array(byte_size) FROM (SELECT byte_size FROM asm_runs
    WHERE session_id = ? AND position > ? AND position <= ? ORDER BY position LIMIT ?)
"""
REMOVE_RUNS = """
DELETE FROM asm_runs WHERE session_id = ?1 AND position > ?2 AND position <= (
    SELECT max(position) FROM (SELECT position FROM asm_runs
        WHERE session_id = ?1 AND position > ?2 AND position <= ?3
        ORDER BY position LIMIT ?4))
"""

# Make room for new events, given by their ids, among those that are still to be removed.
REMOVE_EVENTS_OF_IDS = """
DELETE FROM asm_events WHERE session_id = ?1 AND +sequence_number > ?2
    AND id IN (SELECT value FROM json_each(?3))
"""

# -- runs

_RUN_VALUES = ", ".join(f"?{number}" for number in range(1, 19))
_NEW_RUN_COLUMNS = f"{_RUN_COLUMNS}, byte_size"

# A new run gets the next place in its session's queue, past all that a deleted session has left, and takes
# the row of one of those that has its id; an old run keeps its place.
SAVE_RUN = f"""
INSERT INTO asm_runs ({_NEW_RUN_COLUMNS}, position) VALUES ({_RUN_VALUES}, 1 + max(
    coalesce((SELECT max(position) FROM asm_runs WHERE session_id = ?1), 0),
    coalesce((SELECT last_position FROM asm_removals WHERE session_id = ?1), 0)))
ON CONFLICT (session_id, id) DO UPDATE SET
    position = CASE WHEN asm_runs.{_live()} THEN asm_runs.position ELSE excluded.position END,
    {", ".join(f"{name} = excluded.{name}" for name in _NEW_RUN_COLUMNS.split(", ")[2:])}
"""

RUN_STATUS = f"SELECT status, attempt FROM asm_runs WHERE session_id = ?1 AND id = ?2 AND {_live()}"

OPEN_RUNS = "SELECT coalesce(max(open_runs), 0) FROM asm_session_sequences WHERE session_id = ?1"

# Before a run is accepted: the session's status, how many of its runs are open, and the run that has
# the new one's id.
ENQUEUE_FACTS = f"""
SELECT (SELECT status FROM asm_sessions WHERE id = ?1),
    coalesce((SELECT open_runs FROM asm_session_sequences WHERE session_id = ?1), 0),
    r.* FROM (SELECT 1) LEFT JOIN (SELECT {_RUN_COLUMNS} FROM asm_runs
        WHERE session_id = ?1 AND id = ?2 AND {_live()}) r
"""

# Before a run is claimed: the session's status, how many of its runs are running (counted up to a limit),
# and the first pending one.
CLAIM_FIRST_FACTS = f"""
SELECT (SELECT status FROM asm_sessions WHERE id = ?1),
    (SELECT count(*) FROM (SELECT 1 FROM asm_runs
        WHERE session_id = ?1 AND status = 'running' AND {_live()} LIMIT ?2)),
    {_RUN_COLUMNS} FROM asm_runs WHERE session_id = ?1 AND status = 'pending' AND {_live()}
ORDER BY position LIMIT 1
"""

# The same for one run.
CLAIM_ONE_FACTS = f"""
SELECT (SELECT status FROM asm_sessions WHERE id = ?1),
    (SELECT count(*) FROM (SELECT 1 FROM asm_runs
        WHERE session_id = ?1 AND status = 'running' AND {_live()} LIMIT ?2)),
    {_RUN_COLUMNS} FROM asm_runs WHERE session_id = ?1 AND id = ?3 AND status = 'pending' AND {_live()}
"""

CLAIM_RUN = """
UPDATE asm_runs SET status = 'running', owner = ?, attempt = ?, started_at = ?
WHERE session_id = ? AND id = ?
"""

RELEASE_RUN = f"""
UPDATE asm_runs SET owner = NULL
WHERE session_id = ?1 AND id = ?2 AND status = 'running' AND attempt = ?3 AND owner IS NOT NULL AND {_live()}
"""

# Give a claim back that nobody has heard of.
UNCLAIM_RUN = f"""
UPDATE asm_runs SET status = 'pending', owner = NULL, started_at = NULL
WHERE session_id = ?1 AND id = ?2 AND status = 'running' AND attempt = ?3 AND {_live()}
"""

GET_RUN = f"SELECT {_RUN_COLUMNS} FROM asm_runs WHERE session_id = ?1 AND id = ?2 AND {_live()}"

FIND_RUN = f"SELECT {_RUN_COLUMNS} FROM asm_runs WHERE id = ? AND {_live('asm_runs.session_id')} LIMIT 2"

ACTIVE_RUN = f"""
SELECT {_RUN_COLUMNS} FROM asm_runs WHERE session_id = ?1 AND status = 'running' AND {_live()}
ORDER BY started_at IS NULL, started_at, position LIMIT 1
"""

# Who executes runs, in one session or in all of them, as one JSON list.
SESSION_OWNERS = f"""
SELECT json_group_array(DISTINCT owner) FROM asm_runs
WHERE session_id = ?1 AND status = 'running' AND {_live()}
"""
OWNERS = f"""
SELECT json_group_array(DISTINCT owner) FROM asm_runs
WHERE status = 'running' AND {_live("asm_runs.session_id")}
"""

# -- reading the log

MAX_MERGED = 256
"""How many ranges of an index one read merges; past that it goes through the log and filters."""

# How many events at the beginning of a log are not later than a time, nor any before them: since
# `later_timestamp` makes that a question of one event, it is found in steps of halving width. With its
# incarnation, and whether events of a deleted session come after it: then the answer means nothing.
NOT_LATER = """
WITH RECURSIVE search (passed, step) AS (
    SELECT 0, 1 << 40
    UNION ALL
    SELECT passed + CASE WHEN ?2 >= (
            SELECT coalesce(later_timestamp, timestamp) FROM asm_events
            WHERE session_id = ?1 AND sequence_number >= passed + step
            ORDER BY sequence_number LIMIT 1) THEN step ELSE 0 END, step / 2
    FROM search WHERE step > 0)
SELECT max(passed), (SELECT incarnation FROM asm_session_sequences WHERE session_id = ?1),
    EXISTS (SELECT 1 FROM asm_removals WHERE session_id = ?1)
FROM search
"""

_TYPE_IS_INDEXED = "type != 'message_streamed'"


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The form of a question for some of a session's events, in the order of their numbers.

    One by a few runs or types reads a range of that index for each of them, merged by number as they
    are read: what it costs depends on what it returns and not on the log. What the index does not
    tell is looked up in each event.

    Parameters by name: session_id, after, before, limit; for a filter r0, r1 … or run_ids (JSON), t0,
    t1 … or types (JSON), since. `merged` says how many of the numbered ones there are.
    """

    order: str
    """`asc` or `desc`."""
    index: str | None
    """`run_id` or `type`: of what it reads ranges; None: of the log itself."""
    merged: int
    """How many ranges."""
    runs: bool
    """Whether it is filtered by run."""
    types: bool
    since: bool

    @property
    def is_exact(self) -> bool:
        """Whether all that it reads is wanted."""
        return not self.since and self.runs + self.types == (self.index is not None)

    def rows(self, columns: str, *, filtered: bool = True) -> str:
        """The question for these columns, to be followed by a limit.

        Args:
            columns: Which.
            filtered: Leave out what is not wanted; else only what lies in no range that is read.
        """
        where = "session_id = :session_id AND sequence_number > :after AND sequence_number < :before"
        # The index is named, and a `+` keeps from another: without statistics the planner takes the log
        # itself for the cheapest, however rare a run is in it.
        table, ranges = "asm_events", [where]
        if self.index is not None:
            table += f" INDEXED BY asm_events_{self.index}"
            ranges = [f"{where} AND {self.index} = :{self.index[0]}{each}" for each in range(self.merged)]
        if self.index == "type":  # for the planner: it does not know what a parameter will be
            ranges = [f"{one} AND {_TYPE_IS_INDEXED}" for one in ranges]
        rest = ""
        if filtered and self.runs and self.index != "run_id":
            rest += " AND +run_id IN (SELECT value FROM json_each(:run_ids))"
        if filtered and self.types and self.index != "type":
            rest += " AND +type IN (SELECT value FROM json_each(:types))"
        if filtered and self.since:
            rest += " AND timestamp > :since"
        rows = " UNION ALL ".join(
            f"SELECT sequence_number, {columns} FROM {table} WHERE {one}{rest}" for one in ranges
        )
        return f"{rows} ORDER BY sequence_number {self.order}"


def _page(session_id: str, largest: str, limit: str, rows: str) -> str:
    counter = f"FROM asm_session_sequences WHERE session_id = {session_id}"
    return f"""SELECT EXISTS (SELECT 1 FROM asm_removals WHERE session_id = {session_id}),
    (SELECT json_array(last_sequence, incarnation, largest_event) {counter}), {_AS_LISTS}
FROM ({rows} LIMIT CASE WHEN {largest} >= coalesce((SELECT largest_event {counter}), 1 << 40)
    THEN {limit} ELSE 0 END)"""


@lru_cache(maxsize=256)
def page(query: LogQuery) -> str:
    """Read one page of a log: its latest number, incarnation and largest event as JSON; the page as lists.

    Before them, whether events past the latest number are being removed. The page is empty if events
    of the log may be larger than the parameter `largest`.
    """
    return _page(":session_id", ":largest", ":limit", query.rows(_EVENT))


# The same for the newest events of a log, the oldest of them first, if no number is missing among them.
# SQLite finds the row after one in the page at hand, but the row before it all the way from the root, and
# takes a tenth longer. By session, after, before, limit, largest. One more than the limit tells that the
# counter is behind.
NEWEST = _page(
    "?1",
    "?5",
    "?4 + 1",
    f"""
    SELECT {_EVENT} FROM asm_events WHERE session_id = ?1 AND sequence_number < ?3
    AND sequence_number > max(?2, min(?3 - 1, (
        SELECT last_sequence FROM asm_session_sequences WHERE session_id = ?1)) - ?4)
    ORDER BY sequence_number""",
)


@lru_cache(maxsize=256)
def sizes(query: LogQuery) -> str:
    """The sizes of a page's events, as a JSON list; their greatest number; the log's, its incarnation."""
    counter = "FROM asm_session_sequences WHERE session_id = :session_id"
    return f"""SELECT json_group_array(byte_size), max(sequence_number),
    (SELECT last_sequence {counter}), (SELECT incarnation {counter})
FROM ({query.rows("byte_size")} LIMIT :limit)"""


@lru_cache(maxsize=256)
def reach(query: LogQuery) -> str:
    """The number of the event up to which one has to look at `examined` of them; no row: there are fewer."""
    return f"{query.rows('NULL', filtered=False)} LIMIT 1 OFFSET :examined"


@lru_cache(maxsize=256)
def page_by_rows(query: LogQuery) -> str:
    """Read one page event by event: number, what is short, and the payloads."""
    return f"{query.rows(_EVENT)} LIMIT :limit"


# -- lists of sessions and runs


@lru_cache(maxsize=64)
def list_sessions(*, statuses: int | None, agents: int | None, sizes: bool = False) -> str:
    """Read sessions in the order (created_at, id), as one JSON list.

    Parameters by name: after_time, after_id, limit, offset; for a filter s0, s1 …, and a0, a1 … or
    agent_ids (JSON). Like `page` it merges ranges of an index: of the statuses, else of the agents.

    Args:
        statuses: How many statuses it is filtered by; None: not by status.
        agents: How many agents, at most `MAX_MERGED` + 1; likewise.
        sizes: Read only how large each is.
    """
    where = "(created_at, id) > (:after_time, :after_id) AND +deleted_at IS NULL"
    by_agent = "" if agents is None else " AND +agent_id IN (SELECT value FROM json_each(:agent_ids))"
    if statuses is not None:
        ranges = [f"{where} AND status = :s{each}{by_agent}" for each in range(statuses)]
    elif agents is not None and agents <= MAX_MERGED:
        ranges = [f"{where} AND agent_id = :a{each}" for each in range(agents)]
    else:
        ranges = [where + by_agent]
    columns = "created_at, id, byte_size" if sizes else _SESSION_COLUMNS
    wanted = "byte_size" if sizes else f"json_array({_SESSION_COLUMNS})"
    rows = " UNION ALL ".join(f"SELECT {columns} FROM asm_sessions WHERE {one}" for one in ranges)
    return f"""SELECT json_group_array({wanted}) FROM ({rows}
        ORDER BY created_at, id LIMIT :limit OFFSET :offset)"""


@lru_cache(maxsize=64)
def list_runs(*, statuses: int | None, resumed: bool, sizes: bool = False) -> str:
    """Read a session's runs in the order of acceptance; or, as one JSON list, only how large each is.

    Parameters by name: session_id, limit; for a filter s0, s1 …; if it is resumed after (a run's id).
    """
    where = f"session_id = :session_id AND {_live(':session_id')}"
    if resumed:
        where = (
            "session_id = :session_id"
            f" AND position > (SELECT position FROM asm_runs WHERE {where} AND id = :after)"
        )
    ranges = [where]
    if statuses is not None:
        ranges = [f"{where} AND status = :s{index}" for index in range(statuses)]
    columns = "byte_size" if sizes else _RUN_COLUMNS
    rows = " UNION ALL ".join(f"SELECT {columns}, position FROM asm_runs WHERE {one}" for one in ranges)
    return _list(f"{rows} ORDER BY position LIMIT :limit", sizes=sizes)


@lru_cache(maxsize=4)
def list_orphans(*, of_one: bool, sizes: bool = False) -> str:
    """Read runs that are running without an owner or with one of these, of one session or of all; or sizes.

    In the order of session and position, which is the last column. Parameters by name: session_id,
    after_position, owners (JSON), limit; of all, those from that session on.
    """
    columns = "byte_size" if sizes else _RUN_COLUMNS
    if of_one:
        where = f"session_id = :session_id AND position > :after_position AND {_live(':session_id')}"
    else:
        where = f"(session_id, position) > (:session_id, :after_position) AND {_live('asm_runs.session_id')}"
    return _list(
        f"""SELECT {columns}, position FROM asm_runs WHERE status = 'running' AND {where}
        AND (owner IS NULL OR owner IN (SELECT value FROM json_each(:owners)))
    ORDER BY session_id, position LIMIT :limit""",
        sizes=sizes,
    )


def _list(rows: str, *, sizes: bool) -> str:
    return f"SELECT json_group_array(byte_size) FROM ({rows})" if sizes else rows
