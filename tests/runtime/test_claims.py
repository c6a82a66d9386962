"""Claims whose answers are lost: no run stays `running` with nobody to execute it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_runtime import Run, RunStatus, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate
from asm_runtime.errors import RunFailed, StoreUnavailable
from asm_runtime.ports import SessionStore
from asm_runtime.runtime.claims import LOOKS, _claims
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, until


class LosingStore(FaultyStore):
    """Claims the run, and fails to say so, as often as it is told."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.losses = 0
        self.lost: list[Run] = []

    async def claim_run(self, *args: Any, **options: Any) -> Run | None:
        run: Run | None = await self.store.claim_run(*args, **options)
        if run is not None and self.losses:
            self.losses -= 1
            self.lost.append(run)
            raise StoreUnavailable("the answer was lost")
        return run


async def advance_until(clock: JumpingClock, condition: Any) -> None:
    while not await condition():
        await clock.advance_ms(100)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("policy", ["fail", "requeue"])
async def test_a_run_whose_claim_is_not_answered_is_released(store: SessionStore, policy: Any) -> None:
    losing: Any = LosingStore(store)
    clock = JumpingClock()
    async with await open_server(
        losing, ScriptedAdapter(), clock=clock, on_orphan=policy, max_concurrent_runs=2
    ) as server:
        losing.losses = 2
        runs = [await server.submit_run({"prompt": "x"}) for _ in range(3)]
        waiting = [asyncio.create_task(server.await_run(run_id)) for run_id in runs]

        async def all_done() -> bool:
            return all(task.done() for task in waiting)

        await advance_until(clock, all_done)
        assert len(losing.lost) == 2
        lost = {run.id for run in losing.lost}
        for run_id, task in zip(runs, waiting, strict=True):
            if policy == "requeue" or run_id not in lost:
                assert task.result().output == {"content": "x"}
            else:
                assert isinstance(task.exception(), RunFailed)
        assert server.status().in_flight_count == server.status().queued_count == 0


async def test_a_run_whose_claim_is_not_answered_to_its_caller_is_released(store: SessionStore) -> None:
    losing: Any = LosingStore(store)
    clock = JumpingClock()
    losing.losses = 1
    manager = SessionManager(losing, ScriptedAdapter(), clock=clock)
    session = await manager.start_active_session(agent_id="tester")
    run = await manager.start_run(session.id, {})
    with pytest.raises(StoreUnavailable):
        await manager.execute_run(run.id)
    assert (await store.get_run(run.id)).status == RunStatus.RUNNING

    async def orphaned() -> bool:
        return bool(await store.list_orphaned_runs())

    await advance_until(clock, orphaned)


@pytest.mark.parametrize("executor", ["server", "manager"])
async def test_what_somebody_here_executes_is_not_released(store: SessionStore, executor: str) -> None:
    losing: Any = LosingStore(store)
    clock, gate = JumpingClock(), Gate()
    adapter = ScriptedAdapter(scripts=[[gate], []])
    manager = SessionManager(losing, adapter)
    session = await manager.start_active_session(agent_id="tester")
    run = await manager.start_run(session.id, {})
    executing: asyncio.Future[Any] | None = None
    if executor == "manager":
        executing = asyncio.create_task(manager.execute_run(run.id))
        await gate.reached()
    async with SessionServer(
        store=losing, adapter=adapter, session_id=session.id, clock=clock, max_concurrent_runs=3
    ) as server:
        if executing is None:
            executing = asyncio.create_task(server.await_run(run.id))
            await gate.reached()
        losing.losses = 1
        lost = await server.submit_run({})
        await advance_until(clock, lambda: _ended(store, lost))
        for _ in range(2**LOOKS * 10):
            await clock.advance_ms(100)
        assert not await store.list_orphaned_runs()
        gate.open()
        assert (await executing).run_id == run.id


async def _ended(store: SessionStore, run_id: str) -> bool:
    return (await store.get_run(run_id)).status.is_terminal


async def test_a_claim_that_is_answered_during_the_look_is_known(store: SessionStore) -> None:
    losing: Any = LosingStore(store)
    clock, gate = JumpingClock(), Gate()
    adapter = ScriptedAdapter([gate])
    manager = SessionManager(losing, adapter, clock=clock)
    session = await manager.start_active_session(agent_id="tester")
    losing.losses = 1
    stray = await manager.start_run(session.id, {})
    with pytest.raises(StoreUnavailable):
        await manager.execute_run(stray.id)
    run = await manager.start_run(session.id, {})
    held, answered = asyncio.Event(), asyncio.Event()
    claim = losing.claim_run

    async def late_claim(*args: Any, **options: Any) -> Run | None:
        claimed: Run | None = await claim(*args, **options)
        held.set()
        await answered.wait()
        return claimed

    losing.claim_run = late_claim
    executing = asyncio.create_task(manager.execute_run(run.id))
    await held.wait()
    looks = losing.calls["list_runs"]
    await clock.advance_ms(1_000)
    await until(lambda: losing.calls["list_runs"] > looks)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not await store.list_orphaned_runs()
    answered.set()
    await gate.reached()

    async def orphaned() -> bool:
        return bool(await store.list_orphaned_runs())

    await advance_until(clock, orphaned)
    assert [orphan.id for orphan in await store.list_orphaned_runs()] == [stray.id]
    gate.open()
    await executing


async def test_nothing_is_kept_of_claims_that_are_over(store: SessionStore) -> None:
    losing: Any = LosingStore(store)
    clock = JumpingClock()
    async with await open_server(losing, ScriptedAdapter(), clock=clock) as server:
        for _ in range(5):
            await server.execute_run({})
        await until(lambda: id(losing) not in _claims)
        losing.failing["claim_run"] = StoreUnavailable("for the test")

        async def failing(*args: Any, **options: Any) -> Run | None:
            raise StoreUnavailable("for the test")

        losing.claim_run = failing
        await server.submit_run({})
        await until(lambda: id(losing) in _claims)
        await until(lambda: server._dispatcher._claim_retry is not None)
    looks = losing.calls["list_runs"]

    async def forgotten() -> bool:
        return id(losing) not in _claims

    await advance_until(clock, forgotten)
    assert losing.calls["list_runs"] == looks + LOOKS
