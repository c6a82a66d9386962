from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from time import perf_counter
from typing import Any

import pytest

from asm_runtime.actor import Actor, GroupActor, Letter, Monitor, answer
from asm_runtime.errors import ActorStopped, MailboxFull, ValidationError
from asm_runtime.tasks import _left_behind
from asm_runtime.testing.clock import JumpingClock
from tests.loops import loop_factories

pytestmark = pytest.mark.every_loop


async def turns(count: int = 10) -> None:
    """Let everything that is ready run: a chain of callbacks takes one turn of the loop a link."""
    for _ in range(count):
        await asyncio.sleep(0)


class Recorder(Actor):
    """Does what it is told, and writes down what happens."""

    def __init__(self, *, mailbox_limit: int = 10_000, clock: JumpingClock | None = None) -> None:
        super().__init__(mailbox_limit=mailbox_limit, clock=clock or JumpingClock())
        self.log: list[Any] = []
        self.kept: list[asyncio.Future[Any]] = []
        self.gate = asyncio.Event()
        self.busy = asyncio.Event()

    async def on_start(self) -> None:
        self.log.append("started")

    async def on_stop(self) -> None:
        self.log.append("stopped")

    def on_crash(self, reason: BaseException) -> None:
        self.log.append(("crashed", reason))

    def note(self, value: Any) -> Any:
        self.log.append(value)
        return value

    def fail(self, error: BaseException) -> None:
        raise error

    async def note_later(self, value: Any) -> Any:
        self.busy.set()
        await self.gate.wait()
        return self.note(value)

    async def fail_later(self, error: BaseException) -> None:
        self.busy.set()
        await self.gate.wait()
        raise error

    def keep(self, reply: asyncio.Future[Any]) -> None:
        self.kept.append(reply)

    async def occupied(self) -> asyncio.Future[Any]:
        """Have it busy with a coroutine handler until the gate opens."""
        reply = self.call(self.note_later, "the busy one")
        await self.busy.wait()
        return reply

    @property
    def notes(self) -> list[Any]:
        return [entry for entry in self.log if entry not in ("started", "stopped", "the busy one")]


@pytest.fixture
async def actor() -> Recorder:
    return await Recorder().start()


# -- start and stop


async def test_starting_a_running_actor_does_nothing(actor: Recorder) -> None:
    assert await actor.start() is actor
    assert actor.log == ["started"]


async def test_actors_started_by_several_callers_at_once_start_once() -> None:
    actor = Recorder()
    assert await asyncio.gather(*(actor.start() for _ in range(5))) == [actor] * 5
    assert actor.log == ["started"]


