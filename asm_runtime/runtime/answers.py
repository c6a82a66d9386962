"""The work that finds the answers of a server's deferred calls."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from asm_runtime.errors import StoreUnavailable
from asm_runtime.tasks import leave_behind, start_task

__all__ = ["Answers"]


class Answers:
    """What is under way for the callers of one server.

    What a call needs of the store is done in a task of its own, because a store may hang, also one that
    is cancelled. At the server's end the kernel tells those who still wait; with the reply, its task ends.
    """

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What works on the answers."""
        return list(self._tasks)

    def find(
        self,
        reply: asyncio.Future[Any],
        work: Coroutine[Any, Any, None],
        *,
        is_seen_through: bool = False,
    ) -> asyncio.Task[None]:
        """Have a task do the work, which answers the reply, now or later. Plain.

        Args:
            reply: Is told what the work raises. When it is done, its caller gone or the server at its
                end, the task is cancelled.
            work: What is to be done.
            is_seen_through: Whether it goes on when its caller does not wait any longer.
        """
        task = start_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, reply))
        if is_seen_through:
            leave_behind(task)
        else:
            reply.add_done_callback(partial(_given_up, task))
        return task

    def _ended(self, reply: asyncio.Future[Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = StoreUnavailable("the store cut the call off") if task.cancelled() else task.exception()
        if error is not None and not reply.done():
            reply.set_exception(error)


def _given_up(task: asyncio.Task[None], _: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        leave_behind(task)
