from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asm_runtime.actor import Actor, Supervisor
from asm_runtime.errors import ActorStopped, StoreError, StoreUnavailable, ValidationError
from asm_runtime.testing.clock import JumpingClock

pytestmark = pytest.mark.every_loop


async def turns(count: int = 20) -> None:
    """Let everything that is ready run: a chain of callbacks takes one turn of the loop a link."""
    for _ in range(count):
        await asyncio.sleep(0)


class Nursery:
    """Makes the children of one name and sees what becomes of them."""

    def __init__(self, clock: JumpingClock | None = None) -> None:
        self.clock = clock or JumpingClock()
        self.made: list[Worker] = []
        self.made_at: list[float] = []
        self.alive: list[Worker] = []
        self.most_alive = 0
        self.start_gate = asyncio.Event()
        self.start_gate.set()
        self.stop_gate = asyncio.Event()
        self.stop_gate.set()
        self.end_gate = asyncio.Event()
        self.end_gate.set()
        self.failures: list[BaseException] = []

    def __call__(self) -> Worker:
        self.made.append(Worker(self))
        self.made_at.append(self.clock.monotonic())
        return self.made[-1]


class Worker(Actor):
    def __init__(self, nursery: Nursery) -> None:
        super().__init__()
        self.nursery = nursery

    async def on_start(self) -> None:
        await self.nursery.start_gate.wait()
        if self.nursery.failures:
            raise self.nursery.failures.pop(0)
        self.spawn(self.live())

    async def on_stop(self) -> None:
        await self.nursery.stop_gate.wait()

    async def live(self) -> None:
        """Counts as alive until its last task has ended."""
        self.nursery.alive.append(self)
        self.nursery.most_alive = max(self.nursery.most_alive, len(self.nursery.alive))
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.nursery.end_gate.wait()
            self.nursery.alive.remove(self)


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
async def supervisor(clock: JumpingClock) -> AsyncIterator[Supervisor]:
    async with Supervisor(max_restarts=3, window_ms=5_000, clock=clock) as supervisor:
        yield supervisor


@pytest.fixture
def nursery(clock: JumpingClock) -> Nursery:
    return Nursery(clock)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_restarts", -1), ("window_ms", 0), ("window_ms", None), ("restart_backoff_ms", 0)],
)
def test_the_restart_intensity_is_checked(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValidationError, match=name):
        Supervisor(**options)


# -- starting


