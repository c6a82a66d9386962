"""Many sessions in one process: found, restarted, kept apart."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Any

import pytest

from asm_runtime import RunStatus, SessionManager, SessionSupervisor
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate
from asm_runtime.errors import (
    ActorStopped,
    Conflict,
    Draining,
    RunFailed,
    SessionNotFound,
    StoreUnavailable,
    ValidationError,
)
from asm_runtime.ports import SessionStore
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import terminal_events, types_of, until

OPTS = {"agent_id": "tester"}


async def test_sessions_are_found_by_their_id(store: SessionStore) -> None:
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter()) as supervisor:
        first = await supervisor.start_session(session_opts=OPTS)
        second = await supervisor.start_session(session_opts=OPTS | {"id": "mine"})
        assert supervisor.whereis(first.session_id) is first
        assert supervisor.whereis("mine") is second
        assert supervisor.whereis("other") is None
        assert supervisor.list_sessions() == [first.session_id, "mine"]
        await supervisor.stop_session("mine")
        await supervisor.stop_session("mine")
        assert supervisor.whereis("mine") is None
        assert supervisor.list_sessions() == [first.session_id]
    assert not first.is_running


async def test_a_session_is_served_once(store: SessionStore) -> None:
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter()) as supervisor:
        server = await supervisor.start_session(session_opts=OPTS)
        again = await asyncio.gather(
            *(supervisor.start_session(session_id=server.session_id) for _ in range(10))
        )
        assert set(again) == {server}
        with pytest.raises(Conflict):
            await supervisor.start_session(session_id=server.session_id, max_concurrent_runs=2)
        await supervisor.stop_session(server.session_id)
        fresh = await supervisor.start_session(session_id=server.session_id, max_concurrent_runs=2)
        assert fresh.max_concurrent_runs == 2


async def test_what_cannot_start_is_not_kept(store: SessionStore) -> None:
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter()) as supervisor:
        with pytest.raises(SessionNotFound):
            await supervisor.start_session(session_id="unknown")
        with pytest.raises(ValidationError):
            await supervisor.start_session(session_opts=OPTS, max_queued_runs=-1)
        with pytest.raises(ValidationError):
            await supervisor.start_session()
        bad_opts: Any = ([], "ci", 0, OPTS | {"id": ""}, OPTS | {"id": 0})
        for opts in bad_opts:
            for session_id in (None, "mine"):
                with pytest.raises(ValidationError):
                    await supervisor.start_session(session_id=session_id, session_opts=opts)
        with pytest.raises(TypeError):
            await supervisor.start_session(session_id="x", nonsense=1)  # type: ignore[call-arg]
        assert supervisor.list_sessions() == []
        assert await store.list_sessions() == []


async def test_a_crashed_server_is_restarted_on_its_own_session(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    async with SessionSupervisor(store=store, adapter=adapter) as supervisor:
        server = await supervisor.start_session(session_opts=OPTS)
        in_flight, queued = await server.submit_run({}), await server.submit_run({})
        waiting = asyncio.create_task(server.await_run(queued))
        await gate.reached()
        server.crash(RuntimeError("for the test"))
        with pytest.raises(ActorStopped):
            await waiting
        await until(lambda: supervisor.whereis(server.session_id))
        successor = supervisor.whereis(server.session_id)
        assert successor is not None
        assert successor is not server
        gate.open()
        with pytest.raises(RunFailed) as orphaned:
            await successor.await_run(in_flight)
        assert orphaned.value.code == "orphaned"
        assert (await successor.await_run(queued)).status == RunStatus.COMPLETED
        assert len(await store.list_sessions()) == 1
        assert len(await terminal_events(store, server.session_id, in_flight)) == 1
        assert (await types_of(store, server.session_id)).count("session_started") == 1


async def test_one_sessions_crashes_touch_no_other(store: SessionStore) -> None:
    gate = Gate()
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter([gate]), max_restarts=2) as supervisor:
        calm = await supervisor.start_session(session_opts=OPTS)
        run_id = await calm.submit_run({})
        await gate.reached()
        wild = (await supervisor.start_session(session_opts=OPTS)).session_id
        crashed: list[object] = [None]
        for _ in range(3):
            await until(lambda: supervisor.whereis(wild) not in crashed)
            server = supervisor.whereis(wild)
            assert server is not None
            server.crash(RuntimeError("again"))
            crashed.append(server)
        await until(lambda: wild not in supervisor._children)
        assert supervisor.whereis(calm.session_id) is calm
        gate.open()
        await calm.await_run(run_id)


async def test_a_server_that_crashes_in_an_outage_has_a_successor_when_that_is_over(
    store: SessionStore,
) -> None:
    clock = JumpingClock()
    faulty: Any = FaultyStore(store)
    async with SessionSupervisor(store=faulty, adapter=ScriptedAdapter(), clock=clock) as supervisor:
        server = await supervisor.start_session(session_opts=OPTS)
        faulty.failing["get_session"] = StoreUnavailable("failing over")
        server.crash(RuntimeError("for the test"))
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await supervisor.start_session(session_id=server.session_id)
            await clock.advance_ms(10_000)
        faulty.heal()
        await clock.advance_ms(10_000)
        await until(lambda: supervisor.whereis(server.session_id))
        successor = supervisor.whereis(server.session_id)
        assert successor is not None
        await successor.execute_run({})


async def test_a_server_asks_its_store_for_little_when_it_starts(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    async with SessionSupervisor(store=faulty, adapter=ScriptedAdapter()) as supervisor:
        server = await supervisor.start_session(session_opts=OPTS)
        await until(lambda: faulty.calls["wait_for_runs"] == 2 and faulty.calls["claim_run"])
        await supervisor.stop_session(server.session_id)
        assert faulty.calls == {"flush": 1, "wait_for_runs": 2, "claim_run": 1}

        faulty.calls.clear()
        await supervisor.start_session(session_id=server.session_id)
        await until(lambda: faulty.calls["list_runs"] and faulty.calls["claim_run"])
        await supervisor.stop_session(server.session_id)
        assert faulty.calls == {
            "get_session": 1,
            "wait_for_runs": 2,
            "list_orphaned_runs": 1,
            "claim_run": 1,
            "list_runs": 1,
        }


async def test_runs_that_others_have_queued_in_a_new_session_start(store: SessionStore) -> None:
    """They come between the write that makes the session and its server's first look."""
    faulty: Any = FaultyStore(store)
    faulty.hanging.add("wait_for_runs")
    async with SessionSupervisor(store=faulty, adapter=ScriptedAdapter()) as supervisor:
        server = await supervisor.start_session(session_opts=OPTS, max_concurrent_runs=2)
        elsewhere = SessionManager(store, ScriptedAdapter())
        runs = [await elsewhere.start_run(server.session_id, {"prompt": str(n)}) for n in range(5)]
        faulty.heal()
        for run in runs:
            assert (await server.await_run(run.id)).status == RunStatus.COMPLETED