class SlowStarter(Recorder):
    """Its start waits for the gate; what `on_start` does next is scripted."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        super().__init__()
        self.outcomes = list(outcomes)
        self.entered = asyncio.Event()
        self.ended_tasks: list[str] = []

    async def on_start(self) -> None:
        self.entered.set()
        await self.gate.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            self.spawn(self.background())
            self.send_after(1, self.note, "a timer of a failed start")
            await turns(2)
            raise outcome
        await super().on_start()

    async def background(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended_tasks.append("background")


async def test_a_failed_start_leaves_nothing_running_and_may_be_tried_again() -> None:
    actor = SlowStarter(ValueError("no disk"))
    actor.gate.set()
    with pytest.raises(ValueError, match="no disk"):
        await actor.start()
    assert actor.ended_tasks == ["background"]
    assert isinstance(actor._clock, JumpingClock)
    assert actor._clock.timers == 0
    with pytest.raises(ActorStopped, match="not started"):
        await actor.call(actor.note, 1)
    await actor.start()
    assert await actor.call(actor.note, 1) == 1
    await actor.stop()


async def test_a_second_starter_tries_itself_when_the_first_one_fails() -> None:
    actor = SlowStarter(ValueError("no disk"))
    first, second = asyncio.ensure_future(actor.start()), asyncio.ensure_future(actor.start())
    await actor.entered.wait()
    actor.gate.set()
    with pytest.raises(ValueError, match="no disk"):
        await first
    assert await second is actor
    assert actor.is_running
    await actor.stop()


async def test_a_cancelled_start_may_be_tried_again_by_others() -> None:
    actor = SlowStarter()
    first, second = asyncio.ensure_future(actor.start()), asyncio.ensure_future(actor.start())
    await actor.entered.wait()
    first.cancel()
    actor.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is actor
    await actor.stop()


async def test_a_start_cancelled_twice_releases_those_who_wait_for_it() -> None:
    class Stubborn(Actor):
        """Its task takes its time to end, so that the second cancellation meets the cleaning up."""

        def __init__(self) -> None:
            super().__init__()
            self.starts = 0
            self.gate = asyncio.Event()

        async def on_start(self) -> None:
            self.starts += 1
            if self.starts == 1:
                self.spawn(self.stubborn())
                await asyncio.get_running_loop().create_future()

        async def stubborn(self) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await self.gate.wait()

    actor = Stubborn()
    first, second = asyncio.ensure_future(actor.start()), asyncio.ensure_future(actor.start())
    await turns()
    for _ in range(2):
        first.cancel()
        await turns()
    actor.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is actor
    await actor.stop()


async def test_stopping_a_stopped_actor_does_nothing(actor: Recorder) -> None:
    await actor.stop()
    await actor.stop()
    assert actor.log == ["started", "stopped"]


async def test_several_callers_stop_it_once(actor: Recorder) -> None:
    await asyncio.gather(*(actor.stop() for _ in range(5)))
    assert actor.log == ["started", "stopped"]


async def test_an_actor_stopped_before_its_start_cannot_be_started() -> None:
    actor = Recorder()
    await actor.stop()
    with pytest.raises(ActorStopped):
        await actor.start()
    assert actor.log == []


async def test_a_stopped_actor_cannot_be_started_again(actor: Recorder) -> None:
    await actor.stop()
    with pytest.raises(ActorStopped):
        await actor.start()


async def test_stop_during_start_waits_for_the_start_then_stops() -> None:
    actor = SlowStarter()
    starting = asyncio.ensure_future(actor.start())
    await actor.entered.wait()
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    actor.gate.set()
    await asyncio.wait([starting, stopping])
    assert stopping.exception() is None
    assert actor.log == ["started", "stopped"]
    with pytest.raises(ActorStopped):
        await actor.start()


async def test_stop_during_a_start_that_fails_ends_it_too() -> None:
    actor = SlowStarter(ValueError("no disk"))
    starting = asyncio.ensure_future(actor.start())
    await actor.entered.wait()
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    actor.gate.set()
    await stopping
    with pytest.raises(ValueError, match="no disk"):
        await starting
    with pytest.raises(ActorStopped):
        await actor.start()
    assert "stopped" not in actor.log


async def test_mail_that_arrived_before_the_stop_is_handled(actor: Recorder) -> None:
    replies = [actor.call(actor.note, number) for number in range(3)]
    await actor.stop()
    assert [await reply for reply in replies] == [0, 1, 2]
    assert actor.log == ["started", 0, 1, 2, "stopped"]


async def test_stop_waits_for_a_coroutine_handler_and_the_mail_behind_it(actor: Recorder) -> None:
    busy = await actor.occupied()
    behind = actor.call(actor.note, "behind")
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    assert not stopping.done()
    actor.gate.set()
    await stopping
    assert await busy == "the busy one"
    assert await behind == "behind"
    assert actor.log[-1] == "stopped"


async def test_calls_that_wait_for_room_when_it_stops_are_answered_first() -> None:
    actor = await Recorder(mailbox_limit=1).start()
    await actor.occupied()
    replies = [actor.call(actor.note, number) for number in range(4)]
    casting = asyncio.ensure_future(actor.cast(actor.note, "cast"))
    await turns()
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    with pytest.raises(ActorStopped):
        await actor.call(actor.note, "too late")
    actor.gate.set()
    await asyncio.gather(stopping, casting)
    assert [await reply for reply in replies] == [0, 1, 2, 3]
    assert actor.notes == [0, 1, 2, 3, "cast"]


async def test_cancelling_stop_does_not_stop_the_stopping(actor: Recorder) -> None:
    await actor.occupied()
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    actor.gate.set()
    await actor.stop()
    assert actor.log[-1] == "stopped"


async def test_a_handler_cannot_wait_for_its_own_end(actor: Recorder) -> None:
    async def stop_myself() -> None:
        await actor.stop()

    with pytest.raises(RuntimeError, match="its own end"):
        await actor.call(stop_myself)
    assert actor.is_running
    await actor.stop()


async def test_on_stop_cannot_wait_for_its_own_end() -> None:
    class Circular(Actor):
        async def on_stop(self) -> None:
            await self.stop()

    actor = await Circular().start()
    with pytest.raises(RuntimeError, match="its own end"):
        await actor.stop()


async def test_an_owned_task_may_stop_its_actor(actor: Recorder) -> None:
    task = actor.spawn(actor.stop())
    await asyncio.wait([task])
    await actor.stop()
    assert actor.log == ["started", "stopped"]


async def test_an_on_stop_that_raises_tells_who_stops_and_ends_the_actor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(Actor):
        async def on_stop(self) -> None:
            raise ValueError("cannot close")

    actor = await Faulty().start()
    kept: asyncio.Future[None] = actor.call_deferred(lambda reply: None)
    ends: list[BaseException | None] = []
    actor.monitor(lambda _, reason: ends.append(reason))
    with pytest.raises(ValueError, match="cannot close"):
        await actor.stop()
    await turns()
    assert ends == [None]
    assert "on_stop" in caplog.text
    with pytest.raises(ActorStopped):
        await kept
    await actor.stop()


async def test_its_tasks_and_timers_have_ended_when_stop_returns() -> None:
    clock = JumpingClock()
    actor = await Recorder(clock=clock).start()

    async def background() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await turns()  # a task that needs some turns to clean up
            actor.note("task ended")

    actor.spawn(background())
    actor.send_after(5, actor.note, "late")
    await turns()
    await actor.stop()
    assert actor.log == ["started", "stopped", "task ended"]
    assert clock.timers == 0


async def test_the_end_of_the_loop_closes_an_actor_that_is_stopping() -> None:
    """`asyncio.run` cancels what is left, the task that stops an actor too."""
    actor = await Recorder().start()
    await actor.occupied()
    behind = actor.call(actor.note, "behind")
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    ending = actor._extra().ending
    assert ending is not None
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    with pytest.raises(ActorStopped):
        await behind
    assert actor.log[-1][0] == "crashed"


async def test_async_with_starts_and_stops() -> None:
    async with Recorder() as actor:
        assert await actor.call(actor.note, 1) == 1
    assert actor.log == ["started", 1, "stopped"]


# -- calls


async def test_a_call_before_the_start_is_refused() -> None:
    actor = Recorder()
    with pytest.raises(ActorStopped, match="not started"):
        await actor.call(actor.note, 1)
    with pytest.raises(ActorStopped):
        await actor.cast(actor.note, 1)
    with pytest.raises(ActorStopped):
        actor.cast_nowait(actor.note, 1)
    with pytest.raises(ActorStopped):
        await actor.call_deferred(actor.keep)
    with pytest.raises(ActorStopped):
        actor.send_after(1, actor.note, 1)
    with pytest.raises(ActorStopped):
        actor.spawn(turns())


async def test_a_call_during_the_start_is_refused() -> None:
    actor = SlowStarter()
    starting = asyncio.ensure_future(actor.start())
    await actor.entered.wait()
    with pytest.raises(ActorStopped, match="not started yet"):
        await actor.call(actor.note, 1)
    actor.gate.set()
    await starting
    await actor.stop()


async def test_a_call_after_the_stop_is_refused(actor: Recorder) -> None:
    await actor.stop()
    with pytest.raises(ActorStopped, match="has stopped"):
        await actor.call(actor.note, 1)
    with pytest.raises(ActorStopped):
        await actor.cast(actor.note, 1)
    with pytest.raises(ActorStopped):
        await actor.call_deferred(actor.keep)
    with pytest.raises(ActorStopped):
        actor.spawn(turns())


async def test_messages_are_handled_in_the_order_in_which_they_were_sent(actor: Recorder) -> None:
    first = actor.call(actor.note, 1)
    await actor.cast(actor.note, 2)
    third: asyncio.Future[int] = actor.call_deferred(lambda reply: answer(reply, actor.note(3)))
    actor.cast_nowait(actor.note, 4)
    assert [await first, await third] == [1, 3]
    await actor.call(actor.note, 5)
    assert actor.notes == [1, 2, 3, 4, 5]


async def test_a_call_cancelled_before_it_is_handled_leaves_nothing_done(actor: Recorder) -> None:
    await actor.occupied()
    caller = asyncio.ensure_future(actor.call(actor.note, "cancelled"))
    await turns()
    caller.cancel()
    actor.gate.set()
    await actor.call(actor.note, "next")
    assert actor.notes == ["next"]


async def test_a_handler_whose_caller_is_cancelled_runs_to_its_end(actor: Recorder) -> None:
    caller = await actor.occupied()
    caller.cancel()
    await turns()
    actor.gate.set()
    await actor.call(actor.note, "next")
    assert actor.log == ["started", "the busy one", "next"]


async def test_what_a_handler_raises_goes_to_its_caller_and_the_actor_goes_on(actor: Recorder) -> None:
    with pytest.raises(ZeroDivisionError):
        await actor.call(actor.fail, ZeroDivisionError())
    actor.gate.set()
    with pytest.raises(ZeroDivisionError):
        await actor.call(actor.fail_later, ZeroDivisionError())
    assert await actor.call(actor.note, 1) == 1


async def test_a_handler_that_raises_stop_iteration_is_answered_too(actor: Recorder) -> None:
    nothing: Iterator[int] = iter(())
    first: asyncio.Future[int] = actor.call(lambda: next(nothing))
    second = actor.call(actor.note, "behind")
    with pytest.raises(RuntimeError, match="StopIteration"):
        await first
    assert await second == "behind"


async def test_an_unknown_message_raises_at_its_caller(actor: Recorder) -> None:
    nonsense: Any
    for nonsense in ("not a handler", None, lambda: actor.note()):  # type: ignore[call-arg]  # pyright: ignore
        with pytest.raises(TypeError):
            await actor.call(nonsense)
    assert actor.is_running


async def test_a_handler_may_cancel_its_own_caller(actor: Recorder) -> None:
    async def call_and_be_cancelled() -> None:
        await actor.call(cancel_caller)

    def cancel_caller() -> None:
        caller.cancel()

    caller = asyncio.ensure_future(call_and_be_cancelled())
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await actor.call(actor.note, 1) == 1


async def test_a_handler_that_meets_something_cancelled_cancels_its_call(actor: Recorder) -> None:
    def read_cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        future.result()

    async def await_cancelled() -> None:
        read_cancelled()

    def defer(reply: asyncio.Future[None]) -> None:
        read_cancelled()

    callers: list[asyncio.Future[Any]] = [
        actor.call(read_cancelled),
        actor.call(await_cancelled),
        actor.call_deferred(defer),
    ]
    for caller in callers:
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert caller.cancelled()
    assert await actor.call(actor.note, "goes on") == "goes on"


async def test_a_failure_of_a_handler_that_sent_its_caller_away_is_logged_and_no_crash(
    actor: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def turn_away(reply: asyncio.Future[None]) -> None:
        reply.cancel()
        raise ValueError("unheard")

    def turn_caller_away() -> None:
        turn_away(caller)

    caller = actor.call(turn_caller_away)
    deferred = actor.call_deferred(turn_away)
    assert await actor.call(actor.note, 1) == 1
    assert caller.cancelled()
    assert deferred.cancelled()
    assert caplog.text.count("ValueError: unheard") == 2


async def test_a_failure_after_the_caller_has_gone_is_logged(
    actor: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caller = actor.call(actor.fail_later, ValueError("unheard"))
    await actor.busy.wait()
    caller.cancel()
    actor.gate.set()
    assert await actor.call(actor.note, 1) == 1
    assert "unheard" in caplog.text


async def test_handlers_run_in_the_actors_context_not_the_callers() -> None:
    color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")

    async def later() -> str:
        return color.get()

    color.set("starter's")
    async with Recorder() as actor:
        color.set("caller's")
        assert await actor.call(color.get) == "starter's"
        assert await actor.call(later) == "starter's"
        assert await actor.spawn(later()) == "starter's"


async def test_what_an_owned_task_sets_in_its_context_is_not_for_the_others(actor: Recorder) -> None:
    color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")

    async def paint() -> None:
        color.set("painted")

    await actor.spawn(paint())
    assert await actor.call(color.get) == "none"


async def test_what_a_handler_sets_in_the_actors_context_is_there_for_the_next(actor: Recorder) -> None:
    color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")

    async def paint_later() -> None:
        await asyncio.sleep(0)
        color.set("painted later")

    await actor.call(color.set, "painted")
    assert await actor.call(color.get) == "painted"
    await actor.call(paint_later)
    assert await actor.call(color.get) == "painted later"
    assert color.get() == "none"


# -- coroutine handlers


async def test_a_drain_that_takes_long_gives_way_to_others(actor: Recorder) -> None:
    handled = 0
    by_turn = [0]

    def work() -> None:
        nonlocal handled
        handled += 1
        over = perf_counter() + 0.0001
        while perf_counter() < over:
            pass

    calls = [actor.call(work) for _ in range(1_000)]
    while handled < len(calls):
        await asyncio.sleep(0)
        by_turn.append(handled)
    await asyncio.gather(*calls)
    # At 10 000 letters a second; it looks at the clock after each 64.
    assert max(after - before for before, after in itertools.pairwise(by_turn)) <= 128


async def test_mail_waits_behind_a_coroutine_handler(actor: Recorder) -> None:
    busy = await actor.occupied()
    behind = actor.call(actor.note, "behind")
    await turns()
    assert not behind.done()
    actor.gate.set()
    assert await behind == "behind"
    assert busy.done()


async def test_coroutine_handlers_run_one_at_a_time(actor: Recorder) -> None:
    inside = 0
    most = 0

    async def enter() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await turns(3)
        inside -= 1

    await asyncio.gather(*(actor.call(enter) for _ in range(5)))
    assert most == 1


@pytest.mark.parametrize("way", ["call", "cast_nowait", "call_deferred", "send_after"])
async def test_a_plain_handler_that_mails_its_own_actor_sets_no_second_one_going(
    actor: Recorder, way: str
) -> None:
    inside = 0
    answers: list[asyncio.Future[Any]] = []

    def mail_itself() -> None:
        if way == "call":
            answers.append(actor.call(actor.note, "own"))
        elif way == "call_deferred":
            answers.append(actor.call_deferred(answer, "own"))
        elif way == "send_after":
            actor.send_after(0, actor.note, "own")
        else:
            actor.cast_nowait(actor.note, "own")

    async def enter(value: int) -> int:
        nonlocal inside
        assert not inside
        inside += 1
        await turns(3)
        inside -= 1
        return value

    mailing = actor.call(mail_itself)
    assert await asyncio.gather(*(actor.call(enter, value) for value in range(3))) == [0, 1, 2]
    await mailing
    await asyncio.gather(*answers)
    await actor.stop()


async def test_a_coroutine_that_a_handler_returns_after_crashing_its_actor_is_not_begun(
    actor: Recorder,
) -> None:
    def crash_and_go_on() -> Coroutine[Any, Any, None]:
        actor.crash(ValueError("the end"))
        return actor.note_later("after the end")

    caller = actor.call(crash_and_go_on)
    with pytest.raises(ActorStopped):
        await caller
    await actor.stop()
    assert not actor.busy.is_set()


async def test_mail_of_one_batch_keeps_its_order_around_coroutine_handlers(actor: Recorder) -> None:
    async def note_slowly(value: int) -> None:
        await turns(2)
        actor.note(value)

    handlers: list[Callable[[int], Any]] = [actor.note, note_slowly]
    await asyncio.gather(*(actor.call(handlers[number % 2], number) for number in range(20)))
    assert actor.notes == list(range(20))


async def test_a_call_from_ones_own_coroutine_handler_raises_instead_of_deadlocking(
    actor: Recorder,
) -> None:
    async def ask_myself() -> Any:
        return await actor.call(actor.note, 1)

    async def ask_myself_deferred() -> Any:
        return await actor.call_deferred(actor.keep)

    for handler in (ask_myself, ask_myself_deferred):
        with pytest.raises(RuntimeError, match="its own answer"):
            await actor.call(handler)


async def test_a_coroutine_handler_may_cast_to_itself(actor: Recorder) -> None:
    async def remind_myself() -> None:
        await actor.cast(actor.note, "reminder")

    await actor.call(remind_myself)
    await actor.call(actor.note, "next")
    assert actor.notes == ["reminder", "next"]


async def test_a_cast_from_ones_own_handler_into_a_full_mailbox_raises() -> None:
    actor = await Recorder(mailbox_limit=1).start()

    async def remind_myself_twice() -> None:
        await actor.cast(actor.note, 1)
        await actor.cast(actor.note, 2)

    with pytest.raises(MailboxFull):
        await actor.call(remind_myself_twice)
    await actor.call(actor.note, "next")
    assert actor.notes == [1, "next"]


# -- crashes

Crash = Callable[[Recorder, Exception], Awaitable[Any]]


async def _cast_raises(actor: Recorder, error: Exception) -> None:
    await actor.cast(actor.fail, error)


async def _coroutine_cast_raises(actor: Recorder, error: Exception) -> None:
    actor.gate.set()
    await actor.cast(actor.fail_later, error)


async def _timer_raises(actor: Recorder, error: Exception) -> None:
    actor.send_after(1, actor.fail, error)
    assert isinstance(actor._clock, JumpingClock)
    await actor._clock.advance_ms(1000)


async def _task_raises(actor: Recorder, error: Exception) -> None:
    actor.gate.set()
    actor.spawn(actor.fail_later(error))


async def _told_to_crash(actor: Recorder, error: Exception) -> None:
    actor.crash(error)


async def _handler_crashes_it(actor: Recorder, error: Exception) -> None:
    await actor.call(actor.crash, error)


async def _answered_deferred_handler_raises(actor: Recorder, error: Exception) -> None:
    def answer_and_fail(reply: asyncio.Future[int]) -> None:
        answer(reply, 1)
        raise error

    assert await actor.call_deferred(answer_and_fail) == 1


async def _answered_deferred_coroutine_raises(actor: Recorder, error: Exception) -> None:
    async def answer_and_fail(reply: asyncio.Future[int]) -> None:
        answer(reply, 1)
        await turns(2)
        raise error

    assert await actor.call_deferred(answer_and_fail) == 1


CRASHES: list[Crash] = [
    _cast_raises,
    _coroutine_cast_raises,
    _timer_raises,
    _task_raises,
    _told_to_crash,
    _handler_crashes_it,
    _answered_deferred_handler_raises,
    _answered_deferred_coroutine_raises,
]


@pytest.mark.parametrize("crash", CRASHES)
async def test_a_failure_without_a_caller_crashes_the_actor(
    crash: Crash, caplog: pytest.LogCaptureFixture
) -> None:
    actor = await Recorder().start()
    ends: list[tuple[Actor, BaseException | None]] = []
    actor.monitor(lambda ended, reason: ends.append((ended, reason)))
    kept = actor.call_deferred(actor.keep)
    error = ValueError("no caller")
    await crash(actor, error)
    await turns()
    assert ends == [(actor, error)]
    assert actor.log[-1] == ("crashed", error)
    assert "no caller" in caplog.text
    with pytest.raises(ActorStopped, match="has crashed") as refused:
        await actor.call(actor.note, 1)
    assert refused.value.__cause__ is error
    with pytest.raises(ActorStopped):
        await kept
    with pytest.raises(ActorStopped):
        await actor.start()
    await actor.stop()
    assert "stopped" not in actor.log


async def test_mail_left_when_the_actor_crashes_gets_an_error(actor: Recorder) -> None:
    before = actor.call(actor.note, "before")
    actor.cast_nowait(actor.fail, ValueError("crash"))
    behind = [actor.call(actor.note, "behind"), actor.call_deferred(actor.keep)]
    assert await before == "before"
    for reply in behind:
        with pytest.raises(ActorStopped):
            await reply
    assert "behind" not in actor.log


async def test_a_call_handler_that_crashes_its_own_actor_is_the_last_one_handled(actor: Recorder) -> None:
    crashing = actor.call(actor.crash, ValueError("enough"))
    behind = actor.call(actor.note, "behind")
    await crashing
    with pytest.raises(ActorStopped):
        await behind
    assert actor.notes[-1][0] == "crashed"


async def test_a_crowd_is_told_of_a_crash_over_several_turns_and_the_stop_returns_behind_them(
    actor: Recorder,
) -> None:
    await actor.occupied()
    crowd = [actor.call(actor.note, number) for number in range(3_500)]
    actor.crash(ValueError("enough"))
    told = [sum(caller.done() for caller in crowd)]
    while told[-1] < len(crowd) and len(told) < 40:
        await asyncio.sleep(0)
        told.append(sum(caller.done() for caller in crowd))
    assert max(after - before for before, after in itertools.pairwise(told)) <= 250
    assert told[-1] == len(crowd)

    other = await Recorder().start()
    crowd += [other.call_deferred(other.keep) for _ in range(3_500)]
    await other.stop()
    assert all(isinstance(caller.exception(), ActorStopped) for caller in crowd)


async def test_senders_who_wait_for_room_when_it_crashes_get_an_error() -> None:
    actor = await Recorder(mailbox_limit=1).start()
    busy = await actor.occupied()
    waiting: list[Awaitable[Any]] = [actor.call(actor.note, number) for number in range(3)]
    waiting.append(asyncio.ensure_future(actor.cast(actor.note, "cast")))
    await turns()
    actor.crash(ValueError("enough"))
    for reply in [busy, *waiting]:
        with pytest.raises(ActorStopped):
            await reply


async def test_a_coroutine_handler_that_crashes_its_own_actor_is_cancelled(actor: Recorder) -> None:
    async def crash_and_linger() -> None:
        actor.crash(ValueError("enough"))
        await asyncio.get_running_loop().create_future()

    with pytest.raises(ActorStopped):
        await actor.call(crash_and_linger)
    await actor.stop()


async def test_an_owned_task_is_cancelled_once_so_that_its_cleaning_up_is_not_cut_short(
    actor: Recorder,
) -> None:
    async def tidy() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await actor.gate.wait()
            actor.note("tidy")

    actor.spawn(tidy())
    await turns()
    actor.crash(ValueError("enough"))
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    actor.gate.set()
    await stopping
    assert actor.log[-1] == "tidy"


async def test_a_coroutine_handler_is_cancelled_and_its_caller_told_when_it_crashes(
    actor: Recorder,
) -> None:
    busy = await actor.occupied()
    actor.crash(ValueError("enough"))
    with pytest.raises(ActorStopped):
        await busy
    await actor.stop()
    assert "the busy one" not in actor.log


async def test_a_caller_is_told_of_a_crash_before_its_handler_has_taken_a_step(actor: Recorder) -> None:
    """A task that is cancelled before its first step runs none of its own code."""

    def crash_next_turn() -> None:
        asyncio.get_running_loop().call_soon(actor.crash, ValueError("enough"))

    actor.cast_nowait(crash_next_turn)
    reply = actor.call(actor.note_later, "never begun")
    deferred = actor.call_deferred(_answer_in_a_coroutine)
    for waiting in (reply, deferred):
        with pytest.raises(ActorStopped):
            await waiting
    assert not actor.busy.is_set()


async def _answer_in_a_coroutine(reply: asyncio.Future[str]) -> None:
    answer(reply, "never begun")


async def test_a_deferred_coroutine_handler_cut_off_before_its_first_step_answers_its_caller(
    actor: Recorder,
) -> None:
    def crash_next_turn() -> None:
        asyncio.get_running_loop().call_soon(actor.crash, ValueError("enough"))

    actor.cast_nowait(crash_next_turn)
    with pytest.raises(ActorStopped):
        await actor.call_deferred(_answer_in_a_coroutine)


async def test_a_crash_during_the_start_drops_what_the_start_opened() -> None:
    class Opening(Recorder):
        async def on_start(self) -> None:
            self.spawn(self.fail_later(ValueError("enough")))
            self.gate.set()
            await turns(5)
            self.log.append("opened")

    actor = Opening()
    with pytest.raises(ActorStopped) as refused:
        await actor.start()
    assert isinstance(refused.value.__cause__, ValueError)
    assert [entry if isinstance(entry, str) else entry[0] for entry in actor.log] == ["opened", "crashed"]


async def test_a_task_that_fails_while_on_stop_is_at_work_does_not_cut_it_short(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Closing(Recorder):
        async def on_stop(self) -> None:
            self.gate.set()
            await turns(5)
            await super().on_stop()

    actor = await Closing().start()
    actor.spawn(actor.fail_later(ValueError("a task failed")))
    await actor.stop()
    assert actor.log == ["started", "stopped"]
    assert "a task failed" in caplog.text


async def test_an_owned_task_that_the_stop_cuts_off_is_no_crash(actor: Recorder) -> None:
    async def report() -> None:
        await actor.gate.wait()
        await actor.call(actor.note, "report")

    busy = await actor.occupied()
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    actor.spawn(report())
    actor.gate.set()
    await stopping
    assert await busy == "the busy one"
    assert actor.log[-1] == "stopped"


async def test_a_task_that_fails_while_it_is_cancelled_is_logged(
    actor: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async def clumsy() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise ValueError("clumsy end")

    actor.spawn(clumsy())
    await turns()
    actor.crash(ValueError("enough"))
    await actor.stop()
    assert "clumsy end" in caplog.text


async def test_an_on_crash_that_raises_is_logged_and_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Actor):
        def on_crash(self, reason: BaseException) -> None:
            raise ValueError("cannot drop")

    actor = await Faulty().start()
    kept: asyncio.Future[None] = actor.call_deferred(lambda reply: None)
    actor.crash(ValueError("enough"))
    with pytest.raises(ActorStopped):
        await kept
    assert "cannot drop" in caplog.text


async def test_a_cancelled_owned_task_is_no_crash(actor: Recorder) -> None:
    task = actor.spawn(actor.gate.wait())
    await turns()
    task.cancel()
    await turns()
    assert actor.is_running


async def test_a_cast_that_is_cancelled_from_within_crashes_rather_than_vanish(actor: Recorder) -> None:
    async def await_cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    await actor.cast(await_cancelled)
    await turns()
    assert not actor.is_running


# -- deferred replies


async def test_a_deferred_reply_may_be_answered_late(actor: Recorder) -> None:
    reply = actor.call_deferred(actor.keep)
    assert await actor.call(actor.note, "meanwhile") == "meanwhile"
    assert not reply.done()
    assert answer(actor.kept[0], "late")
    assert await reply == "late"


async def test_a_deferred_handler_may_be_a_coroutine(actor: Recorder) -> None:
    async def answer_slowly(reply: asyncio.Future[str]) -> None:
        await turns(2)
        answer(reply, "slowly")

    assert await actor.call_deferred(answer_slowly) == "slowly"


async def test_a_deferred_reply_that_is_never_answered_gets_an_error_at_the_stop(actor: Recorder) -> None:
    reply = actor.call_deferred(actor.keep)
    await actor.stop()
    with pytest.raises(ActorStopped):
        await reply


async def test_on_stop_may_answer_the_deferred_replies() -> None:
    class Polite(Recorder):
        async def on_stop(self) -> None:
            for reply in self.kept:
                answer(reply, "closing")

    actor = await Polite().start()
    reply = actor.call_deferred(actor.keep)
    await actor.stop()
    assert await reply == "closing"


async def test_the_cancelled_caller_of_a_deferred_reply_cancels_it(actor: Recorder) -> None:
    async def wait_for_it() -> Any:
        return await actor.call_deferred(actor.keep)

    caller = asyncio.ensure_future(wait_for_it())
    await turns()
    caller.cancel()
    await turns()
    assert actor.kept[0].cancelled()
    assert answer(actor.kept[0], "too late") is False
    waiters = actor._waiters
    assert waiters is not None
    assert not waiters.deferred


async def test_a_deferred_call_cancelled_before_it_is_handled_leaves_nothing_done(actor: Recorder) -> None:
    await actor.occupied()
    reply = actor.call_deferred(actor.keep)
    reply.cancel()
    actor.gate.set()
    await actor.call(actor.note, "next")
    assert actor.kept == []


async def test_what_a_deferred_handler_raises_goes_to_its_caller(actor: Recorder) -> None:
    def raise_now(reply: asyncio.Future[int]) -> None:
        raise ZeroDivisionError

    async def raise_later(reply: asyncio.Future[int]) -> None:
        await turns(2)
        raise ZeroDivisionError

    for handler in (raise_now, raise_later):
        with pytest.raises(ZeroDivisionError):
            await actor.call_deferred(handler)
    assert actor.is_running


# -- the bounded mailbox


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "many"])
def test_a_mailbox_limit_is_a_positive_whole_number(limit: Any) -> None:
    with pytest.raises(ValidationError, match="mailbox_limit"):
        Actor(mailbox_limit=limit)


async def test_a_full_mailbox_suspends_who_casts() -> None:
    actor = await Recorder(mailbox_limit=2).start()
    await actor.occupied()
    await actor.cast(actor.note, 1)
    await actor.cast(actor.note, 2)
    third = asyncio.ensure_future(actor.cast(actor.note, 3))
    await turns()
    assert not third.done()
    with pytest.raises(MailboxFull):
        actor.cast_nowait(actor.note, 4)
    actor.gate.set()
    await third
    assert await actor.call(actor.note, 5) == 5
    assert actor.notes == [1, 2, 3, 5]


async def test_what_is_left_of_a_batch_behind_a_coroutine_handler_counts_as_waiting() -> None:
    actor = await Recorder(mailbox_limit=3).start()
    actor.cast_nowait(actor.note_later, "the busy one")
    actor.cast_nowait(actor.note, 1)
    actor.cast_nowait(actor.note, 2)
    await actor.busy.wait()
    actor.cast_nowait(actor.note, 3)
    with pytest.raises(MailboxFull):
        actor.cast_nowait(actor.note, 4)
    actor.gate.set()
    await actor.call(actor.note, 5)
    assert actor.notes == [1, 2, 3, 5]


async def test_senders_are_admitted_in_their_order_and_newcomers_do_not_overtake() -> None:
    actor = await Recorder(mailbox_limit=2).start()
    await actor.occupied()
    senders: list[Awaitable[Any]] = []
    for number in range(0, 20, 2):
        senders.append(actor.call(actor.note, number))
        senders.append(asyncio.ensure_future(actor.cast(actor.note, number + 1)))
        await turns(2)
    actor.gate.set()
    while len(actor.notes) < 20:
        senders.append(actor.call(actor.note, "newcomer"))
        await asyncio.sleep(0)
    await asyncio.gather(*senders)
    assert [note for note in actor.notes if note != "newcomer"] == list(range(20))
    assert actor.notes[:20] == list(range(20))


async def test_a_handler_that_calls_its_own_actor_does_not_overtake_those_who_wait_for_room() -> None:
    actor = await Recorder(mailbox_limit=2).start()

    def call_itself() -> None:
        own.append(actor.call(actor.note, "own"))
        actor.cast_nowait(actor.note, "cannot wait")

    own: list[asyncio.Future[Any]] = []
    senders = [actor.call(call_itself), *(actor.call(actor.note, number) for number in range(3))]
    await asyncio.gather(*senders)
    await asyncio.gather(*own)
    assert actor.notes == [0, "cannot wait", 1, 2, "own"]


async def test_a_stop_in_the_middle_of_a_long_drain_handles_what_was_sent_before(
    actor: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asm_runtime.actor.mailbox._DRAIN_S", 0)
    monkeypatch.setattr("asm_runtime.actor.mailbox._LETTERS_BY_THE_CLOCK", 1)
    for number in range(10):
        actor.cast_nowait(actor.note, number)
    await asyncio.sleep(0)
    assert 0 < len(actor.notes) < 10
    await actor.stop()
    assert actor.log == ["started", *range(10), "stopped"]


async def test_a_timer_that_is_due_while_the_actor_stops_does_not_fire() -> None:
    clock = JumpingClock()
    actor = await Recorder(clock=clock).start()
    await actor.occupied()
    actor.send_after(1, actor.note, "late")
    stopping = asyncio.ensure_future(actor.stop())
    await clock.advance_ms(2_000)
    actor.gate.set()
    await stopping
    assert actor.notes == []


async def test_a_crash_of_one_that_is_not_started_does_nothing() -> None:
    actor = Recorder()
    actor.crash(ValueError("enough"))
    assert await (await actor.start()).call(actor.note, 1) == 1


class EarlyTimer(SlowStarter):
    """Its timer fires while it starts."""

    async def on_start(self) -> None:
        self.send_after(0, self.note, f"timer {len(self.outcomes)}")
        await turns(2)
        await super().on_start()


async def test_a_timer_that_fires_during_the_start_is_handled_after_it() -> None:
    actor = EarlyTimer()
    actor.gate.set()
    await actor.start()
    assert actor.notes == []
    await turns()
    assert actor.notes == ["timer 0"]


async def test_a_timer_that_fired_during_a_failed_start_is_not_handled_by_the_next() -> None:
    actor = EarlyTimer(ValueError("not yet"))
    actor.gate.set()
    with pytest.raises(ValueError, match="not yet"):
        await actor.start()
    await actor.start()
    await turns()
    assert actor.notes == ["timer 0"]


async def test_one_that_crashed_while_it_started_cannot_be_started_again() -> None:
    actor = SlowStarter()
    starting = asyncio.ensure_future(actor.start())
    await actor.entered.wait()
    actor.crash(ValueError("enough"))
    actor.gate.set()
    for attempt in (starting, actor.start()):
        with pytest.raises(ActorStopped, match="has crashed"):
            await attempt


class Impatient(Recorder):
    """Waits a second for its tasks; its handler does not let itself be cancelled."""

    def task_grace_s(self) -> float:
        return 1

    async def hang(self) -> None:
        self.busy.set()
        while not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                continue


async def test_a_crash_cuts_short_a_stop_that_waits_for_a_handler() -> None:
    clock = JumpingClock()
    actor = await Impatient(clock=clock).start()
    hanging = actor.call(actor.hang)
    await actor.busy.wait()
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    actor.crash(ValueError("enough"))
    await clock.until_timers(1)
    await clock.advance_ms(1_000)
    await stopping
    assert isinstance(hanging.exception(), ActorStopped)
    actor.gate.set()
    await turns()


async def test_tasks_that_begin_while_others_end_are_ended_too(actor: Recorder) -> None:
    async def live(ends: int) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if ends > 1:
                actor.spawn(live(ends - 1))
                await turns(2)
            actor.note(ends)

    actor.spawn(live(3))
    await turns()
    await actor.stop()
    assert actor.log == ["started", "stopped", 3, 2, 1]


async def test_a_task_that_does_not_end_in_time_is_left_behind_but_not_lost() -> None:
    clock = JumpingClock()
    actor = await Impatient(clock=clock).start()
    task = actor.spawn(actor.hang())
    await actor.busy.wait()
    stopping = asyncio.ensure_future(actor.stop())
    await clock.until_timers(1)
    await clock.advance_ms(1_000)
    await stopping
    assert task in _left_behind  # the loop holds its tasks weakly
    actor.gate.set()
    await turns()
    assert task not in _left_behind


async def test_an_answer_that_comes_too_late_is_no_failure(
    actor: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer_later(reply: asyncio.Future[int]) -> None:
        await actor.note_later("the busy one")
        reply.set_result(1)

    reply = actor.call_deferred(answer_later)
    await actor.busy.wait()
    reply.cancel()
    actor.gate.set()
    assert await actor.call(actor.note, 1) == 1
    assert caplog.records == []


async def test_who_waits_for_room_is_let_in_when_a_coroutine_handler_begins() -> None:
    actor = await Recorder(mailbox_limit=1).start()
    busy = actor.call(actor.note_later, "the busy one")
    casting = asyncio.ensure_future(actor.cast(actor.note, 1))
    await actor.busy.wait()
    await turns()
    assert casting.done()
    actor.gate.set()
    await busy
    await actor.stop()
    assert actor.notes == [1]


class Spreader(Recorder):
    """Sets others going from inside a plain handler; an eager task begins right there."""

    def have_another_cast(self) -> None:
        self.sending = asyncio.create_task(self.cast(self.note, "late"))

    def cancel_and_note(self, others: list[asyncio.Future[Any]]) -> None:
        for other in others:
            other.cancel()
        self.note("cancelled")


async def test_a_cast_does_not_overtake_those_who_wait_for_room() -> None:
    actor = await Spreader(mailbox_limit=1).start()
    await actor.occupied()
    sent = [actor.call(actor.have_another_cast), actor.call(actor.note, "early")]
    actor.gate.set()
    await asyncio.gather(*sent)
    await actor.sending
    await actor.stop()
    assert actor.notes == ["early", "late"]


async def test_one_who_gave_up_in_this_very_turn_takes_nobodys_place() -> None:
    actor = await Spreader(mailbox_limit=1).start()
    await actor.occupied()
    gone: list[asyncio.Future[Any]] = []
    first = actor.call(actor.cancel_and_note, gone)
    gone += [actor.call(actor.note, "gone"), actor.call_deferred(actor.keep)]
    last = actor.call(actor.note, "last")
    actor.gate.set()
    await asyncio.gather(first, last)
    assert actor.notes == ["cancelled", "last"]


async def test_a_sender_cancelled_while_it_waits_for_room_puts_nothing() -> None:
    actor = await Recorder(mailbox_limit=1).start()
    await actor.occupied()
    await actor.cast(actor.note, 1)
    senders: list[asyncio.Future[Any]] = [
        actor.call(actor.note, "cancelled call"),
        asyncio.ensure_future(actor.cast(actor.note, "cancelled cast")),
        actor.call_deferred(actor.keep),
        actor.call(actor.note, 2),
    ]
    await turns()
    for sender in senders[:3]:
        sender.cancel()
    await turns()
    waiters = actor._waiters
    assert waiters is not None
    assert waiters.room is not None
    assert len(waiters.room) == 1  # those who gave up have left: a hung actor does not collect them
    actor.gate.set()
    assert await senders[3] == 2
    assert actor.notes == [1, 2]
    assert actor.kept == []


async def test_nobody_is_lost_when_a_sender_is_cancelled_while_it_is_admitted() -> None:
    actor = await Recorder(mailbox_limit=1).start()
    await actor.occupied()
    await actor.cast(actor.note, 1)
    casts = [asyncio.ensure_future(actor.cast(actor.note, number)) for number in range(2, 6)]
    await turns()

    def cancel_the_next() -> None:
        casts[0].cancel()

    # Both in one turn: the drain that admits the first of them, and its cancellation.
    actor.gate.set()
    asyncio.get_running_loop().call_soon(cancel_the_next)
    await asyncio.wait(casts)
    await actor.call(actor.note, "last")
    assert [note for note in actor.notes if note != 2] == [1, 3, 4, 5, "last"]


# -- timers


async def test_send_after_casts_when_its_time_has_come() -> None:
    clock = JumpingClock()
    actor = await Recorder(clock=clock).start()
    actor.send_after(2, actor.note, "second")
    actor.send_after(1, actor.note, "first")
    await clock.advance_ms(999)
    assert actor.notes == []
    await clock.advance_ms(1)
    assert actor.notes == ["first"]
    await clock.advance_ms(1000)
    assert actor.notes == ["first", "second"]
    assert not actor._extra().timers


async def test_a_cancelled_timer_does_not_fire() -> None:
    clock = JumpingClock()
    actor = await Recorder(clock=clock).start()
    timer = actor.send_after(1, actor.note, "never")
    timer.cancel()
    timer.cancel()
    assert clock.timers == 0
    await clock.advance_ms(2000)
    assert actor.notes == []


async def test_a_timer_is_not_lost_to_a_full_mailbox() -> None:
    clock = JumpingClock()
    actor = await Recorder(mailbox_limit=1, clock=clock).start()
    await actor.occupied()
    await actor.cast(actor.note, "mail")
    actor.send_after(1, actor.note, "timer")
    await clock.advance_ms(1000)
    actor.gate.set()
    await actor.call(actor.note, "last")
    assert actor.notes == ["mail", "timer", "last"]


async def test_a_timer_set_as_the_actor_ends_never_fires() -> None:
    clock = JumpingClock()
    actor = await Recorder(clock=clock).start()
    await actor.stop()
    actor.send_after(1, actor.note, "never").cancel()
    actor.send_after(1, actor.note, "never")
    assert clock.timers == 0


# -- monitors


async def test_monitors_are_told_of_a_stop_without_a_reason(actor: Recorder) -> None:
    ends: list[BaseException | None] = []
    actor.monitor(lambda _, reason: ends.append(reason))
    await actor.stop()
    await turns()
    assert ends == [None]


async def test_a_monitor_on_an_actor_that_has_ended_is_told_in_the_next_turn(actor: Recorder) -> None:
    error = ValueError("enough")
    actor.crash(error)
    ends: list[BaseException | None] = []
    actor.monitor(lambda _, reason: ends.append(reason))
    assert ends == []
    await turns(2)
    assert ends == [error]


async def test_a_monitor_is_told_when_an_actor_is_stopped_before_its_start() -> None:
    actor = Recorder()
    ends: list[BaseException | None] = []
    actor.monitor(lambda _, reason: ends.append(reason))
    await actor.stop()
    await turns()
    assert ends == [None]


async def test_a_cancelled_monitor_is_not_told_and_not_kept(actor: Recorder) -> None:
    ends: list[BaseException | None] = []
    monitor = actor.monitor(lambda _, reason: ends.append(reason))
    monitor.cancel()
    monitor.cancel()
    assert actor._extra().newest_monitor is None
    await actor.stop()
    await turns()
    assert ends == []


async def test_a_monitor_that_raises_does_not_keep_the_news_from_the_others(
    actor: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[BaseException | None] = []
    actor.monitor(lambda _, reason: 1 / 0)
    actor.monitor(lambda _, reason: ends.append(reason))
    await actor.stop()
    await turns()
    assert ends == [None]
    assert "a monitor of" in caplog.text


async def test_monitors_are_told_in_the_order_in_which_they_came(actor: Recorder) -> None:
    told: list[int] = []

    def watch(number: int) -> Monitor:
        return actor.monitor(lambda _, reason: told.append(number))

    monitors = [watch(number) for number in range(8)]
    for number in (3, 0, 4, 7, 2):  # in the middle, at both ends, neighbours
        monitors[number].cancel()
    watch(8)
    await actor.stop()
    await turns()
    assert told == [1, 5, 6, 8]


@pytest.mark.parametrize("watched", ["before", "after"])
async def test_a_monitor_cancelled_when_the_news_is_on_its_way_is_not_told(
    actor: Recorder, watched: str
) -> None:
    ends: list[object] = []
    monitors = [actor.monitor(lambda _, reason: ends.append("before"))] if watched == "before" else []
    actor.crash(ValueError("enough"))
    monitors.append(actor.monitor(lambda _, reason: ends.append("after")))
    for monitor in monitors:
        monitor.cancel()
    await turns()
    assert ends == []


# -- groups


class Grouping(GroupActor):
    def __init__(self, *, mailbox_limit: int = 10_000) -> None:
        super().__init__(mailbox_limit=mailbox_limit)
        self.groups: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.error: Exception | None = None

    def double(self, number: int) -> int:
        return number * 2

    def answer_nothing(self) -> None: ...

    async def handle_group(self, letters: list[Letter]) -> None:
        self.entered.set()
        self.groups.append([args[0] for _, args, _ in letters if args])
        await self.gate.wait()
        for handler, args, reply in letters:
            if self.error is not None:
                raise self.error
            result = handler(*args)
            if reply is not None and result is not None:
                answer(reply, result)


async def test_what_arrives_while_a_group_is_handled_is_the_next_group() -> None:
    actor = await Grouping().start()
    first = actor.call(actor.double, 1)
    await actor.entered.wait()
    others = [actor.call(actor.double, number) for number in range(2, 6)]
    actor.gate.set()
    assert await first == 2
    assert await asyncio.gather(*others) == [4, 6, 8, 10]
    assert actor.groups == [[1], [2, 3, 4, 5]]


async def test_a_letter_whose_caller_is_cancelled_is_not_in_the_group() -> None:
    actor = await Grouping().start()
    first = actor.call(actor.double, 1)
    await actor.entered.wait()
    cancelled, last = actor.call(actor.double, 2), actor.call(actor.double, 3)
    cancelled.cancel()
    actor.gate.set()
    await asyncio.gather(first, last)
    assert actor.groups == [[1], [3]]


async def test_a_group_of_nothing_but_cancelled_letters_is_not_handled_and_lets_others_in() -> None:
    actor = await Grouping(mailbox_limit=1).start()
    first = actor.call(actor.double, 1)
    await actor.entered.wait()
    cancelled, waiting = actor.call(actor.double, 2), actor.call(actor.double, 3)
    cancelled.cancel()
    actor.gate.set()
    assert [await first, await waiting] == [2, 6]
    assert actor.groups == [[1], [3]]


async def test_a_group_that_raises_fails_its_letters_and_the_actor_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    actor = await Grouping().start()
    actor.error = ValueError("no disk")
    actor.gate.set()
    letters = [actor.call(actor.double, number) for number in range(3)]
    for letter in letters:
        with pytest.raises(ValueError, match="no disk"):
            await letter
    actor.error = None
    assert await actor.call(actor.double, 4) == 8
    assert "group of 3" in caplog.text


async def test_a_full_mailbox_of_a_group_actor_lets_in_as_many_as_a_group_took() -> None:
    actor = await Grouping(mailbox_limit=2).start()
    first = actor.call(actor.double, 0)
    await actor.entered.wait()
    others = [actor.call(actor.double, number) for number in range(1, 7)]
    actor.gate.set()
    await asyncio.gather(first, *others)
    assert actor.groups == [[0], [1, 2], [3, 4], [5, 6]]


async def test_a_group_that_fails_after_its_first_answer_is_not_the_last() -> None:
    class Failing(Grouping):
        async def handle_group(self, letters: list[Letter]) -> None:
            for _, args, reply in letters:
                if args[0] < 0:
                    raise ValueError("no")
                assert reply is not None
                answer(reply, args[0])

    actor = await Failing().start()
    replies = [actor.call(actor.double, number) for number in (1, -1, 2)]
    await asyncio.wait(replies)
    assert replies[0].result() == 1
    assert [str(reply.exception()) for reply in replies[1:]] == ["no", "no"]
    assert await actor.call(actor.double, 3) == 3


async def test_who_waits_for_room_is_let_in_when_a_group_takes_more() -> None:
    class Taking(Grouping):
        async def handle_group(self, letters: list[Letter]) -> None:
            self.entered.set()
            await self.gate.wait()
            taken.extend(self.take())
            await asyncio.Event().wait()

    taken: list[Letter] = []
    actor = await Taking(mailbox_limit=1).start()
    asked: list[asyncio.Future[int]] = [actor.call(actor.double, 0)]
    await actor.entered.wait()
    asked.append(actor.call(actor.double, 1))
    casting = asyncio.ensure_future(actor.cast(actor.answer_nothing))
    await turns()
    assert not casting.done()
    actor.gate.set()
    await turns()
    assert casting.done()
    assert len(taken) == 1
    actor.crash(ValueError("enough"))
    for reply in asked:
        with pytest.raises(ActorStopped):
            await reply


async def test_a_reply_that_a_group_keeps_is_answered_later_or_at_the_end() -> None:
    actor = await Grouping().start()
    actor.gate.set()
    late: asyncio.Future[None] = actor.call(actor.answer_nothing)
    await turns()
    assert not late.done()
    await actor.stop()
    with pytest.raises(ActorStopped):
        await late


async def test_the_letters_of_a_group_get_an_error_when_the_actor_crashes_before_its_first_step() -> None:
    actor = await Grouping().start()
    letters = [actor.call(actor.double, number) for number in range(3)]
    asyncio.get_running_loop().call_soon(actor.crash, ValueError("enough"))
    for letter in letters:
        with pytest.raises(ActorStopped):
            await letter
    assert actor.groups == []


async def test_a_stop_answers_the_group_and_the_mail_behind_it() -> None:
    actor = await Grouping().start()
    first = actor.call(actor.double, 1)
    await actor.entered.wait()
    second = actor.call(actor.double, 2)
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    actor.gate.set()
    await stopping
    assert [await first, await second] == [2, 4]


class Pipelining(GroupActor):
    """Begins to handle what has arrived before it answers what is done."""

    def __init__(self, *, mailbox_limit: int = 10_000) -> None:
        super().__init__(mailbox_limit=mailbox_limit)
        self.begun: list[list[Any]] = []
        self.answered: list[Any] = []
        self.gate = asyncio.Semaphore(0)
        self.error: Exception | None = None

    def echo(self, value: Any) -> Any:
        return value

    async def handle_group(self, letters: list[Letter]) -> None:
        while letters:
            self.begun.append([args[0] for _, args, _ in letters])
            await self.gate.acquire()
            more = self.take()
            if self.error is not None:
                raise self.error
            for _, args, reply in letters:
                assert reply is not None
                if answer(reply, args[0]):
                    self.answered.append(args[0])
            letters = more


async def test_a_group_handler_can_take_what_has_arrived_before_it_answers() -> None:
    actor = await Pipelining(mailbox_limit=2).start()
    calls = [actor.call(actor.echo, 1)]
    await turns()
    calls += [actor.call(actor.echo, number) for number in (2, 3, 4)]
    calls[1].cancel()
    for _ in range(3):
        actor.gate.release()
        await turns()
    assert actor.begun == [[1], [3], [4]]
    assert actor.answered == [1, 3, 4]
    assert [await call for call in calls if not call.cancelled()] == [1, 3, 4]


@pytest.mark.parametrize("end", ["raise", "crash"])
async def test_letters_that_a_group_handler_took_get_its_error_and_answered_ones_are_let_go(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    actor = await Pipelining().start()
    first = actor.call(actor.echo, 1)
    await turns()
    second = actor.call(actor.echo, 2)
    actor.gate.release()
    await turns()
    third = actor.call(actor.echo, 3)
    assert await first == 1
    assert not second.done()
    actor.error = ValueError("no disk")
    if end == "crash":
        actor.crash(actor.error)
    else:
        actor.gate.release()
    for call in (second, third):
        with pytest.raises(ValueError if end == "raise" else ActorStopped):
            await call
    if end == "raise":
        assert "group of 2" in caplog.text


async def test_a_stop_waits_until_a_group_handler_has_nothing_left_to_take() -> None:
    actor = await Pipelining().start()
    first = actor.call(actor.echo, 1)
    await turns()
    second = actor.call(actor.echo, 2)
    stopping = asyncio.ensure_future(actor.stop())
    for _ in range(2):
        actor.gate.release()
    await stopping
    assert [await first, await second] == [1, 2]


class WithFutures(GroupActor):
    """Handles groups without a task: `ended` is set done by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[Letter]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: Exception | None = None

    def echo(self, value: Any) -> Any:
        return value

    def handle_group(self, letters: list[Letter]) -> asyncio.Future[None]:
        if self.error is not None:
            raise self.error
        self.groups.append(letters)
        self.ended = asyncio.get_running_loop().create_future()
        return self.ended

    def end(self) -> None:
        for _, args, reply in self.groups[-1]:
            assert reply is not None
            answer(reply, args[0])
        self.ended.set_result(None)


