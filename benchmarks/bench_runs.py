"""How many runs a second are submitted, started, executed and answered?

Runs that report one event, through one slot and through four, one session. Whether the last of
2 000 runs on one session are as fast as the first. And how many start a second from a long queue, while
nobody submits and while 64 callers submit as fast as they can: a run takes four turns at the store, one
after the other, which it shares with all the submissions that wait there at that moment.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from asm_runtime import SessionServer
from asm_runtime.subscription import Subscription
from benchmarks.harness import Harness
from benchmarks.sessions import server_on
from benchmarks.stores import memory_store, sqlite_store

SHARE = 4


async def measure(harness: Harness) -> None:
    """Answer the question."""
    runs = harness.size(300, 20)
    many = harness.size(2_000, 80)
    async with memory_store() as memory, sqlite_store() as (store, _):
        for name, each in (("memory", memory), ("SQLite FULL", store)):
            await harness.compare(
                name,
                {
                    "1 slot": partial(run_rate, each, 1, runs),
                    "4 slots": partial(run_rate, each, 4, runs),
                },
                unit="runs/s",
            )
        for name, each in (("memory", memory), ("SQLite FULL", store)):
            shares = [await first_and_last(each, many) for _ in range(harness.size(3, 1))]
            case = f"{many} runs on one session, {name}"
            harness.add(case, "first quarter", [first for first, _ in shares], unit="runs/s")
            harness.add(case, "last quarter", [last for _, last in shares], unit="runs/s")
            harness.ratio(case, "last quarter", "first quarter", at_least=0.8)
        for name, each in (("memory", memory), ("SQLite FULL", store)):
            case = f"starts through 16 slots, {name}"
            await harness.compare(
                case,
                {
                    "nobody submits": partial(start_rate, each, 0, runs),
                    "64 submit": partial(start_rate, each, 64, runs),
                },
                unit="runs/s",
            )
            harness.ratio(case, "64 submit", "nobody submits", at_least=0.15)


async def run_rate(store: Any, slots: int, runs: int) -> float:
    """Runs a second, submitted together."""
    async with server_on(store, slots=slots) as server:
        began = time.perf_counter()
        submitted = [await server.submit_run({"tokens": 1}) for _ in range(runs)]
        await asyncio.gather(*(server.await_run(run_id) for run_id in submitted))
        return runs / (time.perf_counter() - began)


async def first_and_last(store: Any, runs: int) -> tuple[float, float]:
    """Runs a second in the first and in the last quarter of many on one session, one by one."""
    async with server_on(store) as server:
        quarter = runs // SHARE
        marks: list[float] = [time.perf_counter()]
        for number in range(1, runs + 1):
            await server.execute_run({"tokens": 1})
            if number % quarter == 0:
                marks.append(time.perf_counter())
    return quarter / (marks[1] - marks[0]), quarter / (marks[-1] - marks[-2])


async def start_rate(store: Any, submitters: int, runs: int) -> float:
    """Runs a second that are taken from a long queue, while this many callers submit to it."""
    async with server_on(store, slots=16) as server:
        await server.manager.pause_session(server.session_id)
        await asyncio.gather(*(server.submit_run({"tokens": 0}) for _ in range(2 * runs)))
        await server.manager.resume_session(server.session_id)
        submitting = [asyncio.create_task(_submit_on_and_on(server)) for _ in range(submitters)]
        async with server.subscribe(type="run_completed") as ended:
            began = await _when(ended, runs // 2)
            seconds = await _when(ended, runs - runs // 2) - began
        for task in submitting:
            task.cancel()
        await asyncio.gather(*submitting, return_exceptions=True)
    return (runs - runs // 2) / seconds


async def _submit_on_and_on(server: SessionServer) -> None:
    while True:
        await server.submit_run({"tokens": 0})


async def _when(ended: Subscription, runs: int) -> float:
    """When this many more runs have ended."""
    for _ in range(runs):
        await anext(ended)
    return time.perf_counter()
