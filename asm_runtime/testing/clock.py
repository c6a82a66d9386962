"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any

from asm_runtime.clock import Timer

__all__ = ["JumpingClock"]

_SETTLING_TURNS = 25
"""Turns of the loop that a timer's consequences are given before the clock goes on.

A chain of tasks, futures and mailboxes takes one turn a link; the longest in this library has
about ten. Work on other threads is not waited for: `until_timers` is there for that.
"""


class JumpingClock:
    """An `asm_runtime.clock.Clock` whose time passes only when a test moves it.

    Args:
        start: The time at the beginning, timezone-aware.
    """

    def __init__(self, start: datetime = datetime(2024, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0  # whole microseconds: sums of floats would make timers miss their moment
        self._pending: list[_JumpingTimer] = []
        self._made = 0
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """The time of day, UTC."""
        return self._start + timedelta(microseconds=self._elapsed)

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._elapsed / 1_000_000

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """A timer that fires while the clock is moved; at once, in the loop's next turn, if it is due."""
        if seconds <= 0:
            return asyncio.get_running_loop().call_soon(callback, *args)
        self._made += 1
        # Not at this very moment: what is set again until a deadline comes would be set for ever.
        due = self._elapsed + max(1, round(seconds * 1_000_000))
        timer = _JumpingTimer(due, self._made, callback, args)
        heappush(self._pending, timer)
        watchers, self._watchers = self._watchers, []
        for count, future in watchers:
            if future.done():
                continue
            if self.timers >= count:
                future.set_result(None)
            else:
                self._watchers.append((count, future))
        return timer

    @property
    def timers(self) -> int:
        """How many timers are pending."""
        return sum(timer.callback is not None for timer in self._pending)

    async def until_timers(self, count: int = 1) -> None:
        """Return when at least `count` timers are pending: somebody waits for the clock."""
        await self._settle()
        if self.timers < count:
            future = asyncio.get_running_loop().create_future()
            self._watchers.append((count, future))
            await future

    async def advance_ms(self, milliseconds: float) -> None:
        """Move on by this much. Timers fire in order, each at its time, one with all that follows from it
        before the next.
        """
        target = self._elapsed + round(milliseconds * 1000)
        await self._settle()
        while (due := self._next_due()) is not None and due <= target:
            await self._fire(due)
        self._elapsed = target

    async def jump(self) -> None:
        """Move on to the next timer and fire it; wait for one if none is pending."""
        await self.until_timers()
        due = self._next_due()
        if due is not None:
            await self._fire(due)

    def _next_due(self) -> int | None:
        while self._pending and self._pending[0].callback is None:
            heappop(self._pending)
        return self._pending[0].due if self._pending else None

    async def _fire(self, moment: int) -> None:
        self._elapsed = max(self._elapsed, moment)
        while self._next_due() == moment:
            heappop(self._pending).fire()
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(_SETTLING_TURNS):
            await asyncio.sleep(0)


class _JumpingTimer:
    __slots__ = ("args", "callback", "due", "order")

    def __init__(self, due: int, order: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.due, self.order = due, order
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def __lt__(self, other: _JumpingTimer) -> bool:
        return (self.due, self.order) < (other.due, other.order)

    def cancel(self) -> None:
        self.callback, self.args = None, ()

    def fire(self) -> None:
        callback, args = self.callback, self.args
        self.cancel()
        if callback is not None:
            callback(*args)
