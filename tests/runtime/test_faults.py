"""What the runtime keeps when something under it breaks."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from asm_runtime import RunStatus, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, say, tokens
from asm_runtime.errors import LeaseLost, RunCancelled, RunFailed, StoreError, StoreUnavailable
from asm_runtime.ports import ExecutionResult, SessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, types_of, until


async def test_status_answers_while_the_store_hangs(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    gate = Gate()
    async with await open_server(faulty, ScriptedAdapter([gate])) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.hanging |= {"enqueue_run", "claim_run", "list_runs", "get_session", "list_orphaned_runs"}
        submitting = asyncio.create_task(server.submit_run({}))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not submitting.done()
        assert server.status().in_flight_runs == [run_id]
        faulty.heal()
        await submitting
        gate.open()


async def test_a_store_that_refuses_events_fails_the_run_not_the_server(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    gate = Gate()
    adapter = ScriptedAdapter([gate, say("x"), Gate()])
    async with await open_server(faulty, adapter) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.failing["append_events"] = StoreError("disk on fire")
        gate.open()
        with pytest.raises(StoreError):
            await server.await_run(run_id)
        faulty.heal()
        assert (await store.get_run(run_id)).status == RunStatus.FAILED
        assert len(await terminal_events(store, server.session_id, run_id)) == 1
        assert adapter.cancelled == [run_id]
        again = await server.submit_run({"script": []})
        assert (await server.await_run(again)).status == RunStatus.COMPLETED


async def test_an_outage_while_events_are_written_is_ridden_out(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    async with await open_server(
        faulty,
        ScriptedAdapter([gate, tokens(10)]),
        clock=clock,
    ) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.failing["append_events"] = StoreUnavailable("busy")
        gate.open()
        await until(lambda: faulty.calls["append_events"] >= 2)
        await clock.until_timers(1)
        faulty.heal()
        await clock.advance_ms(5_000)
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED
        assert (await types_of(store, server.session_id, run_id)).count("message_streamed") == 10


async def test_an_outage_at_the_end_of_a_run_leaves_it_ended(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), clock=clock) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.failing["flush"] = StoreUnavailable("busy")
        gate.open()
        for _ in range(12):
            seen = faulty.calls["flush"]
            await clock.until_timers(1)
            await clock.advance_ms(2_000)
            await until(lambda seen=seen: faulty.calls["flush"] > seen)  # type: ignore[misc]
        assert server.status().in_flight_runs == [run_id]
        faulty.heal()
        await clock.advance_ms(2_000)
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED
        assert len(await terminal_events(store, server.session_id, run_id)) == 1


async def test_a_stop_is_bounded_while_the_store_hangs(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    server = await open_server(faulty, ScriptedAdapter([gate]), clock=clock, cancel_grace_ms=500)
    run_id = await server.submit_run({})
    subscription = server.subscribe()
    await gate.reached()
    faulty.hanging |= {"flush", "get_latest_sequence", "get_events"}
    stopping = asyncio.create_task(server.stop())
    while not stopping.done():
        await clock.advance_ms(100)
    await stopping
    faulty.heal()
    run = await store.get_run(run_id)
    assert (run.status, run.owner) == (RunStatus.RUNNING, None)
    subscription.unsubscribe()
    async with SessionServer(
        store=store, adapter=ScriptedAdapter(), session_id=server.session_id
    ) as successor:
        with pytest.raises(RunFailed):
            await successor.await_run(run_id)


async def test_the_server_looks_again_after_an_outage(
    store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        faulty.failing["claim_run"] = StoreUnavailable("busy")
        run_id = await server.submit_run({"prompt": "x"})
        await until(lambda: faulty.calls["claim_run"] >= 1)
        faulty.heal()
        waiting = asyncio.create_task(server.await_run(run_id))
        while not waiting.done():
            await clock.advance_ms(500)
        assert (await waiting).output == {"content": "x"}


async def test_a_run_ended_elsewhere_stops_its_adapter_here(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(store, adapter) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        await server.manager.cancel_run(run_id)
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)
        assert adapter.cancelled == [run_id]
        assert server.status().in_flight_count == 0
        assert len(await terminal_events(store, server.session_id, run_id)) == 1


async def test_an_attempt_that_was_claimed_anew_elsewhere_can_write_nothing(store: SessionStore) -> None:
    """As after a node that was believed dead: its fence no longer holds."""
    gate = Gate()
    errors: list[BaseException] = []

    async def late(stage: Any) -> None:
        try:
            for _ in range(5000):
                await stage.context.emit("message_streamed", {"content": "late"})
        except LeaseLost as error:
            errors.append(error)
            raise

    adapter = ScriptedAdapter(scripts=[[gate, late], [Gate()]])
    async with await open_server(store, adapter) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        claimed = await store.get_run(run_id)
        await store.flush(ExecutionResult(run=claimed.with_status("pending")), fence=claimed.fence)
        again = await store.claim_run(server.session_id, run_id=run_id)
        if again is None:  # the server was quicker: it claimed it anew itself
            again = await store.get_run(run_id)
        assert again.attempt == 2
        gate.open()
        await until(lambda: claimed.id in adapter.cancelled or errors)
        log = await store.get_events(server.session_id, run_id=run_id, type="message_streamed")
        assert log == []
        assert (await store.get_run(run_id)).status == RunStatus.RUNNING
        await server.manager.cancel_run(run_id)


@pytest.mark.parametrize("policy", ["fail", "requeue"])
async def test_orphans_are_settled_at_the_start(store: SessionStore, policy: Any) -> None:
    first = await open_server(store, ScriptedAdapter())
    session_id = first.session_id
    await first.stop()
    manager = first.manager
    runs = [await manager.start_run(session_id, {"prompt": "x"}) for _ in range(3)]
    dead = await store.claim_run(session_id)
    assert dead is not None
    await store.release_run(dead.fence)
    adapter = ScriptedAdapter()
    async with SessionServer(store=store, adapter=adapter, session_id=session_id, on_orphan=policy) as server:
        if policy == "fail":
            with pytest.raises(RunFailed) as failed:
                await server.await_run(dead.id)
            assert failed.value.code == "orphaned"
        for run in runs[1:]:
            await server.await_run(run.id)
        expected = [run.id for run in runs] if policy == "requeue" else [run.id for run in runs[1:]]
        assert adapter.started == expected
    for run in runs:
        assert len(await terminal_events(store, session_id, run.id)) == 1


async def test_orphans_that_nobody_rings_for_are_found_in_time(store: SessionStore) -> None:
    """A dead node changes nothing in the database: the server has to look by itself."""
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        run = await server.manager.start_run(server.session_id, {"prompt": "x"})
        await server.await_run(run.id)
        before = faulty.calls["list_orphaned_runs"]
        await clock.until_timers(1)
        await clock.advance_ms(10_000)
        await until(lambda: faulty.calls["list_orphaned_runs"] > before)


async def test_an_idle_server_asks_the_store_for_nothing(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock):
        await until(lambda: faulty.calls["list_runs"] >= 1)
        for _ in range(50):
            await asyncio.sleep(0)
        before = dict(faulty.calls)
        await clock.advance_ms(9_000)
        changed = {name for name, count in faulty.calls.items() if count != before.get(name, 0)}
        assert changed <= {"list_runs", "claim_run", "list_orphaned_runs"}
        assert faulty.calls["wait_for_runs"] == before["wait_for_runs"]


@pytest.mark.parametrize("turns", range(1, 30))
async def test_submitting_cancelled_at_any_await_is_done_or_not_begun(
    store: SessionStore, turns: int
) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        submitting = asyncio.create_task(server.submit_run({"prompt": "x"}, run_id="mine"))
        for _ in range(turns):
            await asyncio.sleep(0)
        submitting.cancel()
        await asyncio.wait([submitting])
        assert await server.submit_run({"prompt": "x"}, run_id="mine") == "mine"
        await server.await_run("mine")
        assert len(await terminal_events(store, server.session_id, "mine")) == 1
        await server.drain()


@pytest.mark.parametrize("call", ["cancel_run", "drain", "stop", "execute_run", "interrupt_run"])
@pytest.mark.parametrize("turns", range(1, 16, 2))
async def test_a_call_cancelled_at_any_await_leaves_a_working_server(
    store: SessionStore, call: str, turns: int
) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    server = await open_server(store, adapter)
    run_id = await server.submit_run({})
    await gate.reached()
    arguments: dict[str, Any] = {"cancel_run": run_id, "interrupt_run": run_id, "execute_run": {}}
    method = getattr(server, call)
    calling = asyncio.create_task(method(arguments[call]) if call in arguments else method())
    for _ in range(turns):
        await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    gate.open()
    await server.stop()
    run = await store.get_run(run_id)
    assert run.status.is_terminal
    assert len(await terminal_events(store, server.session_id, run_id)) == 1
    async with SessionServer(store=store, adapter=adapter, session_id=server.session_id) as successor:
        for left in await store.list_runs(server.session_id):
            try:
                await successor.await_run(left.id)
            except RunCancelled:
                pass
            assert len(await terminal_events(store, server.session_id, left.id)) == 1
