"""What a user means by an id: all of it, or as much of its beginning or end as tells it apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from asm_runtime.cli.log import PAGE
from asm_runtime.errors import Conflict, RunNotFound, SessionNotFound
from asm_runtime.ports import SessionStore
from asm_runtime.records import Run, Session

__all__ = ["find_run", "find_session", "pages_of_runs", "pages_of_sessions"]

SHOWN = 5
"""How many of several matching ids are named."""


async def find_session(store: SessionStore, named: str) -> str:
    """The id of the session that is named, or of the log: a log needs no session.

    Raises:
        SessionNotFound: There is none.
        Conflict: There are several.
    """
    try:
        return (await store.get_session(named)).id
    except SessionNotFound:
        if await store.get_latest_sequence(named):
            return named
        found: list[str] = []
        async for page in pages_of_sessions(store):
            found += [session.id for session in page if _names(named, session.id)]
            _check_one(named, found)
        if not found:
            raise
        return found[0]


async def find_run(store: SessionStore, named: str, *, session_id: str | None = None) -> Run:
    """The run that is named.

    Args:
        store: Where.
        named: Its id, or the beginning or end of it.
        session_id: Of this session; None: of any, which takes a look at each if the id is short.

    Raises:
        RunNotFound: There is none.
        Conflict: There are several.
    """
    try:
        return await store.get_run(named, session_id=session_id)
    except RunNotFound:
        found: list[Run] = []
        async for session in _ids(store, session_id):
            async for page in pages_of_runs(store, session):
                found += [run for run in page if _names(named, run.id)]
                _check_one(named, [f"{run.id} in {run.session_id}" for run in found])
        if not found:
            raise
        return found[0]


async def pages_of_sessions(
    store: SessionStore, *, status: Sequence[str] = (), agent: Sequence[str] = (), limit: int | None = None
) -> AsyncIterator[list[Session]]:
    """Pages of sessions, oldest first."""
    shown = 0
    while limit is None or shown < limit:
        page = await store.list_sessions(
            status=status or None,
            agent_id=agent or None,
            limit=PAGE if limit is None else min(PAGE, limit - shown),
            offset=shown,
        )
        if not page:
            return
        yield page
        shown += len(page)


async def pages_of_runs(
    store: SessionStore, session_id: str, *, status: Sequence[str] = (), limit: int | None = None
) -> AsyncIterator[list[Run]]:
    """Pages of a session's runs in the order of their acceptance; ends where it was deleted meanwhile."""
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


async def _ids(store: SessionStore, session_id: str | None) -> AsyncIterator[str]:
    if session_id is not None:
        yield session_id
        return
    async for page in pages_of_sessions(store):
        for session in page:
            yield session.id


def _names(named: str, whole: str) -> bool:
    return whole.startswith(named) or whole.endswith(named)


def _check_one(named: str, found: Sequence[str]) -> None:
    if len(found) > 1:
        shown = ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
        raise Conflict(f"several ids begin or end with {named!r}: {shown}")
