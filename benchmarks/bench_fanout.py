"""What do many subscribers of one session cost?

Deliveries a second (events times subscribers) of a run that streams, with 1, 100 and 1 000 live
subscribers. The floor is an `asyncio.Queue` for each reader and one task that puts every event into
all of them: no log, no order to keep, no bound.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from asm_runtime.subscription import Subscription
from benchmarks.harness import Harness
from benchmarks.sessions import server_on
from benchmarks.stores import memory_store

CROWDS = (1, 100, 1_000)


async def measure(harness: Harness) -> None:
    """Answer the question."""
    deliveries = harness.size(100_000, 5_000)
    for crowd in CROWDS:
        events = max(deliveries // crowd, 10)
        await harness.compare(
            f"{crowd} subscriber{'s' if crowd > 1 else ''}",
            {
                "asyncio.Queue each": partial(queues, crowd, events),
                "subscriptions": partial(subscriptions, crowd, events),
            },
            unit="events/s",
            repetitions=min(harness.repetitions, 5),
        )


async def queues(crowd: int, events: int) -> float:
    """Deliveries a second through plain queues."""
    readers = [asyncio.Queue[int]() for _ in range(crowd)]

    async def read(queue: asyncio.Queue[int]) -> None:
        while await queue.get() < events:
            pass

    tasks = [asyncio.create_task(read(queue)) for queue in readers]
    began = time.perf_counter()
    for number in range(1, events + 1):
        for queue in readers:
            queue.put_nowait(number)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return crowd * events / (time.perf_counter() - began)


async def subscriptions(crowd: int, events: int) -> float:
    """Deliveries a second through subscriptions, the run that makes the events included."""
    async with memory_store() as store, server_on(store) as server:
        ready = asyncio.Semaphore(0)

        async def read(subscription: Subscription) -> None:
            async with subscription:
                async for event in subscription:
                    if event.type == "session_started":
                        ready.release()
                    elif event.is_terminal:
                        return

        tasks = [asyncio.create_task(read(server.subscribe())) for _ in range(crowd)]
        for _ in range(crowd):
            await ready.acquire()
        began = time.perf_counter()
        await server.submit_run({"tokens": events})
        await asyncio.gather(*tasks)
        return crowd * events / (time.perf_counter() - began)
