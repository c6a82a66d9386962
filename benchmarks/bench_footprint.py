"""How many bytes does what is idle keep, and how fast are actors and sessions started?

Bytes that Python allocated for each: a bare started actor, an idle session server (its parked wait
in the memory store included, the session's own rows not), an idle session of a supervisor (with its
record and its two events in the memory store), an event with 128 bytes of payload in the memory
store, its index included.

Sessions are started through a supervisor, on the memory store, one after the other and 64 at once.
The floor is to store such sessions and their events, with nobody who serves them.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial

from asm_runtime import SessionManager, SessionServer, SessionSupervisor
from benchmarks.bench_mailbox import Counter
from benchmarks.harness import Harness
from benchmarks.sessions import Streamer
from benchmarks.stores import event, memory_store


async def measure(harness: Harness) -> None:
    """Answer the question."""
    repetitions = 1 if harness.quick else 3
    actors, servers, events = (
        harness.size(100_000, 2_000),
        harness.size(2_000, 100),
        harness.size(20_000, 1_000),
    )
    for case, work, count, most, goal in (
        ("idle actor", make_actors, actors, 1_024, 600),
        ("idle session server", make_servers, servers, 3_072, 2_048),
        ("idle supervised session", make_sessions, servers, 5_500, 4_096),
        ("event in the memory store", make_events, events, 600, 300),
    ):
        values = [await work(count) for _ in range(repetitions)]
        harness.add(case, "bytes", values, unit="B")
        harness.bound(case, "bytes", at_most=most, goal=goal)

    async def creation() -> float:
        began = time.perf_counter()
        made = [await Counter().start() for _ in range(actors)]
        seconds = time.perf_counter() - began
        await asyncio.gather(*(actor.stop() for actor in made))
        return seconds

    await harness.compare(f"{actors} actors", {"start": creation}, unit="s", repetitions=repetitions)

    sessions = harness.size(4_000, 100)
    await harness.compare(
        "sessions",
        {
            "only stored": partial(store_sessions, sessions),
            "supervised": partial(start_sessions, sessions, 1),
            "supervised, 64 at once": partial(start_sessions, sessions, 64),
        },
        unit="sessions/s",
    )
    harness.ratio("sessions", "supervised", "only stored", at_least=0.3, goal=0.5)


async def store_sessions(count: int) -> float:
    """Sessions a second, with nobody who serves them."""
    async with memory_store() as store:
        manager = SessionManager(store, Streamer())
        began = time.perf_counter()
        for _ in range(count):
            await manager.start_active_session(agent_id="bench")
        return count / (time.perf_counter() - began)


async def start_sessions(count: int, starters: int) -> float:
    """Sessions a second, made and served."""
    async with (
        memory_store() as store,
        SessionSupervisor(store=store, adapter=Streamer()) as supervisor,
    ):

        async def start(share: int) -> None:
            for _ in range(share):
                await supervisor.start_session(session_opts={"agent_id": "bench"})

        began = time.perf_counter()
        await asyncio.gather(*(start(count // starters) for _ in range(starters)))
        return count // starters * starters / (time.perf_counter() - began)


async def bytes_each(count: int, make: Callable[[], Awaitable[object]]) -> float:
    """The bytes that are kept for each of what `make` makes."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = await make()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return (after - before) / count


async def make_actors(count: int) -> float:
    """Started, never sent a message."""

    async def make() -> object:
        return [await Counter().start() for _ in range(count)]

    return await bytes_each(count, make)


async def make_servers(count: int) -> float:
    """Attached to active sessions, with nothing to do."""
    async with memory_store() as store:
        manager = SessionManager(store, Streamer())
        ids = [(await manager.start_session(agent_id="bench")).id for _ in range(count)]
        for session_id in ids:
            await manager.activate_session(session_id)
        servers: list[SessionServer] = []

        async def make() -> object:
            for session_id in ids:
                server = SessionServer(store=store, adapter=Streamer(), session_id=session_id)
                servers.append(await server.start())
            await asyncio.sleep(0.5)  # their first looks at the queue are over
            return None

        try:
            return await bytes_each(count, make)
        finally:
            await asyncio.gather(*(server.stop() for server in servers))


async def make_sessions(count: int) -> float:
    """Made and served by a supervisor, with nothing to do."""
    async with (
        memory_store() as store,
        SessionSupervisor(store=store, adapter=Streamer()) as supervisor,
    ):

        async def make() -> object:
            for _ in range(count):
                await supervisor.start_session(session_opts={"agent_id": "bench"})
            await asyncio.sleep(0.5)  # their first looks at the queue are over
            return None

        return await bytes_each(count, make)


async def make_events(count: int) -> float:
    """In one log."""
    async with memory_store() as store:

        async def make() -> object:
            for first in range(0, count, 500):
                await store.append_events([event(0) for _ in range(min(500, count - first))])
            return None

        return await bytes_each(count, make)
