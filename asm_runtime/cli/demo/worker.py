"""A process of the demo that serves sessions: `python -m asm_runtime.cli.demo.worker STORE_URL`.

It opens the store and says that it is ready. One line on its standard input is its order; then it
serves, and says on its standard output what its subscriber sees. It ends when all runs have, or when
its standard input is closed: it does not outlive the demo.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing

import msgspec

from asm_runtime.adapters import ShellAdapter
from asm_runtime.cli.demo.plan import LIBRARY, SLOTS, SUBSCRIBED, plan
from asm_runtime.records import EventType
from asm_runtime.server import SessionServer
from asm_runtime.stores import SQLSessionStore
from asm_runtime.supervisor import SessionSupervisor

__all__ = ["LEAVES_AFTER", "Order", "Report"]

LEAVES_AFTER = 9
"""How many events the first subscriber takes before it leaves."""


class Order(msgspec.Struct):
    """What a worker is told: be the first, or take over where the subscriber's cursor stands."""

    is_first: bool
    cursor: int = 0


class Report(msgspec.Struct, omit_defaults=True):
    """What a worker says: that it is ready, which event its subscriber saw, that it is done."""

    ready: bool = False
    saw: int | None = None
    done: bool = False


async def main(url: str) -> None:
    """Serve as ordered, or stop when nobody is left to order."""
    orders = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    with closing(pipe):
        await _work(url, orders)


async def _work(url: str, orders: asyncio.StreamReader) -> None:
    async with SQLSessionStore(url) as store:
        _say(Report(ready=True))
        line = await orders.readline()
        if not line:
            return
        serving = asyncio.ensure_future(_serve(store, msgspec.json.decode(line, type=Order)))
        abandoned = asyncio.ensure_future(orders.read())
        await asyncio.wait((serving, abandoned), return_when=asyncio.FIRST_COMPLETED)
        for task in (serving, abandoned):
            task.cancel()
        await asyncio.wait((serving, abandoned))
        if not serving.cancelled():
            serving.result()
            _say(Report(done=True))


async def _serve(store: SQLSessionStore, order: Order) -> None:
    """Submit the runs, or find those that the other process left, and see them all through."""
    supervisor = SessionSupervisor(
        store=store,
        adapter=ShellAdapter(cwd=LIBRARY),
        max_concurrent_runs=SLOTS,
        on_orphan="requeue",
    )
    async with supervisor, asyncio.TaskGroup() as group:
        for session_id, planned in plan().items():
            if order.is_first:
                server = await supervisor.start_session(
                    session_opts={"agent_id": session_id, "id": session_id}
                )
                for run in planned:
                    await server.submit_run({"command": run.command}, run_id=run.run_id)
            else:
                server = await supervisor.start_session(session_id=session_id)
            if session_id == SUBSCRIBED:
                group.create_task(_subscribe(server, order))
            group.create_task(_see_through(server, [run.run_id for run in planned]))


async def _see_through(server: SessionServer, run_ids: list[str]) -> None:
    for run_id in run_ids:
        await server.await_run(run_id)
    await server.manager.complete_session(server.session_id)


async def _subscribe(server: SessionServer, order: Order) -> None:
    """Report every event; the first process's subscriber leaves in the middle."""
    async with server.subscribe(after=order.cursor) as events:
        async for event in events:
            _say(Report(saw=event.sequence_number))
            if order.is_first and event.sequence_number == LEAVES_AFTER:
                return
            if event.type is EventType.SESSION_COMPLETED:
                return


def _say(report: Report) -> None:
    # A pipe that nobody empties would hold up the loop; the demo reads each line as it comes.
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