async def test_a_child_is_started_once_for_any_number_of_callers(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    children = await asyncio.gather(*(supervisor.start_child("a", nursery) for _ in range(5)))
    assert children == [nursery.made[0]] * 5
    assert await supervisor.start_child("a", nursery) is nursery.made[0]
    assert len(nursery.made) == 1


async def test_the_running_children_are_listed_in_the_order_of_their_start(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    for key in "cab":
        await supervisor.start_child(key, nursery)
    assert supervisor.children() == ["c", "a", "b"]
    assert supervisor.child("a") is nursery.made[1]
    assert supervisor.child("unknown") is None


async def test_a_child_that_does_not_start_tells_all_its_callers_and_is_not_kept(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    nursery.failures = [ValueError("no disk")]
    outcomes = await asyncio.gather(
        *(supervisor.start_child("a", nursery) for _ in range(3)), return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["no disk"] * 3
    assert supervisor.children() == []
    assert await supervisor.start_child("a", nursery) is nursery.made[1]


async def test_a_factory_that_raises_is_its_callers_news(supervisor: Supervisor) -> None:
    def factory() -> Worker:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        await supervisor.start_child("a", factory)
    assert supervisor.is_running


async def test_cancelling_a_caller_does_not_stop_the_start(supervisor: Supervisor, nursery: Nursery) -> None:
    nursery.start_gate.clear()
    first = asyncio.ensure_future(supervisor.start_child("a", nursery))
    second = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    first.cancel()
    nursery.start_gate.set()
    assert await second is nursery.made[0]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_supervisor_that_is_not_running_starts_nothing(nursery: Nursery) -> None:
    supervisor = Supervisor()
    with pytest.raises(ActorStopped):
        await supervisor.start_child("a", nursery)
    await supervisor.stop()
    with pytest.raises(ActorStopped):
        await supervisor.start_child("a", nursery)
    assert nursery.made == []


# -- restarting


async def test_a_child_that_crashes_has_a_successor(supervisor: Supervisor, nursery: Nursery) -> None:
    first = await supervisor.start_child("a", nursery)
    first.crash(ValueError("enough"))
    second = await supervisor.start_child("a", nursery)
    assert second is not first
    assert second.is_running
    assert supervisor.children() == ["a"]


async def test_the_successor_begins_when_its_predecessors_tasks_have_ended(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    first = await supervisor.start_child("a", nursery)
    await turns()
    nursery.end_gate.clear()
    first.crash(ValueError("enough"))
    await turns()
    assert len(nursery.made) == 1
    nursery.end_gate.set()
    await supervisor.start_child("a", nursery)
    await turns()
    assert nursery.most_alive == 1


async def test_a_child_asked_for_in_the_turn_of_its_crash_is_the_successor(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    """Before the supervisor has been told."""
    first = await supervisor.start_child("a", nursery)

    def crash_and_ask() -> asyncio.Future[Worker]:
        first.crash(ValueError("enough"))
        return asyncio.ensure_future(supervisor.start_child("a", nursery))

    second = await crash_and_ask()
    assert second is nursery.made[1]
    assert second.is_running
    await turns()
    assert len(nursery.made) == 2


async def test_the_crash_of_one_child_never_touches_another(supervisor: Supervisor, nursery: Nursery) -> None:
    other = await supervisor.start_child("other", Nursery())
    for _ in range(10):
        child = await supervisor.start_child("a", nursery)
        child.crash(ValueError("enough"))
        await turns()
    assert supervisor.child("other") is other
    assert supervisor.is_running


async def test_a_child_that_crashes_too_often_is_given_up(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    await supervisor.start_child("a", nursery)
    for _ in range(4):
        assert supervisor.child("a") is nursery.made[-1]
        nursery.made[-1].crash(ValueError("enough"))
        await clock.advance_ms(1_000)
    assert supervisor.child("a") is None
    assert len(nursery.made) == 4
    assert "gives up on a" in caplog.text
    assert clock.timers == 0


async def test_crashes_outside_the_window_do_not_count(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock
) -> None:
    await supervisor.start_child("a", nursery)
    for _ in range(20):
        await clock.advance_ms(5_000)
        nursery.made[-1].crash(ValueError("now and then"))
        await turns()
    assert supervisor.child("a") is nursery.made[20]


async def test_the_intensity_is_counted_for_each_child_alone(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock
) -> None:
    nurseries = {key: Nursery() for key in "abc"}
    for key, its_nursery in nurseries.items():
        await supervisor.start_child(key, its_nursery)
    for _ in range(3):
        for its_nursery in nurseries.values():
            its_nursery.made[-1].crash(ValueError("enough"))
        await clock.advance_ms(1_000)
    assert supervisor.children() == ["a", "b", "c"]


async def test_a_child_that_was_given_up_may_be_started_anew(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock
) -> None:
    await supervisor.start_child("a", nursery)
    for _ in range(4):
        nursery.made[-1].crash(ValueError("enough"))
        await clock.advance_ms(1_000)
    assert supervisor.children() == []
    anew = await supervisor.start_child("a", nursery)
    anew.crash(ValueError("once more"))
    assert (await supervisor.start_child("a", nursery)).is_running


async def test_a_successor_that_does_not_start_is_tried_again(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    first = await supervisor.start_child("a", nursery)
    nursery.failures = [ValueError("no disk"), ValueError("no disk")]
    first.crash(ValueError("enough"))
    await clock.advance_ms(1_000)
    assert supervisor.child("a") is nursery.made[3]
    assert "does not start" in caplog.text


async def test_a_successor_that_never_starts_is_given_up(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock
) -> None:
    first = await supervisor.start_child("a", nursery)
    nursery.failures = [ValueError("no disk")] * 10
    first.crash(ValueError("enough"))
    await clock.advance_ms(10_000)
    assert supervisor.children() == []
    assert len(nursery.made) == 4
    assert supervisor.is_running


async def test_a_caller_who_waits_for_a_successor_is_told_why_it_does_not_start(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock
) -> None:
    first = await supervisor.start_child("a", nursery)
    nursery.failures = [ValueError("no disk")]
    nursery.start_gate.clear()
    first.crash(ValueError("enough"))
    await turns()
    caller = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    nursery.start_gate.set()
    with pytest.raises(ValueError, match="no disk"):
        await caller
    await clock.advance_ms(1_000)
    assert supervisor.child("a") is nursery.made[2]


async def test_the_first_restart_comes_at_once_and_the_pause_before_the_next_ones_doubles(
    clock: JumpingClock,
) -> None:
    nursery = Nursery(clock)
    async with Supervisor(max_restarts=100, restart_backoff_ms=200, clock=clock) as supervisor:
        first = await supervisor.start_child("a", nursery)
        nursery.failures = [ValueError("no disk")] * 10
        first.crash(ValueError("enough"))
        await clock.advance_ms(60_000)
        pauses = [
            round(after - before, 6)
            for before, after in zip(nursery.made_at, nursery.made_at[1:], strict=False)
        ]
        assert pauses == [0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10]
        assert supervisor.child("a") is nursery.made[-1]
        assert clock.timers == 0


async def test_a_crash_soon_after_the_restart_has_a_longer_pause_and_a_late_one_has_none(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock
) -> None:
    await supervisor.start_child("a", nursery)

    async def restart_after_ms(milliseconds: float) -> float:
        await clock.advance_ms(milliseconds)
        crashed_at, count = clock.monotonic(), len(nursery.made)
        nursery.made[-1].crash(ValueError("enough"))
        await turns()
        while len(nursery.made) == count:
            await clock.jump()
        return round(nursery.made_at[-1] - crashed_at, 6)

    assert [await restart_after_ms(lived) for lived in (0, 1_000, 4_000, 4_999)] == [0, 0.1, 0.2, 0.4]
    assert [await restart_after_ms(lived) for lived in (5_000, 1_000)] == [0, 0.1]


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_successor_is_tried_for_as_long_as_its_error_says_that_it_helps(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock, retryable: bool
) -> None:
    error = StoreUnavailable("failing over") if retryable else StoreError("damaged")
    first = await supervisor.start_child("a", nursery)
    nursery.failures = [error] * 50
    first.crash(ValueError("enough"))
    await clock.advance_ms(600_000)
    assert (supervisor.child("a") is nursery.made[-1]) == retryable
    assert len(nursery.made) == (52 if retryable else 4)


async def test_a_child_that_is_asked_for_while_it_pauses_is_started_at_once(
    supervisor: Supervisor, nursery: Nursery, clock: JumpingClock
) -> None:
    first = await supervisor.start_child("a", nursery)
    nursery.failures = [ValueError("no disk"), ValueError("still none")]
    first.crash(ValueError("enough"))
    await turns()
    assert clock.timers == 1
    with pytest.raises(ValueError, match="still none"):
        await supervisor.start_child("a", nursery)
    assert clock.timers == 1
    assert (await supervisor.start_child("a", nursery)).is_running
    assert clock.timers == 0
    assert clock.monotonic() == 0
    assert len(nursery.made) == 4


@pytest.mark.parametrize("end", ["stop_child", "stop", "crash"])
async def test_a_child_that_is_ended_while_it_pauses_has_no_successor(
    nursery: Nursery, clock: JumpingClock, end: str
) -> None:
    supervisor = await Supervisor(clock=clock).start()
    first = await supervisor.start_child("a", nursery)
    nursery.failures = [ValueError("no disk")]
    first.crash(ValueError("enough"))
    await turns()
    assert clock.timers == 1
    if end == "stop_child":
        await supervisor.stop_child("a")
    elif end == "crash":
        supervisor.crash(ValueError("enough"))
    else:
        await supervisor.stop()
    assert clock.timers == 0
    await clock.advance_ms(60_000)
    assert len(nursery.made) == 2
    assert supervisor.children() == []
    await supervisor.stop()


async def test_a_supervisor_without_restarts_gives_up_at_once(nursery: Nursery) -> None:
    async with Supervisor(max_restarts=0) as supervisor:
        (await supervisor.start_child("a", nursery)).crash(ValueError("enough"))
        await turns()
        assert supervisor.children() == []
        assert len(nursery.made) == 1


# -- stopping


async def test_a_child_that_stops_in_the_ordinary_way_is_forgotten(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    child = await supervisor.start_child("a", nursery)
    await child.stop()
    await turns()
    assert supervisor.children() == []
    assert len(nursery.made) == 1


async def test_stop_child_stops_it_and_is_idempotent(supervisor: Supervisor, nursery: Nursery) -> None:
    child = await supervisor.start_child("a", nursery)
    await asyncio.gather(*(supervisor.stop_child("a") for _ in range(3)))
    assert not child.is_running
    await supervisor.stop_child("a")
    await supervisor.stop_child("unknown")


async def test_two_children_of_one_name_never_run_at_once(supervisor: Supervisor, nursery: Nursery) -> None:
    await supervisor.start_child("a", nursery)
    await turns()
    nursery.stop_gate.clear()
    stopping = asyncio.ensure_future(supervisor.stop_child("a"))
    await turns()
    starting = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    assert len(nursery.made) == 1
    nursery.stop_gate.set()
    await stopping
    assert await starting is nursery.made[1]
    await turns()
    assert nursery.most_alive == 1


async def test_a_child_stopped_by_somebody_else_is_waited_for_before_a_new_one_starts(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    first = await supervisor.start_child("a", nursery)
    await turns()
    nursery.stop_gate.clear()
    stopping = asyncio.ensure_future(first.stop())
    await turns()
    starting = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    assert len(nursery.made) == 1
    nursery.stop_gate.set()
    await stopping
    assert await starting is nursery.made[1]
    await turns()
    assert nursery.most_alive == 1


async def test_stop_child_cancels_a_start_under_way(supervisor: Supervisor, nursery: Nursery) -> None:
    nursery.start_gate.clear()
    starting = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    await supervisor.stop_child("a")
    with pytest.raises(ActorStopped):
        await starting
    assert supervisor.children() == []


async def test_stop_child_during_a_restart_prevents_the_successor(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    first = await supervisor.start_child("a", nursery)
    await turns()
    nursery.end_gate.clear()
    first.crash(ValueError("enough"))
    await turns()
    stopping = asyncio.ensure_future(supervisor.stop_child("a"))
    await turns()
    assert not stopping.done()
    nursery.end_gate.set()
    await stopping
    await turns()
    assert nursery.alive == []
    assert len(nursery.made) == 1


async def test_stop_child_in_the_turn_of_a_crash_prevents_the_successor(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    first = await supervisor.start_child("a", nursery)
    first.crash(ValueError("enough"))
    await supervisor.stop_child("a")
    await turns()
    assert len(nursery.made) == 1
    assert supervisor.children() == []


async def test_cancelling_stop_child_does_not_stop_the_stopping(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    child = await supervisor.start_child("a", nursery)
    nursery.stop_gate.clear()
    stopping = asyncio.ensure_future(supervisor.stop_child("a"))
    await turns()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    nursery.stop_gate.set()
    await supervisor.stop_child("a")
    assert not child.is_running
    assert nursery.alive == []


class Faulty(Actor):
    async def on_stop(self) -> None:
        raise ValueError("cannot close")


async def test_what_a_childs_on_stop_raises_goes_to_who_stops_it(supervisor: Supervisor) -> None:
    await supervisor.start_child("a", Faulty)
    with pytest.raises(ValueError, match="cannot close"):
        await supervisor.stop_child("a")
    assert supervisor.children() == []
    assert supervisor.is_running


async def test_a_supervisor_stops_its_children_the_youngest_first() -> None:
    order: list[str] = []

    class Named(Actor):
        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

        async def on_stop(self) -> None:
            order.append(self.key)

    def named(key: str) -> Callable[[], Named]:
        return lambda: Named(key)

    async with Supervisor() as supervisor:
        for key in "abc":
            await supervisor.start_child(key, named(key))
    assert order == ["c", "b", "a"]
    assert supervisor.children() == []


async def test_a_supervisor_of_many_stops_them_side_by_side_and_gives_way_meanwhile() -> None:
    turn = 0
    stops: list[int] = []
    gate = asyncio.Event()

    class Slow(Actor):
        async def on_stop(self) -> None:
            stops.append(turn)
            await gate.wait()

    async def count_turns() -> None:
        nonlocal turn
        while len(stops) < 500:
            turn += 1
            await asyncio.sleep(0)
        gate.set()

    supervisor = await Supervisor().start()
    for number in range(500):
        await supervisor.start_child(str(number), Slow)
    counting = asyncio.ensure_future(count_turns())
    await supervisor.stop()
    await counting
    assert max(Counter(stops).values()) <= 64


async def test_a_child_that_cannot_close_does_not_keep_the_others_open(nursery: Nursery) -> None:
    async with Supervisor() as supervisor:
        await supervisor.start_child("faulty", Faulty)
        child = await supervisor.start_child("a", nursery)
    assert not child.is_running
    assert nursery.alive == []


async def test_a_stop_cancels_the_starts_under_way_and_their_callers_are_told(nursery: Nursery) -> None:
    nursery.start_gate.clear()
    supervisor = await Supervisor().start()
    starting = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    await supervisor.stop()
    with pytest.raises(ActorStopped):
        await starting
    assert not nursery.made[0].is_running


async def test_a_stop_during_a_restart_ends_it(nursery: Nursery) -> None:
    supervisor = await Supervisor().start()
    first = await supervisor.start_child("a", nursery)
    nursery.start_gate.clear()
    first.crash(ValueError("enough"))
    await turns()
    assert len(nursery.made) == 2
    await supervisor.stop()
    assert not nursery.made[1].is_running
    assert nursery.alive == []
    assert supervisor.children() == []


async def test_a_child_that_crashes_while_the_supervisor_stops_has_no_successor(nursery: Nursery) -> None:
    supervisor = await Supervisor().start()
    child = await supervisor.start_child("a", nursery)
    other = Nursery()
    await supervisor.start_child("other", other)
    other.stop_gate.clear()
    nursery.stop_gate.clear()
    stopping = asyncio.ensure_future(supervisor.stop())
    await turns()
    child.crash(ValueError("enough"))
    nursery.stop_gate.set()
    other.stop_gate.set()
    await stopping
    assert len(nursery.made) == 1


async def test_a_supervisor_that_crashes_takes_its_children_with_it(nursery: Nursery) -> None:
    supervisor = await Supervisor().start()
    child = await supervisor.start_child("a", nursery)
    slow = Nursery()
    slow.start_gate.clear()
    starting = asyncio.ensure_future(supervisor.start_child("slow", slow))
    await turns()
    supervisor.crash(ValueError("enough"))
    with pytest.raises(ActorStopped):
        await starting
    with pytest.raises(ActorStopped):
        await child.call(nursery)
    await supervisor.stop()
    await child.stop()
    assert nursery.alive == []
    assert not slow.made[0].is_running
    with pytest.raises(ActorStopped):
        await supervisor.start_child("a", nursery)


async def test_a_child_that_was_forgotten_is_collectable(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")  # a captured record would refer to the actor that crashed
    child = await supervisor.start_child("a", Nursery())
    child.crash(ValueError("enough"))
    successor = await supervisor.start_child("a", Nursery())
    await supervisor.stop_child("a")
    gone = [weakref.ref(child), weakref.ref(successor)]
    del child, successor
    await turns()
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


async def test_a_child_asked_for_while_its_unfinished_start_is_stopped_is_started_anew(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    nursery.start_gate.clear()
    first = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    stopping = asyncio.ensure_future(supervisor.stop_child("a"))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(supervisor.start_child("a", nursery))
    await turns()
    nursery.start_gate.set()
    await stopping
    with pytest.raises(ActorStopped):
        await first
    assert await second is supervisor.child("a")
    assert nursery.most_alive == 1


async def test_a_child_that_crashes_while_it_is_stopped_has_no_successor(
    supervisor: Supervisor, nursery: Nursery
) -> None:
    child = await supervisor.start_child("a", nursery)
    hanging = child.call(asyncio.Event().wait)
    await turns()
    stopping = asyncio.ensure_future(supervisor.stop_child("a"))
    await turns()
    child.crash(ValueError("enough"))
    await stopping
    await turns()
    with pytest.raises(ActorStopped):
        await hanging
    assert len(nursery.made) == 1
    assert supervisor.children() == []


async def test_a_crash_is_counted_once_though_somebody_asks_for_the_child_at_once(
    supervisor: Supervisor, nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    child = await supervisor.start_child("a", nursery)
    for _ in range(3):
        child.crash(ValueError("enough"))
        child = await supervisor.start_child("a", nursery)
    assert "gives up" not in caplog.text
    child.crash(ValueError("enough"))
    await turns()
    assert "gives up" in caplog.text
