"""What does telemetry cost an application that configures no SDK?

The whole path, runs of 200 events on the memory store and on SQLite, with the hooks of
`asm_runtime.telemetry` in force and with an observer that does nothing.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from asm_runtime.observer import Observer, observer, set_observer
from benchmarks.harness import Harness
from benchmarks.sessions import server_on
from benchmarks.stores import memory_store, sqlite_store


async def measure(harness: Harness) -> None:
    """Answer the question."""
    installed = observer()
    runs = harness.size(40, 3)
    async with memory_store() as memory, sqlite_store("NORMAL") as (store, _):
        for name, each in (("memory", memory), ("SQLite NORMAL", store)):
            await harness.compare(
                name,
                {
                    "no hooks": partial(path_rate, each, Observer(), runs),
                    "telemetry, no SDK": partial(path_rate, each, installed, runs),
                },
                unit="events/s",
                repetitions=harness.size(3 * harness.repetitions, 2),
            )
            harness.ratio(name, "telemetry, no SDK", "no hooks", at_least=0.97)


async def path_rate(store: Any, hooks: Observer, runs: int) -> float:
    """Events a second of some runs, under these hooks."""
    before = set_observer(hooks)
    try:
        async with server_on(store) as server:
            began = time.perf_counter()
            for _ in range(runs):
                await server.execute_run({"tokens": 200})
            return runs * 200 / (time.perf_counter() - began)
    finally:
        set_observer(before)
