"""Who is cancelled while a run is executed: its caller, its adapter, the loop's tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from asm_runtime import Event, RunStatus, Session, SessionManager, SessionStatus
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, say, tokens
from asm_runtime.errors import RunCancelled, RunTimeout, StoreUnavailable
from asm_runtime.ports import SessionStore
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, until, until_stored


@pytest.fixture
async def memory() -> AsyncIterator[SessionStore]:
    """Where time is measured: a store that does its work in the loop's own turns."""
    async with InMemorySessionStore() as store:
        yield store


class Remote(ScriptedAdapter):
    """Its `cancel` tells somebody far away."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answered = asyncio.Event()
        self.told: list[str] = []

    async def cancel(self, run_id: str) -> None:
        self.told.append("began")
        try:
            await self.answered.wait()
        except asyncio.CancelledError:
            self.told.append("cut off")
            raise
        self.told.append("done")


async def active_session(manager: SessionManager) -> Session:
    return await manager.activate_session((await manager.start_session(agent_id="tester")).id)


# -- adapters


@pytest.mark.parametrize("end", ["cancel_run", "timeout", "cancelled elsewhere"])
async def test_the_cancel_of_an_adapter_comes_to_its_end_though_execute_has_ended(
    store: SessionStore, end: str
) -> None:
    clock, gate = JumpingClock(), Gate()
    adapter = Remote([gate])
    async with await open_server(store, adapter, clock=clock, cancel_grace_ms=500) as server:
        run_id = await server.submit_run({}, run_timeout_ms=1_000 if end == "timeout" else None)
        await gate.reached()
        cancelling = None
        if end == "cancel_run":
            cancelling = asyncio.create_task(server.cancel_run(run_id))
        elif end == "timeout":
            await clock.advance_ms(1_000)
        else:
            await server.manager.cancel_run(run_id)
        await until(lambda: adapter.cancelled)
        await clock.advance_ms(400)
        assert adapter.told == ["began"]
        assert server.status().in_flight_runs == [run_id]
        adapter.answered.set()
        with pytest.raises((RunCancelled, RunTimeout)):
            await server.await_run(run_id)
        assert adapter.told == ["began", "done"]
        if cancelling is not None:
            await cancelling


async def test_the_cancel_of_an_adapter_has_no_more_than_the_grace(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate()
    adapter = Remote([gate])
    async with await open_server(store, adapter, clock=clock, cancel_grace_ms=500) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        cancelling = asyncio.create_task(server.cancel_run(run_id))
        await until(lambda: adapter.cancelled)
        await clock.advance_ms(499)
        assert adapter.told == ["began"]
        await clock.advance_ms(1)
        await cancelling
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)
        assert adapter.told == ["began", "cut off"]


async def test_an_adapter_is_told_once_to_cancel_and_not_when_it_ended_by_itself(
    store: SessionStore,
) -> None:
    gate = Gate()
    adapter = ScriptedAdapter(scripts=[[], [gate]])
    async with await open_server(store, adapter) as server:
        await server.execute_run({})
        assert adapter.cancel_calls == []
        run_id = await server.submit_run({})
        await gate.reached()
        await server.cancel_run(run_id)
        assert adapter.cancel_calls == [run_id]


async def test_what_an_adapter_reports_while_it_is_cancelled_is_stored(store: SessionStore) -> None:
    gate = Gate()

    async def clean_up(stage: Any) -> None:
        try:
            await gate(stage)
        except asyncio.CancelledError:
            await stage.context.emit("tool_call_failed", {"tool_call_id": "1"})
            raise

    async with await open_server(store, ScriptedAdapter([clean_up])) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        await server.cancel_run(run_id)
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)
        log = await store.get_events(server.session_id, run_id=run_id)
        assert [str(event.type) for event in log][-2:] == ["tool_call_failed", "run_cancelled"]


async def test_a_run_that_starts_while_it_is_cancelled_is_cancelled_here(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    first, second = Gate(), Gate()
    adapter = ScriptedAdapter(scripts=[[first], [second]])
    async with await open_server(faulty, adapter) as server:
        await server.submit_run({})
        queued = await server.submit_run({})
        await first.reached()
        faulty.hanging.add("get_run")
        cancelling = asyncio.create_task(server.cancel_run(queued))
        await until(lambda: faulty.calls["get_run"])
        first.open()
        await second.reached()
        faulty.heal()
        await cancelling
        assert (await store.get_run(queued)).status == RunStatus.CANCELLED
        assert adapter.cancel_calls == [queued]
        assert server.status().in_flight_runs == []


# -- before the adapter


@pytest.mark.parametrize("call", ["get_session", "append_events", "get_events"])
async def test_a_run_is_cancelled_while_the_store_holds_up_its_beginning(
    store: SessionStore, call: str
) -> None:
    faulty: Any = FaultyStore(store)
    adapter = ScriptedAdapter()
    manager = SessionManager(faulty, adapter)
    session = await active_session(manager)
    run = await manager.start_run(session.id, {"prompt": "x"})
    faulty.hanging.add(call)
    before = faulty.calls[call]
    executing = asyncio.create_task(manager.execute_run(run.id, continuation=True))
    await until(lambda: faulty.calls[call] > before)
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing
    assert adapter.started == []
    (end,) = await terminal_events(store, session.id, run.id)
    assert end.data["reason"] == "caller_cancelled"


async def test_the_time_of_a_run_counts_from_its_start_not_from_its_adapters(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        faulty.hanging.add("append_events")
        run_id = await server.submit_run({}, run_timeout_ms=100)
        await until(lambda: faulty.calls["append_events"])
        await clock.advance_ms(100)
        with pytest.raises(RunTimeout):
            await server.await_run(run_id)


async def test_the_silence_of_a_run_counts_from_the_start_of_its_adapter(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), clock=clock) as server:
        faulty.hanging.add("append_events")
        run_id = await server.submit_run({}, idle_timeout_ms=100)
        await until(lambda: faulty.calls["append_events"])
        await clock.advance_ms(500)
        faulty.heal()
        await gate.reached()
        await clock.advance_ms(99)
        gate.open()
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED


@pytest.mark.parametrize("script", [[], [tokens(3)]])
async def test_a_run_leaves_no_timer_behind(store: SessionStore, script: Any) -> None:
    clock = JumpingClock()
    manager = SessionManager(store, ScriptedAdapter(script), clock=clock)
    await manager.run_once({}, run_timeout_ms=60_000, idle_timeout_ms=60_000, event_callback=print)
    assert clock.timers == 0


# -- callers


@pytest.mark.parametrize("call", ["execute_run", "run_once"])
@pytest.mark.parametrize("hangs", ["flush", "append_events", "everything"])
async def test_a_cancelled_caller_does_not_wait_for_a_store_that_hangs(
    memory: SessionStore, call: str, hangs: str
) -> None:
    store, faulty = memory, cast(Any, FaultyStore(memory))
    clock, gate = JumpingClock(), Gate()
    manager = SessionManager(faulty, ScriptedAdapter([gate, say("a")]), clock=clock, cancel_grace_ms=500)
    if call == "run_once":
        executing = asyncio.create_task(manager.run_once({}))
    else:
        run = await manager.start_run((await active_session(manager)).id, {})
        executing = asyncio.create_task(manager.execute_run(run.id))
    (run_id,) = await gate.reached()
    faulty.hanging |= {
        "everything": {"flush", "append_events", "get_run", "get_session", "release_run", "list_runs"}
    }.get(hangs, {hangs})
    if hangs == "append_events":
        gate.open()
        await until(lambda: faulty.calls["append_events"] > 1)
    began = clock.monotonic()
    executing.cancel()
    while not executing.done():
        await clock.advance_ms(100)
    assert executing.cancelled()
    assert clock.monotonic() - began <= 4.5
    faulty.heal()
    await clock.advance_ms(10_000)
    run = await store.get_run(run_id)
    assert run.status.is_terminal or run in await store.list_orphaned_runs()


async def test_a_cancelled_caller_waits_for_a_store_that_is_slow(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    clock, gate = JumpingClock(), Gate()
    manager = SessionManager(faulty, ScriptedAdapter([gate]), clock=clock)
    executing = asyncio.create_task(manager.run_once({}))
    (run_id,) = await gate.reached()
    faulty.failing["flush"] = StoreUnavailable("busy")
    executing.cancel()
    await clock.until_timers(1)
    await clock.advance_ms(3_000)
    assert not executing.done()
    faulty.heal()
    await faulty.time_passes(clock, executing)
    run = await store.get_run(run_id)
    assert run.status == RunStatus.CANCELLED
    assert (await store.get_session(run.session_id)).status == SessionStatus.CANCELLED


@pytest.mark.parametrize("end", ["cancel_session", "fail_session"])
async def test_ending_a_session_cancelled_while_the_store_hangs_leaves_soon(
    store: SessionStore, end: str
) -> None:
    faulty: Any = FaultyStore(store)
    clock = JumpingClock()
    manager = SessionManager(faulty, ScriptedAdapter(), clock=clock)
    session = await active_session(manager)
    run = await manager.start_run(session.id, {})
    faulty.hanging.add("flush")
    before = faulty.calls["flush"]
    arguments = (session.id,) if end == "cancel_session" else (session.id, "x")
    ending = asyncio.create_task(getattr(manager, end)(*arguments))
    await until(lambda: faulty.calls["flush"] > before)
    ending.cancel()
    began = clock.monotonic()
    while not ending.done():
        await clock.advance_ms(100)
    assert clock.monotonic() - began <= 1.1
    faulty.heal()

    async def is_over() -> bool:
        return (await store.get_run(run.id)).status.is_terminal

    await until_stored(is_over)
    assert (await store.get_session(session.id)).status.is_terminal


@pytest.mark.parametrize("turns", [*range(1, 40), 60])
@pytest.mark.parametrize("whom", ["attempt", "job", "both"])
async def test_a_claim_is_let_go_or_used_whatever_task_is_cancelled_when(turns: int, whom: str) -> None:
    """As when a loop that ends cancels all its tasks."""
    names = {"attempt": ("RunExecution.run",), "job": ("Job.execute",)}.get(
        whom, ("RunExecution.run", "Job.execute")
    )
    async with InMemorySessionStore() as store:
        manager = SessionManager(store, ScriptedAdapter([tokens(3)]))
        session = await active_session(manager)
        run = await manager.start_run(session.id, {"prompt": "x"})
        executing = asyncio.create_task(manager.execute_run(run.id))
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__qualname__", "") in names:
                task.cancel()
        await asyncio.wait([executing])
        if not executing.cancelled():
            assert not isinstance(executing.exception(), asyncio.InvalidStateError)

        async def is_settled() -> bool:
            known = await store.get_run(run.id)
            return known.status != RunStatus.RUNNING or known in await store.list_orphaned_runs()

        for _ in range(100):
            if await is_settled():
                break
            await asyncio.sleep(0)
        assert await is_settled()


# -- event callbacks


async def test_a_callback_that_hangs_does_not_hold_up_run_once(memory: SessionStore) -> None:
    clock = JumpingClock()
    seen: list[Event] = []

    async def callback(event: Event) -> None:
        seen.append(event)
        await asyncio.Event().wait()

    manager = SessionManager(memory, ScriptedAdapter([tokens(5_000)]), clock=clock)
    executing = asyncio.create_task(manager.run_once({}, event_callback=callback))
    while not executing.done():
        await clock.advance_ms(100)
    assert (await executing).status == RunStatus.COMPLETED
    assert clock.monotonic() <= 6
    assert len(seen) == 1


async def test_a_server_keeps_no_task_of_a_run_whose_callback_hangs(store: SessionStore) -> None:
    clock = JumpingClock()

    async def callback(event: Event) -> None:
        await asyncio.Event().wait()

    async with await open_server(store, ScriptedAdapter([]), clock=clock) as server:
        before = len(asyncio.all_tasks())
        for _ in range(10):
            await server.execute_run({}, event_callback=callback)
        await clock.advance_ms(10_000)
        assert len(asyncio.all_tasks()) <= before + 2


@pytest.mark.parametrize("count", [10, 3_000])
async def test_a_slow_callback_is_given_every_event_and_slows_nobody(store: SessionStore, count: int) -> None:
    clock = JumpingClock()
    seen: list[Event] = []
    turn = asyncio.Event()

    async def callback(event: Event) -> None:
        await turn.wait()
        await asyncio.sleep(0)
        seen.append(event)

    async with await open_server(store, ScriptedAdapter([tokens(count)]), clock=clock) as server:
        run_id = await server.submit_run({"prompt": "x"}, event_callback=callback)
        await server.await_run(run_id)
        assert seen == []
        turn.set()
        log = await store.get_events(server.session_id, run_id=run_id)
        await until(lambda: len(seen) >= len(log))
        assert seen == log


async def test_a_callback_that_fell_behind_outlasts_a_store_that_fails(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    clock = JumpingClock()
    seen: list[Event] = []
    turn = asyncio.Event()

    async def callback(event: Event) -> None:
        await turn.wait()
        seen.append(event)

    async with await open_server(faulty, ScriptedAdapter([tokens(2_000)]), clock=clock) as server:
        run_id = await server.submit_run({}, event_callback=callback)
        await server.await_run(run_id)
        faulty.failing["get_events"] = OSError("no disk")
        turn.set()
        await clock.until_timers(2)
        faulty.heal()
        log = await store.get_events(server.session_id, run_id=run_id)
        ended = asyncio.create_task(until(lambda: len(seen) >= len(log)))
        await faulty.time_passes(clock, ended)
        assert seen == log


async def test_a_callback_is_given_no_event_twice(store: SessionStore) -> None:
    """An adapter may report an event again, by its id."""
    seen: list[Event] = []

    async def twice(stage: Any) -> None:
        for number in (1, 2, 1, 3, 2):
            await stage.context.emit("custom", {"name": "x"}, id=f"e{number}")
            await asyncio.sleep(0)

    manager = SessionManager(store, ScriptedAdapter([twice]))
    result = await manager.run_once({}, event_callback=seen.append)
    assert seen == await store.get_events(result.session_id, run_id=result.run_id)


async def test_a_callback_is_given_what_was_stored_though_its_write_was_cut_off(
    store: SessionStore,
) -> None:
    """The run was cancelled while the answer to its first write was on its way."""
    faulty: Any = FaultyStore(store)
    seen: list[Event] = []
    manager = SessionManager(faulty, ScriptedAdapter())
    session = await active_session(manager)
    run = await manager.start_run(session.id, {"prompt": "x"})
    faulty.late.add("append_events")
    executing = asyncio.create_task(manager.execute_run(run.id, event_callback=seen.append))
    await until(lambda: faulty.held["append_events"])
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing
    assert [str(event.type) for event in seen] == ["message_sent", "run_started", "run_cancelled"]
    assert seen == await store.get_events(session.id, run_id=run.id)
