"""How long does the runtime keep the event loop to itself?

The longest stretch between two turns of the loop, in milliseconds of this thread's processor time: a
busy machine does not count, and the garbage collector is off. 1 000 readers of one session begin, are
fed and end; 1 000 callers await one run; 10 000 events are appended and read at once; a mailbox of
100 000 letters is emptied. What readers and callers do themselves is in it: here next to nothing.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from asm_runtime.ports import RunResult, SessionStore
from asm_runtime.subscription import Subscription
from benchmarks.bench_mailbox import Counter
from benchmarks.harness import Harness
from benchmarks.sessions import server_on
from benchmarks.stores import event, memory_store

MOST_MS = 10


async def measure(harness: Harness) -> None:
    """Answer the question."""
    crowd = harness.size(1_000, 50)
    repetitions = min(harness.repetitions, 3)
    figures: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for case, milliseconds in (await stretches(crowd)).items():
            figures.setdefault(case, []).append(milliseconds)
    for case, values in figures.items():
        harness.add(case, "longest stretch", values, unit="ms")
        harness.bound(case, "longest stretch", at_most=MOST_MS)


async def stretches(crowd: int) -> dict[str, float]:
    """The longest stretch of each case."""
    found: dict[str, float] = {}
    async with memory_store() as store, server_on(store) as server:
        session_id = server.session_id
        got = 0

        async def read(subscription: Subscription) -> None:
            nonlocal got
            async for _ in subscription:
                got += 1

        async def until_got(count: int) -> None:
            while got < count:  # noqa: ASYNC110
                await asyncio.sleep(0)

        readers: list[asyncio.Task[None]] = []
        async with probe(found, f"{crowd} readers begin"):
            async for _ in a_few_a_turn(crowd):
                readers.append(asyncio.create_task(read(server.subscribe())))
            await until_got(2 * crowd)
        for case, batches, size in (("single events", 20, 1), ("batches of 500", 2, 500)):
            expected = got + crowd * batches * size
            async with probe(found, f"{crowd} readers, {case}"):
                for _ in range(batches):
                    await store.append_events([event(0).replace(session_id=session_id) for _ in range(size)])
                await until_got(expected)
        async with probe(found, f"{crowd} callers await a run"):
            run_id = await server.submit_run({"tokens": 20_000})
            callers: list[asyncio.Task[RunResult]] = []
            async for _ in a_few_a_turn(crowd):
                callers.append(asyncio.create_task(server.await_run(run_id)))
            await server.cancel_run(run_id)
            await asyncio.gather(*callers, return_exceptions=True)
        async with probe(found, f"{crowd} readers end"):
            await server.stop()
            await asyncio.wait(readers)
    async with memory_store() as store:
        await long_pages(found, store)
    async with Counter(mailbox_limit=100_000) as counter:
        replies = [counter.call(counter.add, 1) for _ in range(100_000)]
        async with probe(found, "100 000 letters"):
            await replies[-1]
    return found


async def long_pages(found: dict[str, float], store: SessionStore) -> None:
    """10 000 events, appended and read at once."""
    events = [event(0) for _ in range(10_000)]
    async with probe(found, "an append of 10 000"):
        await store.append_events(events)
    async with probe(found, "a page of 10 000"):
        await store.get_events(events[0].session_id)


async def a_few_a_turn(count: int) -> AsyncIterator[int]:
    """As many numbers, and now and then a turn of the loop: what comes all at once is its owner's affair."""
    for number in range(count):
        yield number
        if number % 50 == 0:
            await asyncio.sleep(0)


@asynccontextmanager
async def probe(found: dict[str, float], case: str) -> AsyncGenerator[None]:
    """Note the longest stretch, while the body runs."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest = max(longest, now - last)
            last = now

    gc.collect()
    gc.disable()
    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        gc.enable()
        beating.cancel()
        await asyncio.wait([beating])
    found[case] = longest * 1000
