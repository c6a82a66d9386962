"""The actor kernel: state, a mailbox, and handlers that run one at a time.

An actor's handlers are its own methods. Its public methods `call` or `cast` them::

    class Counter(Actor):
        def __init__(self) -> None:
            super().__init__()
            self._count = 0

        async def add(self, amount: int) -> int:
            return await self.call(self._add, amount)

        def _add(self, amount: int) -> int:
            self._count += amount
            return self._count

    async with Counter() as counter:
        print(await counter.add(2))

An idle actor is an object and nothing else: no task, no queue. The first message schedules one
callback on the loop, and that handles everything that has arrived by then. A plain handler runs
right there; a coroutine handler gets a task, and the mail behind it waits.

A handler that raises does not take the actor with it if there is a caller to tell: the caller of a
`call` gets the exception, the actor goes on. A `cast`, a timer or an owned task has nobody, so an
exception there is a *crash*: it is logged, what is left in the mailbox is answered with
`ActorStopped`, the monitors are told, and a `Supervisor` starts a successor.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from operator import length_hint
from time import monotonic
from types import CoroutineType, TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar, TypeVarTuple, cast, overload

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock, Timer, all_done
from asm_runtime.errors import ActorStopped, AsmError, MailboxFull
from asm_runtime.tasks import start_task

__all__ = ["Actor", "GroupActor", "Letter", "Monitor", "Spawn", "Supervisor", "answer", "leave_behind"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
A = TypeVar("A", bound="Actor")

logger = logging.getLogger(__name__)

DEFAULT_MAILBOX_LIMIT = 10_000

DEFAULT_RESTART_BACKOFF_MS = 100
MOST_RESTART_BACKOFF_S = 10.0

_DRAIN_S = 0.002
_LETTERS_BY_THE_CLOCK = 64
"""How long a drain goes on before the loop has a turn, in seconds; after how many letters it looks."""

_TOLD_A_TURN = 1_000
"""How many who wait are told of an actor's end before the loop has a turn."""

_STOPS_A_TURN = 64
"""How many children a supervisor tells to stop before the loop has a turn."""

# Where an actor is in its life. Plain integers: the hot path compares them for every message.
# Stopping: what was accepted is still handled. Closing: `on_stop`, and the end of its tasks.
_NEW, _STARTING, _RUNNING, _STOPPING, _CLOSING, _STOPPED = range(6)

Letter: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any] | None"]
"""One message: what to run, its arguments, and where the answer goes (None: nowhere)."""

Watcher: TypeAlias = Callable[["Actor", BaseException | None], object]


class Spawn(Protocol):
    """`Actor.spawn`, for what works in an actor's name."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> asyncio.Task[T]:
        """Run a task that belongs to the actor."""
        ...


class Monitor:
    """A watch on an actor's end, from `Actor.monitor`."""

    __slots__ = ("_actor", "_watcher")

    def __init__(self, actor: Actor, watcher: Watcher) -> None:
        self._actor = actor
        self._watcher: Watcher | None = watcher

    def cancel(self) -> None:
        """Watch no longer. Idempotent."""
        self._watcher = None
        extras = self._actor._extras
        if extras is not None and extras.monitors:
            extras.monitors.pop(self, None)

    def _tell(self, reason: BaseException | None) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        try:
            watcher(self._actor, reason)
        except Exception:
            logger.exception("a monitor of %r raised", self._actor)


