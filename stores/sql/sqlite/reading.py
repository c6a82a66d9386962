"""What a store reads, as jobs for a connection that reads: see `Connections.read`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any

import msgspec

from asm_runtime.errors import Conflict, RunNotFound, SessionNotFound
from asm_runtime.payload import decode, encode
from asm_runtime.records import Event, EventType, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores.filters import EventFilter, byte_size
from asm_runtime.stores.sql.database import Page
from asm_runtime.stores.sql.rows import event_of, events_of, run_of, session_of, text_of
from asm_runtime.stores.sql.sqlite import statements
from asm_runtime.stores.sql.sqlite.transaction import Cursor

__all__ = [
    "active_run",
    "event_page",
    "has_removals",
    "latest_sequence",
    "list_runs",
    "list_sessions",
    "orphans",
    "owners",
    "removals",
    "run",
    "run_revision",
    "session",
]

_PAST_ALL = 2**63 - 1
_ANY_SIZE = 2**63 - 1


def event_page(
    cursor: Cursor,
    session_id: str,
    filter: EventFilter,
    limit: int,
    max_bytes: int,
    examined: int,
    has_room: bool,
) -> Page:
    """See `Reader.events`."""
    room = filter.max_bytes
    limit = limit if filter.limit is None else min(limit, filter.limit)
    max_bytes = max_bytes if room is None else min(max_bytes, room)
    bounds = _parameters(session_id, filter) | {"limit": limit, "examined": examined}
    before = bounds["before"]
    is_tail = filter.order == "desc" and (filter.run_ids, filter.types, filter.since) == (None, None, None)
    known: _Page | None = None
    while True:
        passed, expected = _passed(cursor, session_id, filter)
        page = _newest(cursor, session_id, bounds, max_bytes) if is_tail else None
        if page is None:
            query, narrowed, position = _narrowed(cursor, filter, bounds | {"after": passed})
            page = _page(cursor, session_id, query, narrowed, position, max_bytes)
        if expected is not None and page.incarnation != expected:
            continue  # the session was made again since it was known what has passed
        if known is not None and page.incarnation != known.incarnation:
            known, bounds["before"] = None, before  # or since it was known where it ends
        elif not page.is_being_removed or bounds["before"] <= (page.head or 0) + 1:
            break
        else:
            # What stands past the latest number belongs to the deleted session of that id.
            known, bounds["before"] = page, min(before, (page.head or 0) + 1)
    head, events, position = page.head, page.events, page.position
    if known is not None:  # what was appended since is not in the page
        head = min(known.head or 0, head or 0)
    if room is not None:
        used = [*accumulate(byte_size(event) for event in events)]
        count = sum(one <= room for one in used)
        if count < len(events):
            events, position = events[: max(count, int(has_room))], None
        room -= used[-1] if used else 0
    return Page(head, page.incarnation, events, position, room)


def _passed(cursor: Cursor, session_id: str, filter: EventFilter) -> tuple[int, int | None]:
    """Up to which number nothing is wanted, and of which incarnation that is true, if not of any."""
    if filter.since is None:
        return filter.after, None
    cursor.execute(statements.NOT_LATER, (session_id, text_of(filter.since)))
    passed, incarnation, is_being_removed = cursor.fetchone()
    return (filter.after, None) if is_being_removed else (max(filter.after, passed), incarnation)


def _narrowed(
    cursor: Cursor, filter: EventFilter, bounds: dict[str, Any]
) -> tuple[statements.LogQuery, dict[str, Any], int | None]:
    """How to look, within which bounds, and up to which number: at `examined` events at most.

    Of two indexes it takes the one that gets farther with that.
    """
    ascending = filter.order == "asc"
    queries = _queries(filter)
    if queries[0].is_exact:
        return queries[0], bounds, None
    reached: list[tuple[int, statements.LogQuery]] = []
    for query in queries:
        cursor.execute(statements.reach(query), bounds)
        row = cursor.fetchone()
        if row is None:
            return query, bounds, None
        reached.append((row[0], query))
    number, query = (max if ascending else min)(reached, key=itemgetter(0))
    narrower = {"before": number + 1} if ascending else {"after": number - 1}
    return query, bounds | narrower, number


def _queries(filter: EventFilter) -> list[statements.LogQuery]:
    """The ways to look for what a filter wants."""
    merged: dict[str | None, int] = {}
    if filter.run_ids is not None and len(filter.run_ids) <= statements.MAX_MERGED:
        merged["run_id"] = _merged(filter.run_ids)
    if filter.types is not None and EventType.MESSAGE_STREAMED not in filter.types:
        merged["type"] = _merged(filter.types)
    return [
        statements.LogQuery(
            order=filter.order,
            index=index,
            merged=count,
            runs=filter.run_ids is not None,
            types=filter.types is not None,
            since=filter.since is not None,
        )
        for index, count in (merged or {None: 1}).items()
    ]


class _Page(msgspec.Struct, frozen=True, gc=False):
    is_being_removed: bool
    head: int | None
    incarnation: int | None
    events: list[Event]
    position: int | None


def _newest(cursor: Cursor, session_id: str, bounds: dict[str, Any], max_bytes: int) -> _Page | None:
    """The newest events of a log whose numbers have no gaps; None: they are to be read another way."""
    after, before, limit = bounds["after"], bounds["before"], bounds["limit"]
    cursor.execute(statements.NEWEST, (session_id, after, before, limit, max_bytes // limit))
    is_being_removed, counter, *lists = cursor.fetchone()
    head, incarnation, _ = _counted(counter)
    try:
        events = events_of(lists, session_id)
    except ValueError:
        return None
    count = min(limit, min(before - 1, head or 0) - after)
    if not events or len(events) != count:
        return None
    events.reverse()
    position = events[-1].sequence_number if count == limit else None
    return _Page(bool(is_being_removed), head, incarnation, events, position)


def _counted(counter: str | None) -> tuple[int, int, int] | tuple[None, None, None]:
    """The latest number of a log, its incarnation and its largest event."""
    return (None, None, None) if counter is None else decode(counter)


def _page(
    cursor: Cursor,
    session_id: str,
    query: statements.LogQuery,
    bounds: dict[str, Any],
    position: int | None,
    max_bytes: int,
) -> _Page:
    limit, statement = bounds["limit"], statements.page(query)
    while True:
        cursor.execute(statement, bounds | {"largest": max_bytes // limit})
        is_being_removed, counter, *lists = cursor.fetchone()
        head, incarnation, largest = _counted(counter)
        may_follow = limit
        if largest is not None and largest * limit <= max_bytes:
            break
        cursor.execute(statements.sizes(query), bounds)
        measured, greatest, head, incarnation = cursor.fetchone()
        sizes: list[int] = decode(measured)
        count = max(1, sum(used <= max_bytes for used in accumulate(sizes))) if sizes else 0
        # Not what is appended meanwhile: it was not measured, and newest first it would come in between.
        before = min(bounds["before"], 1 + max(head or 0, greatest or 0))
        narrower = bounds | {"limit": count, "largest": _ANY_SIZE, "before": before}
        cursor.execute(statement, narrower)
        is_being_removed, counter, *lists = cursor.fetchone()
        if _counted(counter)[1] == incarnation:  # else these are not the events that were measured
            may_follow, bounds = (count if count < len(sizes) else limit), narrower
            break
    try:
        events = events_of(lists, session_id)
    except ValueError:
        cursor.execute(statements.page_by_rows(query), bounds)
        events = [event_of(row, session_id) for row in cursor.fetchall()]
    if len(events) == may_follow:
        position = events[-1].sequence_number
    return _Page(bool(is_being_removed), head, incarnation, events, position)


def has_removals(cursor: Cursor) -> bool:
    """Whether deleted sessions have left something."""
    cursor.execute(statements.ANY_REMOVAL)
    return bool(cursor.fetchone()[0])


def removals(cursor: Cursor, past: str, limit: int) -> list[str]:
    """Deleted sessions that have left something, by id."""
    cursor.execute(statements.REMOVALS, (past, limit))
    found: list[str] = decode(cursor.fetchone()[0])
    return found


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
    after: Session | None,
    offset: int,
    limit: int,
    max_bytes: int,
) -> tuple[list[Session], bool]:
    """See `stores.sql.database.Reader.sessions`."""
    if statuses == frozenset() or agent_ids == frozenset():
        return [], False
    parameters: dict[str, Any] = {
        "after_time": "" if after is None else text_of(after.created_at),
        "after_id": "" if after is None else after.id,
        "limit": limit,
        "offset": offset,
        "agent_ids": None if agent_ids is None else encode(list(agent_ids)).decode(),
        **_numbered("s", statuses),
        **_numbered("a", agent_ids),
    }
    statement = partial(statements.list_sessions, statuses=_count(statuses), agents=_count(agent_ids))
    more = _measured(cursor, statement, parameters, max_bytes)
    cursor.execute(statement(), parameters)
    return [session_of(row) for row in decode(cursor.fetchone()[0])], more


def _measured(
    cursor: Cursor, statement: Callable[..., str], parameters: dict[str, Any], max_bytes: int
) -> bool:
    """Lower the limit of a list to what is not too large, but for one; whether others may follow."""
    cursor.execute(statement(sizes=True), parameters)
    sizes: list[int] = decode(cursor.fetchone()[0])
    fitting = max(1, sum(used <= max_bytes for used in accumulate(sizes)))
    more = fitting < len(sizes) or len(sizes) == parameters["limit"]
    parameters["limit"] = min(fitting, len(sizes))  # what was added since is of unknown size
    return more


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
    cursor: Cursor,
    session_id: str,
    statuses: frozenset[RunStatus] | None,
    after: str | None,
    limit: int,
    max_bytes: int,
) -> tuple[list[Run], bool]:
    """See `stores.sql.database.Reader.runs`."""
    runs: list[Run] = []
    more = False
    if statuses != frozenset():
        parameters: dict[str, Any] = {
            "session_id": session_id,
            "limit": limit,
            "after": after,
            **_numbered("s", statuses),
        }
        statement = partial(statements.list_runs, statuses=_count(statuses), resumed=after is not None)
        more = _measured(cursor, statement, parameters, max_bytes)
        cursor.execute(statement(), parameters)
        runs = [run_of(row) for row in cursor.fetchall()]
    if not runs and after is not None:
        run(cursor, after, session_id)  # the last one, or none
    return runs, more


def owners(cursor: Cursor, session_id: str | None) -> list[str | None]:
    """Who executes the running runs; None: there is one that nobody does."""
    if session_id is None:
        cursor.execute(statements.OWNERS)
    else:
        cursor.execute(statements.SESSION_OWNERS, (session_id,))
    found: list[str | None] = decode(cursor.fetchone()[0])
    return found


def orphans(
    cursor: Cursor,
    session_id: str | None,
    dead: Collection[str],
    after: tuple[str, int],
    limit: int,
    max_bytes: int,
) -> tuple[list[Run], tuple[str, int] | None]:
    """See `stores.sql.database.Reader.orphans`."""
    parameters: dict[str, Any] = {
        "session_id": after[0] if session_id is None else session_id,
        "after_position": after[1],
        "owners": encode(list(dead)).decode(),
        "limit": limit,
    }
    statement = partial(statements.list_orphans, of_one=session_id is not None)
    more = _measured(cursor, statement, parameters, max_bytes)
    cursor.execute(statement(), parameters)
    rows = cursor.fetchall()
    runs = [run_of(row) for row in rows]
    if not more:
        return runs, None
    return runs, (rows[-1][0], rows[-1][-1]) if rows else after


def _number(cursor: Cursor, statement: str, session_id: str) -> int:
    cursor.execute(statement, (session_id,))
    row = cursor.fetchone()
    return 0 if row is None else int(row[0])


def _numbered(prefix: str, values: frozenset[str] | None, count: int = 0) -> dict[str, str]:
    """Values as parameters; those that are missing to `count` match nothing."""
    texts = [str.__str__(value) for value in values or ()]
    texts += [""] * (count - len(texts))
    return {f"{prefix}{index}": text for index, text in enumerate(texts)}


def _merged(values: frozenset[str]) -> int:
    """How many ranges are read for this many values: a power of two, for few forms of a statement."""
    return 1 << (len(values) - 1).bit_length()


def _count(values: frozenset[str] | None) -> int | None:
    return None if values is None else min(len(values), statements.MAX_MERGED + 1)


def _parameters(session_id: str, filter: EventFilter) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "session_id": session_id,
        "after": filter.after,
        "before": _PAST_ALL if filter.before is None else filter.before,
    }
    if filter.since is not None:
        parameters["since"] = text_of(filter.since)
    if filter.run_ids is not None:
        parameters["run_ids"] = encode(list(filter.run_ids)).decode()
        if len(filter.run_ids) <= statements.MAX_MERGED:
            parameters.update(_numbered("r", filter.run_ids, _merged(filter.run_ids)))
    if filter.types is not None:
        parameters["types"] = encode(list(filter.types)).decode()
        parameters.update(_numbered("t", filter.types, _merged(filter.types)))
    return parameters
