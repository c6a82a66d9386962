"""What the runtime keeps when something under it breaks."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest

from asm_runtime import RunStatus, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, say, tokens
from asm_runtime.errors import (
    ActorStopped,
    AwaitTimeout,
    DrainTimeout,
    InvalidTransition,
    LeaseLost,
    RunCancelled,
    RunFailed,
    RunNotFound,
    StoreError,
    StoreUnavailable,
)
from asm_runtime.ports import ExecutionResult, SessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, types_of, until, until_stored


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

    async def is_let_go() -> bool:
        return (await store.get_run(run_id)).owner is None

    await until_stored(is_let_go)
    assert (await store.get_run(run_id)).status == RunStatus.RUNNING
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
    """But for the look at all the store's orphans, of all the servers together."""
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await server.execute_run({})
        asked = before = Counter(faulty.calls)
        for _ in range(2):  # the first one comes when the last recount has been
            looks = faulty.calls["list_orphaned_runs"]
            while faulty.calls["list_orphaned_runs"] == looks or faulty.asked or clock.timers > 1:
                await clock.advance_ms(500)
                await until(lambda: not faulty.asked and server._dispatcher._looking is None)
            asked, before = faulty.calls - before, Counter(faulty.calls)
        assert asked == {"list_orphaned_runs": 1}


