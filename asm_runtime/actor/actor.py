"""An actor: a mailbox with a life, from its start to its stop or its crash."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar, TypeVarTuple, cast

from asm_runtime.actor.mailbox import (
    CLOSING,
    DEFAULT_MAILBOX_LIMIT,
    NEW,
    RUNNING,
    STARTING,
    STOPPED,
    STOPPING,
    Letter,
    Mailbox,
)
from asm_runtime.clock import SYSTEM_CLOCK, Clock, Timer, all_done
from asm_runtime.errors import ActorStopped
from asm_runtime.tasks import leave_behind, start_task

__all__ = ["Actor", "Monitor", "Spawn", "Watcher"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

logger = logging.getLogger(__name__)

_TOLD_A_TURN = 250
"""How many who wait are told of an actor's end before the loop has a turn."""

Watcher: TypeAlias = Callable[["Actor", BaseException | None], object]


class Spawn(Protocol):
    """The type of `Actor.spawn`, for code that works on behalf of an actor."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> asyncio.Task[T]:
        """Run a task that belongs to the actor."""
        ...


class Monitor:
    """A watch on an actor's end, from `Actor.monitor`."""

    # An actor's monitors form a chain: a dict would cost more than the usual one itself.
    __slots__ = ("_actor", "_newer", "_older", "_watcher")

    def __init__(self, actor: Actor, watcher: Watcher) -> None:
        self._actor = actor
        self._watcher: Watcher | None = watcher
        self._older: Monitor | None = None
        self._newer: Monitor | None = None

    def cancel(self) -> None:
        """Watch no longer. Idempotent."""
        if self._watcher is not None:
            self._watcher = None
            self._leave(self._actor._extra())

    def _join(self, extras: _Extras) -> None:
        older = self._older = extras.newest_monitor
        if older is not None:
            older._newer = self
        extras.newest_monitor = self

    def _leave(self, extras: _Extras) -> None:
        older, newer = self._older, self._newer
        self._older = self._newer = None
        if older is not None:
            older._newer = newer
        if newer is not None:
            newer._older = older
        else:  # it was the newest, or is not in the chain any more, and then there is none
            extras.newest_monitor = older

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
        "ending",
        "newest_monitor",
        "reason",
        "starting",
        "tasks",
        "timers",
        "untold",
    )

    def __init__(self) -> None:
        self.timers: set[_ActorTimer] | None = None
        self.tasks: set[asyncio.Task[Any]] | None = None
        self.newest_monitor: Monitor | None = None
        self.starting: asyncio.Future[None] | None = None
        self.ending: asyncio.Task[None] | None = None
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
        if self._actor._phase in (STARTING, RUNNING):
            self._actor._put(self._letter)


