"""Random lives of runs on a random store: whatever happens, the log tells one consistent story of each."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from random import Random
from typing import Any

import pytest

from asm_runtime import Event, Run, RunStatus, Session, SessionManager, SessionServer
from asm_runtime.clock import sleep
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    Conflict,
    LeaseLost,
    ProviderError,
    StoreError,
    StoreUnavailable,
)
from asm_runtime.payload import JsonObject
from asm_runtime.ports import Capability, ExecutionResult, ProviderResult, RunContext, SessionStore
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.testing import JumpingClock

WRITES = ("append_events", "flush")
READS = ("get_session", "get_run", "get_events", "release_run", "claim_run")
HEALED_AT_S = 20.0


class Moody:
    """A store that fails, refuses, hangs, is slow or loses answers, until it is healed."""

    def __init__(self, store: SessionStore, random: Random, clock: JumpingClock) -> None:
        self._store = store
        self._random = random
        self._clock = clock
        self._outage_until = 0.0
        self._curses: dict[str, bool] = {}
        self._healed = asyncio.Event()

    def heal(self) -> None:
        self._healed.set()

    def _is_cursed(self, run: Run | None) -> bool:
        """Of some runs no end is taken, until the store is healed."""
        if run is None or not run.status.is_terminal:
            return False
        return self._curses.setdefault(run.id, self._random.random() < 0.2)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in WRITES and name not in READS:
            return method

        async def moody(*arguments: Any, **options: Any) -> Any:
            if self._healed.is_set():
                return await method(*arguments, **options)
            random, now = self._random, self._clock.monotonic()
            if random.random() < 0.05:
                self._outage_until = now + random.uniform(0, 4)
            if now < self._outage_until:
                raise StoreUnavailable("outage")
            mood = random.random()
            if mood < 0.2:
                await sleep(self._clock, random.uniform(0, 0.3))
            elif mood < 0.24 and name != "claim_run":
                await self._healed.wait()
            elif mood < 0.28 and name in WRITES:
                raise random.choice([StoreError("refused"), OSError("no disk"), RuntimeError("?")])
            elif mood < 0.32 and name in WRITES:
                await method(*arguments, **options)
                raise StoreUnavailable("the answer was lost")
            elif mood < 0.33 and name in WRITES:
                raise asyncio.CancelledError
            if name == "flush" and self._is_cursed(arguments[0].run):
                raise StoreError("cursed")
            events = arguments[0].events if isinstance(arguments[0], ExecutionResult) else arguments[0]
            if name in WRITES and any("poison" in event.data for event in events):
                raise StoreError("poison")
            return await method(*arguments, **options)

        return moody


class Liver:
    """An adapter whose runs do what comes into their heads; knows what of it was acknowledged."""

    name = "liver"

    def __init__(self, random: Random, clock: JumpingClock) -> None:
        self._random = random
        self._clock = clock
        self.acknowledged: defaultdict[tuple[str, int], list[str]] = defaultdict(list)

    async def capabilities(self) -> list[Capability]:
        return []

    def validate_config(self, config: JsonObject) -> None:
        return None

    async def execute(self, run: Run, session: Session, context: RunContext) -> ProviderResult:
        random = self._random
        try:
            for _ in range(random.randrange(12)):
                await self._act(run, context)
            ending = random.random()
            if ending < 0.15:
                raise ProviderError("failed")
            if ending < 0.25:
                raise ValueError("odd")
            if ending < 0.3:
                return ProviderResult(output=object())
            if ending < 0.35:
                await sleep(self._clock, 1_000)
            return ProviderResult(output={"attempt": run.attempt}, metadata={"x": 1})
        except asyncio.CancelledError:
            if random.random() < 0.3:
                await self._emit(run, context, {})
            if random.random() < 0.2:
                await sleep(self._clock, random.uniform(0, 2))
            raise

    async def _act(self, run: Run, context: RunContext) -> None:
        random = self._random
        if random.random() < 0.3:
            await sleep(self._clock, random.uniform(0, 0.5))
        if random.random() < 0.05:
            await context.emit("run_started", {"fact": 1})
        for _ in range(random.choice([1, 1, 1, 5])):
            await self._emit(run, context, {"poison": True} if random.random() < 0.01 else {})

    async def _emit(self, run: Run, context: RunContext, data: JsonObject) -> None:
        id = Event.new(type="custom", session_id="s").id
        await context.emit("custom", {"name": "x", **data}, id=id)
        self.acknowledged[run.id, run.attempt].append(id)

    async def cancel(self, run_id: str) -> None:
        if self._random.random() < 0.3:
            await sleep(self._clock, self._random.uniform(0, 1))
        if self._random.random() < 0.1:
            raise RuntimeError("cannot")


async def check(store: SessionStore, run: Run, adapter: Liver) -> None:
    """What must hold of a run that has ended, whatever has happened to it."""
    log = await store.get_events(run.session_id, run_id=run.id)
    ends = [event for event in log if event.is_terminal]
    assert len(ends) == 1
    assert log[-1] == ends[0]
    assert str(ends[0].type) == f"run_{run.status}"
    assert len({event.id for event in log}) == len(log)
    kept = [event.id for event in log if event.type == "custom"]
    if run.status == RunStatus.COMPLETED:
        acknowledged = adapter.acknowledged[run.id, run.attempt]
        assert kept[len(kept) - len(acknowledged) :] == acknowledged
        assert ends[0].data["attempt"] == run.attempt
    else:
        assert run.error is not None
        assert ends[0].data["error_code"] == run.error["code"]


async def outcome_agrees(store: SessionStore, run_id: str, session_id: str, outcome: Any) -> None:
    """What a waiter was told is what is stored."""
    run = await store.get_run(run_id, session_id=session_id)
    if isinstance(outcome, AsmError):
        assert run.status in (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TIMEOUT)
        assert run.error is not None
        assert outcome.code == run.error["code"]
        assert (outcome.session_id, outcome.run_id) == (session_id, run_id)
    else:
        assert run.status == RunStatus.COMPLETED
        assert outcome.output == run.output


def is_no_outcome(error: BaseException | None) -> bool:
    """Whether it speaks of the store or the attempt, not of how the run ended."""
    return isinstance(error, StoreUnavailable | LeaseLost | ActorStopped | Conflict) or (
        isinstance(error, StoreError) and "could not be written" in str(error)
    )


async def lived(clock: JumpingClock, store: Moody, random: Random, *tasks: asyncio.Task[Any]) -> None:
    """Let time pass until all is over."""
    while not all(task.done() for task in tasks):
        await clock.advance_ms(random.uniform(1, 200))
        if clock.monotonic() > HEALED_AT_S:
            store.heal()
        assert clock.monotonic() < 5_000, "something waits for ever"


@pytest.mark.parametrize("seed", range(25))
async def test_runs_that_are_executed_by_their_callers(seed: int) -> None:
    random, clock = Random(seed), JumpingClock()
    async with InMemorySessionStore() as store:
        moody: Any = Moody(store, random, clock)
        adapter = Liver(random, clock)
        steady = SessionManager(store, adapter, clock=clock)
        manager = SessionManager(moody, adapter, clock=clock, cancel_grace_ms=500)
        session = await steady.activate_session((await steady.start_session(agent_id="tester")).id)
        runs: list[Run] = []
        tasks: list[asyncio.Task[Any]] = []
        seen: defaultdict[str, list[Event]] = defaultdict(list)
        for number in range(6):
            run = await steady.start_run(session.id, {"prompt": f"{number}"})
            runs.append(run)
            executing = manager.execute_run(
                run.id,
                session_id=session.id,
                event_callback=seen[run.id].append,
                continuation=random.random() < 0.5,
                run_timeout_ms=random.choice([None, 2_000, 20_000]),
                idle_timeout_ms=random.choice([None, None, 2_000]),
            )
            task = asyncio.create_task(executing)
            tasks.append(task)
            fate = random.random()
            if fate < 0.25:
                clock.call_later(random.uniform(0, 3), task.cancel)
            elif fate < 0.35:
                clock.call_later(random.uniform(0, 3), _spawn, steady.cancel_run, run.id)
        await lived(clock, moody, random, *tasks)
        moody.heal()
        await clock.advance_ms(70_000)
        orphans = [orphan.id for orphan in await store.list_orphaned_runs()]
        for run, task in zip(runs, tasks, strict=True):
            stored = await store.get_run(run.id)
            error = None if task.cancelled() else task.exception()
            if not stored.status.is_terminal:
                assert stored.status == RunStatus.PENDING or stored.id in orphans
                assert task.cancelled() or error is not None
                continue
            await check(store, stored, adapter)
            if not task.cancelled() and not is_no_outcome(error):
                await outcome_agrees(store, run.id, session.id, error or task.result())
            numbers = [event.sequence_number for event in seen[run.id]]
            assert numbers == sorted(set(numbers), key=lambda number: number or 0)
        assert clock.timers == 0


@pytest.mark.parametrize("policy", ["fail", "requeue"])
@pytest.mark.parametrize("seed", range(10))
async def test_runs_of_a_server(seed: int, policy: Any) -> None:
    random, clock = Random(seed), JumpingClock()
    async with InMemorySessionStore() as store:
        moody: Any = Moody(store, random, clock)
        adapter = Liver(random, clock)
        session = await SessionManager(store, adapter).start_session(agent_id="tester")
        async with SessionServer(store=store, adapter=adapter, session_id=session.id, clock=clock):
            pass
        server = SessionServer(
            store=moody,
            adapter=adapter,
            session_id=session.id,
            clock=clock,
            on_orphan=policy,
            max_concurrent_runs=3,
            cancel_grace_ms=500,
        )
        starting = asyncio.create_task(_started(server))
        await lived(clock, moody, random, starting)
        waiting: dict[str, asyncio.Task[Any]] = {}
        for number in range(8):
            run_id = f"run{number}"
            submitting = asyncio.create_task(_submitted(server, run_id, random, clock))
            await lived(clock, moody, random, submitting)
            waiting[run_id] = asyncio.create_task(_awaited(server, run_id))
            if random.random() < 0.3:
                clock.call_later(random.uniform(0, 5), _spawn, server.cancel_run, run_id)
        await lived(clock, moody, random, *waiting.values())
        for run_id, task in waiting.items():
            await check(store, await store.get_run(run_id), adapter)
            await outcome_agrees(store, run_id, session.id, task.result())
        stopping = asyncio.create_task(server.stop())
        await lived(clock, moody, random, stopping)


async def _started(server: SessionServer) -> None:
    """Started, however often that takes."""
    while not server.is_running:
        try:
            await server.start()
        except StoreError:
            await asyncio.sleep(0)


async def _submitted(server: SessionServer, run_id: str, random: Random, clock: JumpingClock) -> None:
    while True:
        try:
            await server.submit_run(
                {"prompt": run_id}, run_id=run_id, run_timeout_ms=random.choice([20_000, 2_000])
            )
        except StoreError:
            await sleep(clock, 0.1)
            continue
        return


async def _awaited(server: SessionServer, run_id: str) -> Any:
    """The run's outcome; a store that fails the waiter is asked again."""
    while True:
        try:
            return await server.await_run(run_id)
        except AsmError as error:
            if error.run_id == run_id:
                return error
            await asyncio.sleep(0)


_spawned: set[asyncio.Task[Any]] = set()


def _spawn(call: Any, run_id: str) -> None:
    async def quietly() -> None:
        try:
            await call(run_id)
        except AsmError:
            pass

    task = asyncio.get_running_loop().create_task(quietly())
    _spawned.add(task)
    task.add_done_callback(_spawned.discard)
