"""Small words that the tests of the runtime share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asm_runtime import Event, SessionServer
from asm_runtime.ports import SessionStore
from asm_runtime.records import TERMINAL_EVENT_TYPES


async def types_of(store: SessionStore, session_id: str, run_id: str | None = None) -> list[str]:
    """The types of a session's (or run's) events, in order."""
    return [str(event.type) for event in await store.get_events(session_id, run_id=run_id)]


async def terminal_events(store: SessionStore, session_id: str, run_id: str) -> list[Event]:
    """The events that end a run: exactly one is right."""
    return await store.get_events(session_id, run_id=run_id, type=TERMINAL_EVENT_TYPES)


async def until(condition: Callable[[], Any]) -> None:
    """Return when it holds."""
    looks = 0
    while not condition():
        looks += 1
        await _turn(looks)


async def until_stored(look: Callable[[], Awaitable[Any]]) -> Any:
    """Return what the look finds, when it finds something."""
    looks = 0
    while not (found := await look()):
        looks += 1
        await _turn(looks)
    return found


async def _turn(looks: int) -> None:
    """A turn of the loop; after many in vain, a rest: a store's threads need the interpreter too."""
    await asyncio.sleep(0 if looks < 200 else 0.001)


async def open_server(store: Any, adapter: Any, **options: Any) -> SessionServer:
    """A started server on a new session."""
    return await SessionServer(
        store=store, adapter=adapter, session_opts={"agent_id": "tester"}, **options
    ).start()
