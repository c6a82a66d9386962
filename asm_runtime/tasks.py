"""Tasks that begin in a turn of their own, whatever the loop's task factory; tasks nobody waits for."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable
from itertools import islice
from operator import length_hint
from typing import Any, TypeVar

__all__ = ["FEW", "few_a_turn", "leave_behind", "start_task"]

T = TypeVar("T")

FEW = 128
"""How many are told of something in one turn of the loop: each then has something to do in the next."""


def start_task(
    work: Coroutine[Any, Any, T],
    *,
    name: str | None = None,
    context: contextvars.Context | None = None,
) -> asyncio.Task[T]:
    """Run a coroutine as a task of the running loop, from the loop's next turn on.

    The loop's task factory is passed by. An eager one (`asyncio.eager_task_factory`) would take the first
    step inside this call: before the task is known to its owner, in the middle of the caller's own
    step, and in a context that may be entered already, which is a `RuntimeError`.

    Args:
        work: What to run.
        name: Of the task.
        context: Where it runs; a copy of the caller's if there is none.
    """
    return asyncio.Task(work, loop=asyncio.get_running_loop(), name=name, context=context)


def few_a_turn(tell: Callable[[T], object], waiting: Iterable[T]) -> None:
    """Call `tell` with each of them, in order: the first few now, some more in each turn of the loop.

    Args:
        tell: What is told; it must not raise, and what it does to one that is gone must be nothing.
        waiting: All who are told.
    """
    left = iter(tuple(waiting))

    def go_on() -> None:
        for one in islice(left, FEW):
            tell(one)
        if length_hint(left):
            asyncio.get_running_loop().call_soon(go_on)

    go_on()


_left_behind: set[asyncio.Future[Any]] = set()


def leave_behind(task: asyncio.Future[Any]) -> None:
    """Let a task go on that nobody waits for any more; the loop itself holds its tasks weakly."""
    if not task.done():
        _left_behind.add(task)
        task.add_done_callback(_left_behind.discard)
