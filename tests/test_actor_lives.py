"""Random lives of actors, held against what must be true of each of them.

A life is a list of steps of those outside: they send messages of every kind, cancel, answer, let
time pass. A message carries what its handler does: mail its own actor, give way, set timers, raise,
crash. In the end the actor is stopped; whatever happened, then every caller has been answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asm_runtime.actor import Actor, GroupActor, Letter, answer
from asm_runtime.errors import ActorStopped, MailboxFull
from asm_runtime.tasks import start_task
from asm_runtime.testing.clock import JumpingClock
from tests.loops import loop_factories, run_on

PATIENCE = 500
"""Turns of the loop within which everything here must have ended: nothing waits for a thread."""


@dataclass(frozen=True)
class Message:
    """One message: how it is sent, what its handler does, and after how many turns if it can wait."""

    way: str
    handler: str
    pace: int
    deeds: tuple[Deed, ...]


@dataclass(frozen=True)
class Deed:
    """One thing that a handler does."""

    what: str
    number: int = 0
    message: Message | None = None


Step: TypeAlias = tuple[str, int] | Message

WAYS = ("call", "cast", "cast_nowait", "timer", "deferred")
HANDLERS = ("plain", "coroutine")


def _deeds(messages: st.SearchStrategy[Message]) -> st.SearchStrategy[tuple[Deed, ...]]:
    mail = st.builds(Deed, st.just("mail"), st.just(0), messages)
    deed = st.one_of(
        mail,
        mail,
        st.builds(Deed, st.sampled_from(["cancel", "answer"]), st.integers(0, 20)),
        st.builds(Deed, st.sampled_from(["raise", "meet a cancelled one", "spawn"])),
    )
    return st.lists(deed, max_size=2).map(tuple)


def _messages(deeds: st.SearchStrategy[tuple[Deed, ...]]) -> st.SearchStrategy[Message]:
    return st.builds(Message, st.sampled_from(WAYS), st.sampled_from(HANDLERS), st.integers(0, 2), deeds)


MESSAGES = _messages(_deeds(_messages(_deeds(_messages(st.just(()))))))

STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        MESSAGES,
        MESSAGES,
        MESSAGES,
        st.tuples(st.sampled_from(["turn", "turn", "cancel", "answer", "time", "stop"]), st.integers(0, 20)),
    ),
    min_size=4,
    max_size=30,
)


class Life:
    """One actor, those who use it, and what they saw."""

    handles_in_a_task = False

    def __init__(self, limit: int) -> None:
        self.clock = JumpingClock()
        self.limit = limit
        self.actor: Actor = self.make()
        self.inside = 0
        self.begun: list[int] = []
        self.sent: dict[int, asyncio.Future[Any]] = {}
        self.messages: dict[int, Message] = {}
        self.kept: list[asyncio.Future[Any]] = []
        self.stops: list[asyncio.Future[None]] = []
        # Something has crashed it while it was running; or, perhaps too late, while it stopped.
        self.must_crash = self.may_crash = False
        self.crashed = False
        self.wrong: list[str] = []

    def make(self) -> Actor:
        return Actor(mailbox_limit=self.limit, clock=self.clock)

    # -- sending

    def send(self, message: Message) -> None:
        number = len(self.messages)
        self.messages[number] = message
        handler = self.handler_of(message)
        if message.way == "call":
            self.keep_answer(number, self.actor.call(handler, number, None))
        elif message.way == "deferred":
            self.keep_answer(number, self.actor.call_deferred(self.deferred_handler_of(message), number))
        elif message.way == "cast":
            self.keep_answer(number, asyncio.ensure_future(self.actor.cast(handler, number, None)))
        elif message.way == "cast_nowait":
            self.actor.cast_nowait(handler, number, None)
        else:
            self.actor.send_after(number % 3 * 0.001, handler, number, None)

    def keep_answer(self, number: int, future: asyncio.Future[Any]) -> None:
        self.sent[number] = future

    def handler_of(self, message: Message) -> Any:
        return self.plain if message.handler == "plain" else self.coroutine

    def deferred_handler_of(self, message: Message) -> Any:
        def plain(reply: asyncio.Future[Any], number: int) -> None:
            self.plain(number, reply)

        async def coroutine(reply: asyncio.Future[Any], number: int) -> None:
            await self.coroutine(number, reply)

        return plain if message.handler == "plain" else coroutine

    # -- handling

    @contextmanager
    def handling(self, number: int) -> Generator[None]:
        self.begun.append(number)
        if self.inside:
            self.wrong.append(f"{number} was begun beside another")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def plain(self, number: int, reply: asyncio.Future[Any] | None) -> int:
        with self.handling(number):
            for deed in self.messages[number].deeds:
                self.do(deed, number, reply, waits=self.handles_in_a_task)
            return self.result(number, reply)

    async def coroutine(self, number: int, reply: asyncio.Future[Any] | None) -> int:
        with self.handling(number):
            for deed in self.messages[number].deeds:
                await turns(self.messages[number].pace)
                self.do(deed, number, reply, waits=True)
            await turns(self.messages[number].pace)
            return self.result(number, reply)

    def result(self, number: int, reply: asyncio.Future[Any] | None) -> int:
        if reply is not None:
            self.kept.append(reply)
            if number % 2:
                answer(reply, number)
        return number

    def do(self, deed: Deed, number: int, reply: asyncio.Future[Any] | None, *, waits: bool) -> None:
        """`waits`: in the task for which the actor waits."""
        if deed.message is not None and waits and deed.message.way in ("call", "deferred"):
            self.refused_to_itself(deed.message)
        elif deed.message is not None:
            # What waits outside a full mailbox waits in a task; what cannot wait is refused.
            with suppress(MailboxFull, ActorStopped):
                self.send(deed.message)
        elif deed.what == "cancel":
            self.cancel(deed.number)
        elif deed.what == "answer":
            self.answer(deed.number)
        elif deed.what == "raise":
            if self.nobody_to_tell(number, reply):
                self.crashes()
            raise ZeroDivisionError
        elif deed.what == "meet a cancelled one":
            if self.messages[number].way in ("cast", "cast_nowait", "timer"):
                self.crashes()
            raise asyncio.CancelledError
        elif deed.what == "spawn":
            with suppress(ActorStopped):
                self.actor.spawn(self.outsider())

    def nobody_to_tell(self, number: int, reply: asyncio.Future[Any] | None) -> bool:
        """Neither a caller who waits, nor one who has given up."""
        if self.messages[number].way == "deferred":
            return reply is not None and reply.done() and not reply.cancelled()
        return self.messages[number].way != "call"

    async def outsider(self) -> None:
        """A task of the actor's own, which is outside its handlers all the same."""
        with suppress(ActorStopped):
            await self.actor.call(self.nothing)

    def nothing(self) -> None:
        if self.inside:
            self.wrong.append("a message was begun beside another")

    def refused_to_itself(self, message: Message) -> None:
        """A coroutine handler that awaited its own actor would wait for ever."""
        if not self.actor.is_running:
            return
        try:
            if message.way == "call":
                self.actor.call(self.nothing)
            else:
                self.actor.call_deferred(cast(Any, self.nothing))
        except RuntimeError:
            pass
        else:
            self.wrong.append("a coroutine handler was let in to wait for itself")

    def crashes(self) -> None:
        if not self.handles_in_a_task or not self.inside:
            self.may_crash = True
            self.must_crash = self.must_crash or self.actor.is_running

    # -- those outside

    def cancel(self, choice: int) -> None:
        if self.sent:
            list(self.sent.values())[choice % len(self.sent)].cancel()

    def answer(self, choice: int) -> None:
        if self.kept:
            answer(self.kept[choice % len(self.kept)], -1)

    async def live(self, steps: list[Step], end: str) -> None:
        await self.actor.start()
        self.actor.monitor(self.ended)
        for step in steps:
            if isinstance(step, Message):
                with suppress(MailboxFull, ActorStopped):
                    self.send(step)
            elif step[0] == "turn":
                await turns(step[1])
            elif step[0] == "time":
                await self.clock.advance_ms(step[1])
            elif step[0] == "cancel":
                self.cancel(step[1])
            elif step[0] == "answer":
                self.answer(step[1])
            elif step[0] == "stop":
                self.stop()
        if end == "crash":
            self.crashes()
            self.actor.crash(ValueError("the end"))
        self.stop()
        for _ in range(PATIENCE):
            if all(future.done() for future in (*self.stops, *self.sent.values())):
                break
            await asyncio.sleep(0)
        waiting = [number for number, future in self.sent.items() if not future.done()]
        assert all(stop.done() for stop in self.stops), f"stop() hangs; never answered: {waiting}"
        assert not waiting, f"never answered: {waiting}"
        await asyncio.gather(*self.stops)
        await turns(3)
        self.judge()

    def stop(self) -> None:
        self.stops.append(asyncio.ensure_future(self.actor.stop()))

    def ended(self, actor: Actor, reason: BaseException | None) -> None:
        self.crashed = reason is not None

    def judge(self) -> None:
        assert self.wrong == []
        assert self.inside == 0
        assert len(self.begun) == len(set(self.begun)), "begun twice"
        assert self.may_crash >= self.crashed >= self.must_crash
        called = [number for number in self.begun if self.messages[number].way in ("call", "deferred")]
        assert called == sorted(called), "somebody overtook"
        for number, future in self.sent.items():
            self.judge_outcome(number, future)
        extras = self.actor._extra()
        assert not self.actor._mail
        assert not self.actor._waiting()
        waiters = self.actor._waiters
        assert waiters is None or not (waiters.room or waiters.deferred)
        assert not extras.timers
        assert not extras.tasks
        assert self.clock.timers == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def judge_outcome(self, number: int, future: asyncio.Future[Any]) -> None:
        message = self.messages[number]
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            if message.way == "call":
                assert number in self.begun
                assert future.result() == number
            elif message.way == "deferred":
                assert number in self.begun
                assert future.result() in (number, -1)
            elif not self.crashed:
                assert number in self.begun, "taken in, and not handled"
        elif isinstance(error, ActorStopped):
            # Deferred and never answered; or not accepted in time; or the actor crashed.
            assert self.crashed or message.way == "deferred" or number not in self.begun
        else:
            assert isinstance(error, ZeroDivisionError | MailboxFull)
            assert isinstance(error, MailboxFull) or number in self.begun


