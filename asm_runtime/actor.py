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
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType, TracebackType
from typing import Any, Self, TypeAlias, TypeVar, TypeVarTuple, cast, overload

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock, Timer
from asm_runtime.errors import ActorStopped, AsmError, MailboxFull

__all__ = ["Actor", "GroupActor", "Letter", "Monitor", "Supervisor", "answer"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
A = TypeVar("A", bound="Actor")

logger = logging.getLogger(__name__)

DEFAULT_MAILBOX_LIMIT = 10_000


# Where an actor is in its life. Plain integers: the hot path compares them for every message.
_NEW, _STARTING, _RUNNING, _STOPPING, _STOPPED = range(5)

Letter: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any] | None"]
"""One message: what to run, its arguments, and where the answer goes (None: nowhere)."""


Watcher: TypeAlias = Callable[["Actor", BaseException | None], object]


class Monitor:
    """A watch on an actor's end, from `Actor.monitor`."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Watcher) -> None:
        self._watcher: Watcher | None = watcher

    def cancel(self) -> None:
        """Watch no longer. Idempotent."""
        self._watcher = None

    def _tell(self, actor: Actor, reason: BaseException | None) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        try:
            watcher(actor, reason)
        except Exception:
            logger.exception("a monitor of %r raised", actor)


class _Extras:
    """What an idle actor does without; made when it is needed."""

    __slots__ = ("deferred", "ending", "idle", "monitors", "reason", "room", "starting", "tasks", "timers")

    def __init__(self) -> None:
        self.room: deque[asyncio.Future[None]] | None = None
        self.deferred: set[asyncio.Future[Any]] | None = None
        self.timers: set[_ActorTimer] | None = None
        self.tasks: set[asyncio.Task[Any]] | None = None
        self.monitors: list[Monitor] | None = None
        self.starting: asyncio.Future[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.idle: asyncio.Future[None] | None = None
        self.reason: BaseException | None = None


class _ActorTimer:
    """A `send_after` in flight."""

    __slots__ = ("_actor", "_args", "_handler", "_timer")

    def __init__(self, actor: Actor, handler: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._actor, self._handler, self._args = actor, handler, args
        self._timer: Timer | None = None

    def arm(self, clock: Clock, seconds: float) -> None:
        self._timer = clock.call_later(seconds, self._fire)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._forget()

    def _forget(self) -> None:
        timers = self._actor._extra().timers
        if timers is not None:
            timers.discard(self)

    def _fire(self) -> None:
        self._forget()
        if self._actor.is_running:
            # A timer is never lost to a full mailbox: it brings one message, made by the actor itself.
            self._actor._put((self._handler, self._args, None))


class Actor:
    """A mailbox and the handlers that empty it.

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
        "_scheduled",
    )

    def __init__(self, *, mailbox_limit: int = DEFAULT_MAILBOX_LIMIT, clock: Clock = SYSTEM_CLOCK) -> None:
        self._mailbox_limit: int = options.integer("mailbox_limit", mailbox_limit, minimum=1)
        self._clock = clock
        self._mail: list[Letter] = []
        self._phase = _NEW
        self._scheduled = False
        self._busy: asyncio.Task[Any] | None = None
        self._extras: _Extras | None = None
        self._loop: asyncio.AbstractEventLoop = cast(asyncio.AbstractEventLoop, None)
        self._context: contextvars.Context | None = None

    # -- lifecycle

    async def on_start(self) -> None:
        """Open what the actor needs. One that raises must leave nothing open."""

    async def on_stop(self) -> None:
        """Close what the actor opened; the mailbox is empty and takes nothing any more."""

    def on_crash(self, reason: BaseException) -> None:
        """Drop what the actor opened, at once; its owned tasks are cancelled after this."""

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
            if self._phase >= _STOPPING:
                raise self._gone()
            if self._phase == _STARTING:
                await self._started()
                continue
            self._phase = _STARTING
            self._loop = asyncio.get_running_loop()
            self._context = contextvars.copy_context()
            try:
                await self.on_start()
            except BaseException:
                self._cancel_timers()
                await self._end_tasks()
                self._start_ended(_NEW)
                raise
            self._start_ended(_RUNNING)
        return self

    async def stop(self) -> None:
        """Handle what is in the mailbox, then close. Stopping a stopped one does nothing.

        Cancelling the caller does not stop the stopping.
        """
        if self._phase == _NEW:
            self._phase = _STOPPED
            return
        if self._busy is not None and self._busy is asyncio.current_task():
            raise RuntimeError("an actor cannot wait in its own handler for its own end")
        extras = self._extra()
        if extras.ending is None:
            extras.ending = asyncio.get_running_loop().create_task(self._end(extras))
        await asyncio.shield(extras.ending)

    def crash(self, reason: BaseException) -> None:
        """End it as if a handler without a caller had raised `reason`. Idempotent."""
        if self._phase == _STOPPED or self._phase == _NEW:
            return
        logger.error("%r crashed", self, exc_info=reason)
        self._phase = _STOPPED
        extras = self._extra()
        extras.reason = reason
        try:
            self.on_crash(reason)
        except Exception:
            logger.exception("on_crash of %r raised", self)
        busy = self._busy
        if busy is not None:
            busy.cancel()
        for task in extras.tasks or ():
            task.cancel()
        self._close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- messages

    @overload
    def call(self, handler: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts) -> Awaitable[T]: ...
    @overload
    def call(self, handler: Callable[[*Ts], T], /, *args: *Ts) -> Awaitable[T]: ...
    def call(self, handler: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        """Have the actor run one of its handlers; await the answer.

        A full mailbox suspends the caller until there is room. A caller that is cancelled before its
        message is handled leaves nothing done; after that, the handler runs to its end.

        Raises:
            ActorStopped: The actor is not running, or ended before it answered.
            Exception: What the handler raised.
        """
        # No coroutine of its own on this path: it would cost a tenth of the round trip.
        if self._phase != _RUNNING or len(self._mail) >= self._mailbox_limit or self._busy is not None:
            return self._call_when_admitted(handler, args)
        reply = self._loop.create_future()
        self._mail.append((handler, args, reply))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain, context=self._context)
        return reply

    async def call_deferred(
        self,
        handler: Callable[[asyncio.Future[T], *Ts], object],
        /,
        *args: *Ts,
    ) -> T:
        """Like `call`, but the handler answers when it likes.

        The handler is given the reply as its first argument and may keep it; `answer(reply, value)`
        answers, from anywhere on the loop. A caller that is cancelled cancels the reply: a done
        callback of it can tidy up. What is not answered when the actor ends gets `ActorStopped`.
        """
        await self._admitted()
        reply: asyncio.Future[T] = self._loop.create_future()
        extras = self._extra()
        deferred = extras.deferred = set() if extras.deferred is None else extras.deferred
        deferred.add(reply)
        self._put((_run_deferred, (handler, reply, args), None))
        try:
            return await reply
        finally:
            deferred.discard(reply)

    async def cast(self, handler: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Put a message that is not answered. A full mailbox suspends the caller.

        Raises:
            ActorStopped: The actor is not running.
        """
        await self._admitted()
        self._put((handler, args, None))

    def cast_nowait(self, handler: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Like `cast`, for callers that cannot wait.

        Raises:
            ActorStopped: The actor is not running.
            MailboxFull: There is no room.
        """
        if self._phase != _RUNNING:
            raise self._gone()
        if len(self._mail) >= self._mailbox_limit:
            raise MailboxFull(f"the mailbox of {self!r} holds {len(self._mail)} messages")
        self._put((handler, args, None))

    def send_after(self, seconds: float, handler: Callable[[*Ts], object], /, *args: *Ts) -> Timer:
        """Cast to itself later; returns a handle whose `cancel()` prevents it."""
        timer = _ActorTimer(self, handler, args)
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
        monitor = Monitor(watcher)
        if self._phase == _STOPPED:
            asyncio.get_running_loop().call_soon(monitor._tell, self, self._reason())
        else:
            extras = self._extra()
            extras.monitors = extras.monitors or []
            extras.monitors.append(monitor)
        return monitor

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a task that belongs to the actor.

        If it raises, the actor crashes; when the actor ends, it is cancelled and awaited.
        """
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=self._context)
        extras = self._extra()
        extras.tasks = extras.tasks or set()
        extras.tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    # -- the inside

    async def _started(self) -> None:
        """Wait until the start under way, in another task, has ended, whichever way."""
        extras = self._extra()
        if extras.starting is None:
            extras.starting = self._loop.create_future()
        await asyncio.shield(extras.starting)

    def _start_ended(self, phase: int) -> None:
        if self._phase == _STARTING:  # else it crashed meanwhile
            self._phase = phase
        if self._extras is not None and self._extras.starting is not None:
            self._extras.starting.set_result(None)
            self._extras.starting = None

    async def _call_when_admitted(self, handler: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        await self._admitted()
        reply = self._loop.create_future()
        self._put((handler, args, reply))
        return await reply

    async def _admitted(self) -> None:
        """Return when a message may be put in this very step of the loop."""
        if self._busy is not None and self._busy is asyncio.current_task():
            raise RuntimeError("an actor cannot wait in its own handler for its own answer")
        while True:
            if self._phase != _RUNNING:
                raise self._gone()
            if len(self._mail) < self._mailbox_limit:
                return
            extras = self._extra()
            room = extras.room = deque() if extras.room is None else extras.room
            turn = self._loop.create_future()
            room.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake_waiting(1)  # the place goes to the next in line
                else:
                    room.remove(turn)
                raise

    def _put(self, letter: Letter) -> None:
        self._mail.append(letter)
        self._schedule()

    def _schedule(self) -> None:
        if self._mail and not self._scheduled and self._busy is None:
            self._scheduled = True
            self._loop.call_soon(self._drain, context=self._context)

    def _drain(self) -> None:
        """Handle everything that has arrived; what arrives meanwhile is for the next turn."""
        self._scheduled = False
        mail, self._mail = self._mail, []
        for position, (handler, args, reply) in enumerate(mail, 1):
            try:
                if reply is None:
                    result = handler(*args)
                    if type(result) is not CoroutineType:
                        if self._phase == _STOPPED:  # the handler has crashed its own actor
                            self._refuse(mail[position:])
                            return
                        continue
                else:
                    if reply.done():
                        continue  # its caller was cancelled: not begun
                    result = handler(*args)
                    if type(result) is not CoroutineType:
                        reply.set_result(result)
                        continue
            except Exception as error:
                if reply is None:
                    self.crash(error)
                    self._refuse(mail[position:])
                    return
                if not reply.done():
                    reply.set_exception(error)
                continue
            except BaseException as error:
                self._mail = mail[position:] + self._mail
                self.crash(error)
                raise
            self._mail = mail[position:] + self._mail
            self._suspend(self._answer_with(cast(Awaitable[Any], result), reply))
            return
        self._after_drain()

    def _suspend(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a task handle what a plain call cannot; the mail behind it waits."""
        self._busy = self._loop.create_task(work, context=self._context)
        self._busy.add_done_callback(self._resume)

    def _resume(self, task: asyncio.Task[Any]) -> None:
        self._busy = None
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self.crash(error)
        self._schedule()
        self._after_drain()

    async def _answer_with(self, work: Awaitable[Any], reply: asyncio.Future[Any] | None) -> None:
        try:
            result = await work
        except asyncio.CancelledError:
            if reply is not None and not reply.done():
                if self._phase == _STOPPED:
                    reply.set_exception(self._gone())
                else:
                    reply.cancel()
            raise
        except Exception as error:
            if reply is None:
                raise
            if not reply.done():
                reply.set_exception(error)
        else:
            if reply is not None:
                answer(reply, result)

    def _after_drain(self) -> None:
        extras = self._extras
        if extras is None:
            return
        self._wake_waiting(self._mailbox_limit - len(self._mail))
        if extras.idle is not None and not self._mail and self._busy is None and not extras.idle.done():
            extras.idle.set_result(None)

    def _wake_waiting(self, count: int) -> None:
        room = self._extra().room
        if room is None:
            return
        while count > 0 and room:
            turn = room.popleft()
            if not turn.done():
                turn.set_result(None)
                count -= 1

    async def _end(self, extras: _Extras) -> None:
        while self._phase == _STARTING:
            await self._started()
        if self._phase == _RUNNING:
            self._phase = _STOPPING
            self._wake_waiting(len(extras.room or ()))
            if self._mail or self._busy is not None:
                extras.idle = self._loop.create_future()
                await extras.idle
        if self._phase == _STOPPING:
            try:
                await self.on_stop()
            except Exception:
                logger.exception("on_stop of %r raised", self)
                self._phase = _STOPPED
                raise
            finally:
                self._cancel_timers()
                await self._end_tasks()
                self._phase = _STOPPED
                self._close()
        else:  # never ran, or crashed
            self._phase = _STOPPED
            await self._end_tasks()

    async def _end_tasks(self) -> None:
        tasks = self._extra().tasks or set()
        if self._busy is not None:
            tasks = tasks | {self._busy}
        while tasks := {task for task in tasks if not task.done()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _cancel_timers(self) -> None:
        for timer in tuple(self._extra().timers or ()):
            timer.cancel()

    def _close(self) -> None:
        """Tell everybody who still waits."""
        extras = self._extra()
        self._cancel_timers()
        mail, self._mail = self._mail, []
        self._refuse(mail)
        for reply in tuple(extras.deferred or ()):
            if not reply.done():
                reply.set_exception(self._gone())
        self._wake_waiting(len(extras.room or ()))
        if extras.idle is not None and not extras.idle.done():
            extras.idle.set_result(None)
        monitors, extras.monitors = extras.monitors, None
        for monitor in monitors or ():
            self._loop.call_soon(monitor._tell, self, extras.reason)

    def _refuse(self, mail: list[Letter]) -> None:
        for _, _, reply in mail:
            if reply is not None and not reply.done():
                reply.set_exception(self._gone())

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        tasks = self._extra().tasks
        if tasks is not None:
            tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self.crash(error)

    def _gone(self) -> ActorStopped:
        state = {_NEW: "is not started", _STARTING: "is not started yet"}.get(self._phase, "has stopped")
        reason = self._reason()
        error = ActorStopped(f"{self!r} {'has crashed' if reason else state}")
        error.__cause__ = reason
        return error

    def _reason(self) -> BaseException | None:
        return None if self._extras is None else self._extras.reason

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

    async def handle_group(self, letters: list[Letter]) -> None:
        """Handle them all, and answer each letter that has a reply.

        What it raises, the unanswered letters of the group get; the actor goes on.
        """
        raise NotImplementedError

    def _drain(self) -> None:
        self._scheduled = False
        mail, self._mail = self._mail, []
        letters = [letter for letter in mail if letter[2] is None or not letter[2].done()]
        if letters:
            self._suspend(self._handle(letters))
        else:
            self._after_drain()

    async def _handle(self, letters: list[Letter]) -> None:
        self._after_drain()  # the mailbox is empty: let in who waits for room
        try:
            await self.handle_group(letters)
        except asyncio.CancelledError:
            self._refuse(letters)
            raise
        except Exception as error:
            logger.exception("%r failed to handle a group of %d", self, len(letters))
            for _, _, reply in letters:
                if reply is not None and not reply.done():
                    reply.set_exception(error)


def answer(reply: asyncio.Future[T], value: T) -> bool:
    """Answer a deferred call; False if its caller is gone."""
    if reply.done():
        return False
    reply.set_result(value)
    return True


def _run_deferred(handler: Callable[..., Any], reply: asyncio.Future[Any], args: tuple[Any, ...]) -> Any:
    if reply.done():
        return None
    try:
        result = handler(reply, *args)
    except Exception as error:
        reply.set_exception(error)
        return None
    return _finish_deferred(cast(Awaitable[Any], result), reply) if type(result) is CoroutineType else None


async def _finish_deferred(work: Awaitable[Any], reply: asyncio.Future[Any]) -> None:
    try:
        await work
    except Exception as error:
        if reply.done():
            raise
        reply.set_exception(error)


class _Child:
    __slots__ = ("actor", "factory", "restarts", "starting")

    def __init__(self, factory: Callable[[], Actor]) -> None:
        self.factory = factory
        self.actor: Actor | None = None
        self.starting: asyncio.Task[Actor] | None = None
        self.restarts: deque[float] = deque()


class Supervisor(Actor):
    """Starts actors, and starts a successor for each that crashes; the others notice nothing.

    The strategy is one_for_one, and the restart intensity is counted for each child alone: one that
    crashes more than `max_restarts` times within `window_ms` is given up and logged, its siblings
    go on. A child that stops in the ordinary way is forgotten.

    Args:
        max_restarts: How many restarts of one child within the window.
        window_ms: That window, in milliseconds.
    """

    __slots__ = ("_children", "_max_restarts", "_window_ms")

    def __init__(
        self,
        *,
        max_restarts: int = 3,
        window_ms: int = 5_000,
        mailbox_limit: int = DEFAULT_MAILBOX_LIMIT,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(mailbox_limit=mailbox_limit, clock=clock)
        self._max_restarts: int = options.integer("max_restarts", max_restarts, minimum=0)
        self._window_ms: int = options.integer("window_ms", window_ms, minimum=1)
        self._children: dict[str, _Child] = {}

    async def start_child(self, key: str, factory: Callable[[], A]) -> A:
        """The running child of that name, started if there is none. One start, for any number of callers.

        Cancelling the caller does not stop the start.

        Raises:
            Exception: What the child's start raised; it is not kept.
        """
        if self._phase != _RUNNING:
            raise self._gone()
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = _Child(factory)
            child.starting = self.spawn(_guarded(self._start(key, child)))
        if child.starting is not None:
            outcome = await asyncio.shield(child.starting)
            if isinstance(outcome, BaseException):
                raise outcome
            return cast(A, outcome)
        return cast(A, child.actor)

    async def stop_child(self, key: str) -> None:
        """Stop and forget that child. Idempotent."""
        child = self._children.get(key)
        if child is None:
            return
        if child.starting is not None:
            await asyncio.wait([child.starting])
        if self._children.get(key) is child:
            del self._children[key]
        if child.actor is not None:
            await child.actor.stop()

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
        """Stop the children, the youngest first."""
        keys = list(reversed(self._children))
        await asyncio.gather(*(self.stop_child(key) for key in keys), return_exceptions=True)

    def on_crash(self, reason: BaseException) -> None:
        """A crashed supervisor takes its children with it."""
        for child in self._children.values():
            if child.actor is not None:
                child.actor.crash(reason)

    async def _start(self, key: str, child: _Child) -> Actor:
        try:
            actor = await child.factory().start()
        except BaseException:
            self._forget(key, child)
            raise
        finally:
            child.starting = None
        child.actor = actor
        actor.monitor(lambda ended, reason: self._child_ended(key, child, ended, reason))
        return actor

    def _child_ended(self, key: str, child: _Child, ended: Actor, reason: BaseException | None) -> None:
        if child.actor is not ended or self._children.get(key) is not child:
            return
        if reason is None or not self.is_running:
            self._forget(key, child)
            return
        if not self._may_restart(child):
            logger.error(
                "%r gives up on %s: more than %d restarts within %d ms",
                self, key, self._max_restarts, self._window_ms,
            )  # fmt: skip
            self._forget(key, child)
            return
        child.starting = self.spawn(_guarded(self._restart(key, child, ended)))

    async def _restart(self, key: str, child: _Child, ended: Actor) -> Actor:
        await ended.stop()  # its tasks have ended before the successor begins
        while True:
            child.actor = None
            try:
                return await self._start(key, child)
            except Exception as error:
                if self._children.setdefault(key, child) is not child:
                    raise
                if not self._may_restart(child):
                    logger.error("%r gives up on %s: it does not start", self, key, exc_info=error)
                    self._forget(key, child)
                    raise
                child.starting = cast("asyncio.Task[Actor]", asyncio.current_task())

    def _may_restart(self, child: _Child) -> bool:
        now = self._clock.monotonic()
        while child.restarts and child.restarts[0] <= now - self._window_ms / 1000:
            child.restarts.popleft()
        child.restarts.append(now)
        return len(child.restarts) <= self._max_restarts

    def _forget(self, key: str, child: _Child) -> None:
        if self._children.get(key) is child:
            del self._children[key]


async def _guarded(start: Coroutine[Any, Any, Actor]) -> Any:
    """A child that does not start is its caller's news, not the supervisor's crash."""
    try:
        return await start
    except (Exception, AsmError) as error:
        return error
