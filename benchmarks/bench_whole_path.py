"""How many events a second go the whole way, from an adapter's `emit` to the log?

One run that streams, through a session server. The floor is the same store given the same events in
batches of 1 024 and nothing else.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from asm_runtime import Event
from benchmarks.harness import Harness
from benchmarks.sessions import server_on
from benchmarks.stores import PAYLOAD, memory_store, sqlite_store

BATCH = 1_024


async def measure(harness: Harness) -> None:
    """Answer the question."""
    tokens = harness.size(30_000, 2_000)
    async with memory_store() as memory:
        await compare(harness, "memory", memory, tokens)
    async with sqlite_store() as (store, _):
        await compare(harness, "SQLite FULL", store, tokens)


async def compare(harness: Harness, name: str, store: Any, tokens: int) -> None:
    """The store alone, and the whole path."""
    await harness.compare(
        name,
        {
            "append_events, 1024 a batch": partial(batches, store, tokens),
            "whole path": partial(whole_path, store, tokens),
        },
        unit="events/s",
    )


async def batches(store: Any, count: int) -> float:
    """Events a second, appended in batches."""
    began = time.perf_counter()
    for first in range(0, count, BATCH):
        await store.append_events(
            [
                Event.new(type="message_streamed", session_id="raw", data=PAYLOAD)
                for _ in range(min(BATCH, count - first))
            ]
        )
    return count / (time.perf_counter() - began)


async def whole_path(store: Any, tokens: int) -> float:
    """Events a second, streamed by a run."""
    async with server_on(store) as server:
        began = time.perf_counter()
        await server.execute_run({"tokens": tokens})
        return tokens / (time.perf_counter() - began)
