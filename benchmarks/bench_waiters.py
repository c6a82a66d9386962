"""What does an append cost while thousands wait for other sessions?

Appends a second with 0, 1 000 and 10 000 long polls parked on other sessions.
"""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from typing import Any

from benchmarks.bench_append import append_rate
from benchmarks.harness import Harness
from benchmarks.stores import memory_store, sqlite_store


async def measure(harness: Harness) -> None:
    """Answer the question."""
    crowds = (0, 1_000, harness.size(10_000, 1_500))
    async with memory_store() as memory:
        await compare(harness, "memory", memory, crowds, 1, harness.size(5_000, 200))
    async with sqlite_store("NORMAL") as (store, _):
        await compare(harness, "SQLite NORMAL", store, crowds, 16, harness.size(300, 5))


async def compare(
    harness: Harness, name: str, store: Any, crowds: tuple[int, ...], appenders: int, each: int
) -> None:
    """The same appends beside each crowd of waiters."""
    await harness.compare(
        name,
        {f"{crowd} waiters": partial(beside, store, crowd, appenders, each) for crowd in crowds},
        unit="events/s",
    )
    harness.ratio(name, "1000 waiters", "0 waiters", at_least=0.8)
    harness.ratio(name, f"{crowds[-1]} waiters", "0 waiters", at_least=0.8)


async def beside(store: Any, crowd: int, appenders: int, each: int) -> float:
    """Appends a second beside that crowd, which comes before and goes after."""
    waiting = [
        asyncio.create_task(store.get_events(f"idle_{number}", wait_timeout_ms=600_000))
        for number in range(crowd)
    ]
    if waiting:  # a read queued after theirs: once it is answered, all of them are parked
        await asyncio.sleep(0)
        await store.get_events("nobody")
        await asyncio.sleep(0.1)
    gc.collect()  # else the collection that the crowd's coming has earned falls into the measurement
    try:
        return await append_rate(store, appenders, each)
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
