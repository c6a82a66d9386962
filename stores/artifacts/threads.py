"""Threads that wait for disks.

They are not asyncio's own, on which an application looks up hosts: a disk that hangs holds up artifacts
and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary

__all__ = ["begun", "done"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREADS = 8
"""How many disks are waited for at once, for each event loop."""

_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = WeakKeyDictionary()


def begun(job: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
    """Have a thread do something; it will be done, whether anybody waits for it or not."""
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        # For each loop: a forked child, which has no thread of its parent's, makes its own loop.
        pool = _pools[loop] = ThreadPoolExecutor(THREADS, thread_name_prefix="asm-artifacts")
    return loop.run_in_executor(pool, job, *args)


async def done(job: Callable[[*Ts], T], *args: *Ts, undo: Callable[[T], object] | None = None) -> T:
    """Have a thread do something, and wait for it. Who is cancelled does not wait.

    Args:
        job: What; it runs to its end in any case.
        args: Its arguments.
        undo: What a thread then does with a result that nobody waits for any more.
    """
    doing = begun(job, *args)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        doing.add_done_callback(partial(_left, undo))
        raise


def _left(undo: Callable[[T], object] | None, doing: asyncio.Future[T]) -> None:
    if not doing.cancelled() and doing.exception() is None and undo is not None:
        with suppress(RuntimeError):  # the process ends
            begun(undo, doing.result())
