"""Does a page cost the same however long the log is?

Pages a second of `get_events(after=cursor, limit=100)` near the end of a log of 1 000 events and of
one of 1 000 000, on SQLite and in memory.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from asm_runtime import Event
from benchmarks.harness import Harness
from benchmarks.stores import PAYLOAD, RawLog, memory_store, sqlite_store

PAGE = 100


async def page_rate(store: Any, session_id: str, after: int, pages: int) -> float:
    """Pages a second."""
    began = time.perf_counter()
    for _ in range(pages):
        page = await store.get_events(session_id, after=after, limit=PAGE)
        assert len(page) == PAGE
    return pages / (time.perf_counter() - began)


async def measure(harness: Harness) -> None:
    """Answer the question."""
    pages = harness.size(300, 10)
    short, long = 1_000, harness.size(1_000_000, 20_000)
    async with sqlite_store("NORMAL") as (store, file):
        raw = RawLog(file, "OFF")
        for count in (short, long):
            rows = [(f"log_{count}", number, *row[2:]) for number, row in enumerate(raw.rows(count), 1)]
            raw.insert(rows, 10_000)
            raw.connection.execute(
                "INSERT INTO asm_session_sequences "
                "(session_id, last_sequence, latest_timestamp, largest_event, incarnation, run_revision, "
                "open_runs) VALUES (?, ?, '2026-01-01T00:00:00.000000Z', 200, 1, 0, 0)",
                (f"log_{count}", count),
            )
        raw.close()
        await compare(harness, "SQLite", store, short, long, pages)
    long = harness.size(200_000, 20_000)
    async with memory_store() as memory:
        for count in (short, long):
            for first in range(0, count, 1_000):
                await memory.append_events(
                    [
                        Event.new(type="message_streamed", session_id=f"log_{count}", data=PAYLOAD)
                        for _ in range(min(1_000, count - first))
                    ]
                )
        await compare(harness, "memory", memory, short, long, pages)


async def compare(harness: Harness, name: str, store: Any, short: int, long: int, pages: int) -> None:
    """The page after the middle of the short log, and near the end of the long one."""
    await harness.compare(
        name,
        {
            f"{short} events": partial(page_rate, store, f"log_{short}", short // 2, pages),
            f"{long} events": partial(page_rate, store, f"log_{long}", long - 500, pages),
        },
        unit="pages/s",
    )
    # The same cost, within what the machine's noise and a colder cache explain.
    harness.ratio(name, f"{long} events", f"{short} events", at_least=0.8)
