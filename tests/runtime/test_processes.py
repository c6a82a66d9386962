"""One SQLite file, several processes: killed, frozen, side by side."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from asm_runtime import RunStatus, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.errors import RunCancelled, RunFailed
from asm_runtime.stores import SQLSessionStore
from tests.runtime.support import terminal_events, types_of, until

ROOT = Path(__file__).parents[2]


class Worker:
    """A process that serves a session."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def said(self, line: str) -> None:
        """Return when it has said that."""
        assert self.process.stdout is not None
        while line not in self.lines:
            heard = await self.process.stdout.readline()
            assert heard, f"the worker ended, having said {self.lines}"
            self.lines.append(heard.decode().strip())

    async def hear(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        await self.hear("stop")
        assert await self.process.wait() == 0


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"{tmp_path}/sessions.db"


@pytest.fixture
async def store(file: str) -> AsyncIterator[SQLSessionStore]:
    async with SQLSessionStore(f"sqlite:///{file}", synchronous="NORMAL") as store:
        yield store


@pytest.fixture
async def worker(file: str) -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    workers: list[Worker] = []

    async def start(session_id: str, slots: int = 1, on_orphan: str = "fail") -> Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.runtime.serving", file, session_id, str(slots), on_orphan,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        workers.append(Worker(process))
        await workers[-1].said("ready")
        return workers[-1]

    yield start
    for each in workers:
        if each.process.returncode is None:
            each.process.kill()
        await each.process.communicate()


async def new_session(store: SQLSessionStore) -> tuple[SessionManager, str]:
    manager = SessionManager(store, ScriptedAdapter())
    return manager, (await manager.start_session(agent_id="tester")).id


@pytest.mark.parametrize("policy", ["fail", "requeue"])
async def test_the_successor_of_a_killed_process_takes_its_place(
    store: SQLSessionStore, worker: Callable[..., Awaitable[Worker]], policy: str
) -> None:
    manager, session_id = await new_session(store)
    first = await worker(session_id)
    runs = [(await manager.start_run(session_id, {"hold": True})).id]
    runs += [(await manager.start_run(session_id, {})).id for _ in range(3)]
    await first.said(f"started {runs[0]}")
    assert await store.list_orphaned_runs(session_id=session_id) == []
    await first.kill()
    assert [run.id for run in await store.list_orphaned_runs(session_id=session_id)] == runs[:1]
    successor = await worker(session_id, 1, policy)
    if policy == "requeue":
        await successor.said(f"started {runs[0]}")
        await successor.hear("go")
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=session_id) as server:
        if policy == "fail":
            with pytest.raises(RunFailed) as failed:
                await server.await_run(runs[0])
            assert failed.value.code == "orphaned"
        else:
            assert (await server.await_run(runs[0])).status == RunStatus.COMPLETED
        for run_id in runs[1:]:
            assert (await server.await_run(run_id)).status == RunStatus.COMPLETED
    started = [event.run_id for event in await store.get_events(session_id, type="run_started")]
    assert started == (runs if policy == "fail" else [runs[0], *runs])
    for run_id in runs:
        assert len(await terminal_events(store, session_id, run_id)) == 1


async def test_a_frozen_process_keeps_its_runs(
    store: SQLSessionStore, worker: Callable[..., Awaitable[Worker]]
) -> None:
    manager, session_id = await new_session(store)
    frozen = await worker(session_id)
    run = await manager.start_run(session_id, {"hold": True})
    await frozen.said(f"started {run.id}")
    frozen.process.send_signal(signal.SIGSTOP)
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=session_id) as server:
        other = await server.submit_run({"prompt": "x"})
        assert await store.list_orphaned_runs() == []
        assert (await store.get_run(run.id)).status == RunStatus.RUNNING
        assert (await store.get_run(other)).status == RunStatus.PENDING
        frozen.process.send_signal(signal.SIGCONT)
        await frozen.hear("go")
        assert (await server.await_run(run.id)).output == {"attempt": 1}
        await server.await_run(other)


async def test_two_processes_share_the_queue_and_the_slots(
    store: SQLSessionStore, worker: Callable[..., Awaitable[Worker]]
) -> None:
    manager, session_id = await new_session(store)
    workers = [await worker(session_id, 2), await worker(session_id, 2)]
    runs = [(await manager.start_run(session_id, {"tokens": 3})).id for _ in range(60)]
    async with SessionServer(
        store=store, adapter=ScriptedAdapter([]), session_id=session_id, max_concurrent_runs=2
    ) as server:
        for run_id in runs:
            assert (await server.await_run(run_id)).status == RunStatus.COMPLETED
    for each in workers:
        await each.stop()
    log = await store.get_events(session_id)
    assert [event.sequence_number for event in log] == list(range(1, len(log) + 1))
    started = [event.run_id for event in log if event.type == "run_started"]
    assert sorted(map(str, started)) == sorted(runs)
    in_flight: set[str | None] = set()
    for event in log:
        if event.type == "run_started":
            in_flight.add(event.run_id)
            assert len(in_flight) <= 2
        elif event.is_terminal:
            in_flight.discard(event.run_id)


async def test_cancelling_reaches_the_process_that_executes(
    store: SQLSessionStore, worker: Callable[..., Awaitable[Worker]]
) -> None:
    manager, session_id = await new_session(store)
    executing = await worker(session_id)
    run = await manager.start_run(session_id, {"hold": True})
    await executing.said(f"started {run.id}")
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=session_id) as server:
        await server.cancel_run(run.id)
        assert (await store.get_run(run.id)).status == RunStatus.CANCELLED
        await executing.said(f"cancelled {run.id}")
        with pytest.raises(RunCancelled):
            await server.await_run(run.id)
    assert (await types_of(store, session_id, run.id)) == ["run_started", "run_cancelled"]


async def test_a_subscriber_sees_what_another_process_appends(
    store: SQLSessionStore, worker: Callable[..., Awaitable[Worker]]
) -> None:
    manager, session_id = await new_session(store)
    await worker(session_id)
    numbers: list[int | None] = []
    async with SessionServer(
        store=store, adapter=ScriptedAdapter(), session_id=session_id, max_concurrent_runs=1
    ) as server:
        subscription = server.subscribe()

        async def follow() -> None:
            async for event in subscription:
                numbers.append(event.sequence_number)
                if event.is_terminal:
                    return

        reading = asyncio.create_task(follow())
        await until(lambda: len(numbers) >= 2)
        await server.drain(queued="leave")  # the other process is to execute it
        await manager.start_run(session_id, {"tokens": 500})
        await reading
        subscription.unsubscribe()
    assert numbers == list(range(1, 505))
