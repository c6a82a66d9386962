"""Random lives of servers, held against what must be true of each of them.

A life is what two servers of one session go through: callers who submit, wait, cancel, drain and
read; starts, stops and crashes; a store that fails, hangs, answers late or cuts calls off. In the end
the store is healed and everything comes to rest; whatever happened, then the log, the rows, the
answers and the readers must agree.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asm_runtime import Event, EventType, Run, RunStatus, Session, SessionManager, SessionServer
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    AwaitTimeout,
    Conflict,
    Draining,
    DrainTimeout,
    InvalidTransition,
    QueueFull,
    RunCancelled,
    RunFailed,
    RunNotFound,
    StoreError,
    StoreUnavailable,
)
from asm_runtime.payload import JsonObject
from asm_runtime.ports import Capability, ProviderResult, RunContext, RunResult
from asm_runtime.records import TERMINAL_EVENT_TYPES
from asm_runtime.runtime.orphans import _watches
from asm_runtime.runtime.subscription import Subscription
from asm_runtime.stores import InMemorySessionStore, SQLSessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore

METHODS = (
    "append_events", "claim_run", "enqueue_run", "flush", "get_events", "get_latest_sequence", "get_run",
    "get_session", "list_orphaned_runs", "list_runs", "release_run", "wait_for_runs",
)  # fmt: skip

GRACE_MS = 300
STOP_BOUND_MS = GRACE_MS + 3_500


class Provider:
    """Executes a run until it is told how it ends; reports an event now and then."""

    name = "provider"

    def __init__(self) -> None:
        self.executing: dict[tuple[str, int], asyncio.Future[str]] = {}
        self.is_at_ease = False

    async def capabilities(self) -> list[Capability]:
        return []

    async def execute(self, run: Run, session: Session, context: RunContext) -> ProviderResult:
        await context.emit("message_streamed", {"content": "first"})
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        key = (run.id, run.attempt)
        self.executing[key] = told
        try:
            how = "complete" if self.is_at_ease else await told
        finally:
            self.executing.pop(key, None)
        for _ in range(3):
            await context.emit("message_streamed", {"content": "more"})
        if how == "fail":
            raise RunFailed("as it was told", code="told")
        return ProviderResult(output={"attempt": run.attempt})

    async def cancel(self, run_id: str) -> None:
        return None

    def validate_config(self, config: JsonObject) -> None:
        return None

    def tell(self, random: random.Random, how: str) -> None:
        waiting = [told for told in self.executing.values() if not told.done()]
        if waiting:
            random.choice(waiting).set_result(how)


class Reader:
    """One who reads a subscription, and what he got."""

    def __init__(self, subscription: Subscription, filter: dict[str, Any], after: int) -> None:
        self.subscription = subscription
        self.filter = filter
        self.after = after
        self.got: list[int] = []
        self.left = False
        self.pace = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.subscription:
            self.got.append(event.sequence_number or 0)
            for _ in range(self.pace):
                await asyncio.sleep(0)


class Life:
    """One life, from its seed."""

    def __init__(self, stores: list[Any], seed: int, *, is_threaded: bool) -> None:
        self.random = random.Random(seed)
        self.is_threaded = is_threaded
        self.store = stores[0]
        self.clock = JumpingClock()
        self.provider = Provider()
        self.faulty: list[Any] = [FaultyStore(store) for store in stores]
        self.servers: list[SessionServer | None] = [None, None]
        self.starts: dict[SessionServer, asyncio.Task[Any]] = {}
        self.slots = self.random.choice([1, 1, 2, 3])
        self.options: dict[str, Any] = {
            "max_concurrent_runs": self.slots,
            "max_queued_runs": self.random.choice([0, 2, 5, 50]),
            "on_orphan": self.random.choice(["fail", "requeue"]),
            "max_attempts": self.random.choice([1, 3, 5]),
            "cancel_grace_ms": GRACE_MS,
            "clock": self.clock,
        }
        self.calls: list[tuple[str, dict[str, Any], asyncio.Task[Any]]] = []
        self.readers: list[Reader] = []
        self.accepted: dict[str, Any] = {}  # the input of each run that a submitter was told of
        self.accepted_by: dict[SessionServer, list[str]] = {}
        self.heard: dict[str, dict[int, list[int]]] = {}  # by run and submission, what its callback was given
        self.claimed: list[Run] = []
        self.broke = False
        for faulty in self.faulty:
            self._note_claims(faulty)

    def _note_claims(self, faulty: FaultyStore) -> None:
        claim_run = faulty.claim_run

        async def noted(*args: Any, **options: Any) -> Run | None:
            run: Run | None = await claim_run(*args, **options)
            if run is not None:
                self.claimed.append(run)
            return run

        vars(faulty)["claim_run"] = noted

    # -- what happens

    async def live(self, steps: int) -> None:
        manager = SessionManager(self.store, self.provider, clock=self.clock)
        session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
        self.manager, self.session_id = manager, session.id
        deeds = (
            [self.submit] * 8
            + [self.wait] * 4
            + [self.tell] * 8
            + [self.cancel] * 3
            + [self.interrupt, self.cancel_elsewhere, self.drain, self.stop, self.crash, self.pause]
            + [self.start] * 4
            + [self.subscribe] * 3
            + [self.leave, self.leave]
            + [self.breaks] * 2
            + [self.heal] * 3
            + [self.time_passes] * 5
        )
        for _ in range(steps):
            await self.random.choice(deeds)()
            for _ in range(self.random.choice([0, 0, 1, 3, 10])):
                await asyncio.sleep(0)
            await self._slots_are_kept()
        await self.come_to_rest()

    def a_server(self) -> SessionServer | None:
        running = [server for server in self.servers if server is not None and server.is_running]
        return self.random.choice(running) if running else None

    def a_run(self) -> str:
        known = [*self.accepted, "unknown"]
        return self.random.choice(known[-6:])

    def call(self, name: str, work: Coroutine[Any, Any, Any], **facts: Any) -> None:
        self.calls.append((name, facts, asyncio.create_task(work)))

    async def submit(self) -> None:
        server = self.a_server()
        if server is None:
            return
        run_id = f"run {self.random.randrange(40)}" if self.random.random() < 0.7 else None
        input = {"n": self.random.choice([0, 0, 0, 1])}
        number = len(self.calls)

        def callback(event: Event) -> None:
            told = self.heard.setdefault(event.run_id or "", {}).setdefault(number, [])
            told.append(event.sequence_number or 0)

        async def submitting() -> str:
            accepted = await server.submit_run(input, run_id=run_id, event_callback=callback)
            assert run_id in (None, accepted)
            assert self.accepted.setdefault(accepted, input) == input, "two inputs were accepted as one run"
            self.accepted_by.setdefault(server, []).append(accepted)
            return accepted

        self.call("submit", submitting(), server=server)
        if self.random.random() < 0.1:
            await asyncio.sleep(0)
            self.calls[-1][2].cancel()

    async def wait(self) -> None:
        server, run_id = self.a_server(), self.a_run()
        if server is not None:
            timeout_ms = self.random.choice([None, None, 0, 500])
            self.call(
                "await", server.await_run(run_id, timeout_ms=timeout_ms), run_id=run_id, timeout_ms=timeout_ms
            )
            if self.random.random() < 0.1:
                await asyncio.sleep(0)
                self.calls[-1][2].cancel()

    async def tell(self) -> None:
        self.provider.tell(self.random, self.random.choice(["complete", "complete", "fail"]))

    async def cancel(self) -> None:
        server = self.a_server()
        if server is not None:
            self.call("cancel", server.cancel_run(self.a_run()))

    async def interrupt(self) -> None:
        server = self.a_server()
        if server is not None:
            self.call("interrupt", server.interrupt_run(self.a_run()))

    async def cancel_elsewhere(self) -> None:
        self.call("cancel", self.manager.cancel_run(self.a_run(), session_id=self.session_id))

    async def drain(self) -> None:
        server = self.a_server()
        if server is not None and self.random.random() < 0.5:
            queued = self.random.choice(["run", "leave"])
            self.call("drain", self._drained(server, queued), queued=queued)

    async def _drained(self, server: SessionServer, queued: Any) -> None:
        own = self.accepted_by.get(server, [])[:]
        await server.drain(queued=queued, timeout_ms=self.random.choice([None, 1_000]))
        if queued == "leave":  # nothing is claimed here any more
            assert not server._dispatcher.in_flight
            return
        for run_id in own:
            run = await self.store.get_run(run_id, session_id=self.session_id)
            assert run.attempt or run.status != RunStatus.PENDING, "a drain left a run of its own"

    async def start(self) -> None:
        for index, server in enumerate(self.servers):
            if server is None and self.random.random() < 0.7:
                self.servers[index] = starting = SessionServer(
                    store=self.faulty[index],
                    adapter=self.provider,
                    session_id=self.session_id,
                    **self.options,
                )
                self.call("start", starting.start())
                self.starts[starting] = self.calls[-1][2]

    async def stop(self) -> None:
        index = self.random.randrange(2)
        server = self.servers[index]
        if server is not None:
            self.servers[index] = None
            self.call("stop", self._stopped(server))

    async def _stopped(self, server: SessionServer) -> None:
        stopping = asyncio.create_task(server.stop())
        await asyncio.wait([self.starts[server]])  # a start that hangs is waited for
        began = self.clock.monotonic()
        await stopping
        if not self.is_threaded:
            took_ms = (self.clock.monotonic() - began) * 1000
            assert took_ms <= STOP_BOUND_MS, f"a stop took {took_ms} ms"
        assert server._answers is None or not server._answers.tasks

    async def crash(self) -> None:
        index = self.random.randrange(2)
        server = self.servers[index]
        if server is not None:
            self.servers[index] = None
            server.crash(RuntimeError("for the test"))
            self.call("stop", server.stop())

    async def pause(self) -> None:
        paused = await self.store.get_session(self.session_id)
        change = self.manager.pause_session if paused.status == "active" else self.manager.resume_session
        self.call("pause", change(self.session_id))

    async def subscribe(self) -> None:
        server = self.a_server()
        if server is None:
            return
        after = self.random.choice([0, 0, 1, 5, 30])
        filter: dict[str, Any] = self.random.choice(
            [{}, {}, {"type": list(TERMINAL_EVENT_TYPES)}, {"run_id": self.a_run()}]
        )
        subscription = server.subscribe(after=after, buffer=self.random.choice([1, 3, 1024]), **filter)
        reader = Reader(subscription, filter, after)
        reader.pace = self.random.choice([0, 0, 5])
        self.readers.append(reader)

    async def leave(self) -> None:
        if self.readers:
            reader = self.random.choice(self.readers)
            reader.left = True
            reader.subscription.unsubscribe()

    async def breaks(self) -> None:
        self.broke = True
        faulty = self.random.choice(self.faulty)
        methods = self.random.choice([METHODS, [self.random.choice(METHODS)]])
        how = self.random.choice(["fail", "fail", "hang", "late", "shield"])
        for method in methods:
            if how == "fail":
                faulty.failing[method] = self.random.choice(
                    [StoreUnavailable("busy"), StoreError("no"), OSError("gone"), asyncio.CancelledError()]
                )
            elif how == "late" and method != "claim_run":  # whose caller leaves: no store may lose that claim
                faulty.late.add(method)
            else:
                faulty.hanging.add(method)
                if how == "shield" and method != "claim_run":
                    faulty.shielding.add(method)

    async def heal(self) -> None:
        for faulty in self.faulty:
            faulty.heal()
            faulty.shielding.clear()

    async def time_passes(self) -> None:
        await self.clock.advance_ms(self.random.choice([10, 300, 1_000, 1_100]))
        if self.is_threaded:
            await asyncio.sleep(0.001)

    async def _slots_are_kept(self) -> None:
        running = await self.store.list_runs(self.session_id, status="running")
        assert len(running) <= self.slots, "more runs than slots"

    # -- the end

    async def come_to_rest(self) -> None:
        await self.heal()
        self.provider.is_at_ease = True
        for told in self.provider.executing.values():
            if not told.done():
                told.set_result("complete")
        await asyncio.gather(
            *(task for name, _, task in self.calls if name == "pause"), return_exceptions=True
        )
        if (await self.store.get_session(self.session_id)).status == "paused":
            await self.manager.resume_session(self.session_id)
        for index, server in enumerate(self.servers):
            if server is not None and (not server.is_running or server._draining):
                self.servers[index] = None
                self.call("stop", self._stopped(server))
        while None in self.servers:
            await self.start()
        await self._until(self._is_quiet, "somebody waits for ever")
        await self._until(self._nothing_is_open, "runs stay open")
        for server in self.starts:
            self.call("stop", self._stopped(server))
        await self._until(self._is_quiet, "a stop hangs")
        await self._until(self._has_read, "a reader waits for ever")

    async def _until(self, condition: Any, what: str) -> None:
        for _ in range(400):
            if await condition():
                return
            await self.clock.advance_ms(500)
            if self.is_threaded:
                await asyncio.sleep(0.002)
        raise AssertionError(what)

    async def _nothing_is_open(self) -> bool:
        return not await self.store.list_runs(self.session_id, status=("pending", "running"))

    async def _is_quiet(self) -> bool:
        return all(task.done() for _, _, task in self.calls)

    async def _has_read(self) -> bool:
        return all(reader.task.done() for reader in self.readers)

    # -- what must be true

    async def check(self) -> None:
        runs = await self.store.list_runs(self.session_id)
        log = await self.store.get_events(self.session_id)
        self._check_runs(runs, log)
        self._check_order(runs)
        for name, facts, task in self.calls:
            self._check_call(name, facts, task, {run.id: run for run in runs})
        for reader in self.readers:
            self._check_reader(reader, log)
        self._check_callbacks(log)
        assert not any(id(faulty) in _watches for faulty in self.faulty)
        await self.clock.advance_ms(61_000)  # what was left to itself is done by then
        assert self.clock.timers == 0

    def _check_runs(self, runs: list[Run], log: list[Event]) -> None:
        stored = {run.id: run for run in runs}
        assert set(self.accepted) <= set(stored), "an accepted run is not stored"
        assert [event.sequence_number for event in log] == list(range(1, len(log) + 1))
        for run in runs:
            assert run.input == self.accepted.get(run.id, run.input)
            events = [event for event in log if event.run_id == run.id]
            ends = [event for event in events if event.is_terminal]
            story = [(event.sequence_number, str(event.type), event.data.get("attempt")) for event in events]
            assert [event.type for event in ends] == [f"run_{run.status}"], f"not one end: {run} {story}"
            assert events[-1] is ends[0], f"something after the end: {story}"
            starts = [event.data["attempt"] for event in events if event.type == EventType.RUN_STARTED]
            assert starts == sorted(set(starts)), "an attempt started twice"
            if run.status == RunStatus.COMPLETED:
                assert run.output == {"attempt": run.attempt}

    def _check_order(self, runs: list[Run]) -> None:
        places = {run.id: place for place, run in enumerate(runs)}
        firsts = [places[run.id] for run in self.claimed if run.attempt == 1]
        assert len(firsts) == len(set(firsts)), "an attempt was claimed twice"
        if not self.is_threaded:  # there, answers to two servers may cross
            assert firsts == sorted(firsts), "a run was claimed before one that waited longer"

    def _check_call(
        self, name: str, facts: dict[str, Any], task: asyncio.Task[Any], runs: dict[str, Run]
    ) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, AssertionError) or not isinstance(error, AsmError | None):
            raise AssertionError(f"{name} raised {error!r}") from error
        # Where the clock does not wait for the store's threads, a store may look as if it hung.
        always = (ActorStopped, StoreError) if self.broke or self.is_threaded else (ActorStopped,)
        allowed: dict[str, tuple[Any, ...]] = {
            "submit": (Conflict, QueueFull, Draining),
            "await": (AwaitTimeout, RunNotFound, RunCancelled, RunFailed),
            "cancel": (RunNotFound,),
            "interrupt": (RunNotFound,),
            "drain": (DrainTimeout,),
            "pause": (InvalidTransition,),
            "start": (),
            "stop": (),
        }
        assert error is None or isinstance(error, (*allowed[name], *always)), f"{name} raised {error!r}"
        if name != "await":
            return
        run = runs.get(facts["run_id"])
        if isinstance(error, AwaitTimeout):
            assert facts["timeout_ms"] is not None
        elif error is None:
            result: RunResult = task.result()
            assert run is not None
            assert (result.run_id, result.status, result.output) == (run.id, RunStatus.COMPLETED, run.output)
        elif isinstance(error, RunCancelled | RunFailed):
            assert run is not None
            assert run.error is not None
            assert error.code == run.error["code"]

    def _check_reader(self, reader: Reader, log: list[Event]) -> None:
        error = reader.task.exception()
        assert isinstance(error, ActorStopped | StoreError | None), f"a reader was told {error!r}"
        types, run_id = reader.filter.get("type"), reader.filter.get("run_id")
        matching = [
            event.sequence_number
            for event in log
            if (event.sequence_number or 0) > reader.after
            and (types is None or event.type in types)
            and (run_id is None or event.run_id == run_id)
        ]
        assert reader.got == matching[: len(reader.got)], "a reader missed, repeated or mixed something"

    def _check_callbacks(self, log: list[Event]) -> None:
        for run_id, told in self.heard.items():
            numbers = [event.sequence_number for event in log if event.run_id == run_id]
            for heard in told.values():
                right = [number for number in numbers if number in set(heard)]
                assert heard == right, f"out of order, or twice: {heard} of {numbers}"
            heard_by_all = Counter(number for heard in told.values() for number in heard)
            assert all(count == 1 for count in heard_by_all.values()), "two submissions heard one event"


@asynccontextmanager
async def stores(kind: str, folder: Path) -> AsyncGenerator[list[Any]]:
    """What the two servers stand on: one store, or one database with a node for each."""
    if kind == "memory":
        async with InMemorySessionStore() as store:
            yield [store, store]
    else:
        url = f"sqlite:///{folder}/sessions.db"
        async with (
            SQLSessionStore(url, synchronous="NORMAL") as one,
            SQLSessionStore(url, synchronous="NORMAL") as other,
        ):
            yield [one, other]


LIVES = [*(("memory", seed) for seed in range(40)), *(("sqlite", seed) for seed in range(6))]


@pytest.mark.parametrize(("kind", "seed"), LIVES)
async def test_whatever_happens_log_rows_answers_and_readers_agree(
    kind: str, seed: int, tmp_path: Path
) -> None:
    async with stores(kind, tmp_path) as made:
        life = Life(made, seed, is_threaded=kind == "sqlite")
        await life.live(80)
        await life.check()
