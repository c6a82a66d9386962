"""Event callbacks: what a run's attempts tell them, each its own."""

from __future__ import annotations

import asyncio
from typing import Any

from asm_runtime import Event, Run
from asm_runtime.ports import SessionStore
from asm_runtime.records import Fence
from asm_runtime.runtime.callbacks import EventCallbacks
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import until


def event(type: str, **data: Any) -> Event:
    return Event.new(type=type, session_id="ses", run_id="run", data=data)


async def two_attempts(store: SessionStore) -> list[Event]:
    return await store.append_events(
        [
            event("message_sent"),
            event("run_started", attempt=1),
            event("message_streamed", of=1),
            event("run_started", attempt=2),
            event("message_streamed", of=2),
            event("run_completed", attempt=2),
        ]
    )


def callbacks_of(store: Any, attempt: int, heard: list[int]) -> EventCallbacks:
    return EventCallbacks(
        [lambda event: heard.append(event.sequence_number or 0)],
        store=store,
        fence=Fence(session_id="ses", run_id="run", attempt=attempt),
        clock=JumpingClock(),
    )


async def test_each_attempt_tells_its_own_events_also_from_the_log(store: SessionStore) -> None:
    await store.enqueue_run(Run.new(session_id="ses", id="run", input=None))
    await two_attempts(store)
    first: list[int] = []
    second: list[int] = []
    for attempt, heard in ((1, first), (2, second)):
        callbacks = callbacks_of(store, attempt, heard)
        callbacks.reread()
        await callbacks.finish(60)
    assert first == [1, 2, 3]
    assert second == [4, 5, 6]


async def test_what_is_stored_while_an_empty_page_is_read_is_told(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    heard: list[int] = []
    callbacks = callbacks_of(faulty, 1, heard)
    faulty.late.add("get_events")
    callbacks.reread()
    await until(lambda: faulty.held["get_events"])
    callbacks.put(await store.append_events([event("run_started", attempt=1), event("message_sent")]))
    faulty.heal()
    await callbacks.finish(60)
    assert heard == [1, 2]


async def test_a_log_that_is_gone_is_not_read_on_and_on(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    heard: list[int] = []
    callbacks = callbacks_of(faulty, 1, heard)
    stored = await store.append_events([event("run_started", attempt=1)])
    await store.delete_session("ses")
    callbacks.put(stored)
    callbacks.reread()
    await asyncio.wait_for(callbacks.finish(60), 60)
    assert faulty.calls["get_events"] == 1
