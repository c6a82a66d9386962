"""What the runtime keeps when providers, callbacks and stored rows are not what they should be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_runtime import Event, Run, RunStatus, SessionManager, SessionStatus
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, fail, say, tokens
from asm_runtime.errors import Conflict, ProviderError, RunCancelled, ValidationError
from asm_runtime.ports import SessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, until


class Unspeakable(BaseException):
    """Neither an `Exception` nor able to say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_exception_that_cannot_be_shown_fails_its_run(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([fail(Unspeakable())])) as server:
        run_id = await server.submit_run({})
        with pytest.raises(ProviderError) as failed:
            await server.await_run(run_id)
        assert failed.value.details["exception"] == "Unspeakable"


async def test_an_error_message_that_cannot_be_stored_still_ends_run_and_session(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter([fail(ProviderError("\ud800"))]))
    with pytest.raises(ProviderError) as failed:
        await manager.run_once({})
    session = await store.get_session(failed.value.session_id or "")
    assert session.status == SessionStatus.FAILED


@pytest.mark.parametrize("options", [{"run_timeout_ms": "soon"}, {"adapter_opts": 1}, {"continuation": 7}])
async def test_a_run_stored_with_bad_options_fails_and_frees_its_slot(
    store: SessionStore, options: Any
) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        bad = Run.new(session_id=server.session_id, input={}, metadata={"options": options})
        await store.enqueue_run(bad)
        with pytest.raises(ValidationError):
            await server.await_run(bad.id)
        assert (await store.get_run(bad.id)).status == RunStatus.FAILED
        await server.execute_run({"prompt": "next"})


async def test_options_that_are_no_object_are_none(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.start_session(agent_id="tester")
    await manager.activate_session(session.id)
    run = Run.new(session_id=session.id, input={}, metadata={"options": ["?"]})
    await store.enqueue_run(run)
    result = await manager.execute_run(run.id, run_timeout_ms=1000)
    assert result.status == RunStatus.COMPLETED


async def test_a_timeout_beyond_the_calendar_is_no_deadline(store: SessionStore) -> None:
    deadlines: list[object] = []

    async def look(stage: Any) -> None:
        deadlines.append(stage.context.deadline)

    manager = SessionManager(store, ScriptedAdapter([look]), clock=JumpingClock())
    result = await manager.run_once({}, run_timeout_ms=2**63 - 1)
    assert result.status == RunStatus.COMPLETED
    assert deadlines == [None]


async def test_a_callback_that_hangs_does_not_keep_a_run_from_its_end(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate()
    forever = asyncio.Event()

    async def callback(event: Event) -> None:
        await forever.wait()

    async with await open_server(store, ScriptedAdapter([tokens(5000), gate]), clock=clock) as server:
        run_id = await server.submit_run({}, event_callback=callback)
        await until(lambda: server.status().in_flight_runs)
        for _ in range(200):
            await asyncio.sleep(0)
        await server.cancel_run(run_id)
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)
        assert len(await terminal_events(store, server.session_id, run_id)) == 1


async def test_a_callback_that_hangs_does_not_hold_its_cancelled_caller(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate()

    async def callback(event: Event) -> None:
        await asyncio.Event().wait()

    faulty: Any = FaultyStore(store)
    manager = SessionManager(faulty, ScriptedAdapter([gate]), clock=clock, cancel_grace_ms=100)
    task = asyncio.create_task(manager.run_once({}, event_callback=callback))
    (run_id,) = await gate.reached()
    task.cancel()
    await faulty.time_passes(clock, task)
    assert task.cancelled()
    assert (await store.get_run(run_id)).status == RunStatus.CANCELLED


async def test_a_callback_that_raises_a_cancellation_is_called_again(store: SessionStore) -> None:
    seen: list[int | None] = []

    async def callback(event: Event) -> None:
        seen.append(event.sequence_number)
        raise asyncio.CancelledError

    manager = SessionManager(store, ScriptedAdapter([tokens(3)]))
    result = await manager.run_once({}, event_callback=callback)
    log = await store.get_events(result.session_id, run_id=result.run_id)
    assert seen == [event.sequence_number for event in log]


async def test_the_time_before_the_provider_begins_is_not_its_silence(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate, say("x")]), clock=clock) as server:
        faulty.hanging.add("append_events")
        run_id = await server.submit_run({}, idle_timeout_ms=100)
        await until(lambda: faulty.calls["append_events"])
        await clock.advance_ms(150)
        faulty.heal()
        await gate.reached()
        gate.open()
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED


async def test_a_provider_held_up_by_a_full_buffer_is_not_silent(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    gate = Gate()
    async with await open_server(faulty, ScriptedAdapter([gate, tokens(5000)]), clock=clock) as server:
        run_id = await server.submit_run({}, idle_timeout_ms=100)
        await gate.reached()
        before = faulty.calls["append_events"]
        faulty.hanging.add("append_events")
        gate.open()
        await until(lambda: faulty.calls["append_events"] > before)
        await clock.advance_ms(500)
        faulty.heal()
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED


async def test_run_once_names_its_session_when_somebody_else_keeps_it_open(store: SessionStore) -> None:
    async def submit_another(stage: Any) -> None:
        await manager.start_run(stage.session.id, {})

    manager = SessionManager(store, ScriptedAdapter([submit_another]))
    with pytest.raises(Conflict) as refused:
        await manager.run_once({})
    assert refused.value.session_id is not None
    assert (await store.get_run(refused.value.run_id or "")).status == RunStatus.COMPLETED


async def test_a_wait_that_the_store_cuts_off_leaves_no_server_deaf(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await server.execute_run({})
        for _ in range(50):
            await asyncio.sleep(0)
        faulty.failing["wait_for_runs"] = asyncio.CancelledError()
        run = await server.manager.start_run(server.session_id, {})  # rings
        await server.await_run(run.id)
        await until(lambda: server._dispatcher._watch is None)
        faulty.heal()
        await clock.advance_ms(2_000)
        run = await server.manager.start_run(server.session_id, {})
        await server.await_run(run.id)