class _Extras:
    """What an idle actor does without; made when it is needed."""

    __slots__ = (
        "abandoned",
        "deferred",
        "ending",
        "idle",
        "in_hand",
        "monitors",
        "reason",
        "room",
        "starting",
        "tasks",
        "timers",
        "untold",
    )

    def __init__(self) -> None:
        # The letters that the busy task handles.
        self.in_hand: list[Letter] | None = None
        # The letters that wait for room, by the future that their sender awaits.
        self.room: OrderedDict[asyncio.Future[Any], Letter] | None = None
        self.deferred: set[asyncio.Future[Any]] | None = None
        self.timers: set[_ActorTimer] | None = None
        self.tasks: set[asyncio.Task[Any]] | None = None
        self.monitors: dict[Monitor, None] | None = None
        self.starting: asyncio.Future[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.idle: asyncio.Future[None] | None = None
        self.reason: BaseException | None = None
        self.abandoned: str | None = None
        # Who is still to be told of the end.
        self.untold: deque[asyncio.Future[Any]] | None = None


class _ActorTimer:
    """A `send_after` in flight."""

    __slots__ = ("_actor", "_letter", "_timer")

    def __init__(self, actor: Actor, letter: Letter) -> None:
        self._actor, self._letter = actor, letter
        self._timer: Timer | None = None

    def arm(self, clock: Clock, seconds: float) -> None:
        self._timer = clock.call_later(seconds, self._fire)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._forget()

    def _forget(self) -> None:
        extras = self._actor._extra()
        if extras.timers is not None:
            extras.timers.discard(self)
            extras.timers = extras.timers or None  # an empty set is 216 bytes, on each idle actor

    def _fire(self) -> None:
        self._forget()
        # While the actor starts, the letter waits for the end of the start. A full mailbox does not
        # lose it either: it is the actor's own, and a timer brings only one.
        if self._actor._phase in (_STARTING, _RUNNING):
            self._actor._put(self._letter)


class Actor:
    """A mailbox and the handlers that empty it.

    A subclass keeps its state in names of its own: to redefine an underscored name of this class is
    a `TypeError`.

    Args:
        mailbox_limit: How many messages may wait; then `call` and `cast` suspend their caller.
        clock: The source of its timers.
    """

    __slots__ = (
        "__weakref__",
        "_busy",
        "_clock",
        "_context",
        "_extras",
        "_loop",
        "_mail",
        "_mailbox_limit",
        "_phase",
        "_rest",
        "_scheduled",
    )

    def __init__(self, *, mailbox_limit: int = DEFAULT_MAILBOX_LIMIT, clock: Clock = SYSTEM_CLOCK) -> None:
        self._mailbox_limit: int = options.integer("mailbox_limit", mailbox_limit, minimum=1)
        self._clock = clock
        # What has arrived, and what is left of the mail being handled. Lists: an empty deque has 700 bytes.
        self._mail: list[Letter] = []
        self._rest: Iterator[Letter] | None = None
        self._phase = _NEW
        # Whether somebody will look at the mail anyway: a drain to come, the busy task's end, the start's.
        self._scheduled = False
        self._busy: asyncio.Future[Any] | None = None
        self._extras: _Extras | None = None
        self._loop: asyncio.AbstractEventLoop = cast(asyncio.AbstractEventLoop, None)  # set by `start`
        self._context: contextvars.Context | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__ != __name__:
            for name in vars(cls):
                if name.startswith("_") and not name.startswith("__") and hasattr(Actor, name):
                    raise TypeError(f"{cls.__name__}.{name} would replace a part of asm_runtime.actor.Actor")

    # -- lifecycle

    async def on_start(self) -> None:
        """Open what the actor needs. One that raises must leave nothing open."""

    async def on_stop(self) -> None:
        """Close what the actor opened; the mailbox is empty and takes nothing any more."""

    def on_crash(self, reason: BaseException) -> None:
        """Drop what the actor opened, at once; its owned tasks are cancelled after this."""

    def task_grace_s(self) -> float | None:
        """How long the end waits for owned tasks that it has cancelled, in seconds; None: without a limit.

        One that has not ended by then is left behind, and logged.
        """
        return None

    @property
    def is_running(self) -> bool:
        """Whether a message that is put now will be handled."""
        return self._phase == _RUNNING

    async def start(self) -> Self:
        """Begin to take messages; returns itself. Starting a running one does nothing.

        Raises:
            ActorStopped: It was stopped, or has crashed.
            Exception: What `on_start` raised; nothing is left running and it may be started again.
        """
        while self._phase != _RUNNING:
            if self._phase > _RUNNING:
                raise self._gone()
            if self._phase == _STARTING:
                await self._start_of_another()
            else:
                await self._start_now()
        return self

    async def stop(self) -> None:
        """Handle what was sent before, then close. Stopping a stopped one does nothing.

        Cancelling the caller does not stop the stopping.

        Raises:
            RuntimeError: A handler or `on_stop` of this very actor cannot wait for its end.
            Exception: What `on_stop` raised; the actor has stopped all the same.
        """
        extras = self._extra()
        caller = asyncio.current_task()
        if caller is not None and (caller is self._busy or caller is extras.ending):
            raise RuntimeError("an actor cannot wait in its own handler for its own end")
        if extras.ending is None:
            extras.ending = start_task(self._end(extras))
        elif extras.ending.done():
            return
        await asyncio.shield(extras.ending)

    def crash(self, reason: BaseException) -> None:
        """End it as if a handler without a caller had raised `reason`. Idempotent."""
        phase = self._phase
        if phase in (_STOPPED, _NEW):
            return
        logger.error("%r crashed", self, exc_info=reason)
        if phase == _CLOSING:
            return  # on_stop is at work, and is the better end
        self._phase = _STOPPED
        extras = self._extra()
        extras.reason = reason
        if phase != _STARTING:  # else on_start is still opening: `_start_now` waits for it
            self._drop(reason)
        for task in self._owned_tasks():
            task.cancel()
        self._close()

    def abandon(self, state: str) -> None:
        """End it in this process, which has inherited it by a fork, and leave it to the other.

        Nobody who waits is told and no task is cancelled: they and their loop are the other's too.

        Args:
            state: What whoever uses it here is told, after its name.
        """
        self._phase = _STOPPED
        self._mail, self._rest, self._busy = [], None, None
        self._extras = _Extras()
        self._extras.abandoned = state

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- messages

    @overload
    def call(self, handler: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts) -> asyncio.Future[T]: ...
    @overload
    def call(self, handler: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]: ...
    def call(self, handler: Callable[[*Ts], Any], /, *args: *Ts) -> asyncio.Future[Any]:
        """Have the actor run one of its handlers; await the answer.

        The message is sent by the call itself, and handled after those sent before it. If the mailbox
        is full it waits outside, first come, first served. A caller that is cancelled before its
        message is handled leaves nothing done; after that, the handler runs to its end.

        Raises:
            ActorStopped: The actor is not running, or ended before it answered.
            RuntimeError: A coroutine handler of this very actor cannot wait for its answer.
            Exception: What the handler raised.
        """
        # No coroutine on this path: it would cost a tenth of the round trip. What a busy actor is asked
        # is on it too: under load a store is always busy.
        if (
            self._phase != _RUNNING
            or len(self._mail) >= self._mailbox_limit
            or (self._rest is not None and self._is_crowded())
            or (self._busy is not None and self._in_own_handler())
        ):
            return self._call_in_turn(handler, args)
        reply = self._loop.create_future()
        self._mail.append((handler, args, reply))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain, context=self._context)
        return reply

    def call_deferred(
        self, handler: Callable[[asyncio.Future[T], *Ts], object], /, *args: *Ts
    ) -> asyncio.Future[T]:
        """Like `call`, but the handler answers when it likes.

        The handler is given the reply as its first argument and may keep it; `answer(reply, value)`
        answers, from anywhere on the loop. A caller that is cancelled cancels the reply: a done
        callback of it can tidy up. What is not answered when the actor ends gets `ActorStopped`.
        """
        if self._phase != _RUNNING:
            return self._refusal()
        self._check_not_in_own_handler()
        reply: asyncio.Future[T] = self._loop.create_future()
        self._defer(reply)
        self._put_in_turn(reply, (_run_deferred, (handler, reply, args), None))
        return reply

    async def cast(self, handler: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Put a message that is not answered. A full mailbox suspends the caller.

        A caller that is cancelled while it waits for room has put nothing, or the whole message.

        Raises:
            ActorStopped: The actor is not running.
            MailboxFull: A coroutine handler of this very actor cannot wait for room.
        """
        if self._phase == _RUNNING and self._waiting() >= self._mailbox_limit and not self._in_own_handler():
            admitted = self._loop.create_future()
            self._put_in_turn(admitted, (handler, args, None))
            await admitted
        else:
            self.cast_nowait(handler, *args)

    def cast_nowait(self, handler: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Like `cast`, for callers that cannot wait.

        Raises:
            ActorStopped: The actor is not running.
            MailboxFull: There is no room.
        """
        if self._phase != _RUNNING:
            raise self._gone()
        if self._waiting() >= self._mailbox_limit:
            raise MailboxFull(f"the mailbox of {self!r} holds {self._waiting()} messages")
        self._put((handler, args, None))

    def send_after(self, seconds: float, handler: Callable[[*Ts], object], /, *args: *Ts) -> Timer:
        """Cast to itself later; returns a handle whose `cancel()` prevents it.

        It never fires once the actor stops, and may be set all the same: cleaning up needs no check.

        Raises:
            ActorStopped: The actor is not started.
        """
        if self._phase == _NEW:
            raise self._gone()
        timer = _ActorTimer(self, (handler, args, None))
        if self._phase == _STOPPED:
            return timer
        extras = self._extra()
        extras.timers = extras.timers or set()
        extras.timers.add(timer)
        timer.arm(self._clock, seconds)
        return timer

    def monitor(self, watcher: Watcher) -> Monitor:
        """Have `watcher(actor, reason)` called once, when this actor has ended.

        `reason` is the exception of a crash, None after a stop. For an actor that has ended already
        the call comes in the loop's next turn.
        """
        monitor = Monitor(self, watcher)
        extras = self._extra()
        if self._phase == _STOPPED:
            asyncio.get_running_loop().call_soon(monitor._tell, extras.reason)
        else:
            extras.monitors = extras.monitors or {}
            extras.monitors[monitor] = None
        return monitor

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a task that belongs to the actor, in a copy of its context.

        If it raises, the actor crashes; when the actor ends, it is cancelled and awaited.

        Raises:
            ActorStopped: The actor is not started, or has ended.
        """
        if self._phase in (_NEW, _STOPPED) or self._context is None:
            coroutine.close()
            raise self._gone()
        # A copy: what one task sets in its context (a current span) is not for the others.
        task = start_task(coroutine, name=name, context=self._context.copy())
        extras = self._extra()
        extras.tasks = extras.tasks or set()
        extras.tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    # -- start and end

    async def _start_of_another(self) -> None:
        """Wait until the start under way, in another task, has ended, whichever way."""
        extras = self._extra()
        if extras.starting is None:
            extras.starting = self._loop.create_future()
        await asyncio.shield(extras.starting)

    async def _start_now(self) -> None:
        self._phase = _STARTING
        self._scheduled = True
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        try:
            await self.on_start()
            if self._phase == _STOPPED:  # crashed by one of its tasks; what on_start opened is open
                self._drop(cast(BaseException, self._extra().reason))
                raise self._gone()
        except BaseException:
            self._cancel_timers()
            self._mail.clear()
            try:
                await self._end_tasks()
            finally:
                self._start_ended(_NEW)
            raise
        self._start_ended(_RUNNING)
        self._schedule()

    def _start_ended(self, phase: int) -> None:
        self._scheduled = False
        if self._phase == _STARTING:  # else it crashed meanwhile
            self._phase = phase
        extras = self._extras
        if extras is not None and extras.starting is not None:
            extras.starting.set_result(None)
            extras.starting = None

    async def _end(self, extras: _Extras) -> None:
        try:
            while self._phase == _STARTING:
                await self._start_of_another()
            if self._phase == _RUNNING:
                self._phase = _STOPPING
                if not self._is_idle():
                    extras.idle = self._loop.create_future()
                    await extras.idle
            if self._phase == _STOPPING:
                self._phase = _CLOSING
                await self.on_stop()
        except asyncio.CancelledError as cut_short:  # the loop is being shut down
            self.crash(cut_short)
            raise
        except Exception:
            logger.exception("on_stop of %r raised", self)
            raise
        finally:
            self._cancel_timers()
            try:
                await self._end_tasks()
            finally:
                self._phase = _STOPPED
                self._close()
        while extras.untold is not None:  # noqa: ASYNC110  # a few turns, and seldom
            await asyncio.sleep(0)

    async def _end_tasks(self) -> None:
        """Cancel each owned task once and wait for it: a second time would cut short its cleaning up."""
        extras = self._extra()
        cancelled: set[asyncio.Future[Any]] = set()
        if extras.reason is not None:
            cancelled.update(self._owned_tasks())  # by the crash
        while tasks := [task for task in self._owned_tasks() if not task.done()]:
            for task in tasks:
                if task not in cancelled:
                    cancelled.add(task)
                    task.cancel()
            grace = self.task_grace_s()
            if grace is None:
                await asyncio.wait(tasks)
            elif not await all_done(self._clock, grace, *tasks):
                logger.warning("%r leaves tasks behind that do not end", self)
                for task in tasks:
                    leave_behind(task)
                return

    def _owned_tasks(self) -> set[asyncio.Future[Any]]:
        busy = () if self._busy is None else (self._busy,)
        return {*(self._extra().tasks or ()), *busy}

    def _cancel_timers(self) -> None:
        for timer in tuple(self._extra().timers or ()):
            timer.cancel()

    def _drop(self, reason: BaseException) -> None:
        try:
            self.on_crash(reason)
        except Exception:
            logger.exception("on_crash of %r raised", self)

    def _close(self) -> None:
        """Tell everybody who still waits."""
        extras = self._extra()
        self._cancel_timers()
        mail, self._mail = self._mail, []
        # The rest of a drain is used up here: one that goes through it ends with this.
        left = (_reply_of(letter) for letter in chain(extras.in_hand or (), self._rest or (), mail))
        waiting = [reply for reply in left if reply is not None and not reply.done()]
        waiting += (future for future in chain(extras.room or (), extras.deferred or ()) if not future.done())
        if extras.untold is not None:
            extras.untold.extend(waiting)
        elif waiting:
            extras.untold = deque(waiting)
            self._tell_untold(extras, extras.untold)
        if extras.idle is not None and not extras.idle.done():
            extras.idle.set_result(None)
        monitors, extras.monitors = extras.monitors, None
        for monitor in monitors or ():
            asyncio.get_running_loop().call_soon(monitor._tell, extras.reason)

    def _tell_untold(self, extras: _Extras, untold: deque[asyncio.Future[Any]]) -> None:
        """Tell those who waited for an actor that has ended; the loop has a turn now and then."""
        for _ in range(min(len(untold), _TOLD_A_TURN)):
            future = untold.popleft()
            if not future.done():
                future.set_exception(self._gone())
        if untold:
            asyncio.get_running_loop().call_soon(self._tell_untold, extras, untold)
        else:
            extras.untold = None

    def _refuse(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            reply = _reply_of(letter)
            if reply is not None and not reply.done():
                reply.set_exception(self._gone())

    def _gone(self) -> ActorStopped:
        reason = None if self._extras is None else self._extras.reason
        if reason is not None:
            state = "has crashed"
        elif self._extras is not None and self._extras.abandoned is not None:
            state = self._extras.abandoned
        else:
            state = {_NEW: "is not started", _STARTING: "is not started yet"}.get(self._phase, "has stopped")
        error = ActorStopped(f"{self!r} {state}")
        error.__cause__ = reason
        return error

    def _refusal(self) -> asyncio.Future[Any]:
        """What a call to an actor that is not running gets."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_exception(self._gone())
        return reply

    # -- into the mailbox

    def _waiting(self) -> int:
        return len(self._mail) if self._rest is None else len(self._mail) + length_hint(self._rest)

    def _is_crowded(self) -> bool:
        """Whether a letter must wait outside: there is no room, or others wait for it already."""
        return self._waiting() >= self._mailbox_limit or (
            self._extras is not None and bool(self._extras.room)
        )

    def _in_own_handler(self) -> bool:
        return self._busy is not None and self._busy is asyncio.current_task(self._loop)

    def _check_not_in_own_handler(self) -> None:
        if self._in_own_handler():
            raise RuntimeError("an actor cannot wait in its own handler for its own answer")

    def _call_in_turn(self, handler: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        if self._phase != _RUNNING:
            return self._refusal()
        self._check_not_in_own_handler()
        reply = self._loop.create_future()
        self._put_in_turn(reply, (handler, args, reply))
        return reply

    def _put_in_turn(self, sender: asyncio.Future[Any], letter: Letter) -> None:
        """Put a letter, or have it wait for room; `sender` is what its sender awaits."""
        if not self._is_crowded():
            self._put(letter)
            if _reply_of(letter) is None:
                sender.set_result(None)
            return
        extras = self._extra()
        if extras.room is None:
            extras.room = OrderedDict()
        extras.room[sender] = letter
        # A sender that gives up leaves at once: a hung actor must not collect them.
        sender.add_done_callback(self._leave_room)

    def _leave_room(self, sender: asyncio.Future[Any]) -> None:
        room = self._extra().room
        if room is not None:
            room.pop(sender, None)

    def _admit(self, room: OrderedDict[asyncio.Future[Any], Letter]) -> None:
        """Let in those who wait outside, in their order.

        Only what cannot wait goes before them: a timer's letter, and what a plain handler of this very
        actor sends with `cast_nowait`.
        """
        free = self._mailbox_limit - self._waiting()
        while free > 0 and room:
            sender, letter = room.popitem(last=False)
            if sender.done():
                continue
            free -= 1
            self._put(letter)
            if _reply_of(letter) is None:
                sender.set_result(None)

    def _put(self, letter: Letter) -> None:
        self._mail.append(letter)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and (self._mail or self._rest is not None):
            self._scheduled = True
            self._loop.call_soon(self._drain, context=self._context)

    # -- out of the mailbox

    def _drain(self) -> None:
        """Handle what has arrived; what arrives meanwhile is for a later turn, like what takes too long.

        It counts as scheduled until it has ended: a handler that mails its own actor must not have a
        second drain begin, beside the coroutine that this one may suspend for.
        """
        letters = self._rest
        if letters is None:
            mail, self._mail = self._mail, []
            letters = self._rest = iter(mail)
            some = letters if len(mail) <= _LETTERS_BY_THE_CLOCK else islice(letters, _LETTERS_BY_THE_CLOCK)
        else:
            some = islice(letters, _LETTERS_BY_THE_CLOCK)
        give_way_at = 0.0
        while True:
            for handler, args, reply in some:
                try:
                    if reply is None:
                        result = handler(*args)
                        if type(result) is not CoroutineType:
                            continue
                    else:
                        if reply.done():
                            continue  # its caller was cancelled: not begun
                        result = handler(*args)
                        if type(result) is not CoroutineType:
                            reply.set_result(result)
                            continue
                except Exception as error:
                    self._handler_raised((handler, args, reply), error)
                    continue
                except asyncio.CancelledError:
                    self._handler_cancelled((handler, args, reply))
                    continue
                except BaseException as error:
                    self._refuse([(handler, args, reply)])
                    self.crash(error)
                    raise
                if not length_hint(letters):
                    self._rest = None
                self._suspend(cast(Coroutine[Any, Any, Any], result), [(handler, args, reply)])
                return
            if some is letters or not length_hint(letters):
                self._rest = None
                break
            some = islice(letters, _LETTERS_BY_THE_CLOCK)
            now = monotonic()
            if not give_way_at:
                give_way_at = now + _DRAIN_S
            elif now >= give_way_at:
                break
        self._scheduled = False
        if self._mail or self._rest is not None:
            self._schedule()
        if self._extras is not None:
            self._after_drain()

    def _suspend(self, work: Coroutine[Any, Any, Any] | asyncio.Future[Any], letters: list[Letter]) -> None:
        """Let a task handle what a plain call cannot; the mail behind it waits."""
        if self._phase == _STOPPED:  # the handler that made it has crashed the actor
            if isinstance(work, asyncio.Future):
                work.cancel()
            else:
                work.close()
            self._refuse(letters)
            return
        # The answer is given by the callback, not inside the task: a task that is cancelled before
        # its first step runs nothing at all.
        self._extra().in_hand = letters
        self._scheduled = True
        if not isinstance(work, asyncio.Future):
            # As `start_task` does: an eager task would begin inside the drain, before it counts as busy.
            work = asyncio.Task(work, loop=self._loop, context=self._context)
        self._busy = work
        work.add_done_callback(self._resume, context=self._context)
        self._after_drain()

    def _resume(self, task: asyncio.Future[Any]) -> None:
        extras = self._extra()
        letters, extras.in_hand = extras.in_hand or [], None
        self._busy = None
        self._scheduled = False
        self._conclude(letters, task)
        self._schedule()
        self._after_drain()

    def _conclude(self, letters: list[Letter], task: asyncio.Future[Any]) -> None:
        """Hand on what the busy task made of its letters: in a plain actor, of the one."""
        (letter,) = letters
        if task.cancelled():
            self._handler_cancelled(letter)
        elif (error := task.exception()) is not None:
            self._handler_raised(letter, error)
        elif letter[2] is not None:
            answer(letter[2], task.result())

    def _handler_raised(self, letter: Letter, error: BaseException) -> None:
        """Tell its caller; without one it is a crash."""
        reply = _reply_of(letter)
        if reply is not None and not reply.done():
            _raise_at(reply, error)
        elif reply is not None and (reply.cancelled() or reply is letter[2]):
            if not isinstance(error, asyncio.InvalidStateError):  # else it was only too late to answer
                logger.error("a handler of %r failed after its caller had gone", self, exc_info=error)
        else:
            self._fail(error)

    def _handler_cancelled(self, letter: Letter) -> None:
        """It was cancelled, or met something that was: so is its call."""
        reply = _reply_of(letter)
        if reply is not None:
            reply.cancel()
        elif self._phase < _STOPPED:
            self.crash(asyncio.CancelledError("a handler was cancelled"))

    def _after_drain(self) -> None:
        extras = self._extras
        if extras is None:
            return
        if extras.room:
            self._admit(extras.room)
        if extras.idle is not None and not extras.idle.done() and self._is_idle():
            extras.idle.set_result(None)

    def _is_idle(self) -> bool:
        return not self._mail and self._rest is None and self._busy is None

    def _fail(self, error: BaseException) -> None:
        """Crash: there is no caller to tell."""
        if self._phase == _STOPPED:
            if not isinstance(error, ActorStopped):
                logger.error("something of %r failed after its end", self, exc_info=error)
        elif not (isinstance(error, ActorStopped) and self._phase > _RUNNING):
            self.crash(error)
        # else the stop has cut off something of the actor's own from its mailbox

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        extras = self._extra()
        if extras.tasks is not None:
            extras.tasks.discard(task)
            extras.tasks = extras.tasks or None
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._fail(error)

    def _defer(self, reply: asyncio.Future[Any]) -> None:
        extras = self._extra()
        extras.deferred = extras.deferred or set()
        extras.deferred.add(reply)
        reply.add_done_callback(extras.deferred.discard)

    def _extra(self) -> _Extras:
        extras = self._extras
        if extras is None:
            extras = self._extras = _Extras()
        return extras


class GroupActor(Actor):
    """An actor that is handed everything that waits in its mailbox as one group.

    While a group is handled the mail piles up, and the next group is as large as the last one took
    long: under load, the cost that a group has once is shared by all its letters.
    """

    __slots__ = ()

    def handle_group(self, letters: list[Letter]) -> Coroutine[Any, Any, None] | asyncio.Future[None]:
        """Handle them all, and answer each letter that has a reply.

        A coroutine is run in a task. A plain handler that returns a future spares that, and a turn of
        the loop: the group ends when the future is done.

        A reply may be kept and answered later, like a deferred one. What this raises, the unanswered
        letters of the group get; the actor goes on.
        """
        raise NotImplementedError

    def take(self) -> list[Letter]:
        """For `handle_group`: what has arrived meanwhile, as a part of the group from now on.

        So a handler can set the next piece of slow work going before it answers the one that is done.
        """
        if not self._mail:
            return []
        more = self._taken_mail()
        extras = self._extra()
        unanswered = [letter for letter in extras.in_hand or () if not _is_settled(letter)]
        extras.in_hand = unanswered + more
        self._after_drain()
        return more

    def _taken_mail(self) -> list[Letter]:
        mail, self._mail = self._mail, []
        return [letter for letter in mail if not _is_withdrawn(letter)]

    def _drain(self) -> None:
        letters = self._taken_mail()
        if not letters:
            self._scheduled = False
            self._after_drain()
            return
        extras = self._extra()
        extras.in_hand = letters  # a plain handler may take more, or end the actor
        try:
            work = self.handle_group(letters)
        except Exception as error:
            work = self._loop.create_future()
            work.set_exception(error)
        except asyncio.CancelledError:
            work = self._loop.create_future()
            work.cancel()
        except BaseException as error:
            self.crash(error)
            raise
        self._suspend(work, extras.in_hand)

    def _conclude(self, letters: list[Letter], task: asyncio.Future[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("%r failed to handle a group of %d", self, len(letters), exc_info=error)
        for letter in letters:
            reply = _reply_of(letter)
            if reply is None or reply.done():
                continue
            if task.cancelled():
                reply.cancel()
            elif error is not None:
                _raise_at(reply, error)
            else:
                self._defer(reply)


_left_behind: set[asyncio.Future[Any]] = set()


def leave_behind(task: asyncio.Future[Any]) -> None:
    """Let a task go on that nobody waits for any more; the loop itself holds its tasks weakly."""
    if not task.done():
        _left_behind.add(task)
        task.add_done_callback(_left_behind.discard)


def answer(reply: asyncio.Future[T], value: T) -> bool:
    """Answer a deferred call; False if its caller is gone."""
    if reply.done():
        return False
    reply.set_result(value)
    return True


def _run_deferred(handler: Callable[..., Any], reply: asyncio.Future[Any], args: tuple[Any, ...]) -> Any:
    """The handler of a deferred call's letter; a coroutine that it returns is run by the drain."""
    return None if reply.done() else handler(reply, *args)


def _reply_of(letter: Letter) -> asyncio.Future[Any] | None:
    """Who is to be told how it went."""
    handler, args, reply = letter
    return args[1] if handler is _run_deferred else reply


def _is_withdrawn(letter: Letter) -> bool:
    reply = _reply_of(letter)
    return reply is not None and reply.done()


def _is_settled(letter: Letter) -> bool:
    reply = _reply_of(letter)
    return reply is None or reply.done()


def _raise_at(reply: asyncio.Future[Any], error: BaseException) -> None:
    if isinstance(error, StopIteration):  # a future takes any exception but this one
        told = RuntimeError("a handler raised StopIteration")
        told.__cause__ = error
        error = told
    reply.set_exception(error)


class _Child:
    """What a supervisor knows of one child."""

    __slots__ = (
        "actor",
        "crashes",
        "factory",
        "failures",
        "key",
        "retry",
        "since",
        "starting",
        "stopping",
        "supervisor",
    )

    def __init__(self, supervisor: Supervisor, key: str, factory: Callable[[], Actor]) -> None:
        self.supervisor, self.key, self.factory = supervisor, key, factory
        self.actor: Actor | None = None
        # When it started, and how often in a row it has crashed soon after that, or has not started.
        self.since = 0.0
        self.failures = 0
        # When it did, as far as that counts for the restart intensity.
        self.crashes: list[float] | None = None
        # The pause before a successor is started.
        self.retry: Timer | None = None
        # These tasks return what went wrong: it is their callers' news, not the supervisor's crash.
        self.starting: asyncio.Task[Actor | Exception] | None = None
        self.stopping: asyncio.Task[Exception | None] | None = None

    def ended(self, actor: Actor, reason: BaseException | None) -> None:
        """As its monitor."""
        self.supervisor._child_ended(self, actor)


class Supervisor(Actor):
    """Starts actors, and starts a successor for each that crashes; the others notice nothing.

    The strategy is one_for_one. The first restart comes at once, the following ones after a pause that
    doubles each time, up to ten seconds; after a child has run for longer than `window_ms` it begins
    anew. The restart intensity is counted for each child alone: one that crashes more than
    `max_restarts` times within `window_ms` is given up and logged, its siblings go on. A successor that
    does not start has crashed once more. What failed with an error that says that trying again helps
    (`AsmError.retryable`) is not counted: it is tried until it succeeds. A child that stops in the
    ordinary way is forgotten.

    Args:
        max_restarts: How many restarts of one child within the window.
        window_ms: That window, in milliseconds.
        restart_backoff_ms: The pause before the second restart in a row, in milliseconds.
    """

    __slots__ = ("_children", "_max_restarts", "_restart_backoff_ms", "_window_ms")

    def __init__(
        self,
        *,
        max_restarts: int = 3,
        window_ms: int = 5_000,
        restart_backoff_ms: int = DEFAULT_RESTART_BACKOFF_MS,
        mailbox_limit: int = DEFAULT_MAILBOX_LIMIT,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(mailbox_limit=mailbox_limit, clock=clock)
        self._max_restarts: int = options.integer("max_restarts", max_restarts, minimum=0)
        self._window_ms: int = options.integer("window_ms", window_ms, minimum=1)
        self._restart_backoff_ms: int = options.integer("restart_backoff_ms", restart_backoff_ms, minimum=1)
        self._children: dict[str, _Child] = {}

    async def start_child(self, key: str, factory: Callable[[], A]) -> A:
        """The running child of that name, started if there is none. One start, for any number of callers.

        Cancelling the caller does not stop the start. A child that is being stopped is waited for: two of
        one name never run at once. One that pauses before its restart is started now.

        Raises:
            ActorStopped: The supervisor is not running, or the child was stopped before it had started.
            Exception: What the child's start raised. The child is not kept, unless it has run before:
                then it is tried again, as if nobody had asked.
        """
        while True:
            if self._phase != _RUNNING:
                raise self._gone()
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = _Child(self, key, factory)
                self._bring_up(child)
            if child.stopping is not None:
                await asyncio.wait([child.stopping])
            elif child.starting is not None:
                return cast(A, await _outcome(child.starting, key))
            elif child.retry is not None:
                self._bring_up(child)
            elif child.actor is not None and child.actor.is_running:
                return cast(A, child.actor)
            else:
                await self._settle(child)

    async def stop_child(self, key: str) -> None:
        """Stop and forget that child; a start under way is cancelled. Idempotent.

        Cancelling the caller does not stop the stopping.

        Raises:
            Exception: What the child's `on_stop` raised; it has stopped all the same.
        """
        child = self._children.get(key)
        if child is not None:
            await _outcome(self._take_down(child), key)

    def child(self, key: str) -> Actor | None:
        """The running child of that name, or None. Plain."""
        child = self._children.get(key)
        if child is None or child.actor is None or not child.actor.is_running:
            return None
        return child.actor

    def children(self) -> list[str]:
        """The names of the running children, in the order of their first start. Plain."""
        return [key for key in self._children if self.child(key) is not None]

    async def on_stop(self) -> None:
        """Stop the children. The youngest is told first; none waits for another's end."""
        stops: list[asyncio.Task[Exception | None]] = []
        for child in reversed(tuple(self._children.values())):
            stops.append(self._take_down(child))
            if len(stops) % _STOPS_A_TURN == 0:
                await asyncio.sleep(0)
        if stops:
            await asyncio.wait(stops)

    def on_crash(self, reason: BaseException) -> None:
        """A crashed supervisor takes its children with it."""
        children, self._children = self._children, {}
        for child in children.values():
            if child.actor is not None:
                child.actor.crash(reason)

    # -- one child's life

    def _bring_up(self, child: _Child) -> None:
        """Start it, or its successor."""
        self._end_pause(child)
        child.starting = self.spawn(self._started(child))

    async def _started(self, child: _Child) -> Actor | Exception:
        predecessor = child.actor
        try:
            if predecessor is not None:
                await predecessor.stop()  # its tasks have ended before the successor begins
            actor = await child.factory().start()
        except Exception as error:
            child.starting = None
            if predecessor is None:
                self._forget(child)
            else:
                logger.warning("the successor of %s does not start", child.key, exc_info=error)
                self._failed(child, error)
            return error
        child.starting = None
        child.actor = actor
        child.since = self._clock.monotonic()
        actor.monitor(child.ended)
        return actor

    def _take_down(self, child: _Child) -> asyncio.Task[Exception | None]:
        self._end_pause(child)
        if child.stopping is None:
            child.stopping = self.spawn(self._stopped(child))
        return child.stopping

    async def _stopped(self, child: _Child) -> Exception | None:
        try:
            if child.starting is not None:
                child.starting.cancel()
                await asyncio.wait([child.starting])
            if child.actor is not None:
                await child.actor.stop()
        except Exception as error:
            return error
        finally:
            self._forget(child)
        return None

    async def _settle(self, child: _Child) -> None:
        """Wait for the end of a child that is on its way out, and for what follows from it."""
        actor = cast(Actor, child.actor)
        with suppress(Exception):  # what its on_stop raises is logged, and told to who stopped it
            await actor.stop()
        self._child_ended(child, actor)  # its monitor may not have come yet

    def _child_ended(self, child: _Child, ended: Actor) -> None:
        """Forget it or see to its restart. Idempotent."""
        if child.actor is not ended or child.starting is not None or child.retry is not None:
            return
        reason = ended._extra().reason
        if reason is None:
            if child.stopping is None:
                self._forget(child)
            return
        if self._clock.monotonic() - child.since >= self._window_ms / 1000:
            child.failures = 0
        self._failed(child, reason)

    def _failed(self, child: _Child, error: BaseException) -> None:
        """It has crashed, or its successor does not start: try again, soon, or give it up."""
        if self._phase != _RUNNING or child.stopping is not None:
            return  # it is taken down
        retryable = isinstance(error, AsmError) and error.retryable
        if not retryable and self._gives_up(child):
            self._forget(child)
            return
        child.failures += 1
        if child.failures == 1:
            self._bring_up(child)
        else:
            pause_s = self._restart_backoff_ms / 1000 * 2.0 ** min(child.failures - 2, 30)
            child.retry = self.send_after(min(pause_s, MOST_RESTART_BACKOFF_S), self._pause_over, child)

    def _pause_over(self, child: _Child) -> None:
        if child.retry is not None and child.stopping is None:
            self._bring_up(child)

    def _end_pause(self, child: _Child) -> None:
        if child.retry is not None:
            child.retry.cancel()
            child.retry = None

    def _gives_up(self, child: _Child) -> bool:
        """Count one more crash of it."""
        now = self._clock.monotonic()
        after = now - self._window_ms / 1000
        child.crashes = [*(moment for moment in child.crashes or () if moment > after), now]
        if len(child.crashes) <= self._max_restarts:
            return False
        logger.error(
            "%r gives up on %s: more than %d crashes within %d ms",
            self, child.key, self._max_restarts, self._window_ms,
        )  # fmt: skip
        return True

    def _forget(self, child: _Child) -> None:
        if self._children.get(child.key) is child:
            del self._children[child.key]


async def _outcome(task: asyncio.Task[T | Exception], key: str) -> T:
    """What a start or a stop came to. Cancelling the caller leaves the task alone."""
    await asyncio.wait([task])
    if task.cancelled():
        raise ActorStopped(f"{key} was stopped, or its supervisor was")
    outcome = task.result()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
