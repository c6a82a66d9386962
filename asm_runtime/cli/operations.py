"""What can be asked of a store from the shell: its sessions, their runs and their logs."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, TypeVar

from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.log import before_last, following, stored
from asm_runtime.cli.lookup import find_run, find_session, pages_of_runs, pages_of_sessions
from asm_runtime.cli.output import Cell, Output, event_rows, message_text, run_cells, session_cells
from asm_runtime.cli.store_option import reading
from asm_runtime.errors import RunNotFound, SessionNotFound
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, Run, Session

__all__ = ["export", "list_runs", "list_sessions", "show_events", "tail"]

R = TypeVar("R", Session, Run)


async def list_sessions(
    where: str | None,
    *,
    status: Sequence[str],
    agent: Sequence[str],
    limit: int | None,
    last: int | None,
    since: datetime | None,
    json: bool,
) -> ExitCode:
    """Print sessions, oldest first; with `last` the newest, newest first."""
    async with reading(where) as store:
        pages = pages_of_sessions(store, status=status, agent=agent, limit=limit)
        header = ("SESSION", "STATUS", "AGENT", "CREATED", "TAGS")
        await _print_table(header, _chosen(pages, last=last, since=since), session_cells, json=json)
    return ExitCode.DONE


async def list_runs(
    where: str | None,
    session: str,
    *,
    status: Sequence[str],
    limit: int | None,
    last: int | None,
    since: datetime | None,
    json: bool,
) -> ExitCode:
    """Print a session's runs in the order of their acceptance; with `last` the newest, newest first."""
    async with reading(where) as store:
        session_id = await find_session(store, session)
        pages = pages_of_runs(store, session_id, status=status, limit=limit)
        header = ("RUN", "STATUS", "ATTEMPT", "CREATED", "SECONDS", "ERROR OR INPUT")
        await _print_table(header, _chosen(pages, last=last, since=since), run_cells, json=json)
    return ExitCode.DONE


async def show_events(
    where: str | None,
    session: str,
    *,
    after: int,
    limit: int | None,
    last: int | None,
    since: datetime | None,
    type: Sequence[str],
    run: str | None,
    follow: bool,
    json: bool,
) -> ExitCode:
    """Print a session's log from a cursor on; with `follow`, go on with what comes."""
    output = Output(sys.stdout)
    async with reading(where) as store:
        session_id = await find_session(store, session)
        filters: dict[str, Any] = {
            "run_id": None if run is None else await _run_id(store, session_id, run),
            "type": type or None,
        }
        if since is not None:
            first = await store.get_events(session_id, after=after, since=since, limit=1, **filters)
            seen = first[0].sequence_number if first else None
            after = await store.get_latest_sequence(session_id) if seen is None else seen - 1
        if last is not None:
            after = max(after, await before_last(store, session_id, last, **filters))
        pages = (
            following(store, session_id, after=after, **filters)
            if follow
            else stored(store, session_id, after=after, limit=limit, **filters)
        )

        async def show() -> None:
            shown = 0
            async for page in pages:
                events = page if limit is None else page[: limit - shown]
                await _print_events(output, events, json=json)
                shown += len(events)
                if shown == limit:
                    break

        await output.while_read(show())
    return ExitCode.DONE


async def tail(
    where: str | None, session: str, *, lines: int, type: Sequence[str], run: str | None, json: bool
) -> ExitCode:
    """Print the last events of a log and then whatever is appended, by any process.

    Goes on until it is interrupted or nobody reads it; with a run, until that run has ended.
    """
    output = Output(sys.stdout)
    async with reading(where) as store:
        session_id = await find_session(store, session)
        found = None if run is None else await find_run(store, run, session_id=session_id)
        run_id = None if found is None else found.id
        cursor = await before_last(store, session_id, lines, run_id=run_id, type=type or None)

        async def show() -> None:
            # The run is read again: it may have ended since.
            ended = run_id is not None and (await store.get_run(run_id, session_id=session_id)).status
            pages = stored if ended and ended.is_terminal else following
            # Of all types: the run's end is to be seen, also where it is not to be shown.
            async for page in pages(
                store, session_id, after=cursor, run_id=run_id, type=None if run_id else type or None
            ):
                events = [event for event in page if not type or event.type in type]
                await _print_events(output, events, json=json)
                if run_id is not None and page[-1].is_terminal:
                    break

        await output.while_read(show())
    return ExitCode.DONE


async def export(where: str | None, session: str) -> ExitCode:
    """Print all of a session as JSON, one record a line: `{"session": …}`, `{"run": …}`, `{"event": …}`."""
    output = Output(sys.stdout)
    async with reading(where) as store:
        session_id = await find_session(store, session)
        try:
            await output.json([{"session": await store.get_session(session_id)}])
        except SessionNotFound:
            pass  # a log needs no session row
        async for runs in pages_of_runs(store, session_id):
            await output.json({"run": run} for run in runs)
        async for events in stored(store, session_id, after=0):
            await output.json({"event": event} for event in events)
    return ExitCode.DONE


async def _run_id(store: SessionStore, session_id: str, named: str) -> str:
    """The id of a run of a log; the log of a run needs no run."""
    try:
        return (await find_run(store, named, session_id=session_id)).id
    except RunNotFound:
        if not await store.get_events(session_id, run_id=named, limit=1):
            raise
        return named


async def _chosen(
    pages: AsyncIterator[list[R]], *, last: int | None, since: datetime | None
) -> AsyncIterator[list[R]]:
    """Those made since a time; with `last` the newest of these, newest first."""
    kept: deque[R] = deque(maxlen=last)
    async for page in pages:
        chosen = [record for record in page if since is None or record.created_at >= since]
        if last is None:
            yield chosen
        else:
            kept.extend(chosen)
    if last is not None:
        yield list(reversed(kept))


async def _print_table(
    header: Sequence[str],
    pages: AsyncIterator[list[R]],
    cells: Callable[[R], list[Cell]],
    *,
    json: bool,
) -> None:
    output = Output(sys.stdout)
    titles = header
    async for page in pages:
        if json:
            await output.json(page)
        elif page:
            await output.table(titles, [cells(record) for record in page])
            titles = ()


async def _print_events(output: Output, events: Sequence[Event], *, json: bool) -> None:
    if not events:
        return
    if json:
        await output.json(events)
    else:
        for whole, some in groupby(events, key=lambda event: message_text(event) is not None):
            rows = (row for event in some for row in event_rows(event, is_terminal=output.is_terminal))
            await output.lines(rows, whole=whole)
