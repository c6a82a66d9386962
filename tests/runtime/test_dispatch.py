"""How runs get from the queue into the slots: at once, in order, side by side, beside all other looks."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from asm_runtime import Event, Run, RunStatus, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate
from asm_runtime.errors import Conflict, StoreUnavailable
from asm_runtime.observer import Observer, RunTrace, set_observer
from asm_runtime.ports import ExecutionResult, SessionStore
from asm_runtime.runtime.dispatcher import ABANDONED_A_TURN, RECOUNT_PAGE
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, until, until_stored


async def queued_runs(server: SessionServer, count: int) -> list[str]:
    """So many runs wait in a paused session, and the server knows them."""
    await server.manager.pause_session(server.session_id)
    return [await server.submit_run({"n": n}) for n in range(count)]


async def until_idle(server: SessionServer) -> None:
    """Return when the server is at nothing."""
    dispatcher = server._dispatcher
    await until(lambda: dispatcher._looking is None and not dispatcher._claims)


async def test_free_slots_are_filled_by_claims_side_by_side(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(faulty, adapter, max_concurrent_runs=8) as server:
        runs = await queued_runs(server, 20)
        await until_idle(server)
        faulty.late.add("claim_run")
        await server.manager.resume_session(server.session_id)
        await until(lambda: faulty.held["claim_run"] == 1)  # one goes ahead: it may be in vain
        faulty.go_on()
        faulty.late.add("claim_run")
        await until(lambda: faulty.held["claim_run"] == 8)
        assert server.status().in_flight_runs == runs[:1]
        faulty.go_on()
        await gate.reached(8)
        assert server.status().in_flight_runs == runs[:8]
        gate.open()
        await server.drain()


async def test_runs_start_in_order_however_many_are_claimed_at_once(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([]), max_concurrent_runs=7) as server:
        await queued_runs(server, 60)
        await server.manager.resume_session(server.session_id)
        await server.drain()
        began = [run.started_at for run in await store.list_runs(server.session_id)]
    assert None not in began
    assert began == sorted(began)  # type: ignore[type-var]


async def test_no_claim_waits_for_another_look_at_the_store(store: SessionStore) -> None:
    faulty, gate = FaultyStore(store), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), max_concurrent_runs=3) as server:
        await server.submit_run({})
        await gate.reached()
        for method in ("list_orphaned_runs", "list_runs"):
            faulty.hanging.add(method)
        for count in (2, 3):
            await server.submit_run({})
            await gate.reached(count)
        waiting = await server.submit_run({})
        gate.open()
        await server.await_run(waiting)
        faulty.heal()


async def test_one_claim_is_in_vain_when_there_is_nothing_to_claim(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock, max_concurrent_runs=16) as server:
        await queued_runs(server, 10)
        await until_idle(server)
        before = faulty.calls["claim_run"]
        other = await server.manager.start_run(server.session_id, {})
        await until(lambda: faulty.calls["claim_run"] > before)
        await until_idle(server)
        assert faulty.calls["claim_run"] - before <= 2
        assert (await store.get_run(other.id)).status == RunStatus.PENDING


async def test_a_run_that_comes_while_a_claim_finds_nothing_is_claimed(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    async with await open_server(faulty, ScriptedAdapter()) as server:
        await server.execute_run({})
        await until_idle(server)
        faulty.late.add("claim_run")
        server._dispatcher.look()
        await until(lambda: faulty.held["claim_run"])
        run_id = await server.submit_run({})
        faulty.heal()
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED


async def test_claims_rest_while_the_store_fails(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter([]), clock=clock, max_concurrent_runs=4) as server:
        faulty.failing["claim_run"] = StoreUnavailable("busy")
        runs = [await server.submit_run({}) for _ in range(6)]
        await until(lambda: server._dispatcher._claim_retry is not None)
        before = faulty.calls["claim_run"]
        for _ in range(20):
            await server.submit_run({}, run_id=runs[0])
            server._dispatcher.look()
            await clock.advance_ms(40)
        assert faulty.calls["claim_run"] == before
        faulty.heal()
        await clock.advance_ms(1_000)
        for run_id in runs:
            await server.await_run(run_id)


@pytest.mark.parametrize("queued", ["run", "leave"])
async def test_a_draining_server_notices_what_others_cancel(store: SessionStore, queued: Any) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(store, adapter) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        draining = asyncio.create_task(server.drain(queued=queued))
        await until(lambda: server.status().draining)
        await SessionManager(store, adapter).cancel_run(run_id, session_id=server.session_id)
        await draining
        assert adapter.cancelled == [run_id]
        if queued == "leave":
            later = await server.manager.start_run(server.session_id, {})
            await until(lambda: later.id in server.status().queued_runs)
            assert adapter.started == [run_id]


async def test_a_drain_that_leaves_the_queue_counts_a_claim_under_way(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    manager = SessionManager(store, adapter)
    session = await manager.start_active_session(agent_id="tester")
    run_id = (await manager.start_run(session.id, {})).id  # so that the first claim finds it
    faulty.late.add("claim_run")
    async with SessionServer(store=faulty, adapter=adapter, session_id=session.id) as server:
        await until(lambda: faulty.held["claim_run"])
        draining = asyncio.create_task(server.drain(queued="leave"))
        await until(lambda: server.status().draining)
        assert not draining.done()
        faulty.heal()
        await gate.reached()
        assert not draining.done()
        gate.open()
        await draining
        assert (await store.get_run(run_id)).status == RunStatus.COMPLETED


async def test_a_claim_that_is_answered_while_the_server_stops_strands_no_run(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    for turns in range(12):
        server = await open_server(faulty, ScriptedAdapter([Gate()]))
        run_id = await server.submit_run({})
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.stop()

        async def is_free(run_id: str = run_id) -> bool:  # the store puts back what nobody took
            return (await store.get_run(run_id)).status in (RunStatus.PENDING, RunStatus.CANCELLED)

        await until_stored(is_free)


async def test_a_recount_reads_the_queue_in_pages(store: SessionStore) -> None:
    count = 2 * RECOUNT_PAGE + 7
    faulty, gate = FaultyStore(store), Gate()
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    runs = [
        await store.enqueue_run(Run.new(session_id=session.id, input=None, id=f"run {n}"))
        for n in range(count + 1)
    ]
    faulty_store: Any = faulty
    async with SessionServer(
        store=faulty_store, adapter=ScriptedAdapter([gate]), session_id=session.id
    ) as server:
        await gate.reached()
        await until(lambda: server.status().queued_count == count)
        assert server.status().queued_runs == [run.id for run in runs[1:]]
        before = faulty.calls["list_runs"]
        assert before >= 3
        gate.open()
        await manager.cancel_session(session.id)


async def test_a_recount_that_fails_in_the_middle_keeps_what_was_known(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), clock=clock) as server:
        await server.submit_run({})
        await gate.reached()
        waiting = await server.submit_run({})
        await clock.advance_ms(1_000)
        await until_idle(server)
        faulty.failing["list_runs"] = OSError("gone")
        await server.manager.start_run(server.session_id, {})
        before = faulty.calls["list_runs"]
        await clock.advance_ms(1_000)
        await until(lambda: faulty.calls["list_runs"] > before)
        assert server.status().queued_runs == [waiting]
        faulty.heal()
        await clock.advance_ms(5_000)
        await until(lambda: server.status().queued_count == 2)
        gate.open()


# -- whose callback it is


async def seen_by(server: SessionServer, run_id: str, count: int, seen: list[str]) -> list[str]:
    await server.await_run(run_id)
    await until(lambda: len(seen) >= count)
    for _ in range(20):
        await asyncio.sleep(0)
    return seen


async def test_a_callback_is_that_of_the_submission_that_was_accepted(store: SessionStore) -> None:
    gate, first, second = Gate(), list[str](), list[str]()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        await server.submit_run({})  # takes the slot

        def mine(event: Event) -> None:
            first.append(str(event.type))

        def anothers(event: Event) -> None:
            second.append(str(event.type))

        await server.submit_run({"n": 1}, run_id="mine", event_callback=mine)
        with pytest.raises(Conflict):
            await server.submit_run({"n": 2}, run_id="mine", event_callback=anothers)
        await server.submit_run({"n": 1}, run_id="mine", event_callback=mine)
        await server.submit_run({"n": 1}, run_id="mine", event_callback=anothers)
        gate.open()
        assert await seen_by(server, "mine", 2, first) == ["run_started", "run_completed"]
        assert second == []
        await server.submit_run({"n": 1}, run_id="mine", event_callback=anothers)
        assert not server._dispatcher.queue.has_own


async def test_of_submissions_at_once_the_accepted_ones_callback_is_called(store: SessionStore) -> None:
    """The run starts before any of them has its answer."""
    faulty, gate = FaultyStore(store), Gate()
    seen: dict[int, list[str]] = {n: [] for n in range(5)}
    async with await open_server(faulty, ScriptedAdapter([gate])) as server:

        async def submit(n: int) -> str:
            def callback(event: Event) -> None:
                seen[n].append(str(event.type))

            return await server.submit_run({"n": n}, run_id="mine", event_callback=callback)

        faulty.late.add("enqueue_run")
        submitting = [asyncio.create_task(submit(n)) for n in seen]
        await gate.reached()
        faulty.heal()
        answers = await asyncio.gather(*submitting, return_exceptions=True)
        accepted = answers.index("mine")
        assert [type(answer) for answer in answers].count(Conflict) == 4
        gate.open()
        assert await seen_by(server, "mine", 2, seen[accepted]) == ["run_started", "run_completed"]
        assert [events for n, events in seen.items() if n != accepted] == [[]] * 4


async def test_a_callback_given_again_after_a_restart_is_called(store: SessionStore) -> None:
    """The run waits in the queue of its session; the process that was given the first callback is gone."""
    gate, seen = Gate(), list[str]()
    server = await open_server(store, ScriptedAdapter([gate]))
    await server.submit_run({})
    await gate.reached()
    await server.submit_run({"n": 1}, run_id="mine", event_callback=lambda event: seen.append("lost"))
    await server.stop()
    gate = Gate()
    async with SessionServer(
        store=store, adapter=ScriptedAdapter([gate]), session_id=server.session_id
    ) as successor:
        await gate.reached()
        await successor.submit_run({"n": 2}, run_id="other")
        await successor.submit_run(
            {"n": 1}, run_id="mine", event_callback=lambda event: seen.append(str(event.type))
        )
        gate.open()
        await successor.drain()
    assert set(seen) <= {"run_started", "run_completed"}


async def test_a_run_whose_claim_is_answered_late_keeps_its_callback(store: SessionStore) -> None:
    """The queue is counted when the claim is made, and before its answer has come."""
    faulty, clock, seen = FaultyStore(store), JumpingClock(), list[str]()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        faulty.late.add("claim_run")
        run_id = await server.submit_run({}, event_callback=lambda event: seen.append(str(event.type)))
        await until(lambda: faulty.held["claim_run"])
        counted = faulty.calls["list_runs"]
        await server.manager.start_run(server.session_id, {})  # news, so that it is counted
        while faulty.calls["list_runs"] == counted:
            await clock.advance_ms(100)
        await clock.advance_ms(100)
        faulty.heal()
        await server.await_run(run_id)
        await until(lambda: "run_completed" in seen)


# -- nothing is collected


async def test_submissions_that_are_cancelled_or_refused_leave_nothing(store: SessionStore) -> None:
    faulty, gate = FaultyStore(store), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), max_queued_runs=0) as server:
        await server.submit_run({}, run_id="mine")
        await gate.reached()
        faulty.hanging.add("enqueue_run")
        hung = [asyncio.create_task(server.submit_run({}, event_callback=print)) for _ in range(5)]
        await until(lambda: faulty.calls["enqueue_run"] == 6)
        for task in hung:
            task.cancel()
        await asyncio.wait(hung)
        faulty.heal()
        refused = await asyncio.gather(
            *(server.submit_run({"n": n}, run_id="mine", event_callback=print) for n in range(5)),
            *(server.submit_run({"n": n}, event_callback=print) for n in range(5)),
            return_exceptions=True,
        )
        assert all(isinstance(error, Exception) for error in refused)
        assert not server._dispatcher.queue._submissions
        assert server._answers_here().tasks == []
        gate.open()
        await server.drain()


async def test_waiting_that_is_given_up_leaves_nothing(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        run_id = await server.submit_run({})
        queued = await server.submit_run({})
        await gate.reached()
        waiting = [
            asyncio.create_task(call)
            for _ in range(5)
            for call in (server.await_run(run_id), server.await_run(queued), server.drain(timeout_ms=None))
        ]
        for _ in range(20):
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await until(lambda: not server._answers_here().tasks)
        assert not server._dispatcher._drains
        assert not server._readers_here()._awaited
        gate.open()


class Abandoned(Observer):
    """Counts the traces of runs that nobody here follows any more."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, run: Run, agent_id: str | None, *, awaited: bool = False) -> RunTrace:
        abandoned = self

        class Trace(RunTrace):
            def abandoned(self) -> None:
                abandoned.count += 1

        return Trace()


