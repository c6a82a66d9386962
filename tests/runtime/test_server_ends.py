"""Nobody waits for ever at a server, whatever its store is at and however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asm_runtime import RunStatus, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    AwaitTimeout,
    RunCancelled,
    StoreError,
    StoreUnavailable,
)
from asm_runtime.ports import SessionStore
from asm_runtime.runtime.orphans import _watches
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, until

METHODS = (
    "append_events", "claim_run", "enqueue_run", "flush", "get_events", "get_latest_sequence", "get_run",
    "get_session", "list_orphaned_runs", "list_runs", "release_run", "wait_for_runs",
)  # fmt: skip

GRACE_MS = 500
BOUND_MS = GRACE_MS + 3_000


class Cloud(OSError):
    """What a driver of somebody else's raises."""


async def advance_until_done(clock: JumpingClock, task: asyncio.Task[Any], bound_ms: int = BOUND_MS) -> None:
    """Move on until it is done, at most so far."""
    for _ in range(bound_ms // 100):
        if task.done():
            return
        await clock.advance_ms(100)
        await asyncio.sleep(0.001)  # a store's threads need the interpreter too
    assert task.done()


CALLS: dict[str, Callable[[SessionServer, str, str], Awaitable[Any]]] = {
    "submit_run": lambda server, running, queued: server.submit_run({}),
    "submit_run with an id": lambda server, running, queued: server.submit_run({}, run_id=queued),
    "execute_run": lambda server, running, queued: server.execute_run({}),
    "await_run of a running one": lambda server, running, queued: server.await_run(running),
    "await_run of a queued one": lambda server, running, queued: server.await_run(queued),
    "await_run in time": lambda server, running, queued: server.await_run(queued, timeout_ms=10**9),
    "await_run of an unknown one": lambda server, running, queued: server.await_run("run_x"),
    "cancel_run of a queued one": lambda server, running, queued: server.cancel_run(queued),
    "drain": lambda server, running, queued: server.drain(timeout_ms=None),
    "drain and leave": lambda server, running, queued: server.drain(timeout_ms=None, queued="leave"),
    "a subscription": lambda server, running, queued: anext(server.subscribe(after=100)),
    "a backfill": lambda server, running, queued: anext(server.subscribe(after=0)),
}


class Busy:
    """A server with a run in flight and one in its queue, on a store that can be broken."""

    def __init__(self, store: SessionStore, **options: Any) -> None:
        self.faulty = FaultyStore(store)
        self.clock = JumpingClock()
        self.gate = Gate()
        self.adapter = ScriptedAdapter([self.gate])
        self.options = options

    async def __aenter__(self) -> Busy:
        self.server = await open_server(
            self.faulty, self.adapter, clock=self.clock, cancel_grace_ms=GRACE_MS, **self.options
        )
        self.running = await self.server.submit_run({})
        await self.gate.reached()
        self.queued = await self.server.submit_run({})
        return self

    async def __aexit__(self, *_: object) -> None:
        self.faulty.heal()
        self.gate.open()
        stopping = asyncio.create_task(self.server.stop())
        await advance_until_done(self.clock, stopping)

    def call(self, name: str) -> asyncio.Task[Any]:
        async def calling() -> Any:
            return await CALLS[name](self.server, self.running, self.queued)

        return asyncio.create_task(calling())


@pytest.mark.parametrize("shielding", [False, True])
@pytest.mark.parametrize("end", ["stop", "crash"])
async def test_whoever_waits_is_told_that_the_server_has_ended(
    store: SessionStore, end: str, shielding: bool
) -> None:
    async with Busy(store) as busy:
        if shielding:
            busy.faulty.shielding.update(METHODS)
        busy.faulty.hanging.update(METHODS)
        calls = {name: busy.call(name) for name in CALLS}
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(call.done() for call in calls.values())
        if end == "crash":
            busy.server.crash(RuntimeError("for the test"))
            for _ in range(20):
                await asyncio.sleep(0)
        stopping = asyncio.create_task(busy.server.stop())
        if end == "stop":
            await advance_until_done(busy.clock, stopping)
        for name, call in calls.items():
            assert call.done(), name
            told = (ActorStopped, StoreUnavailable) if name.startswith("cancel_run") else ActorStopped
            assert isinstance(call.exception(), told), name
        await advance_until_done(busy.clock, stopping)
        assert id(busy.faulty) not in _watches


@pytest.mark.parametrize("how", ["hangs", "hangs and shields", "raises", "is cut off"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_stop_keeps_its_bound_and_leaves_nobody_waiting(
    store: SessionStore, method: str, how: str
) -> None:
    async with Busy(store) as busy:
        faulty = busy.faulty
        if how.startswith("hangs"):
            faulty.hanging.add(method)
        else:
            faulty.failing[method] = Cloud("gone") if how == "raises" else asyncio.CancelledError()
        if how.endswith("shields"):
            faulty.shielding.add(method)
        calls = [busy.call(name) for name in CALLS]
        for _ in range(20):
            await asyncio.sleep(0)
        stopping = asyncio.create_task(busy.server.stop())
        await advance_until_done(busy.clock, stopping)
        await stopping
        await busy.clock.advance_ms(5_000)  # what readers at a stopped server wait for the store
        await asyncio.wait(calls)
        for call in calls:
            assert not call.cancelled()
            assert isinstance(call.exception(), AsmError | StopAsyncIteration | None)
        assert id(faulty) not in _watches
        assert not busy.server.is_running


@pytest.mark.parametrize("error", [Cloud("gone"), asyncio.CancelledError(), StoreUnavailable("busy")])
@pytest.mark.parametrize("method", METHODS)
async def test_a_server_outlives_whatever_its_store_raises(
    store: SessionStore, method: str, error: BaseException
) -> None:
    async with Busy(store, max_concurrent_runs=2) as busy:
        busy.faulty.failing[method] = error
        calls = [busy.call(name) for name in CALLS if "drain" not in name]
        for _ in range(5):
            await busy.clock.advance_ms(100)
        assert busy.server.is_running
        for call in calls:
            if call.done():
                assert not call.cancelled()
                assert isinstance(call.exception(), AsmError | None)
            call.cancel()
        await asyncio.wait(calls)
        busy.faulty.heal()
        busy.gate.open()
        await busy.clock.advance_ms(60_000)
        executing = asyncio.create_task(busy.server.execute_run({}))
        while not executing.done():
            await busy.clock.advance_ms(500)
            await asyncio.sleep(0.001)
        assert (await executing).status == RunStatus.COMPLETED
        for run in await store.list_runs(busy.server.session_id, status=("completed", "failed", "cancelled")):
            assert len(await terminal_events(store, run.session_id, run.id)) == 1


async def test_an_error_of_the_store_is_told_with_its_cause(store: SessionStore) -> None:
    async with Busy(store) as busy:
        for method, name in (
            ("get_session", "submit_run"),
            ("enqueue_run", "submit_run"),
            ("get_run", "cancel_run of a queued one"),
            ("get_run", "await_run of a queued one"),
        ):
            busy.faulty.failing[method] = Cloud("no route")
            call = busy.call(name)
            await busy.faulty.time_passes(busy.clock, call)
            with pytest.raises(StoreError, match="no route") as told:
                await call
            assert isinstance(told.value.__cause__, Cloud)
            busy.faulty.heal()


@pytest.mark.parametrize("method", ["get_session", "flush", "get_run", "list_orphaned_runs"])
async def test_a_start_that_the_store_fails_leaves_nothing_running(store: SessionStore, method: str) -> None:
    faulty: Any = FaultyStore(store)
    faulty.failing[method] = Cloud("no route")
    server = SessionServer(
        store=faulty, adapter=ScriptedAdapter(), session_id="mine", session_opts={"agent_id": "a"}
    )
    if method in ("get_session", "flush"):
        with pytest.raises(StoreError, match="no route"):
            await server.start()
        assert id(faulty) not in _watches
        faulty.heal()
    await server.start()
    faulty.heal()
    await server.stop()


@pytest.mark.parametrize("call", ["cancel_run", "interrupt_run"])
@pytest.mark.parametrize("how", ["hangs", "is down"])
async def test_cancelling_returns_in_its_grace_while_the_store_does_not_answer(
    store: SessionStore, call: str, how: str
) -> None:
    async with Busy(store) as busy:
        for method in METHODS:
            if how == "hangs":
                busy.faulty.hanging.add(method)
            else:
                busy.faulty.failing[method] = StoreUnavailable("busy")
        cancelling = asyncio.create_task(getattr(busy.server, call)(busy.running))
        await busy.clock.advance_ms(GRACE_MS - 1)
        assert not cancelling.done()
        assert busy.adapter.cancelled == [busy.running]
        await busy.clock.advance_ms(1)
        assert cancelling.done()
        await cancelling
        busy.faulty.heal()
        waiting = asyncio.create_task(busy.server.await_run(busy.running))
        while not waiting.done():
            await busy.clock.advance_ms(500)
            await asyncio.sleep(0.001)
        assert isinstance(waiting.exception(), RunCancelled)


async def test_cancelling_a_queued_run_says_so_if_the_store_does_not_answer(store: SessionStore) -> None:
    async with Busy(store) as busy:
        busy.faulty.hanging.add("flush")
        cancelling = asyncio.create_task(busy.server.cancel_run(busy.queued))
        await until(lambda: busy.faulty.calls["flush"])
        await busy.clock.advance_ms(1_000)
        with pytest.raises(StoreUnavailable):
            await cancelling
        busy.faulty.heal()  # once begun, it is seen through
        with pytest.raises(RunCancelled):
            await busy.server.await_run(busy.queued)


async def test_looking_at_a_run_does_not_wait_for_a_store_that_hangs(store: SessionStore) -> None:
    async with Busy(store) as busy:
        busy.faulty.hanging.add("get_run")
        looking = asyncio.create_task(busy.server.await_run(busy.running, timeout_ms=0))
        await until(lambda: busy.faulty.calls["get_run"])
        await busy.clock.advance_ms(1_000)
        with pytest.raises(AwaitTimeout):
            await looking


async def test_looking_at_a_run_does_not_wait_for_readers(store: SessionStore) -> None:
    async with Busy(store) as busy:
        subscription = busy.server.subscribe(after=2)
        await anext(subscription)
        reading = asyncio.create_task(anext(subscription))
        await until(lambda: not subscription._behind)
        busy.faulty.late.add("get_events")  # the feed's long poll is answered late
        await busy.server.manager.cancel_run(busy.queued)
        looking = asyncio.create_task(busy.server.await_run(busy.queued, timeout_ms=0))
        await busy.clock.advance_ms(1_000)
        await asyncio.wait([looking])
        assert isinstance(looking.exception(), AwaitTimeout | RunCancelled)
        busy.faulty.heal()
        subscription.unsubscribe()
        await asyncio.wait([reading])


async def test_calls_under_way_are_answered_before_the_server_ends(store: SessionStore) -> None:
    async with Busy(store) as busy:
        busy.faulty.late.add("enqueue_run")
        submitting = asyncio.create_task(busy.server.submit_run({}))
        await until(lambda: busy.faulty.held["enqueue_run"])
        stopping = asyncio.create_task(busy.server.stop())
        await until(lambda: not busy.server._serving)
        assert not stopping.done()
        busy.faulty.heal()
        run_id = await submitting
        await stopping
        assert (await store.get_run(run_id)).status == RunStatus.PENDING
