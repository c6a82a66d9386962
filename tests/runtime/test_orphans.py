"""Orphaned runs: when they are settled, how often they are tried, what they hold up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_runtime import Event, Run, RunStatus, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, Stage, say
from asm_runtime.errors import RunCancelled, RunFailed, StoreError
from asm_runtime.ports import ExecutionResult, SessionStore
from asm_runtime.runtime.orphans import DEFAULT_LEASE_TTL_MS, Orphans
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, types_of, until


class RefusingStore(FaultyStore):
    """Refuses the ends of runs, for a reason of its own, until it is healed."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.refused = 0
        self.refusing["flush"] = self._refusal

    def _refusal(self, result: ExecutionResult, **options: Any) -> StoreError | None:
        if result.run is None or not self.is_refused(result.run):
            return None
        self.refused += 1
        return StoreError("the packet is too large")

    def is_refused(self, run: Run) -> bool:
        """An executor's end: what settles an orphan has a code of its own."""
        code = (run.error or {}).get("code")
        return run.status.is_terminal and code not in ("orphaned", "max_attempts_exceeded", "run_cancelled")


class Counting:
    """A step that counts the attempts, and may hold some of them."""

    def __init__(self, clock: JumpingClock) -> None:
        self.clock = clock
        self.began: list[tuple[str, float]] = []

    async def __call__(self, stage: Stage) -> None:
        self.began.append((stage.run.id, self.clock.monotonic()))

    @property
    def attempts(self) -> int:
        return len(self.began)


async def until_seen(server: SessionServer) -> None:
    """Return when the server has seen an orphan that is not due yet."""
    await until(lambda: server._dispatcher._orphan_timer is not None)


async def test_a_run_whose_end_cannot_be_written_is_tried_again_ever_later_and_given_up(
    store: SessionStore,
) -> None:
    refusing, clock = RefusingStore(store), JumpingClock()
    counting = Counting(clock)
    async with await open_server(
        refusing, ScriptedAdapter([counting]), clock=clock, on_orphan="requeue"
    ) as server:
        run_id = await server.submit_run({})
        waiting = asyncio.create_task(server.await_run(run_id))
        await until(lambda: counting.attempts == 2)
        for attempts, pause_ms in ((2, 1_000), (3, 2_000), (4, 4_000)):
            await until_seen(server)
            await clock.advance_ms(pause_ms - 1)
            assert counting.attempts == attempts
            assert not waiting.done()
            await clock.advance_ms(1)
            await until(lambda attempts=attempts: counting.attempts == attempts + 1)  # type: ignore[misc]
        with pytest.raises(RunFailed) as failed:
            await waiting
        assert failed.value.code == "max_attempts_exceeded"
        assert counting.attempts == 5
        run = await store.get_run(run_id)
        assert (run.status, run.attempt, run.metadata["lost_attempts"]) == (RunStatus.FAILED, 5, 5)
        (end,) = await terminal_events(store, server.session_id, run_id)
        assert end.data["error_code"] == "max_attempts_exceeded"
        assert server.status().in_flight_count == 0


@pytest.mark.parametrize(("max_attempts", "attempts"), [(1, 1), (2, 2), (3, 3)])
async def test_the_number_of_attempts_and_the_pause_are_options(
    store: SessionStore, max_attempts: int, attempts: int
) -> None:
    refusing, clock = RefusingStore(store), JumpingClock()
    counting = Counting(clock)
    async with await open_server(
        refusing,
        ScriptedAdapter([counting]),
        clock=clock,
        on_orphan="requeue",
        max_attempts=max_attempts,
        requeue_backoff_ms=0,
    ) as server:
        run_id = await server.submit_run({})
        with pytest.raises(RunFailed) as failed:
            await server.await_run(run_id)
        assert failed.value.code == "max_attempts_exceeded"
        assert counting.attempts == attempts
        assert {at for _, at in counting.began} == {0}


async def test_a_run_that_waits_for_its_next_attempt_keeps_its_slot_and_its_place(
    store: SessionStore,
) -> None:
    refusing, clock = RefusingStore(store), JumpingClock()
    counting = Counting(clock)
    async with await open_server(
        refusing, ScriptedAdapter([counting]), clock=clock, on_orphan="requeue"
    ) as server:
        first = await server.submit_run({})
        second = await server.submit_run({})
        await until(lambda: counting.attempts == 2)
        await until_seen(server)
        assert (await store.get_run(first)).status == RunStatus.RUNNING
        assert (await store.get_run(second)).status == RunStatus.PENDING
        refusing.heal()
        await clock.advance_ms(1_000)
        await server.await_run(first)
        await server.await_run(second)
        assert [run_id for run_id, _ in counting.began] == [first, first, first, second]


