"""What can be changed from the shell: runs are cancelled and settled, sessions paused, ended and deleted."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.cli.exits import ExitCode, complain
from asm_runtime.cli.lookup import find_run, find_session, pages_of_runs
from asm_runtime.cli.output import Output, run_cells, session_cells
from asm_runtime.cli.store_option import opened
from asm_runtime.errors import Conflict, NotFound, ValidationError
from asm_runtime.manager import SessionManager
from asm_runtime.ports import SessionStore
from asm_runtime.records import Run, RunStatus, Session

__all__ = ["cancel", "change_session", "delete", "settle"]

SESSION_CHANGES: dict[str, Callable[[SessionManager, str], Awaitable[Session]]] = {
    "pause": SessionManager.pause_session,
    "resume": SessionManager.resume_session,
    "complete": SessionManager.complete_session,
}


async def cancel(where: str | None, run: str, *, session: str | None, json: bool) -> ExitCode:
    """Cancel a run, wherever it is executed, and print it as it is then."""
    async with opened(where, create=False) as store:
        found = await _find_run(store, run, session)
        if found.status.is_terminal:
            complain(f"run {found.id} has ended already: {found.status}")
        else:
            found = await _manager(store).cancel_run(found.id, session_id=found.session_id)
        await _print_run(found, json=json)
    return ExitCode.DONE


async def change_session(where: str | None, change: str, session: str, *, json: bool) -> ExitCode:
    """Pause, resume or complete a session, and print it as it is then."""
    async with opened(where, create=False) as store:
        session_id = await find_session(store, session)
        changed = await SESSION_CHANGES[change](_manager(store), session_id)
        output = Output(sys.stdout)
        await (output.json([changed]) if json else output.lines([session_cells(changed)]))
    return ExitCode.DONE


async def delete(where: str | None, session: str, *, yes: bool) -> ExitCode:
    """Remove a session with its runs and its log, if that is confirmed and nobody works on it."""
    async with opened(where, create=False) as store:
        session_id = await find_session(store, session)
        orphans = {run.id for run in await store.list_orphaned_runs(session_id=session_id)}
        runs = 0
        async for page in pages_of_runs(store, session_id):
            runs += len(page)
            for run in page:
                if run.status is RunStatus.RUNNING and run.id not in orphans:
                    raise Conflict(f"run {run.id} is being executed: cancel it first")
        events = await store.get_latest_sequence(session_id)
        if not yes:
            raise ValidationError(
                f"this deletes session {session_id} (runs: {runs}, events: {events}): confirm it with --yes"
            )
        await store.delete_session(session_id)
    return ExitCode.DONE


async def settle(where: str | None, session: str | None, *, requeue: bool, json: bool) -> ExitCode:
    """End the runs that nobody alive executes, or queue them again, and print them as they are then."""
    output = Output(sys.stdout)
    async with opened(where, create=False) as store:
        session_id = None if session is None else await find_session(store, session)
        manager = _manager(store)
        for orphan in await store.list_orphaned_runs(session_id=session_id):
            await manager.settle_orphan(orphan, max_attempts=sys.maxsize if requeue else None)
            try:
                settled = await store.get_run(orphan.id, session_id=orphan.session_id)
            except NotFound:
                continue  # deleted meanwhile
            await (output.json([settled]) if json else output.lines([run_cells(settled)]))
    return ExitCode.DONE


async def _find_run(store: SessionStore, run: str, session: str | None) -> Run:
    session_id = None if session is None else await find_session(store, session)
    return await find_run(store, run, session_id=session_id)


async def _print_run(run: Run, *, json: bool) -> None:
    output = Output(sys.stdout)
    await (output.json([run]) if json else output.lines([run_cells(run)]))


def _manager(store: SessionStore) -> SessionManager:
    return SessionManager(store, ScriptedAdapter())  # nothing is executed
