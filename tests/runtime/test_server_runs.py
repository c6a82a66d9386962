"""A session server's runs: order, slots, waiting, cancelling, draining, stopping."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_runtime import Event, RunStatus, SessionManager, SessionServer, SessionStatus
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, fail, finish, tokens
from asm_runtime.errors import (
    ActorStopped,
    AwaitTimeout,
    Conflict,
    Draining,
    DrainTimeout,
    InvalidTransition,
    ProviderError,
    QueueFull,
    RunCancelled,
    RunFailed,
    RunNotFound,
    SessionNotFound,
    ValidationError,
)
from asm_runtime.ports import SessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, types_of, until, until_stored


async def test_the_program_of_the_contract(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(3), finish({"ok": True})])) as server:
        run_id = await server.submit_run({"command": "pytest -q"})
        seen: list[Event] = []
        async with server.subscribe(from_sequence=0, run_id=run_id) as events:
            async for event in events:
                seen.append(event)
                if event.is_terminal:
                    break
        result = await server.await_run(run_id)
    assert result.output == {"ok": True}
    assert [str(event.type) for event in seen] == [
        "run_started",
        *["message_streamed"] * 3,
        "run_completed",
    ]
    assert result.last_sequence_number == seen[-1].sequence_number


async def test_runs_start_in_the_order_of_their_submission_and_never_exceed_the_slots(
    store: SessionStore,
) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(store, adapter, max_concurrent_runs=2) as server:
        submitted = [await server.submit_run({"n": n}) for n in range(6)]
        await gate.reached(2)
        status = server.status()
        assert status.in_flight_runs == submitted[:2]
        assert status.queued_runs == submitted[2:]
        assert (status.in_flight_count, status.queued_count) == (2, 4)
        for number, run_id in enumerate(submitted):
            gate.open(run_id)
            await server.await_run(run_id)
            if number < 4:
                await gate.reached(number + 3)
                assert len(gate.waiting) <= 2
        # Two that start at once read the store at once: which of them reaches its adapter first is open.
        assert sorted(adapter.started[:2]) == sorted(submitted[:2])
        assert adapter.started[2:] == submitted[2:]


async def test_awaiting_answers_for_runs_that_are_done_and_again(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        run_id = await server.submit_run({"prompt": "x"})
        first = await server.await_run(run_id)
        assert await server.await_run(run_id) == first
        other = await server.execute_run({"prompt": "y"}, await_timeout_ms=60_000)
        assert other.output == {"content": "y"}
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=first.session_id) as again:
        assert await again.await_run(run_id) == first


async def test_a_failed_run_raises_the_same_today_as_after_a_restart(store: SessionStore) -> None:
    error = ProviderError("no", details={"x": 1})
    async with await open_server(store, ScriptedAdapter([fail(error)])) as server:
        run_id = await server.submit_run({})
        with pytest.raises(ProviderError) as today:
            await server.await_run(run_id)
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=server.session_id) as again:
        with pytest.raises(ProviderError) as later:
            await again.await_run(run_id)
    assert today.value.to_dict() == later.value.to_dict()
    assert (later.value.session_id, later.value.run_id) == (server.session_id, run_id)


async def test_unknown_runs_are_not_found(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        for call in (server.await_run, server.cancel_run, server.interrupt_run):
            with pytest.raises(RunNotFound):
                await call("run_unknown")


async def test_waiting_ends_at_its_timeout_and_the_run_goes_on(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate()
    async with await open_server(store, ScriptedAdapter([gate]), clock=clock) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        waiting = asyncio.create_task(server.await_run(run_id, timeout_ms=1000))
        await clock.until_timers(2)
        await clock.advance_ms(1000)
        with pytest.raises(AwaitTimeout):
            await waiting
        gate.open()
        await server.await_run(run_id)


async def test_cancelling_a_waiter_stops_the_waiting_only(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        run_id = await server.submit_run({})
        waiting = asyncio.create_task(server.await_run(run_id))
        await gate.reached()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.open()
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED


async def test_a_full_queue_refuses_and_stores_nothing(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(
        store, ScriptedAdapter([gate]), max_concurrent_runs=1, max_queued_runs=2
    ) as server:
        for _ in range(3):
            await server.submit_run({})
        with pytest.raises(QueueFull) as full:
            await server.submit_run({})
        assert full.value.retryable
        assert full.value.code == "max_runs_exceeded"
        assert len(await store.list_runs(server.session_id)) == 3
        gate.open()


async def test_without_a_queue_only_what_can_start_is_accepted(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate]), max_queued_runs=0) as server:
        run_id = await server.submit_run({})
        with pytest.raises(QueueFull):
            await server.submit_run({})
        gate.open()
        await server.await_run(run_id)
        await server.submit_run({})


async def test_when_awaiting_returns_the_slot_and_the_place_are_free(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter(), max_queued_runs=0) as server:
        for _ in range(20):
            await server.await_run(await server.submit_run({"prompt": "x"}))


async def test_the_same_run_id_is_accepted_once(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(store, adapter, max_queued_runs=0) as server:
        assert await server.submit_run({"n": 1}, run_id="mine") == "mine"
        assert await server.submit_run({"n": 1}, run_id="mine", run_timeout_ms=5) == "mine"
        with pytest.raises(Conflict):
            await server.submit_run({"n": 2}, run_id="mine")
        gate.open()
        await server.await_run("mine")
        assert await server.submit_run({"n": 1}, run_id="mine") == "mine"
    assert adapter.started == ["mine"]


async def test_the_same_run_id_submitted_by_many_at_once_runs_once(store: SessionStore) -> None:
    adapter = ScriptedAdapter()
    async with await open_server(store, adapter) as server:
        await asyncio.gather(*(server.submit_run({"prompt": "x"}, run_id="mine") for _ in range(20)))
        await server.await_run("mine")
    assert adapter.started == ["mine"]


async def test_a_queued_run_that_is_cancelled_never_starts(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(store, adapter) as server:
        first = await server.submit_run({})
        second = await server.submit_run({})
        waiting = asyncio.create_task(server.await_run(second))
        await gate.reached()
        await server.cancel_run(second)
        with pytest.raises(RunCancelled):
            await waiting
        assert second not in server.status().queued_runs
        gate.open()
        await server.await_run(first)
        assert adapter.started == [first]
        assert len(await terminal_events(store, server.session_id, second)) == 1


async def test_a_run_in_flight_that_is_cancelled_stops_its_adapter(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([tokens(1), gate])
    async with await open_server(store, adapter) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        await server.cancel_run(run_id)
        run = await store.get_run(run_id)
        assert run.status == RunStatus.CANCELLED
        assert adapter.cancelled == [run_id]
        assert server.status().in_flight_count == 0
        await server.cancel_run(run_id)
        (end,) = await terminal_events(store, server.session_id, run_id)
        assert end.data["reason"] == "cancelled"
        assert (await types_of(store, server.session_id, run_id))[-1] == "run_cancelled"
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)


async def test_interrupting_is_for_runs_in_flight_here(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        run_id, queued = await server.submit_run({}), await server.submit_run({})
        await gate.reached()
        with pytest.raises(RunNotFound):
            await server.interrupt_run(queued)
        await server.interrupt_run(run_id)
        (end,) = await terminal_events(store, server.session_id, run_id)
        assert end.data["reason"] == "interrupted"
        gate.open()


@pytest.mark.parametrize("turns", range(12))
async def test_cancel_against_complete_leaves_one_end(store: SessionStore, turns: int) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        gate.open()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.gather(server.cancel_run(run_id), server.cancel_run(run_id))
        run = await store.get_run(run_id)
        (end,) = await terminal_events(store, server.session_id, run_id)
        assert end.type == f"run_{run.status}"


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_cancel_against_fail_leaves_one_end(store: SessionStore, turns: int) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate, fail(RunFailed("no"))])) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        gate.open()
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.cancel_run(run_id)
        run = await store.get_run(run_id)
        (end,) = await terminal_events(store, server.session_id, run_id)
        assert end.type == f"run_{run.status}"


@pytest.mark.parametrize("turns", range(0, 30, 2))
async def test_cancelling_right_after_submitting_leaves_one_end(store: SessionStore, turns: int) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(2)])) as server:
        run_id = await server.submit_run({})
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.cancel_run(run_id)
        run = await store.get_run(run_id)
        assert run.status.is_terminal
        assert len(await terminal_events(store, server.session_id, run_id)) == 1


async def test_a_provider_that_never_returns_is_left_behind(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate(stubborn=True)
    async with await open_server(
        store, ScriptedAdapter([gate, tokens(1)]), clock=clock, cancel_grace_ms=1000
    ) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        cancelling = asyncio.create_task(server.cancel_run(run_id))
        await clock.until_timers(2)
        await clock.advance_ms(1000)
        await cancelling
        assert (await store.get_run(run_id)).status == RunStatus.CANCELLED
        assert server.status().in_flight_count == 0
        gate.open()
        await asyncio.sleep(0)
        assert (await types_of(store, server.session_id, run_id))[-1] == "run_cancelled"


async def test_draining_refuses_new_runs_and_waits_for_its_own(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        run_id = await server.submit_run({}, run_id="mine")
        await server.submit_run({})
        draining = asyncio.create_task(server.drain())
        await until(lambda: server.status().draining)
        with pytest.raises(Draining) as refused:
            await server.submit_run({})
        assert refused.value.retryable
        assert await server.submit_run({}, run_id="mine") == run_id
        with pytest.raises(Draining):
            await server.submit_run({}, run_id="other")
        assert not draining.done()
        gate.open()
        await draining
        statuses = {run.status for run in await store.list_runs(server.session_id)}
        assert statuses == {RunStatus.COMPLETED}


async def test_draining_may_leave_the_queue_to_others(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        first, second = await server.submit_run({}), await server.submit_run({})
        await gate.reached()
        draining = asyncio.create_task(server.drain(queued="leave"))
        await until(lambda: server.status().draining)
        gate.open()
        await draining
        assert (await store.get_run(first)).status == RunStatus.COMPLETED
        assert (await store.get_run(second)).status == RunStatus.PENDING


async def test_a_drain_that_takes_too_long_goes_on_refusing(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate()
    async with await open_server(store, ScriptedAdapter([gate]), clock=clock) as server:
        await server.submit_run({})
        await gate.reached()
        draining = asyncio.create_task(server.drain(timeout_ms=500))
        await clock.until_timers(2)
        await clock.advance_ms(500)
        with pytest.raises(DrainTimeout):
            await draining
        with pytest.raises(Draining):
            await server.submit_run({})
        gate.open()
        await server.drain()


async def test_stopping_keeps_the_queue_and_cancels_what_runs(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    server = await open_server(store, adapter)
    first, second = await server.submit_run({}), await server.submit_run({})
    waiting_first = asyncio.create_task(server.await_run(first))
    waiting_second = asyncio.create_task(server.await_run(second))
    await gate.reached()
    await server.stop()
    with pytest.raises(RunCancelled) as cancelled:
        await waiting_first
    assert cancelled.value.details["reason"] == "server_stopped"
    with pytest.raises(ActorStopped):
        await waiting_second
    assert (await store.get_run(second)).status == RunStatus.PENDING
    assert (await store.get_session(server.session_id)).status == SessionStatus.ACTIVE
    gate.open()
    async with SessionServer(store=store, adapter=adapter, session_id=server.session_id) as successor:
        await successor.await_run(second)
    assert adapter.started == [first, second]


async def test_stopping_may_queue_again_what_runs(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    server = await open_server(store, adapter, on_orphan="requeue")
    first, second = await server.submit_run({}), await server.submit_run({})
    await gate.reached()
    await server.stop()
    run = await store.get_run(first)
    assert (run.status, run.owner, run.attempt) == (RunStatus.PENDING, None, 1)
    gate.open()
    async with SessionServer(store=store, adapter=adapter, session_id=server.session_id) as successor:
        assert (await successor.await_run(second)).status == RunStatus.COMPLETED
        assert (await successor.await_run(first)).status == RunStatus.COMPLETED
    assert adapter.started == [first, first, second]
    assert (await types_of(store, server.session_id, first)).count("run_started") == 2


async def test_stopping_may_drain_first(store: SessionStore) -> None:
    gate = Gate()
    server = await open_server(store, ScriptedAdapter([gate]), stop_drain_ms=60_000)
    runs = [await server.submit_run({}) for _ in range(3)]
    await gate.reached()
    stopping = asyncio.create_task(server.stop())
    gate.open()
    await stopping
    for run_id in runs:
        assert (await store.get_run(run_id)).status == RunStatus.COMPLETED


async def test_a_stopped_server_says_so(store: SessionStore) -> None:
    server = SessionServer(store=store, adapter=ScriptedAdapter(), session_opts={"agent_id": "a"})
    with pytest.raises(ActorStopped):
        await server.submit_run({})
    await server.start()
    assert await server.start() is server
    await server.stop()
    await server.stop()
    for call in (server.submit_run({}), server.await_run("x"), server.cancel_run("x"), server.drain()):
        with pytest.raises(ActorStopped):
            await call
    with pytest.raises(ActorStopped):
        server.status()
    with pytest.raises(ActorStopped):
        server.subscribe()
    with pytest.raises(ActorStopped):
        await server.start()


async def test_attaching_activates_pauses_or_refuses(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    pending = await manager.start_session(agent_id="a")
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=pending.id):
        assert (await store.get_session(pending.id)).status == SessionStatus.ACTIVE
    await manager.pause_session(pending.id)
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=pending.id) as server:
        run_id = await server.submit_run({"prompt": "x"})
        for _ in range(50):
            await asyncio.sleep(0)
        assert (await store.get_run(run_id)).status == RunStatus.PENDING
        await manager.resume_session(pending.id)
        await server.await_run(run_id)
    await manager.complete_session(pending.id)
    with pytest.raises(InvalidTransition):
        await SessionServer(store=store, adapter=ScriptedAdapter(), session_id=pending.id).start()
    with pytest.raises(SessionNotFound):
        await SessionServer(store=store, adapter=ScriptedAdapter(), session_id="nope").start()
    assert (await types_of(store, pending.id)).count("session_started") == 1


async def test_a_session_is_attached_to_or_created(store: SessionStore) -> None:
    opts = {"agent_id": "tester"}
    servers = [
        SessionServer(store=store, adapter=ScriptedAdapter(), session_id="mine", session_opts=opts)
        for _ in range(4)
    ]
    await asyncio.gather(*(server.start() for server in servers))
    assert {server.session_id for server in servers} == {"mine"}
    assert await types_of(store, "mine") == ["session_created", "session_started"]
    await asyncio.gather(*(server.stop() for server in servers))
    another = {"agent_id": "another", "id": "mine"}
    async with SessionServer(
        store=store, adapter=ScriptedAdapter(), session_id="mine", session_opts=another
    ) as again:
        await again.execute_run({"prompt": "x"})
    assert (await store.get_session("mine")).agent_id == "tester"
    await servers[0].manager.complete_session("mine")
    with pytest.raises(InvalidTransition):
        await SessionServer(
            store=store, adapter=ScriptedAdapter(), session_id="mine", session_opts=opts
        ).start()
    with pytest.raises(Conflict):
        await SessionServer(store=store, adapter=ScriptedAdapter(), session_opts=another).start()


async def test_bad_options_are_refused_before_anything_is_stored(store: SessionStore) -> None:
    bad: list[dict[str, Any]] = [
        {},
        {"session_id": "s", "session_opts": {"agent_id": "a", "id": "t"}},
        {"session_id": "s", "max_concurrent_runs": 0},
        {"session_id": "s", "max_queued_runs": -1},
        {"session_id": "s", "on_orphan": "ignore"},
        {"session_id": "s", "cancel_grace_ms": "1"},
        {"session_id": "s", "max_attempts": 0},
        {"session_id": "s", "requeue_backoff_ms": -1},
        {"session_id": "s", "default_run_options": {"run_timeout_ms": -1}},
    ]
    for options in bad:
        with pytest.raises(ValidationError):
            SessionServer(store=store, adapter=ScriptedAdapter(), **options)
    with pytest.raises(TypeError):
        SessionServer(store=store, adapter=ScriptedAdapter(), session_id="s", nonsense=1)  # type: ignore[call-arg]
    assert await store.list_sessions() == []


async def test_default_options_lie_under_those_of_a_run(store: SessionStore) -> None:
    seen: list[str] = []

    def default(event: Event) -> None:
        seen.append(f"default {event.type}")

    def own(event: Event) -> None:
        seen.append(f"own {event.type}")

    adapter = ScriptedAdapter()
    defaults = {"adapter_opts": {"a": 1, "b": 1}, "event_callback": default}
    async with await open_server(store, adapter, default_run_options=defaults) as server:
        await server.execute_run({"prompt": "x"}, adapter_opts={"b": 2}, event_callback=own)
        await until(lambda: "own run_completed" in seen)
    assert adapter.contexts[0].adapter_opts == {"a": 1, "b": 2}
    assert "default run_started" in seen


async def test_a_run_submitted_through_the_store_is_taken_up(store: SessionStore) -> None:
    adapter = ScriptedAdapter()
    async with await open_server(store, adapter) as server:
        run = await server.manager.start_run(server.session_id, {"prompt": "x"})
        assert (await server.await_run(run.id)).output == {"content": "x"}


async def test_the_end_of_the_session_ends_the_runs_of_its_server(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with await open_server(store, adapter) as server:
        first, second = await server.submit_run({}), await server.submit_run({})
        await gate.reached()
        await server.manager.cancel_session(server.session_id)
        for run_id in (first, second):
            with pytest.raises(RunCancelled):
                await server.await_run(run_id)
            assert len(await terminal_events(store, server.session_id, run_id)) == 1
        await until(lambda: adapter.cancelled == [first])
        with pytest.raises(InvalidTransition):
            await server.submit_run({})


async def test_a_deleted_session_has_no_runs_to_wait_for(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate, tokens(1)])
    async with await open_server(store, adapter) as server:
        first, second = await server.submit_run({}), await server.submit_run({})
        waiting = [asyncio.create_task(server.await_run(run_id)) for run_id in (first, second)]
        await gate.reached()
        await store.delete_session(server.session_id)
        for task in waiting:
            with pytest.raises(RunNotFound):
                await task
        with pytest.raises(SessionNotFound):
            await server.submit_run({})


async def test_a_parallel_server_shares_the_queue_and_the_slots(store: SessionStore) -> None:
    gate = Gate()
    one, two = ScriptedAdapter([gate]), ScriptedAdapter([gate])
    async with (
        await open_server(store, one, max_concurrent_runs=2) as first,
        SessionServer(store=store, adapter=two, session_id=first.session_id, max_concurrent_runs=2) as second,
    ):
        runs = [await server.submit_run({}) for server in (first, second) for _ in range(4)]
        await gate.reached(2)
        running = await store.list_runs(first.session_id, status="running")
        assert len(running) == 2
        gate.open()
        for run_id in runs:
            assert (await second.await_run(run_id)).status == RunStatus.COMPLETED
    assert sorted(one.started + two.started) == sorted(runs)


async def test_what_others_queue_is_seen(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        await server.submit_run({})
        await gate.reached()
        run = await server.manager.start_run(server.session_id, {})

        async def seen() -> bool:
            return run.id in server.status().queued_runs

        await until_stored(seen)
        gate.open()
        await server.await_run(run.id)


async def test_the_last_of_many_runs_is_as_good_as_the_first(store: SessionStore) -> None:
    async with await open_server(
        store, ScriptedAdapter([]), max_concurrent_runs=4, max_queued_runs=500
    ) as server:
        runs = [await server.submit_run({"n": n}) for n in range(300)]
        results = [await server.await_run(run_id) for run_id in runs]
        assert [result.run_id for result in results] == runs
        assert server.status().queued_count == 0
        assert server.status().in_flight_count == 0
        assert not server._dispatcher.queue._submissions
        assert not server._readers_here()._awaited


async def test_a_callback_may_wait_for_its_own_run(store: SessionStore) -> None:
    answers: list[Any] = []
    async with await open_server(store, ScriptedAdapter()) as server:

        async def callback(event: Event) -> None:
            if event.type == "run_started":
                answers.append(await server.await_run(event.run_id or ""))

        run_id = await server.submit_run({"prompt": "x"}, event_callback=callback)
        result = await server.await_run(run_id)
        await until(lambda: answers)
        assert answers == [result]


async def test_awaiting_a_run_that_starts_at_once_reads_nothing(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    clock, gate = JumpingClock(), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), clock=clock) as server:
        faulty.hanging.add("claim_run")
        waiting = [asyncio.create_task(server.execute_run({}))]
        await until(lambda: server._readers_here()._awaited)
        faulty.heal()
        (run_id,) = await gate.reached()
        waiting += [asyncio.create_task(server.await_run(run_id)) for _ in range(3)]
        await until(lambda: len(server._readers_here()._awaited.get(run_id, ())) == 4)
        gate.open()
        assert {result.run_id for result in await asyncio.gather(*waiting)} == {run_id}
        await clock.advance_ms(1_000)
        assert (
            faulty.calls["get_run"] == faulty.calls["get_events"] == faulty.calls["get_latest_sequence"] == 0
        )


@pytest.mark.parametrize("by", ["server", "manager"])
async def test_those_who_await_a_queued_run_learn_that_it_was_cancelled(store: SessionStore, by: str) -> None:
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate])) as server:
        await server.submit_run({})
        queued = await server.submit_run({})
        waiting = [asyncio.create_task(server.await_run(queued)) for _ in range(3)]
        await until(lambda: len(server._readers_here()._awaited.get(queued, ())) == 3)
        if by == "server":
            await server.cancel_run(queued)
        else:
            await server.manager.cancel_run(queued)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [RunCancelled] * 3
        gate.open()


async def test_each_who_awaits_a_run_has_an_outcome_of_its_own(store: SessionStore) -> None:
    """An exception that is raised by many keeps the frames of all; a dict may be changed by its holder."""
    gate = Gate()
    async with await open_server(store, ScriptedAdapter([gate, finish({"items": [1]})])) as server:
        run_id = await server.submit_run({})
        awaiting = [asyncio.create_task(server.await_run(run_id)) for _ in range(3)]
        await gate.reached()
        gate.open()
        results = await asyncio.gather(*awaiting)
        results[0].output["items"].append(2)
        results[0].provider_metadata["mine"] = True
        assert [result.output["items"] for result in results] == [[1, 2], [1], [1]]
        assert "mine" not in results[1].provider_metadata
        assert (await store.get_run(run_id)).output == {"items": [1]}

    async with await open_server(store, ScriptedAdapter([gate, fail(RunFailed("no"))])) as server:
        run_id = await server.submit_run({})
        awaiting = [asyncio.create_task(server.await_run(run_id)) for _ in range(3)]
        await gate.reached()
        gate.open()
        errors = await asyncio.gather(*awaiting, return_exceptions=True)
        assert len({id(error) for error in errors}) == 3
        assert {str(error) for error in errors} == {"no"}
        assert {getattr(error, "run_id", None) for error in errors} == {run_id}


async def test_when_a_run_is_answered_its_slot_and_its_place_are_free(store: SessionStore) -> None:
    gate = Gate()
    async with await open_server(
        store,
        ScriptedAdapter(scripts=[[gate], *[[] for _ in range(20)]]),
        max_concurrent_runs=1,
        max_queued_runs=3,
    ) as server:

        async def one(number: int) -> None:
            run_id = await server.submit_run({"n": number})
            for _ in range(number * 3):
                await asyncio.sleep(0)
            await server.await_run(run_id)
            status = server.status()
            assert run_id not in status.in_flight_runs
            assert run_id not in status.queued_runs

        waiting = [asyncio.create_task(one(number)) for number in range(4)]
        await gate.reached()
        await until(lambda: server.status().queued_count == 3)
        gate.open()
        await asyncio.gather(*waiting)
        for number in range(10):
            await one(number)


async def test_those_who_await_a_run_of_a_session_that_is_deleted_are_told(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        await server.manager.pause_session(server.session_id)
        run_id = await server.submit_run({})
        waiting = asyncio.create_task(server.await_run(run_id))
        await until(lambda: server._readers_here()._feed and server._readers_here()._running_feed().position)
        await store.delete_session(server.session_id)
        with pytest.raises(RunNotFound):
            await waiting
