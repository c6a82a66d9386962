"""The readers of a session here: its subscriptions, and the callers that await its runs.

They share one `Feed`, which runs while there is anybody to read it.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Collection, Container
from copy import copy
from functools import partial

from asm_runtime.actor import Spawn, answer
from asm_runtime.clock import Clock, Timer, all_done
from asm_runtime.errors import ActorStopped, AsmError
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, EventType
from asm_runtime.runtime.answers import Answers
from asm_runtime.runtime.endings import RunOutcome, last_number_of, outcome_of
from asm_runtime.runtime.foreign import answered, store_errors
from asm_runtime.runtime.subscription import Feed, Subscription
from asm_runtime.tasks import FEW, few_a_turn

__all__ = ["Readers"]

logger = logging.getLogger(__name__)

LOOK_DELAY_S = 0.05
"""How long a run that waits here is given to start, before it is looked for in the store and the log.

Most are claimed at once. Then nothing is read for who awaits them, and the feed need not run.
"""

FEED_LINGER_S = 1.0
"""How long the feed goes on with nobody to read it: awaiting run after run needs no new one."""


class Readers:
    """The readers of one server, and their feed. State changes in plain steps.

    Args:
        store: Where the log is.
        session_id: Whose log.
        clock: The source of time.
        in_flight: The ids of the runs that execute here.
        waits: Whether a run waits that was submitted here.
        answers: Where the work for those who await a run is done.
        spawn: Gives work a task of the server.
        gone: Makes the error for callers of a server that has ended.
    """

    __slots__ = (
        "_answers",
        "_awaited",
        "_clock",
        "_ended",
        "_feed",
        "_feed_task",
        "_gone",
        "_in_flight",
        "_rest",
        "_session_id",
        "_spawn",
        "_store",
        "_subscriptions",
        "_waits",
    )

    def __init__(
        self,
        store: SessionStore,
        session_id: str,
        *,
        clock: Clock,
        in_flight: Container[str],
        waits: Callable[[str], bool],
        answers: Answers,
        spawn: Spawn,
        gone: Callable[[], ActorStopped],
    ) -> None:
        self._store = store
        self._session_id = session_id
        self._clock = clock
        self._in_flight = in_flight
        self._waits = waits
        self._answers = answers
        self._spawn = spawn
        self._gone = gone
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        # By run: those who wait for its end.
        self._awaited: dict[str, set[asyncio.Future[RunOutcome]]] = {}
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

    # -- those who await a run

    def awaits(self, run_id: str, reply: asyncio.Future[RunOutcome]) -> None:
        """Answer when that run has ended, wherever, and its events are handed out."""
        self._awaited.setdefault(run_id, set()).add(reply)
        reply.add_done_callback(partial(self._awaits_no_more, run_id))
        if self._waits(run_id):
            timer = self._clock.call_later(LOOK_DELAY_S, self._look, run_id, reply)
            reply.add_done_callback(lambda _: timer.cancel())
        else:
            self._look(run_id, reply)

    def changed(self, run_id: str) -> None:
        """That run may have ended, here or elsewhere."""
        few_a_turn(partial(self._look, run_id), self._awaited.get(run_id, ()))

    def ended(self, run_id: str, outcome: RunOutcome) -> None:
        """An attempt of that run has ended here."""
        if run_id in self._in_flight:
            return  # a later one goes on
        if not outcome.is_final:
            self.changed(run_id)
        elif run_id in self._awaited:
            handed_out = self._handed_out(outcome.last_sequence_number)
            if handed_out is None:
                self._tell(run_id, outcome)
            else:
                handed_out.add_done_callback(lambda _: self._tell(run_id, outcome))

    async def stored_outcome(self, run_id: str) -> RunOutcome | None:
        """How it has ended, if it has and nothing of it is under way here; its events are handed out then."""
        with store_errors():
            run = await self._store.get_run(run_id, session_id=self._session_id)
            if not run.status.is_terminal or run_id in self._in_flight:
                return None
            last = await last_number_of(self._store, run)
        handed_out = self._handed_out(last)
        if handed_out is not None:
            await handed_out
        return outcome_of(run, last)

    def _look(self, run_id: str, reply: asyncio.Future[RunOutcome]) -> None:
        """Answer from the store, unless the run is in flight here: then its end is told."""
        if run_id not in self._in_flight and not reply.done():
            self._answers.find(reply, self._looked(run_id))

    async def _looked(self, run_id: str) -> None:
        # Every later change is told: none falls between the look and that.
        await self._running_feed().started()
        outcome = await self.stored_outcome(run_id)
        if outcome is not None:
            self._tell(run_id, outcome)

    def _handed_out(self, number: int) -> asyncio.Future[None] | None:
        """Done when live subscriptions have been given the event of that number; None: they have."""
        return self._feed.reached(number) if self._feed is not None and self._subscriptions else None

    def _tell(self, run_id: str, outcome: RunOutcome) -> None:
        for reply in self._awaited.pop(run_id, ()):  # all at once: the server may end in the next turn
            answer(reply, outcome)

    def _awaits_no_more(self, run_id: str, reply: asyncio.Future[RunOutcome]) -> None:
        waiting = self._awaited.get(run_id)
        if waiting is not None:
            waiting.discard(reply)
            if not waiting:
                del self._awaited[run_id]
        self._rest_feed()

    # -- the end

    async def finish(self, *, grace_s: float) -> None:
        """Every subscription gets what is stored up to now, at its own pace, then ends.

        If the store does not say in time where the log ends, they end with `ActorStopped`.
        """
        if not self._subscriptions:
            return
        looking = self._spawn(self._last_number())
        last = looking.result() if await all_done(self._clock, grace_s, looking) else None
        looking.cancel()
        if last is None:
            self.fail()
        else:
            await self._finish_with(last)

    def fail(self) -> None:
        """The server has crashed: tell the subscriptions."""
        self._fail_with(self._gone)

    def end(self) -> None:
        """There is no feed any more."""
        self._ended = True
        if self._rest is not None:
            self._rest.cancel()
        if self._feed is not None:
            self._feed.end()

    async def _finish_with(self, last: int) -> None:
        for number, subscription in enumerate(tuple(self._subscriptions), start=1):
            subscription.finish(last)
            if number % FEW == 0:
                await asyncio.sleep(0)

    def _fail_with(self, error: Callable[[], ActorStopped]) -> None:
        few_a_turn(lambda subscription: subscription.fail(error()), self._subscriptions)

    async def _last_number(self) -> int | None:
        try:
            return await answered(self._store.get_latest_sequence(self._session_id))
        except AsmError as error:
            logger.warning("session %s ends its subscriptions early: %r", self._session_id, error)
            return None

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
            self._fail_with(partial(copy, stopped))
        else:  # the session was deleted
            await self._finish_with(feed.position)
        finally:
            feed.end()
            if not self._ended:
                for run_id in tuple(self._awaited):  # nothing is told of them any more: they are looked up
                    self.changed(run_id)

    def _terminal_seen(self, event: Event) -> None:
        if event.run_id is not None:
            self.changed(event.run_id)

    def _subscription_ended(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        self._rest_feed()

    def _is_idle(self) -> bool:
        return not self._subscriptions and not self._awaited

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