async def test_a_group_whose_handler_gives_a_future_ends_when_that_is_done() -> None:
    actor = await WithFutures().start()
    first = actor.call(actor.echo, 1)
    await turns()
    others = [actor.call(actor.echo, number) for number in (2, 3)]
    await turns()
    assert len(actor.groups) == 1
    actor.end()
    assert await first == 1
    await turns()
    assert [args[0] for _, args, _ in actor.groups[1]] == [2, 3]
    stopping = asyncio.ensure_future(actor.stop())
    await turns()
    assert not stopping.done()
    actor.end()
    assert await asyncio.gather(*others) == [2, 3]
    await stopping


@pytest.mark.parametrize("how", ["raise", "fail"])
async def test_a_group_whose_handler_fails_without_a_task_fails_its_letters_and_the_actor_goes_on(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    actor = await WithFutures().start()
    if how == "raise":
        actor.error = ValueError("no disk")
    letters = [actor.call(actor.echo, number) for number in range(3)]
    await turns()
    if how == "fail":
        actor.ended.set_exception(ValueError("no disk"))
    for letter in letters:
        with pytest.raises(ValueError, match="no disk"):
            await letter
    assert "group of 3" in caplog.text
    actor.error = None
    last = actor.call(actor.echo, 4)
    await turns()
    actor.end()
    assert await last == 4


async def test_a_plain_group_handler_that_mails_its_own_actor_or_takes_more_is_begun_once() -> None:
    class Greedy(WithFutures):
        """Has the first group grow while it is begun."""

        def handle_group(self, letters: list[Letter]) -> asyncio.Future[None]:
            ended = super().handle_group(letters)
            if len(self.groups) == 1:
                self.cast_nowait(self.echo, "taken")
                assert self.take()
                self.cast_nowait(self.echo, "for the next group")
                more.append(self.call(self.echo, "taken, never answered"))
                assert self.take()
                self.cast_nowait(self.echo, "next")
            return ended

    more: list[asyncio.Future[Any]] = []
    actor = await Greedy().start()
    first = actor.call(actor.echo, 1)
    await turns()
    assert len(actor.groups) == 1
    assert not more[0].done()
    actor.end()
    assert await first == 1
    await turns()
    assert [args[0] for _, args, _ in actor.groups[1]] == ["next"]
    actor.ended.set_result(None)
    await actor.stop()
    with pytest.raises(ActorStopped):
        await more[0]


async def test_a_group_whose_plain_handler_meets_something_cancelled_is_cancelled() -> None:
    class Cancelled(WithFutures):
        def handle_group(self, letters: list[Letter]) -> asyncio.Future[None]:
            raise asyncio.CancelledError

    async with Cancelled() as actor:
        letter = actor.call(actor.echo, 1)
        await turns()
        assert letter.cancelled()


async def test_a_crash_ends_a_group_without_a_task() -> None:
    actor = await WithFutures().start()
    letter = actor.call(actor.echo, 1)
    await turns()
    actor.crash(ValueError("enough"))
    with pytest.raises(ActorStopped):
        await letter
    await turns()
    assert actor.ended.cancelled()


# -- subclasses


def test_a_subclass_cannot_replace_a_part_of_the_kernel_by_accident() -> None:
    with pytest.raises(TypeError, match=r"Careless\._put"):

        class Careless(Actor):  # pyright: ignore[reportUnusedClass]
            def _put(self, letter: Letter) -> None: ...


# -- leaks


async def test_a_stopped_actor_is_collectable() -> None:
    actor = await Recorder(mailbox_limit=1).start()
    actor.monitor(lambda ended, reason: None)
    actor.spawn(actor.gate.wait())
    actor.send_after(1, actor.note, "never")
    waiting = [actor.call(actor.note, number) for number in range(3)]
    kept = actor.call_deferred(actor.keep)
    await actor.stop()
    await asyncio.gather(*waiting, kept, return_exceptions=True)
    gone = weakref.ref(actor)
    del actor, waiting, kept
    await turns()
    gc.collect()
    assert gone() is None


async def test_an_idle_actor_that_nobody_refers_to_is_collectable() -> None:
    actor = await Recorder().start()
    await actor.call(actor.note, 1)
    gone = weakref.ref(actor)
    del actor
    await turns()
    gc.collect()
    assert gone() is None


async def test_an_idle_actor_has_no_task() -> None:
    before = asyncio.all_tasks()
    actors = [await Recorder().start() for _ in range(10)]
    for actor in actors:
        await actor.call(actor.note, 1)
    assert asyncio.all_tasks() == before


def _typed_calls(actor: Recorder) -> Coroutine[Any, Any, None]:
    """Checked by the type checkers: a call has the type of what its handler returns."""

    def length(text: str) -> int:
        return len(text)

    async def length_later(text: str) -> int:
        return len(text)

    async def calls() -> None:
        first: int = await actor.call(length, "text")
        second: int = await actor.call(length_later, "text")
        assert first == second

    return calls()


async def test_a_call_answers_with_what_its_handler_returns(actor: Recorder) -> None:
    await _typed_calls(actor)


@pytest.mark.parametrize("end", ["stop", "crash"])
async def test_a_task_that_does_not_end_in_its_grace_is_left_behind(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Hasty(Recorder):
        def task_grace_s(self) -> float:
            return 2

    clock, released, ended = JumpingClock(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    hasty = await Hasty(clock=clock).start()
    task = weakref.ref(hasty.spawn(stubborn()))
    await turns()
    with caplog.at_level(logging.CRITICAL):
        if end == "crash":
            hasty.crash(RuntimeError("for the test"))
        stopping = asyncio.create_task(hasty.stop())
        await clock.advance_ms(1_999)
        assert not stopping.done()
        await clock.advance_ms(1)
        await stopping
    gc.collect()
    assert task() is not None  # nobody else holds it
    released.set()
    await ended.wait()


# -- what is to end the process


class Exiting(GroupActor):
    __slots__ = ()

    def exit(self) -> None:
        raise NotImplementedError

    def handle_group(self, letters: list[Letter]) -> asyncio.Future[None]:
        raise SystemExit("enough")


@pytest.mark.parametrize("loop_name", loop_factories())
@pytest.mark.parametrize("kind", [Recorder, Exiting])
def test_an_exit_in_a_handler_goes_on_and_its_caller_is_told(
    kind: type[Recorder | Exiting], loop_name: str
) -> None:
    loop = loop_factories()[loop_name]()
    actor = kind()
    replies: list[asyncio.Future[Any]] = []

    async def ask() -> None:
        await actor.start()
        if isinstance(actor, Recorder):
            replies.extend([actor.call(actor.fail, SystemExit("enough")), actor.call(actor.note, 1)])
        else:
            replies.extend([actor.call(actor.exit), actor.call(actor.exit)])
        await asyncio.wait(replies)

    try:
        asking = loop.create_task(ask())
        with pytest.raises(SystemExit, match="enough"):
            loop.run_until_complete(asking)
        loop.run_until_complete(asking)
        for reply in replies:
            error = reply.exception()
            assert isinstance(error, ActorStopped)
            assert isinstance(error.__cause__, SystemExit)
        assert not actor.is_running
    finally:
        loop.close()
