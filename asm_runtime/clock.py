"""Time, injectable: the current time, timers, and bounded waits.

Everything that waits takes a `clock`. `SystemClock` is the real one; `asm_runtime.testing` has one
that stands still until a test moves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "Timer", "all_done", "fail_after", "sleep"]


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Cancel the call. Idempotent."""


class Clock(Protocol):
    """A source of time."""

    def now(self) -> datetime:
        """The time of day, timezone-aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since a fixed moment; never goes back."""
        ...

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call `callback(*args)` on the running loop after this many seconds."""
        ...


class SystemClock:
    """The machine's clock and the running loop's timers."""

    __slots__ = ()

    def now(self) -> datetime:
        """The time of day, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds on the running loop's clock."""
        return asyncio.get_running_loop().time()

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """A timer of the running loop."""
        return asyncio.get_running_loop().call_later(seconds, callback, *args)


SYSTEM_CLOCK: Clock = SystemClock()


async def sleep(clock: Clock, seconds: float) -> None:
    """Suspend the caller for this many seconds of `clock`. Cancellable."""
    wake = asyncio.get_running_loop().create_future()
    timer = clock.call_later(seconds, _wake, wake)
    try:
        await wake
    finally:
        timer.cancel()


async def all_done(clock: Clock, seconds: float, *futures: asyncio.Future[Any]) -> bool:
    """Wait until all of them are done, but no longer than this; returns whether they are.

    They are left alone: nothing is cancelled, and no result or exception is taken.
    """
    open_ones = [future for future in futures if not future.done()]
    left = len(open_ones)
    if not left:
        return True
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def one_done(_: asyncio.Future[Any]) -> None:
        nonlocal left
        left -= 1
        if not left:
            _wake(over)

    for future in open_ones:
        future.add_done_callback(one_done)
    timer = clock.call_later(seconds, _wake, over)
    try:
        await over
    finally:
        timer.cancel()
        for future in open_ones:
            future.remove_done_callback(one_done)
    return not left


def fail_after(
    clock: Clock, seconds: float, future: asyncio.Future[Any], error: Callable[[], Exception]
) -> None:
    """Have a future fail with what `error` makes, unless it is done within this many seconds. Plain."""

    def too_late() -> None:
        if not future.done():
            future.set_exception(error())

    timer = clock.call_later(seconds, too_late)
    future.add_done_callback(lambda _: timer.cancel())


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