class Actor(Mailbox):
    """A mailbox and the handlers that empty it.

    A subclass keeps its state in names of its own: to redefine an underscored name of this class is
    a `TypeError`.

    Args:
        mailbox_limit: How many messages may wait; then `call` and `cast` suspend their caller.
        clock: The source of its timers.
    """

    __slots__ = ("_clock", "_extras")

    def __init__(self, *, mailbox_limit: int = DEFAULT_MAILBOX_LIMIT, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(mailbox_limit)
        self._clock = clock
        self._extras: _Extras | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.__module__.startswith(f"{__package__}."):
            for name in vars(cls):
                if name.startswith("_") and not name.startswith("__") and hasattr(Actor, name):
                    raise TypeError(f"{cls.__name__}.{name} would replace a part of asm_runtime.actor.Actor")

    # -- lifecycle

    async def on_start(self) -> None:
        """Open what the actor needs. One that raises must leave nothing open."""

    async def on_stop(self) -> None:
        """Close what the actor opened; the mailbox is empty and accepts nothing any more."""

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
        return self._phase == RUNNING

    async def start(self) -> Self:
        """Begin to take messages; returns itself. Starting a running one does nothing.

        Raises:
            ActorStopped: It was stopped, or has crashed.
            Exception: What `on_start` raised; nothing is left running and it may be started again.
        """
        while self._phase != RUNNING:
            if self._phase > RUNNING:
                raise self._gone()
            if self._phase == STARTING:
                await self._start_of_another()
            else:
                await self._start_now()
        return self

    async def stop(self) -> None:
        """Handle what was sent before, then close. Stopping a stopped actor does nothing.

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
        if phase in (STOPPED, NEW):
            return
        logger.error("%r crashed", self, exc_info=reason)
        if phase == CLOSING:
            return  # on_stop is at work, and is the better end
        self._phase = STOPPED
        extras = self._extra()
        extras.reason = reason
        if phase != STARTING:  # else on_start is still opening: `_start_now` waits for it
            self._drop(reason)
        for task in self._owned_tasks():
            task.cancel()
        self._close()

    def abandon(self, state: str) -> None:
        """End it in this process, which has inherited it by a fork, and leave it to the other.

        Those who wait are not told and no task is cancelled: they and their loop belong to the other
        process too.

        Args:
            state: What its users here are told, after its name.
        """
        self._phase = STOPPED
        self._mail, self._rest, self._busy, self._in_hand, self._waiters = [], None, None, None, None
        self._extras = _Extras()
        self._extras.abandoned = state

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def send_after(self, seconds: float, handler: Callable[[*Ts], object], /, *args: *Ts) -> Timer:
        """Cast to itself later; returns a handle whose `cancel()` prevents it.

        It never fires once the actor stops. It may be set then all the same: cleaning up needs no check.

        Raises:
            ActorStopped: The actor is not started.
        """
        if self._phase == NEW:
            raise self._gone()
        timer = _ActorTimer(self, (handler, args, None))
        if self._phase == STOPPED:
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
        if self._phase == STOPPED:
            asyncio.get_running_loop().call_soon(monitor._tell, extras.reason)
        else:
            monitor._join(extras)
        return monitor

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a task that belongs to the actor, in a copy of its context.

        If it raises, the actor crashes; when the actor ends, it is cancelled and awaited.

        Raises:
            ActorStopped: The actor is not started, or has ended.
        """
        if self._phase in (NEW, STOPPED) or self._context is None:
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
        self._phase = STARTING
        self._scheduled = True
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        try:
            await self.on_start()
            if self._phase == STOPPED:  # crashed by one of its tasks; what on_start opened is open
                self._drop(cast(BaseException, self._extra().reason))
                raise self._gone()
        except BaseException:
            self._cancel_timers()
            self._mail.clear()
            try:
                await self._end_tasks()
            finally:
                self._start_ended(NEW)
            raise
        self._start_ended(RUNNING)
        self._schedule()

    def _start_ended(self, phase: int) -> None:
        self._scheduled = False
        if self._phase == STARTING:  # else it crashed meanwhile
            self._phase = phase
        extras = self._extras
        if extras is not None and extras.starting is not None:
            extras.starting.set_result(None)
            extras.starting = None

    async def _end(self, extras: _Extras) -> None:
        try:
            while self._phase == STARTING:
                await self._start_of_another()
            if self._phase == RUNNING:
                self._phase = STOPPING
                await self._until_idle()
            if self._phase == STOPPING:
                self._phase = CLOSING
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
                self._phase = STOPPED
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
        waiting = self._give_up()
        if extras.untold is not None:
            extras.untold.extend(waiting)
        elif waiting:
            extras.untold = deque(waiting)
            self._tell_untold(extras, extras.untold)
        monitors: list[Monitor] = []
        while (monitor := extras.newest_monitor) is not None:
            monitors.append(monitor)
            monitor._leave(extras)
        for monitor in reversed(monitors):
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

    def _gone(self) -> ActorStopped:
        reason = None if self._extras is None else self._extras.reason
        if reason is not None:
            state = "has crashed"
        elif self._extras is not None and self._extras.abandoned is not None:
            state = self._extras.abandoned
        else:
            state = {NEW: "is not started", STARTING: "is not started yet"}.get(self._phase, "has stopped")
        error = ActorStopped(f"{self!r} {state}")
        error.__cause__ = reason
        return error

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        extras = self._extra()
        if extras.tasks is not None:
            extras.tasks.discard(task)
            extras.tasks = extras.tasks or None
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._fail(error)

    def _extra(self) -> _Extras:
        extras = self._extras
        if extras is None:
            extras = self._extras = _Extras()
        return extras
