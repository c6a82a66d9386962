"""What a store reads, as jobs for a connection that reads: see `Database.read`."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from asm_runtime.errors import Conflict, RunNotFound, SessionNotFound
from asm_runtime.payload import decode, encode
from asm_runtime.records import Event, EventType, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.sql import errors, statements
from asm_runtime.stores.sql.rows import event_of, run_of, session_of, text_of
from asm_runtime.stores.sql.transaction import Cursor
from asm_runtime.stores.waiters import EventFilter

__all__ = [
    "Page",
    "active_run",
    "event_page",
    "events_by_row",
    "latest_sequence",
    "list_runs",
    "list_sessions",
    "orphans",
    "owners",
    "run",
    "run_revision",
    "session",
]

_ALL = -1
_PAST_ALL = 2**63 - 1


class Page(msgspec.Struct, frozen=True, gc=False):
    """A piece of a log, not decoded yet."""

    head: int
    """The latest number of the log, in the same snapshot."""
    text: str | None
    """A JSON list of events; None: there are none."""
    limit: int
    """How many it was limited to: if it has as many, there may be more."""


def event_page(
    cursor: Cursor, session_id: str, filter: EventFilter, after: int, before: int | None, limit: int
) -> Page:
    """Read one page of a log, of those between two numbers that the filter wants."""
    parameters = _parameters(session_id, filter, after, before, limit)
    while True:
        try:
            cursor.execute(_page(filter, as_rows=False), parameters)
            head, text = cursor.fetchone()
            return Page(head or 0, text, parameters["limit"])
        except sqlite3.DataError as error:
            # A few hundred huge events make a text that is longer than SQLite allows.
            if parameters["limit"] == 1 or not errors.is_too_big(error):
                raise
            parameters["limit"] //= 2


def events_by_row(
    cursor: Cursor, session_id: str, filter: EventFilter, after: int, before: int | None, limit: int
) -> list[Event]:
    """Read a page event by event, to find the one that cannot be read.

    Raises:
        StoreError: Names it.
    """
    cursor.execute(_page(filter, as_rows=True), _parameters(session_id, filter, after, before, limit))
    return [event_of(session_id, number, text) for number, text in cursor.fetchall()]


def latest_sequence(cursor: Cursor, session_id: str) -> int:
    """The greatest number ever given in a log."""
    return _number(cursor, statements.LATEST_SEQUENCE, session_id)


def run_revision(cursor: Cursor, session_id: str) -> int:
    """The number of the last change of a session's runs."""
    return _number(cursor, statements.RUN_REVISION, session_id)


def session(cursor: Cursor, session_id: str) -> Session:
    """A session that is not deleted."""
    cursor.execute(statements.GET_SESSION, (session_id,))
    row = cursor.fetchone()
    if row is None:
        raise SessionNotFound(f"no session {session_id}", details={"session_id": session_id})
    return session_of(row)


def list_sessions(
    cursor: Cursor,
    statuses: frozenset[SessionStatus] | None,
    agent_ids: frozenset[str] | None,
    after: tuple[str, str],
    limit: int,
    offset: int,
) -> list[list[Any]]:
    """Sessions as rows, the oldest first; those past a time and id."""
    if statuses == frozenset() or agent_ids == frozenset():
        return []
    parameters: dict[str, Any] = {
        "after_time": after[0],
        "after_id": after[1],
        "limit": limit,
        "offset": offset,
        "agent_ids": None if agent_ids is None else encode(list(agent_ids)).decode(),
        **_numbered("s", statuses),
        **_numbered("a", agent_ids),
    }
    cursor.execute(
        statements.list_sessions(
            statuses=_count(statuses),
            agents=_count(agent_ids),
        ),
        parameters,
    )
    rows: list[list[Any]] = decode(cursor.fetchone()[0])
    return rows


