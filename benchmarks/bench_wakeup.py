"""How soon does a waiter in the same process hear of an append?

Between the moment at which the appender has its answer and the moment at which the waiter has the
event, whichever is first, in microseconds, beside a mailbox round trip; with a short log and with a
long one. The medians of many wake-ups are the figures of a repetition.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from functools import partial
from typing import Any

from asm_runtime import Event
from benchmarks.bench_mailbox import Counter
from benchmarks.harness import Harness
from benchmarks.stores import PAYLOAD, memory_store, sqlite_store


async def measure(harness: Harness) -> None:
    """Answer the question."""
    times, long = harness.size(300, 10), harness.size(20_000, 1_000)
    async with memory_store() as memory:
        await compare(harness, "memory", memory, times, long)
    async with sqlite_store("NORMAL") as (store, _):
        await compare(harness, "SQLite NORMAL", store, times, long)


async def compare(harness: Harness, name: str, store: Any, times: int, long: int) -> None:
    """A new log, a long one, and the mailbox."""
    for _ in range(0, long, 1_000):
        await store.append_events([_event("long") for _ in range(1_000)])
    async with Counter() as counter:
        await harness.compare(
            name,
            {
                "mailbox round trip": partial(round_trip, counter, times),
                "wake-up, short log": partial(wake_up, store, "short", times),
                "wake-up, long log": partial(wake_up, store, "long", times),
            },
            unit="µs",
        )
    harness.ratio(name, "wake-up, short log", "mailbox round trip", at_most=3)
    harness.ratio(name, "wake-up, long log", "mailbox round trip", at_most=3)


async def round_trip(counter: Counter, times: int) -> float:
    """The median of calls to an actor."""
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await counter.call(counter.add, 1)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


async def wake_up(store: Any, session_id: str, times: int) -> float:
    """The median time between the appender's answer and the waiter's."""
    taken: list[float] = []

    async def wait(cursor: int) -> float:
        (found,) = await store.get_events(session_id, after=cursor, wait_timeout_ms=60_000)
        assert found.sequence_number == cursor + 1
        return time.perf_counter()

    cursor = await store.get_latest_sequence(session_id)
    for _ in range(times):
        waiting = asyncio.create_task(wait(cursor))
        await store.get_latest_sequence(session_id)  # by the time of this answer it is parked
        await asyncio.sleep(0.0005)
        await store.append_event(_event(session_id))
        answered = time.perf_counter()
        taken.append(abs(await waiting - answered))
        cursor += 1
    return statistics.median(taken) * 1e6


def _event(session_id: str) -> Event:
    return Event.new(type="message_streamed", session_id=session_id, data=PAYLOAD)
