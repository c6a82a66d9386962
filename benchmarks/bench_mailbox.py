"""What does a call to an actor cost, beside the least the loop can do for a message?

The floor is one future and one `call_soon` for each message. The peer is an actor made of an
`asyncio.Queue` and a standing task. Calls a second; one caller, then 64 at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from asm_runtime.actor import DEFAULT_MAILBOX_LIMIT, Actor
from benchmarks.harness import Harness

CALLERS = (1, 64)


class Counter(Actor):
    """The smallest actor."""

    __slots__ = ("count",)

    def __init__(self, mailbox_limit: int = DEFAULT_MAILBOX_LIMIT) -> None:
        super().__init__(mailbox_limit=mailbox_limit)
        self.count = 0

    def add(self, amount: int) -> int:
        """The handler."""
        self.count += amount
        return self.count


class QueueCounter:
    """The same as a task that reads an `asyncio.Queue`."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
        self.count = 0

    async def run(self) -> None:
        """Handle messages for ever."""
        while True:
            amount, reply = await self.queue.get()
            self.count += amount
            reply.set_result(self.count)

    async def add(self, amount: int) -> int:
        """Send a message and await the answer."""
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await self.queue.put((amount, reply))
        return await reply


async def measure(harness: Harness) -> None:
    """Answer the question."""
    loop = asyncio.get_running_loop()
    calls = harness.size(100_000, 4_000)
    queued = QueueCounter()
    serving = asyncio.create_task(queued.run())
    async with Counter() as counter:
        handler = counter.add

        async def floor_calls(count: int) -> None:
            for _ in range(count):
                future: asyncio.Future[int] = loop.create_future()
                loop.call_soon(future.set_result, 1)
                await future

        async def actor_calls(count: int) -> None:
            for _ in range(count):
                await counter.call(handler, 1)

        async def queue_calls(count: int) -> None:
            for _ in range(count):
                await queued.add(1)

        for callers in CALLERS:
            case = f"{callers} caller{'s' if callers > 1 else ''}"
            await harness.compare(
                case,
                {
                    "loop floor": partial(rate, floor_calls, callers, calls),
                    "actor": partial(rate, actor_calls, callers, calls),
                    "asyncio.Queue actor": partial(rate, queue_calls, callers, calls),
                },
                unit="calls/s",
            )
            harness.ratio(case, "actor", "loop floor", at_least=0.5 if callers == 1 else 0.8)
            harness.ratio(case, "actor", "asyncio.Queue actor", at_least=1.2)
    serving.cancel()
    await asyncio.wait([serving])


async def rate(work: Callable[[int], Awaitable[None]], callers: int, calls: int) -> float:
    """Calls a second, spread over this many callers."""
    each = calls // callers
    began = time.perf_counter()
    await asyncio.gather(*(work(each) for _ in range(callers)))
    return each * callers / (time.perf_counter() - began)