def run(cursor: Cursor, run_id: str, session_id: str | None) -> Run:
    """A run by its id."""
    if session_id is None:
        cursor.execute(statements.FIND_RUN, (run_id,))
    else:
        cursor.execute(statements.GET_RUN, (session_id, run_id))
    rows = cursor.fetchall()
    if not rows:
        place = "" if session_id is None else f" in session {session_id}"
        raise RunNotFound(f"no run {run_id}{place}", details={"run_id": run_id, "session_id": session_id})
    if len(rows) > 1:
        raise Conflict(
            f"runs of several sessions have the id {run_id}: name the session", details={"run_id": run_id}
        )
    return run_of(rows[0])


def active_run(cursor: Cursor, session_id: str) -> Run | None:
    """The running run that was started first."""
    cursor.execute(statements.ACTIVE_RUN, (session_id,))
    row = cursor.fetchone()
    return None if row is None else run_of(row)


def list_runs(
    cursor: Cursor, session_id: str, statuses: frozenset[RunStatus] | None, after: str | None, limit: int
) -> list[tuple[Any, ...]]:
    """Runs as rows in the order of acceptance; with `after`, those accepted after that run.

    Raises:
        RunNotFound: There is no such run.
    """
    rows: list[tuple[Any, ...]] = []
    if statuses != frozenset():
        parameters: dict[str, Any] = {
            "session_id": session_id,
            "limit": limit,
            "after": after,
            **_numbered("s", statuses),
        }
        cursor.execute(statements.list_runs(statuses=_count(statuses), resumed=after is not None), parameters)
        rows = cursor.fetchall()
    if not rows and after is not None:
        run(cursor, after, session_id)  # the last one, or none
    return rows


def owners(cursor: Cursor, session_id: str | None) -> list[str | None]:
    """Who executes the running runs; None: there is one that nobody does."""
    if session_id is None:
        cursor.execute(statements.OWNERS)
    else:
        cursor.execute(statements.SESSION_OWNERS, (session_id,))
    found: list[str | None] = decode(cursor.fetchone()[0])
    return found


def orphans(cursor: Cursor, session_id: str | None, dead: list[str], limit: int | None) -> list[Run]:
    """Running runs without an owner or with one of these."""
    filters = (encode(dead).decode(), _ALL if limit is None else limit)
    if session_id is None:
        cursor.execute(statements.ORPHANS, filters)
    else:
        cursor.execute(statements.SESSION_ORPHANS, (session_id, *filters))
    return [run_of(row) for row in cursor.fetchall()]


def _number(cursor: Cursor, statement: str, session_id: str) -> int:
    cursor.execute(statement, (session_id,))
    row = cursor.fetchone()
    return 0 if row is None else int(row[0])


def _numbered(prefix: str, values: frozenset[str] | None) -> dict[str, str]:
    return {f"{prefix}{index}": str.__str__(value) for index, value in enumerate(values or ())}


def _count(values: frozenset[str] | None) -> int | None:
    return None if values is None else min(len(values), statements.MAX_MERGED + 1)


def _page(filter: EventFilter, *, as_rows: bool) -> str:
    return statements.page(
        order=filter.order,
        runs=_count(filter.run_ids),
        types=_count(filter.types),
        streamed=EventType.MESSAGE_STREAMED in (filter.types or ()),
        since=filter.since is not None,
        as_rows=as_rows,
    )


def _parameters(
    session_id: str, filter: EventFilter, after: int, before: int | None, limit: int
) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "session_id": session_id,
        "after": after,
        "before": _PAST_ALL if before is None else before,
        "limit": limit,
    }
    if filter.since is not None:
        parameters["since"] = text_of(filter.since)
    if filter.run_ids is not None:
        parameters["run_ids"] = encode(list(filter.run_ids)).decode()
        parameters.update(_numbered("r", filter.run_ids))
    if filter.types is not None:
        parameters["types"] = encode(list(filter.types)).decode()
        parameters.update(_numbered("t", filter.types))
    return parameters
