"""What can be asked of a store from the shell: its sessions, their runs and their logs."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.log import PAGE, following, stored
from asm_runtime.cli.output import Output, event_cells, run_cells, session_cells
from asm_runtime.cli.store_option import opened
from asm_runtime.errors import RunNotFound, SessionNotFound
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, Run

__all__ = ["export", "list_runs", "list_sessions", "show_events", "tail"]


async def list_sessions(
    where: str | None, *, status: Sequence[str], agent: Sequence[str], limit: int | None, json: bool
) -> ExitCode:
    """Print sessions, oldest first."""
    output = Output(sys.stdout)
    shown = 0
    async with opened(where, create=False) as store:
        while limit is None or shown < limit:
            page = await store.list_sessions(
                status=status or None,
                agent_id=agent or None,
                limit=PAGE if limit is None else min(PAGE, limit - shown),
                offset=shown,
            )
            if not page:
                break
            if json:
                await output.json(page)
            else:
                header = ("SESSION", "STATUS", "AGENT", "CREATED", "TAGS")
                await output.table(header, [session_cells(session) for session in page])
            shown += len(page)
    return ExitCode.DONE


async def list_runs(
    where: str | None, session_id: str, *, status: Sequence[str], limit: int | None, json: bool
) -> ExitCode:
    """Print a session's runs in the order of their acceptance."""
    output = Output(sys.stdout)
    async with opened(where, create=False) as store:
        await _must_exist(store, session_id)
        async for page in _runs(store, session_id, status=status, limit=limit):
            if json:
                await output.json(page)
            else:
                header = ("RUN", "STATUS", "ATTEMPT", "CREATED", "SECONDS", "ERROR OR INPUT")
                await output.table(header, [run_cells(run) for run in page])
    return ExitCode.DONE


async def show_events(
    where: str | None,
    session_id: str,
    *,
    after: int,
    limit: int | None,
    type: Sequence[str],
    run: str | None,
    follow: bool,
    json: bool,
) -> ExitCode:
    """Print a session's log from a cursor on; with `follow`, go on with what comes."""
    output = Output(sys.stdout)
    async with opened(where, create=False) as store:
        await _must_exist(store, session_id)
        filters: dict[str, Any] = {"run_id": run, "type": type or None}
        pages = (
            following(store, session_id, after=after, **filters)
            if follow
            else stored(store, session_id, after=after, limit=limit, **filters)
        )
        shown = 0
        async for page in pages:
            events = page if limit is None else page[: limit - shown]
            await _print_events(output, events, json=json)
            shown += len(events)
            if shown == limit:
                break
    return ExitCode.DONE


async def tail(
    where: str | None, session_id: str, *, lines: int, type: Sequence[str], run: str | None, json: bool
) -> ExitCode:
    """Print the last events of a log and then whatever is appended, by any process.

    Goes on until it is interrupted; with a run, until that run has ended.
    """
    output = Output(sys.stdout)
    async with opened(where, create=False) as store:
        await _must_exist(store, session_id)
        filters: dict[str, Any] = {"run_id": run, "type": type or None}
        cursor = await store.get_latest_sequence(session_id)
        last: list[Event] = []
        if lines and cursor:
            last = await store.get_events(session_id, before=cursor + 1, limit=lines, order="desc", **filters)
            last.reverse()
        await _print_events(output, last, json=json)
        if run is None:
            async for page in following(store, session_id, after=cursor, **filters):
                await _print_events(output, page, json=json)
            return ExitCode.DONE
        has_ended = (await store.get_run(run, session_id=session_id)).status.is_terminal
        pages = stored if has_ended else following  # what came since the cursor was read, or will come
        async for page in pages(store, session_id, after=cursor, run_id=run):
            # Of all types: the run's end is to be seen, also where it is not to be shown.
            await _print_events(
                output, [event for event in page if not type or event.type in type], json=json
            )
            if page[-1].is_terminal:
                break
    return ExitCode.DONE


async def export(where: str | None, session_id: str) -> ExitCode:
    """Print all of a session as JSON, one record a line: `{"session": …}`, `{"run": …}`, `{"event": …}`."""
    output = Output(sys.stdout)
    async with opened(where, create=False) as store:
        await _must_exist(store, session_id)
        try:
            await output.json([{"session": await store.get_session(session_id)}])
        except SessionNotFound:
            pass  # a log needs no session row
        async for runs in _runs(store, session_id):
            await output.json({"run": run} for run in runs)
        async for events in stored(store, session_id, after=0):
            await output.json({"event": event} for event in events)
    return ExitCode.DONE


async def _runs(
    store: SessionStore, session_id: str, *, status: Sequence[str] = (), limit: int | None = None
) -> AsyncIterator[list[Run]]:
    """Pages of a session's runs; ends where it was deleted meanwhile."""
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        try:
            page = await store.list_runs(session_id, status=status or None, limit=size, after=cursor)
        except RunNotFound:
            return
        if not page:
            return
        yield page
        cursor = page[-1].id
        left = None if left is None else left - len(page)


async def _must_exist(store: SessionStore, session_id: str) -> None:
    """Raise `SessionNotFound` unless there is a session, or at least a log, of that id."""
    try:
        await store.get_session(session_id)
    except SessionNotFound:
        if not await store.get_latest_sequence(session_id):
            raise


async def _print_events(output: Output, events: Sequence[Event], *, json: bool) -> None:
    if not events:
        return
    if json:
        await output.json(events)
    else:
        await output.lines(event_cells(event, is_terminal=output.is_terminal) for event in events)
