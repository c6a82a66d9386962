from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from asm_runtime.clock import SYSTEM_CLOCK, all_done, sleep
from asm_runtime.testing.clock import JumpingClock


async def test_the_system_clock_says_the_time_in_utc() -> None:
    before = datetime.now(UTC)
    now = SYSTEM_CLOCK.now()
    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC


async def test_the_monotonic_time_is_the_loops() -> None:
    before = asyncio.get_running_loop().time()
    assert before <= SYSTEM_CLOCK.monotonic() <= asyncio.get_running_loop().time()


async def test_a_timer_of_the_system_clock_calls_with_its_arguments() -> None:
    called: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def call(number: int, text: str) -> None:
        called.set_result((number, text))

    SYSTEM_CLOCK.call_later(0, call, 1, "a")
    assert await called == (1, "a")


async def test_a_cancelled_timer_of_the_system_clock_does_not_call() -> None:
    loop = asyncio.get_running_loop()
    cancelled: asyncio.Future[None] = loop.create_future()
    later: asyncio.Future[None] = loop.create_future()
    timer = SYSTEM_CLOCK.call_later(0, cancelled.set_result, None)
    timer.cancel()
    timer.cancel()
    SYSTEM_CLOCK.call_later(0, later.set_result, None)
    await later
    assert not cancelled.done()


async def test_sleep_lasts_as_long_as_the_clock_says() -> None:
    clock = JumpingClock()
    sleeping = asyncio.ensure_future(sleep(clock, 2))
    await clock.advance_ms(1999)
    assert not sleeping.done()
    await clock.advance_ms(1)
    assert sleeping.done()


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    clock = JumpingClock()
    sleeping = asyncio.ensure_future(sleep(clock, 2))
    await clock.until_timers()
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert clock.timers == 0


async def test_a_sleep_cancelled_in_the_turn_of_its_end_is_cancelled() -> None:
    clock = JumpingClock()
    sleeping = asyncio.ensure_future(sleep(clock, 2))
    await clock.until_timers()

    async def cancel_as_it_ends() -> None:
        sleeping.cancel()

    await asyncio.gather(clock.advance_ms(2000), cancel_as_it_ends())
    with pytest.raises(asyncio.CancelledError):
        await sleeping


async def test_waiting_for_futures_ends_with_the_last_of_them() -> None:
    clock = JumpingClock()
    futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
    waiting = asyncio.create_task(all_done(clock, 1, *futures))
    await clock.until_timers()
    for future in futures:
        assert not waiting.done()
        future.set_result(None)
    assert await waiting
    assert clock.timers == 0
    assert await all_done(clock, 1, *futures)
    assert await all_done(clock, 1)


async def test_waiting_for_futures_ends_in_time_and_leaves_them_alone() -> None:
    clock = JumpingClock()
    done, open_one = (asyncio.get_running_loop().create_future() for _ in range(2))
    waiting = asyncio.create_task(all_done(clock, 1, done, open_one))
    done.set_result(None)
    await clock.until_timers()
    await clock.advance_ms(999)
    assert not waiting.done()
    await clock.advance_ms(1)
    assert not await waiting
    assert not open_one.done()
    open_one.set_result(None)
