"""What does an append cost, alone and with 256 appenders that each await theirs?

Events a second with a payload of 128 bytes, made beforehand, into 16 logs, by store and durability. The
floors are the raw driver on the same tables: `sqlite3.executemany` in transactions of 100 rows, and one row
to a transaction on a connection without a thread between. The peer writes a transaction for each append
through aiosqlite. A lone appender's figure is what its median append would give: the disk's sync
drifts, and one that takes ten times as long would decide an average.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from functools import partial
from typing import Any

import aiosqlite

from asm_runtime import Event
from benchmarks.harness import Harness
from benchmarks.stores import INSERT, RawLog, event, memory_store, sqlite_store

APPENDERS = 256


async def append_rate(store: Any, appenders: int, each: int) -> float:
    """Appends a second, with this many tasks that each await every append."""

    made = [[event(number) for _ in range(each)] for number in range(appenders)]

    async def appender(events: list[Event]) -> None:
        for one in events:
            await store.append_event_with_sequence(one)

    began = time.perf_counter()
    await asyncio.gather(*map(appender, made))
    return appenders * each / (time.perf_counter() - began)


async def measure(harness: Harness) -> None:
    """Answer the question."""
    await on_sqlite(harness, "FULL")
    await on_sqlite(harness, "NORMAL")
    each = harness.size(100, 5)
    async with memory_store() as store:
        for appenders in (1, APPENDERS):
            count = each * 20 if appenders == 1 else each
            await harness.compare(
                f"memory, {appenders}",
                {"store": partial(append_rate, store, appenders, count)},
                unit="events/s",
            )


async def on_sqlite(harness: Harness, synchronous: str) -> None:
    """The cases on a file."""
    many, alone = harness.size(40, 2), harness.size(100, 10)
    async with sqlite_store(synchronous) as (store, file), aiosqlite.connect(file) as peer:
        await peer.execute(f"PRAGMA synchronous = {synchronous}")
        raw = RawLog(file, synchronous)
        try:

            async def raw_hundreds() -> float:
                rows = raw.rows(many * APPENDERS)
                began = time.perf_counter()
                raw.insert(rows, 100)
                return len(rows) / (time.perf_counter() - began)

            async def raw_lone() -> float:
                taken: list[float] = []
                for row in raw.rows(alone):
                    began = time.perf_counter()
                    raw.insert([row], 1)
                    taken.append(time.perf_counter() - began)
                return 1 / statistics.median(taken)

            async def store_lone() -> float:
                taken: list[float] = []
                for _ in range(alone):
                    new = event()
                    began = time.perf_counter()
                    await store.append_event_with_sequence(new)
                    taken.append(time.perf_counter() - began)
                return 1 / statistics.median(taken)

            async def peer_single() -> float:
                rows = raw.rows(3 * alone, "peer")
                waiting = iter(rows)
                lock = asyncio.Lock()

                async def appender() -> None:
                    for row in waiting:
                        async with lock:  # a connection has one transaction at a time
                            await peer.execute("BEGIN IMMEDIATE")
                            await peer.execute(INSERT, row)
                            await peer.commit()

                began = time.perf_counter()
                await asyncio.gather(*(appender() for _ in range(APPENDERS)))
                return len(rows) / (time.perf_counter() - began)

            case = f"SQLite {synchronous}, {APPENDERS} appenders"
            await harness.compare(
                case,
                {
                    "executemany, 100 a commit": raw_hundreds,
                    "store": lambda: append_rate(store, APPENDERS, many),
                    "aiosqlite, 1 a commit": peer_single,
                },
                unit="events/s",
            )
            if synchronous == "FULL":
                harness.ratio(case, "store", "executemany, 100 a commit", at_least=0.40, goal=0.5)
                harness.ratio(case, "store", "aiosqlite, 1 a commit", at_least=20)
            case = f"SQLite {synchronous}, 1 appender"
            await harness.compare(
                case,
                {"1 row a commit": raw_lone, "store": store_lone},
                unit="events/s",
                repetitions=3 * harness.repetitions,
            )
            if synchronous == "FULL":
                harness.ratio(case, "store", "1 row a commit", at_least=0.7, goal=0.84)
        finally:
            raw.close()