@pytest.mark.parametrize("end", ["stop", "crash"])
async def test_a_long_queue_is_let_go_a_part_in_each_turn(store: SessionStore, end: str) -> None:
    gate, queued = Gate(), 3 * ABANDONED_A_TURN
    observed = Abandoned()
    before = set_observer(observed)
    try:
        server = await open_server(store, ScriptedAdapter([gate]), max_queued_runs=queued)
        await server.submit_run({})
        await gate.reached()
        await asyncio.gather(*(server.submit_run({}) for _ in range(queued)))
        if end == "stop":
            await server.stop()
            assert observed.count == queued
        else:
            server.crash(RuntimeError("for the test"))
            told = [observed.count]
            while told[-1] < queued:
                await asyncio.sleep(0)
                told.append(observed.count)
            assert max(later - sooner for sooner, later in pairwise([0, *told])) <= ABANDONED_A_TURN + 1
            await server.stop()
    finally:
        set_observer(before)


async def test_a_run_that_is_submitted_while_a_claim_finds_nothing_is_claimed(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await until_idle(server)
        faulty.late.add("claim_run")
        server._dispatcher.look()
        await until(lambda: faulty.held["claim_run"] == 1)
        news = faulty.calls["wait_for_runs"]
        run_id = await server.submit_run({})
        await until(lambda: faulty.calls["wait_for_runs"] > news and not faulty.asked)
        faulty.heal()
        await server.await_run(run_id)


async def test_a_run_that_goes_on_elsewhere_stops_its_adapter_here(store: SessionStore) -> None:
    faulty, gate = FaultyStore(store), Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(faulty, adapter) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        await until_idle(server)
        faulty.hanging.add("list_runs")  # it sees nothing in between
        run = await store.get_run(run_id)
        await store.flush(ExecutionResult(run=run.with_status("pending")), fence=run.fence)
        again = await store.claim_run(server.session_id)
        assert again is not None
        assert adapter.cancel_calls == []
        faulty.heal()
        await until(lambda: adapter.cancel_calls == [run_id])
        await until(lambda: not server.status().in_flight_runs)
        assert (await store.get_run(run_id)).attempt == again.attempt == run.attempt + 1
        assert (await store.get_run(run_id)).status == RunStatus.RUNNING


async def test_the_queue_is_not_recounted_at_each_look(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await server.execute_run({})
        await until_idle(server)
        before = faulty.calls["list_runs"]
        for _ in range(5):
            server._dispatcher.look()
            await until_idle(server)
        assert faulty.calls["list_runs"] <= before + 1
        await clock.advance_ms(1_000)  # and once more when things have calmed down
        await until(lambda: faulty.calls["list_runs"] > before)


async def test_orphans_that_a_server_finds_at_its_start_go_before_what_waits(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    adapter = ScriptedAdapter([])
    manager = SessionManager(store, adapter)
    session = await manager.start_active_session(agent_id="tester")
    runs = [await manager.start_run(session.id, {}) for _ in range(4)]
    claimed = await store.claim_run(session.id)
    assert claimed is not None
    await store.release_run(claimed.fence)
    faulty.late.add("list_orphaned_runs")
    server = SessionServer(
        store=faulty, adapter=adapter, session_id=session.id, max_concurrent_runs=2, on_orphan="requeue"
    )
    async with server:
        await until(lambda: faulty.held["list_orphaned_runs"])
        for _ in range(50):
            await asyncio.sleep(0)
        assert adapter.started == []
        faulty.heal()
        for run in runs:
            await server.await_run(run.id)
    assert runs[0].id in adapter.started[:2]  # two slots are filled at once
