"""Calls that wait for an answer, and are not left waiting when what they wait for is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asm_runtime.actor import leave_behind
from asm_runtime.clock import Clock
from asm_runtime.errors import AsmError, StoreUnavailable
from asm_runtime.tasks import start_task

__all__ = ["Calls"]

T = TypeVar("T")


class Calls:
    """The calls under way at one server. Each is answered, or told at the server's end that it is gone.

    What a call needs is done in a task of its own, because a store may hang, also one that is cancelled.

    Args:
        clock: The source of time.
        gone: Makes the error for whoever asks a server that has ended.
    """

    __slots__ = ("_clock", "_gone", "_is_cut_off", "_under_way")

    def __init__(self, clock: Clock, gone: Callable[[], AsmError]) -> None:
        self._clock = clock
        self._gone = gone
        self._is_cut_off = False
        self._under_way: dict[asyncio.Task[Any], asyncio.Future[None]] = {}

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """What works on the answers."""
        return list(self._under_way)

    async def answer(
        self,
        work: Coroutine[Any, Any, T],
        timeout_ms: int | None = None,
        late: Callable[[], AsmError] | None = None,
        *,
        is_seen_through: bool = False,
    ) -> T:
        """What the work comes to.

        It is cancelled with its caller and at the timeout, unless it is seen through, and at `cut_off`.

        Args:
            work: What is to be done.
            timeout_ms: How long the caller waits, in milliseconds; None: no limit.
            late: Makes the error at the timeout.
            is_seen_through: Whether the work goes on when its caller does not wait any longer.
        """
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = start_task(work)
        self._under_way[task] = over
        task.add_done_callback(self._done)
        timer = None if timeout_ms is None else self._clock.call_later(timeout_ms / 1000, _resolve, over)
        try:
            await over
        finally:
            if timer is not None:
                timer.cancel()
            if not is_seen_through:
                task.cancel()
        if task.done() and not task.cancelled():
            return task.result()
        if self._is_cut_off:
            raise self._gone()
        if late is not None and not task.done():
            raise late()
        raise StoreUnavailable("the store cut the call off")

    def cut_off(self) -> None:
        """Tell whoever still waits that the server is gone, whatever the store is at. Plain, idempotent."""
        self._is_cut_off = True
        for task, over in self._under_way.items():
            task.cancel()
            leave_behind(task)
            _resolve(over)

    def _done(self, task: asyncio.Task[Any]) -> None:
        _resolve(self._under_way.pop(task))
        if not task.cancelled():
            task.exception()  # its caller may be gone


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
