"""How long does an append take, at the median and at the 99th percentile?

Microseconds from the call to the answer, events of 128 bytes, alone and with 256 appenders that
each await theirs, by store and durability. Beside the lone append stands what it cannot do without:
the raw one-row transaction on SQLite, a mailbox round trip in memory. With 256 appenders an append
waits for the group before its own: there latency is the price of the throughput that
`bench_append` shows. The figures of a repetition are its percentiles; no floor is set here.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from benchmarks.bench_append import APPENDERS
from benchmarks.bench_mailbox import Counter
from benchmarks.harness import Harness
from benchmarks.stores import RawLog, event, memory_store, sqlite_store

Timed: TypeAlias = Callable[[], Awaitable[list[float]]]
"""Does the work once and returns how long each part took, in seconds."""


async def measure(harness: Harness) -> None:
    """Answer the question."""
    alone, many = harness.size(1_000, 100), harness.size(40, 4)
    async with memory_store() as store, Counter() as counter:
        await percentiles(
            harness,
            "memory",
            {
                "mailbox round trip": partial(round_trips, counter, alone),
                "1 appender": partial(appends, store, 1, alone),
                f"{APPENDERS} appenders": partial(appends, store, APPENDERS, many),
            },
        )
    for synchronous in ("FULL", "NORMAL"):
        async with sqlite_store(synchronous) as (store, file):
            raw = RawLog(file, synchronous)
            try:
                await percentiles(
                    harness,
                    f"SQLite {synchronous}",
                    {
                        "1 row a commit": partial(transactions, raw, alone),
                        "1 appender": partial(appends, store, 1, alone),
                        f"{APPENDERS} appenders": partial(appends, store, APPENDERS, many),
                    },
                )
            finally:
                raw.close()


async def percentiles(harness: Harness, case: str, variants: Mapping[str, Timed]) -> None:
    """Run the variants in turn, several times over, and note both percentiles of each repetition."""
    taken: dict[str, list[list[float]]] = {name: [] for name in variants}
    for repetition in range(1 + harness.repetitions):
        for name, variant in variants.items():
            times = await variant()
            if repetition:  # the first round does not count
                taken[name].append(statistics.quantiles(times, n=100))
    for name, repetitions in taken.items():
        harness.add(case, f"{name}, median", [cuts[49] * 1e6 for cuts in repetitions], unit="µs")
        harness.add(case, f"{name}, p99", [cuts[98] * 1e6 for cuts in repetitions], unit="µs")


async def appends(store: Any, appenders: int, each: int) -> list[float]:
    """Every append of this many tasks, timed by the task that awaits it."""
    times: list[float] = []

    async def appender(number: int) -> None:
        for _ in range(each):
            new = event(number)
            began = time.perf_counter()
            await store.append_event_with_sequence(new)
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(appender(number) for number in range(appenders)))
    return times


async def transactions(raw: RawLog, count: int) -> list[float]:
    """Transactions of one row, on the thread that asks."""
    times: list[float] = []
    for row in raw.rows(count):
        began = time.perf_counter()
        raw.insert([row], 1)
        times.append(time.perf_counter() - began)
    return times


async def round_trips(counter: Counter, count: int) -> list[float]:
    """Calls to an actor, one after the other."""
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        await counter.call(counter.add, 1)
        times.append(time.perf_counter() - began)
    return times