async def test_who_awaits_a_queued_run_asks_the_store_for_nothing_meanwhile(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await server.manager.pause_session(server.session_id)
        waiting = asyncio.create_task(server.await_run(await server.submit_run({})))
        await until(lambda: clock.timers)
        await clock.advance_ms(1_000)
        await until(lambda: faulty.calls["get_run"] and not faulty.asked)
        before = faulty.calls["get_run"]
        for _ in range(8):
            await clock.advance_ms(1_000)
            await until(lambda: not faulty.asked)
        assert faulty.calls["get_run"] == before == 1
        waiting.cancel()


async def test_a_store_whose_wait_answers_early_is_asked_again_after_a_pause(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    clock = JumpingClock()

    async def at_once(session_id: str, **options: Any) -> int:
        faulty.calls["at_once"] += 1
        return 7

    vars(faulty)["wait_for_runs"] = at_once
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await until(lambda: faulty.calls["at_once"] == 2)
        await server.execute_run({})
        for _ in range(100):
            await asyncio.sleep(0)
        assert faulty.calls["at_once"] == 2
        await clock.advance_ms(3_000)
        assert faulty.calls["at_once"] == 5


async def test_submitting_cancelled_at_any_await_is_done_or_not_begun(store: SessionStore) -> None:
    adapter = ScriptedAdapter()
    ends: Counter[str] = Counter()
    async with await open_server(store, adapter, max_queued_runs=1_000) as server:
        while ends["answered"] < 3:
            turns = ends.total()
            run_id = f"run {turns}"
            submitting = asyncio.create_task(server.submit_run({"prompt": "x"}, run_id=run_id))
            for _ in range(turns):
                await asyncio.sleep(0)
            submitting.cancel()
            await asyncio.wait([submitting])
            await server.submit_run({"prompt": "y"}, run_id=f"other {turns}")
            # Which of the two it was is settled before the next write is answered.
            accepted = {run.id for run in await store.list_runs(server.session_id)}
            if submitting.cancelled():
                ends["accepted" if run_id in accepted else "not begun"] += 1
            else:
                ends["answered"] += 1
                assert run_id in accepted
            await server.submit_run({"prompt": "x"}, run_id=run_id)  # again
        await server.drain()
        assert not server._dispatcher.queue._submissions
        assert ends["not begun"]
        everything = {run.id for run in await store.list_runs(server.session_id)}
        assert len(everything) == 2 * ends.total()
        assert sorted(adapter.started) == sorted(everything)


@pytest.mark.parametrize("held", ["get_session", "enqueue_run", "the answer of enqueue_run"])
async def test_submitting_cancelled_while_the_store_hangs_is_done_or_not_begun(
    store: SessionStore, held: str
) -> None:
    faulty, adapter = FaultyStore(store), ScriptedAdapter([])
    async with await open_server(faulty, adapter) as server:
        method = held.removeprefix("the answer of ")
        before = faulty.calls[method]
        (faulty.late if method != held else faulty.hanging).add(method)
        submitting = asyncio.create_task(server.submit_run({}, run_id="mine"))
        await until(lambda: faulty.calls[method] > before and not faulty.asked)
        if method != held:
            await until(lambda: faulty.held[method])
        submitting.cancel()
        await asyncio.wait([submitting])
        assert submitting.cancelled()  # it does not wait for the store
        await until(lambda: not server._dispatcher.queue.has_own)
        faulty.heal()
        accepted = [run.id for run in await store.list_runs(server.session_id)]
        assert accepted == (["mine"] if method != held else [])
        await server.submit_run({}, run_id="mine")
        await server.await_run("mine")
        assert adapter.started == ["mine"]
        assert len(await store.list_runs(server.session_id)) == 1
        assert len(await terminal_events(store, server.session_id, "mine")) == 1
        assert server.status().queued_runs == []
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


async def test_a_run_executed_by_its_caller_survives_a_store_that_cannot_ring(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    clock, gate = JumpingClock(), Gate()
    manager = SessionManager(faulty, ScriptedAdapter([gate]), clock=clock)
    faulty.failing["wait_for_runs"] = StoreUnavailable("busy")
    task = asyncio.create_task(manager.run_once({}))
    await gate.reached()
    for error in (StoreUnavailable("busy"), StoreError("disk on fire")):
        faulty.failing["wait_for_runs"] = error
        before = faulty.calls["wait_for_runs"]
        await clock.advance_ms(3_000)
        assert 1 <= faulty.calls["wait_for_runs"] - before <= 4
    faulty.heal()
    gate.open()
    assert (await task).status == RunStatus.COMPLETED


async def test_a_store_that_answers_early_is_not_asked_without_pause(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    clock, gate = JumpingClock(), Gate()

    async def at_once(session_id: str, **options: Any) -> int:
        faulty.calls["at_once"] += 1
        return 7

    vars(faulty)["wait_for_runs"] = at_once
    manager = SessionManager(faulty, ScriptedAdapter([gate]), clock=clock)
    task = asyncio.create_task(manager.run_once({}))
    await gate.reached()
    await clock.advance_ms(3_000)
    assert faulty.calls["at_once"] <= 6
    gate.open()
    await task


async def test_a_stop_is_bounded_while_every_call_hangs(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    server = await open_server(faulty, ScriptedAdapter([gate]), clock=clock, cancel_grace_ms=500)
    run_id = await server.submit_run({})
    await gate.reached()
    waiting = asyncio.create_task(server.await_run(run_id))
    await asyncio.sleep(0)
    faulty.hanging |= {
        "flush", "get_latest_sequence", "get_events", "release_run", "get_run", "claim_run",
        "list_runs", "list_orphaned_runs", "wait_for_runs", "append_events", "get_session",
    }  # fmt: skip
    stopping = asyncio.create_task(server.stop())
    for _ in range(100):
        await clock.advance_ms(100)
    assert stopping.done()
    with pytest.raises(ActorStopped):
        await waiting
    faulty.heal()


async def test_a_release_that_fails_is_tried_again(store: SessionStore) -> None:
    """Until then the run is `running` under a node that lives: nobody would ever settle it."""
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), clock=clock) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.failing |= {"flush": OSError("no disk"), "release_run": OSError("no disk")}
        gate.open()
        waiting = asyncio.create_task(server.await_run(run_id))
        await until(lambda: faulty.calls["release_run"])
        await clock.until_timers(1)
        faulty.heal()
        await clock.advance_ms(1_000)
        with pytest.raises(RunFailed) as settled:
            await waiting
        assert settled.value.code == "orphaned"
        assert server.is_running


async def test_a_cancellation_cut_off_by_the_stop_is_told_as_such(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    server = await open_server(faulty, ScriptedAdapter())
    faulty.hanging.add("get_run")
    cancelling = asyncio.create_task(server.cancel_run("run_x"))
    await until(lambda: faulty.calls["get_run"])
    await server.stop()
    with pytest.raises(ActorStopped):
        await cancelling


async def test_a_store_that_fails_right_after_a_cancellation_does_not_crash_the_server(
    store: SessionStore,
) -> None:
    faulty, gate = FaultyStore(store), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate])) as server:
        await server.submit_run({})
        await gate.reached()
        queued = await server.submit_run({})
        flush = store.flush

        async def last_call(*args: Any, **options: Any) -> Any:
            stored = await flush(*args, **options)
            faulty.failing["get_run"] = StoreUnavailable("busy")
            return stored

        vars(faulty)["flush"] = last_call
        await server.cancel_run(queued)
        faulty.heal()
        assert server.is_running
        assert (await store.get_run(queued)).status == RunStatus.CANCELLED
        del vars(faulty)["flush"]
        gate.open()


@pytest.mark.parametrize("call", ["get_events", "get_latest_sequence"])
async def test_subscriptions_outlast_a_store_that_fails(store: SessionStore, call: str) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        if call == "get_latest_sequence":
            faulty.failing[call] = StoreError("disk on fire")
        subscription = server.subscribe(type="run_completed")
        reading = asyncio.create_task(anext(subscription))
        for _ in range(50):
            await asyncio.sleep(0)
        faulty.failing[call] = StoreError("disk on fire")
        run_id = await server.submit_run({})
        await clock.advance_ms(1_500)
        assert server.is_running
        faulty.heal()
        waited = asyncio.create_task(until(reading.done))
        while not waited.done():
            await clock.advance_ms(500)
        if isinstance(reading.exception(), StoreError):
            reading = asyncio.create_task(anext(subscription))
        assert (await reading).run_id == run_id
        subscription.unsubscribe()


async def test_two_attempts_of_one_run_at_once_are_both_let_go(store: SessionStore) -> None:
    """The first was taken away while its provider does not stop; the same server claims the second."""
    stubborn, gate = Gate(stubborn=True), Gate()
    adapter = ScriptedAdapter(scripts=[[stubborn], [gate]])
    async with await open_server(store, adapter, max_concurrent_runs=2) as server:
        run_id = await server.submit_run({})
        await stubborn.reached()
        claimed = await store.get_run(run_id)
        await store.flush(ExecutionResult(run=claimed.with_status("pending")), fence=claimed.fence)
        await gate.reached()
        stubborn.open()
        for _ in range(50):
            await asyncio.sleep(0)
        assert server.status().in_flight_runs == [run_id]
        gate.open()
        result = await server.await_run(run_id)
        assert (result.status, server.status().in_flight_count) == (RunStatus.COMPLETED, 0)


async def test_a_drain_that_leaves_the_queue_keeps_its_time_while_the_store_hangs(
    store: SessionStore,
) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await server.execute_run({})
        faulty.hanging.add("claim_run")
        await server.submit_run({})
        await until(lambda: faulty.calls["claim_run"])
        draining = asyncio.create_task(server.drain(timeout_ms=100, queued="leave"))
        await clock.advance_ms(200)
        with pytest.raises(DrainTimeout):
            await draining
        faulty.heal()


async def test_the_looking_for_orphans_outlasts_a_foreign_exception(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock):
        for _ in range(50):
            await asyncio.sleep(0)
        faulty.failing["list_orphaned_runs"] = OSError("no disk")
        await clock.advance_ms(10_000)
        faulty.heal()
        await clock.advance_ms(5_000)  # the server's own looking comes to rest
        before = faulty.calls["list_orphaned_runs"]
        await clock.advance_ms(10_000)
        assert faulty.calls["list_orphaned_runs"] > before


async def test_a_finished_run_is_answered_without_waiting(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter(scripts=[[], [gate]])) as server:
        done = await server.submit_run({})
        await server.await_run(done)
        assert (await server.await_run(done, timeout_ms=0)).status == RunStatus.COMPLETED
        open_run = await server.submit_run({})
        with pytest.raises(AwaitTimeout):
            await server.await_run(open_run, timeout_ms=0)
        with pytest.raises(RunNotFound):
            await server.await_run("run_x", timeout_ms=0)
        gate.open()
        await server.drain()
        await server.drain(timeout_ms=0)


@pytest.mark.parametrize("end", ["cancel_session", "fail_session"])
@pytest.mark.parametrize("turns", [*range(1, 16), 20, 30])
async def test_ending_a_session_cancelled_at_any_await_is_done_or_not_begun(
    store: SessionStore, end: str, turns: int
) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.start_session(agent_id="tester")
    await manager.activate_session(session.id)
    runs = [await manager.start_run(session.id, {}) for _ in range(3)]
    arguments = (session.id,) if end == "cancel_session" else (session.id, "x")
    ending = asyncio.create_task(getattr(manager, end)(*arguments))
    for _ in range(turns):
        await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait([ending])
    ended = (await store.get_session(session.id)).status.is_terminal
    assert [(await store.get_run(run.id)).status.is_terminal for run in runs] == [ended] * 3


async def test_a_submission_that_the_store_takes_after_the_stop_is_the_next_servers(
    store: SessionStore,
) -> None:
    """Its caller does not wait for that: it may submit again, with the same id."""
    faulty, clock = FaultyStore(store), JumpingClock()
    faulty.shielding.add("enqueue_run")
    server = await open_server(faulty, ScriptedAdapter(), clock=clock)
    faulty.hanging.add("enqueue_run")
    submitting = asyncio.create_task(server.submit_run({}, run_id="mine"))
    await until(lambda: faulty.calls["enqueue_run"])
    stopping = asyncio.create_task(server.stop())
    while not stopping.done():
        await clock.advance_ms(100)
    with pytest.raises(ActorStopped):
        await submitting
    faulty.heal()
    async with SessionServer(
        store=store, adapter=ScriptedAdapter(), session_id=server.session_id
    ) as successor:
        assert await successor.submit_run({}, run_id="mine") == "mine"
        assert (await successor.await_run("mine")).status == RunStatus.COMPLETED
    assert not server._dispatcher.queue.has_own


async def test_a_stop_that_drains_sees_what_others_do_with_its_queue(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate()
    server = await open_server(store, ScriptedAdapter([gate]), clock=clock, stop_drain_ms=60_000)
    await server.submit_run({})
    await gate.reached()
    queued = await server.submit_run({})
    stopping = asyncio.create_task(server.stop())
    await until(lambda: not server.is_running)
    await server.manager.cancel_run(queued)
    gate.open()
    ended = asyncio.create_task(until(stopping.done))
    began = clock.monotonic()
    while not ended.done():
        await clock.advance_ms(100)
        await asyncio.sleep(0.001)
    assert clock.monotonic() - began < 30


@pytest.mark.parametrize("heir", ["manager", "server"])
async def test_runs_that_a_dead_process_left_on_an_ended_session_are_ended(
    store: SessionStore, heir: str
) -> None:
    """It wrote the session's end and died before those of its runs."""
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    runs = [await manager.start_run(session.id, {}) for _ in range(2)]
    await store.claim_run(session.id)
    await store.save_session(session.with_status("cancelled"))
    server = SessionServer(store=store, adapter=ScriptedAdapter(), session_id=session.id)
    with pytest.raises(InvalidTransition):
        await (manager.cancel_session(session.id) if heir == "manager" else server.start())
    for run in runs:
        (end,) = await terminal_events(store, session.id, run.id)
        assert (str(end.type), end.data["reason"]) == ("run_cancelled", "session_cancelled")