class GroupLife(Life):
    """The same of an actor that is handed its mail in groups."""

    handles_in_a_task = True
    groups_inside = 0

    @contextmanager
    def handling_a_group(self) -> Generator[None]:
        if self.groups_inside:
            self.wrong.append("two groups at once")
        self.groups_inside += 1
        try:
            yield
        finally:
            self.groups_inside -= 1

    def make(self) -> Actor:
        return Grouped(self)

    def handler_of(self, message: Message) -> Any:
        return self.plain

    def deferred_handler_of(self, message: Message) -> Any:
        def keep(reply: asyncio.Future[Any], number: int) -> None:
            self.plain(number, reply)

        return keep


class Grouped(GroupActor):
    def __init__(self, life: GroupLife) -> None:
        super().__init__(mailbox_limit=life.limit, clock=life.clock)
        self.life = life
        self.groups = 0

    def handle_group(self, letters: list[Letter]) -> Coroutine[Any, Any, None] | asyncio.Future[None]:
        self.groups += 1
        if self.groups % 2:
            return self.handle_all(letters)
        # The plain kind, which mails its own actor and takes what is there before it says how it goes on.
        with suppress(MailboxFull, ActorStopped):
            self.cast_nowait(self.life.nothing)
        letters += self.take()
        return start_task(self.handle_all(letters))

    async def handle_all(self, letters: list[Letter]) -> None:
        with self.life.handling_a_group():
            for round in range(3):
                for handler, args, reply in letters:
                    await self.handle(handler, args, reply)
                if round == 2:
                    break
                letters = self.take()

    async def handle(self, handler: Any, args: tuple[Any, ...], reply: asyncio.Future[Any] | None) -> None:
        # A letter of `call_deferred` is its handler's affair; the others are answered here, or later.
        try:
            result = handler(*args)
        except (ZeroDivisionError, asyncio.CancelledError) as error:
            if reply is not None and not reply.done():
                reply.set_exception(error if isinstance(error, Exception) else ZeroDivisionError())
            return
        await turns(len(self.life.begun) % 2)
        if reply is not None:
            answer(reply, result)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@contextmanager
def no_logging() -> Generator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def live(loop: str, life: type[Life], steps: list[Step], limit: int, end: str) -> None:
    async def main() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context.get("exception") or context["message"])
        )
        await life(limit).live(steps, end)
        assert failures == []

    with no_logging():
        run_on(loop, main())


@pytest.mark.parametrize("loop", loop_factories())
@pytest.mark.parametrize("life", [Life, GroupLife])
@settings(max_examples=200, deadline=None)
@given(steps=STEPS, limit=st.integers(1, 4), end=st.sampled_from(["stop", "crash"]), hurried=st.booleans())
def test_in_any_life_one_handler_runs_at_a_time_and_every_caller_is_answered(
    loop: str, life: type[Life], steps: list[Step], limit: int, end: str, hurried: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if hurried:  # drains and ends give way to the loop as soon as they can
            patch.setattr("asm_runtime.actor.mailbox._DRAIN_S", 0)
            patch.setattr("asm_runtime.actor.mailbox._LETTERS_BY_THE_CLOCK", 1)
            patch.setattr("asm_runtime.actor.actor._TOLD_A_TURN", 1)
        live(loop, life, steps, limit, end)