async def test_an_idle_session_keeps_little() -> None:
    """Its record and its two events, its server and what its supervisor knows of it."""
    count = 200
    async with (
        InMemorySessionStore() as store,
        SessionSupervisor(store=store, adapter=ScriptedAdapter()) as supervisor,
    ):

        async def start() -> None:
            for _ in range(count):
                await supervisor.start_session(session_opts=OPTS)
            for _ in range(100):
                await asyncio.sleep(0)
            gc.collect()

        await start()  # what is made once is made
        tracemalloc.start()
        try:
            await start()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept / count < 5_500


async def test_draining_all_drains_every_server(store: SessionStore) -> None:
    gate = Gate()
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter([gate])) as supervisor:
        servers = [await supervisor.start_session(session_opts=OPTS) for _ in range(3)]
        runs = [await server.submit_run({}) for server in servers]
        await gate.reached(3)
        draining = asyncio.create_task(supervisor.drain_all())
        await until(lambda: all(server.status().draining for server in servers))
        gate.open()
        await draining
        for server, run_id in zip(servers, runs, strict=True):
            assert (await store.get_run(run_id)).status == RunStatus.COMPLETED
            with pytest.raises(Draining):
                await server.submit_run({})


async def test_defaults_hold_for_every_server(store: SessionStore) -> None:
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter(), max_concurrent_runs=7) as supervisor:
        server = await supervisor.start_session(session_opts=OPTS)
        assert server.max_concurrent_runs == 7
        other = await supervisor.start_session(session_opts=OPTS, max_concurrent_runs=2)
        assert other.max_concurrent_runs == 2
    with pytest.raises(ValidationError):
        SessionSupervisor(store=store, adapter=ScriptedAdapter(), max_concurrent_runs=0)
    with pytest.raises(TypeError):
        SessionSupervisor(store=store, adapter=ScriptedAdapter(), nonsense=1)  # type: ignore[call-arg]


async def test_a_stopped_supervisor_says_so(store: SessionStore) -> None:
    supervisor = SessionSupervisor(store=store, adapter=ScriptedAdapter())
    with pytest.raises(ActorStopped):
        await supervisor.start_session(session_opts=OPTS)
    async with supervisor:
        pass
    with pytest.raises(ActorStopped):
        await supervisor.start_session(session_opts=OPTS)
    assert await store.list_sessions() == []


async def test_a_session_is_attached_to_or_created(store: SessionStore) -> None:
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter()) as supervisor:
        made = await supervisor.start_session(session_id="mine", session_opts=OPTS)
        assert made.session_id == "mine"
        assert await supervisor.start_session(session_id="mine", session_opts=OPTS) is made
        with pytest.raises(Conflict):
            await supervisor.start_session(session_id="mine", session_opts=OPTS, max_queued_runs=1)
        await supervisor.stop_session("mine")
        again = await supervisor.start_session(session_id="mine", session_opts={"agent_id": "another"})
        assert (await store.get_session("mine")).agent_id == "tester"
        assert again is not made
        with pytest.raises(ValidationError):
            await supervisor.start_session(session_id="new", session_opts=OPTS | {"id": "other"})
        with pytest.raises(ValidationError):
            await supervisor.start_session(session_id="new", session_opts=OPTS, max_queued_runs=-1)
        with pytest.raises(ValidationError):
            await supervisor.start_session()
        assert [session.id for session in await store.list_sessions()] == ["mine"]
    assert (await types_of(store, "mine")).count("session_created") == 1


async def test_many_who_create_one_session_serve_the_same(store: SessionStore) -> None:
    async with (
        SessionSupervisor(store=store, adapter=ScriptedAdapter()) as one,
        SessionSupervisor(store=store, adapter=ScriptedAdapter()) as other,
    ):
        served = await asyncio.gather(
            *(
                supervisor.start_session(session_id="mine", session_opts=OPTS)
                for _ in range(4)
                for supervisor in (one, other)
            )
        )
        assert set(served) == {one.whereis("mine"), other.whereis("mine")}
    assert await types_of(store, "mine") == ["session_created", "session_started"]


async def test_a_successor_does_not_create_a_session_that_was_deleted(store: SessionStore) -> None:
    async with SessionSupervisor(store=store, adapter=ScriptedAdapter()) as supervisor:
        server = await supervisor.start_session(session_id="mine", session_opts=OPTS)
        await store.delete_session("mine")
        server.crash(RuntimeError("for the test"))
        await until(lambda: "mine" not in supervisor._children)
    assert await store.list_sessions() == []
