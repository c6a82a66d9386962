"""Who reads a session here: its subscriptions, and those who await its runs.

They share one `Feed`, which runs while there is anybody to read it.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager

from asm_runtime.actor import Spawn
from asm_runtime.clock import Clock, Timer, all_done
from asm_runtime.errors import ActorStopped, AsmError
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, EventType
from asm_runtime.runtime.foreign import answered
from asm_runtime.runtime.subscription import Feed, Subscription

__all__ = ["Readers"]

logger = logging.getLogger(__name__)

FEED_LINGER_S = 1.0
"""How long the feed goes on with nobody to read it: awaiting run after run needs no new one."""


class Readers:
    """The readers of one server, and their feed. State changes in plain steps.

    Args:
        store: Where the log is.
        session_id: Whose log.
        clock: The source of time.
        spawn: Gives work a task of the server.
        gone: Makes the error for whoever asks a server that has ended.
    """

    __slots__ = (
        "_changes",
        "_clock",
        "_ended",
        "_feed",
        "_feed_task",
        "_gone",
        "_rest",
        "_session_id",
        "_spawn",
        "_store",
        "_subscriptions",
    )

    def __init__(
        self,
        store: SessionStore,
        session_id: str,
        *,
        clock: Clock,
        spawn: Spawn,
        gone: Callable[[], ActorStopped],
    ) -> None:
        self._store = store
        self._session_id = session_id
        self._clock = clock
        self._spawn = spawn
        self._gone = gone
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._changes: dict[str, set[asyncio.Future[None]]] = {}
        self._feed: Feed | None = None
        self._feed_task: asyncio.Task[None] | None = None
        self._rest: Timer | None = None
        self._ended = False

    # -- subscriptions

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    def subscribe(
        self,
        *,
        from_sequence: int,
        after: int | None,
        run_id: str | Collection[str] | None,
        type: EventType | str | Collection[EventType | str] | None,
        buffer: int,
    ) -> Subscription:
        """See `SessionServer.subscribe`."""
        subscription = Subscription(
            self._store,
            session_id=self._session_id,
            clock=self._clock,
            feed=self._running_feed,
            on_end=self._subscription_ended,
            gone=self._gone,
            from_sequence=from_sequence,
            after=after,
            run_id=run_id,
            type=type,
            buffer=buffer,
        )
        self._subscriptions.add(subscription)
        return subscription

    async def handed_out(self, number: int) -> None:
        """Return when live subscriptions have been given the event of that number."""
        if self._feed is not None and self._subscriptions:
            await self._feed.reached(number)

    # -- changes of runs

    async def started(self) -> None:
        """Return when every later change of a run is told to who asked for it.

        Raises:
            ActorStopped: The server has ended.
        """
        await self._running_feed().started()

    @contextmanager
    def change_of(self, run_id: str) -> Generator[asyncio.Future[None], None, None]:
        """A future that is resolved when something has happened to that run."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._changes.setdefault(run_id, set())
        waiting.add(change)
        try:
            yield change
        finally:
            waiting.discard(change)
            if not waiting:
                del self._changes[run_id]
            self._rest_feed()

    def tell_changed(self, run_id: str) -> None:
        """Something has happened to that run."""
        for change in self._changes.get(run_id, ()):
            if not change.done():
                change.set_result(None)

    # -- the end

    async def finish(self, *, grace_s: float) -> None:
        """Every subscription gets what is stored up to now, at its own pace, then ends.

        If the store does not say in time where the log ends, they end with `ActorStopped`.
        """
        subscriptions = tuple(self._subscriptions)
        if not subscriptions:
            return
        looking = self._spawn(self._last_number())
        last = looking.result() if await all_done(self._clock, grace_s, looking) else None
        looking.cancel()
        for subscription in subscriptions:
            if last is None:
                subscription.fail(self._gone())
            else:
                subscription.finish(last)

    def fail(self) -> None:
        """The server has crashed: tell the subscriptions."""
        for subscription in tuple(self._subscriptions):
            subscription.fail(self._gone())

    def end(self) -> None:
        """Release whoever waits; there is no feed any more."""
        self._ended = True
        if self._rest is not None:
            self._rest.cancel()
        if self._feed is not None:
            self._feed.end()
        self._tell_all()

    async def _last_number(self) -> int | None:
        try:
            return await answered(self._store.get_latest_sequence(self._session_id))
        except AsmError as error:
            logger.warning("session %s ends its subscriptions early: %r", self._session_id, error)
            return None

    def _tell_all(self) -> None:
        for run_id in tuple(self._changes):
            self.tell_changed(run_id)

    # -- the feed

    def _running_feed(self) -> Feed:
        """The feed, started if nobody has needed it until now."""
        if self._feed is None or self._feed.has_ended:
            if self._ended:
                raise self._gone()
            feed = self._feed = Feed(
                self._store,
                self._session_id,
                clock=self._clock,
                on_terminal=self._terminal_seen,
                on_look=self._rest_feed,  # a dropped subscription says nothing when it goes
            )
            self._feed_task = self._spawn(self._run(feed))
        return self._feed

    async def _run(self, feed: Feed) -> None:
        try:
            await feed.run()
        except ActorStopped as stopped:
            for subscription in tuple(self._subscriptions):
                subscription.fail(stopped)
        else:  # the session was deleted
            for subscription in tuple(self._subscriptions):
                subscription.finish(feed.position)
        finally:
            feed.end()
            self._tell_all()

    def _terminal_seen(self, event: Event) -> None:
        if event.run_id is not None:
            self.tell_changed(event.run_id)

    def _subscription_ended(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        self._rest_feed()

    def _is_idle(self) -> bool:
        return not self._subscriptions and not self._changes

    def _rest_feed(self) -> None:
        """Let the feed end after a while, if nobody needs it then."""
        if self._feed is not None and self._rest is None and not self._ended and self._is_idle():
            self._rest = self._clock.call_later(FEED_LINGER_S, self._end_idle_feed)

    def _end_idle_feed(self) -> None:
        self._rest = None
        if self._feed_task is not None and self._is_idle():
            self._feed_task.cancel()
            self._feed = None
            self._feed_task = None