async def test_a_run_that_waits_for_its_next_attempt_can_be_cancelled(store: SessionStore) -> None:
    refusing, clock = RefusingStore(store), JumpingClock()
    counting = Counting(clock)
    async with await open_server(
        refusing, ScriptedAdapter([counting]), clock=clock, on_orphan="requeue"
    ) as server:
        run_id = await server.submit_run({})
        await until(lambda: counting.attempts == 2)
        await until_seen(server)
        await server.cancel_run(run_id)
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)
        refusing.heal()
        await clock.advance_ms(60_000)
        assert counting.attempts == 2
        assert len(await terminal_events(store, server.session_id, run_id)) == 1
        await server.execute_run({})


async def test_a_server_that_starts_meanwhile_goes_on_counting(store: SessionStore) -> None:
    refusing: Any = RefusingStore(store)
    clock = JumpingClock()
    counting = Counting(clock)
    adapter = ScriptedAdapter([counting])
    server = await open_server(refusing, adapter, clock=clock, on_orphan="requeue")
    run_id = await server.submit_run({})
    await until(lambda: counting.attempts == 2)
    await until_seen(server)
    await server.stop()
    async with SessionServer(
        store=refusing,
        adapter=adapter,
        session_id=server.session_id,
        clock=clock,
        on_orphan="requeue",
        max_attempts=3,
    ) as successor:
        await until_seen(successor)
        await clock.advance_ms(999)
        assert counting.attempts == 2
        await clock.advance_ms(1)
        with pytest.raises(RunFailed) as failed:
            await successor.await_run(run_id)
        assert failed.value.code == "max_attempts_exceeded"
        assert counting.attempts == 3


