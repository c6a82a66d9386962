"""Actors that are restarted when they crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

from asm_runtime import options
from asm_runtime.actor.actor import Actor
from asm_runtime.actor.mailbox import DEFAULT_MAILBOX_LIMIT
from asm_runtime.clock import SYSTEM_CLOCK, Clock, Timer
from asm_runtime.errors import ActorStopped, AsmError

__all__ = ["DEFAULT_RESTART_BACKOFF_MS", "Supervisor"]

T = TypeVar("T")
A = TypeVar("A", bound=Actor)

logger = logging.getLogger(__name__)

DEFAULT_RESTART_BACKOFF_MS = 100
MOST_RESTART_BACKOFF_S = 10.0

_STOPS_A_TURN = 64
"""How many children a supervisor tells to stop before the loop has a turn."""


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

    def __call__(self, actor: Actor, reason: BaseException | None) -> None:
        """Its actor has ended."""
        self.supervisor._child_ended(self, actor)


class Supervisor(Actor):
    """Starts actors, and starts a successor for each that crashes; the others notice nothing.

    The strategy is one_for_one. The first restart comes at once, the following ones after a pause that
    doubles each time, up to ten seconds; after a child has run for longer than `window_ms` it starts
    from the beginning. The restart intensity is counted for each child alone: one that crashes more than
    `max_restarts` times within `window_ms` is given up and logged, its siblings go on. A successor that
    does not start has crashed once more. What failed with an error that says that trying again helps
    (`AsmError.retryable`) is not counted: it is tried until it succeeds. A child that stops in the
    ordinary way is forgotten.

    Args:
        max_restarts: Maximum number of restarts of one child within the window.
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
            if not self.is_running:
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
        actor.monitor(child)
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
        if not self.is_running or child.stopping is not None:
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
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_: object) -> None:
        if not ended.done():
            ended.set_result(None)

    # As `asyncio.wait` does, for a third of its price: every start of a child comes by here.
    task.add_done_callback(end)
    try:
        await ended
    finally:
        task.remove_done_callback(end)
    if task.cancelled():
        raise ActorStopped(f"{key} was stopped, or its supervisor was")
    outcome = task.result()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
