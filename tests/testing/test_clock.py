from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from asm_runtime.clock import sleep
from asm_runtime.testing import JumpingClock


async def test_the_clock_stands_still_until_it_is_moved() -> None:
    start = datetime(2030, 5, 1, tzinfo=UTC)
    clock = JumpingClock(start)
    assert (clock.now(), clock.monotonic()) == (start, 0.0)
    await clock.advance_ms(1500)
    assert (clock.now(), clock.monotonic()) == (start + timedelta(milliseconds=1500), 1.5)


async def test_timers_fire_in_order_each_at_its_moment() -> None:
    clock, seen = JumpingClock(), list[tuple[str, float]]()

    def fire(name: str) -> None:
        seen.append((name, clock.monotonic()))

    for name, seconds in (("second", 0.2), ("first", 0.1), ("second again", 0.2), ("too late", 0.4)):
        clock.call_later(seconds, fire, name)
    await clock.advance_ms(300)
    assert seen == [("first", 0.1), ("second", 0.2), ("second again", 0.2)]
    assert clock.timers == 1


async def test_a_cancelled_timer_does_not_fire() -> None:
    clock, seen = JumpingClock(), list[int]()
    clock.call_later(1, seen.append, 1).cancel()
    await clock.advance_ms(2000)
    assert seen == []
    assert clock.timers == 0


async def test_tasks_run_between_two_timers() -> None:
    clock, seen = JumpingClock(), list[float]()

    async def tick() -> None:
        for _ in range(3):
            await sleep(clock, 0.25)
            seen.append(clock.monotonic())

    task = asyncio.create_task(tick())
    await clock.advance_ms(1000)
    assert seen == [0.25, 0.5, 0.75]
    await task


async def test_a_deadline_computed_before_a_move_is_met_after_it() -> None:
    clock, seen = JumpingClock(), list[float]()
    await clock.advance_ms(100)
    deadline = clock.monotonic() + 0.05
    await clock.advance_ms(20)
    clock.call_later(deadline - clock.monotonic(), lambda: seen.append(clock.monotonic()))
    await clock.advance_ms(30)
    assert seen == [0.15]


async def test_a_jump_goes_to_the_next_timer_and_waits_for_one() -> None:
    clock = JumpingClock()
    jump = asyncio.create_task(clock.jump())
    await clock.advance_ms(0)
    assert not jump.done()
    await asyncio.gather(jump, sleep(clock, 3600))
    assert clock.monotonic() == 3600


async def test_until_timers_returns_when_so_many_wait_for_the_clock() -> None:
    clock = JumpingClock()
    two = asyncio.create_task(clock.until_timers(2))
    first = asyncio.create_task(sleep(clock, 1))
    await clock.advance_ms(0)
    assert not two.done()
    second = asyncio.create_task(sleep(clock, 1))
    await two
    await clock.advance_ms(1000)
    await asyncio.gather(first, second)


async def test_a_timer_that_is_due_at_once_needs_no_move() -> None:
    clock = JumpingClock()
    await sleep(clock, 0)
    assert clock.monotonic() == 0


async def test_a_timer_set_again_until_its_deadline_has_come_meets_it() -> None:
    clock = JumpingClock()
    deadline = 0.1 + 0.2  # a little more than 0.3
    looks: list[float] = []

    def look() -> None:
        looks.append(clock.monotonic())
        if clock.monotonic() < deadline and len(looks) < 5:
            clock.call_later(deadline - clock.monotonic(), look)

    clock.call_later(0.3, look)
    await clock.advance_ms(301)
    assert looks == [0.3, 0.300001]