async def test_what_a_stop_queues_again_is_not_lost(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    server = await open_server(store, adapter, on_orphan="requeue", max_attempts=2)
    run_id = await server.submit_run({})
    for attempt in range(1, 5):
        await gate.reached(attempt)
        await server.stop()
        server = await SessionServer(
            store=store,
            adapter=adapter,
            session_id=server.session_id,
            on_orphan="requeue",
            max_attempts=2,
        ).start()
    gate.open()
    await server.await_run(run_id)
    run = await store.get_run(run_id)
    assert (run.attempt, "lost_attempts" in run.metadata) == (5, False)
    await server.stop()


async def test_attempts_of_crashed_servers_are_lost(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    server = await open_server(store, adapter, on_orphan="requeue", max_attempts=2)
    run_id = await server.submit_run({})
    for attempt in (1, 2):
        await gate.reached(attempt)
        server.crash(RuntimeError("for the test"))
        await server.stop()
        server = await SessionServer(
            store=store,
            adapter=adapter,
            session_id=server.session_id,
            on_orphan="requeue",
            max_attempts=2,
        ).start()
    with pytest.raises(RunFailed) as failed:
        await server.await_run(run_id)
    assert failed.value.code == "max_attempts_exceeded"
    await server.stop()


class OneCannotBeSettled(RefusingStore):
    """Refuses whatever is written of one run."""

    run_id = ""

    def is_refused(self, run: Run) -> bool:
        return run.id == self.run_id


@pytest.mark.parametrize("policy", ["fail", "requeue"])
async def test_an_orphan_that_cannot_be_settled_stops_nothing_else(store: SessionStore, policy: Any) -> None:
    faulty: Any = OneCannotBeSettled(store)
    clock = JumpingClock()
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    orphans: list[Run] = []
    for _ in range(2):
        await manager.start_run(session.id, {})
        claimed = await store.claim_run(session.id)
        assert claimed is not None
        await store.release_run(claimed.fence)
        orphans.append(claimed)
    faulty.run_id = orphans[0].id
    async with SessionServer(
        store=faulty,
        adapter=ScriptedAdapter([say("x")]),
        session_id=session.id,
        max_concurrent_runs=2,
        on_orphan=policy,
        clock=clock,
    ) as server:
        for _ in range(5):
            await server.execute_run({})
        if policy == "fail":
            with pytest.raises(RunFailed):
                await server.await_run(orphans[1].id)
        else:
            await server.await_run(orphans[1].id)
        assert faulty.refused == 1
        for pause_s in (1, 2, 4):  # it is tried again, ever later
            await until_seen(server)
            before = faulty.refused
            await clock.advance_ms(pause_s * 1000 - 1)
            assert faulty.refused == before
            await clock.advance_ms(1)
            await until(lambda before=before: faulty.refused == before + 1)  # type: ignore[misc]
        faulty.heal()
        await until_seen(server)
        await clock.advance_ms(8_000)
        ended = await asyncio.gather(server.await_run(orphans[0].id), return_exceptions=True)
        assert isinstance(ended[0], RunFailed) == (policy == "fail")


async def test_an_orphan_whose_settling_hangs_stops_nothing_else(store: SessionStore) -> None:
    faulty: Any = FaultyStore(store)
    clock = JumpingClock()
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    orphan = await manager.start_run(session.id, {})
    claimed = await store.claim_run(session.id)
    assert claimed is not None
    await store.release_run(claimed.fence)
    flush = store.flush
    released = asyncio.Event()

    async def hanging(result: ExecutionResult, **options: Any) -> list[Event]:
        if result.run is not None and result.run.id == orphan.id:
            await released.wait()
        return await flush(result, **options)

    vars(faulty)["flush"] = hanging
    server = SessionServer(
        store=faulty,
        adapter=ScriptedAdapter(),
        session_id=session.id,
        max_concurrent_runs=2,
        clock=clock,
    )
    async with server:
        executing = asyncio.create_task(server.execute_run({"prompt": "x"}))
        while not executing.done():
            await clock.advance_ms(100)
        assert (await executing).output == {"content": "x"}
        elsewhere = await manager.start_run(session.id, {"prompt": "y"})
        assert (await server.await_run(elsewhere.id)).output == {"content": "y"}
        released.set()
        with pytest.raises(RunFailed):
            await server.await_run(orphan.id)


async def test_a_callback_and_a_drain_follow_a_run_into_its_next_attempt(store: SessionStore) -> None:
    refusing, clock = RefusingStore(store), JumpingClock()
    counting, seen = Counting(clock), list[str]()
    async with await open_server(
        refusing, ScriptedAdapter([counting]), clock=clock, on_orphan="requeue"
    ) as server:
        run_id = await server.submit_run({}, event_callback=lambda event: seen.append(str(event.type)))
        await until(lambda: counting.attempts == 2)
        await until_seen(server)
        draining = asyncio.create_task(server.drain())
        await clock.advance_ms(500)  # recounts come and go
        assert not draining.done()
        refusing.heal()
        await clock.advance_ms(500)
        await draining
        assert (await store.get_run(run_id)).status == RunStatus.COMPLETED
        await until(lambda: seen[-1] == "run_completed")
        assert seen == ["run_started", "run_started", "run_started", "run_completed"]
        assert await types_of(store, server.session_id, run_id) == seen


def pause_s(lost: Any, max_attempts: int | None) -> float | None:
    orphans = Orphans(JumpingClock(), max_attempts=max_attempts, backoff_s=1)
    orphans.seen([Run.new(session_id="s", input=None, metadata={"lost_attempts": lost})])
    return orphans.next_in_s()


def test_pauses_double_up_to_a_minute() -> None:
    pauses = [pause_s(lost, 5_000) for lost in (0, 1, 2, 3, 6, 7, 2_000)]
    assert pauses == [None, 1, 2, 4, 32, 60, 60]


def test_nothing_waits_for_an_attempt_that_will_not_come() -> None:
    assert pause_s(3, None) is None
    assert pause_s(3, 5) == 4
    assert pause_s(4, 5) is None
    assert pause_s("nonsense", 5) is None


async def test_a_pause_begins_when_the_orphan_is_seen_and_again_if_it_was_none_meanwhile() -> None:
    clock = JumpingClock()
    orphans = Orphans(clock, max_attempts=5, backoff_s=1)
    run = Run.new(session_id="s", input=None, metadata={"lost_attempts": 1})
    assert orphans.seen([run]) == []
    await clock.advance_ms(600)
    assert orphans.seen([run]) == []
    await clock.advance_ms(400)
    assert orphans.seen([run]) == [run]
    assert orphans.seen([]) == []  # its executor is alive after all
    assert orphans.run_ids() == set()
    assert orphans.seen([run]) == []
    assert orphans.next_in_s() == 1
    assert orphans.seen([run.replace(attempt=2)]) == []
    assert orphans.next_in_s() == 1


@pytest.mark.parametrize("error", [OSError("no route"), asyncio.CancelledError(), StoreError("refused")])
async def test_looking_for_orphans_goes_on_after_the_store_failed(
    store: SessionStore, error: BaseException
) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await server.execute_run({})
        await until(lambda: server._dispatcher._looking is None)
        for failing in (True, True, False):  # an idle server does not look by itself
            if failing:
                faulty.failing["list_orphaned_runs"] = error
            else:
                faulty.heal()
            looks = faulty.calls["list_orphaned_runs"]
            await clock.advance_ms(DEFAULT_LEASE_TTL_MS)
            await until(lambda looks=looks: faulty.calls["list_orphaned_runs"] > looks)  # type: ignore[misc]
